"""Foreign programs end at their limits, and those that are meant well give what transformers and peft make of them."""

from __future__ import annotations

import re
import time
from functools import partial
from types import SimpleNamespace

import pytest

from sam4mllm import bounded
from sam4mllm.bounded import OverLimitError, match, render
from sam4mllm.errors import TemplateError
from sam4mllm.prompts.chat_template import MAX_CHARACTERS, BoundedTemplate
from sam4mllm.prompts.conversation import read_markup
from tests.family_models import KINDS, build_tokenizer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)


HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop of a list of lists": "{% set a = [0] * 99999 %}{% for b in a %}{% for c in a %}{% endfor %}{% endfor %}",
    "a large number": "{{ 10 ** (10 ** 9) }}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a wide column": "{{ '%2000000000d' % 1 }}",
    "much written": "{% for a in range(99999) %}aaaaaaaaaaaa{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_is_stopped(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(OverLimitError, match=r"does not end within 1 s of processor time and 1 GB of memory"):
        render(HOSTILE[name], {})
    assert time.monotonic() - began < bounded.WALL_SECONDS / 2


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{", "unexpected"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('roles must alternate\\nor else') }}", "roles must alternate"),
        ("{{ nothing.of.it }}", "undefined"),
        ("{% include 'etc/passwd' %}", "no loader"),
        ("{% do messages.append(1) %}", "unknown tag"),
    ],
)
def test_a_faulty_template_is_an_error_of_one_line(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        render(template, {"messages": []})
    assert "\n" not in str(caught.value)


def test_patterns_are_stopped_and_match_as_those_of_python() -> None:
    names = ["model.layers.0.q_proj", "model.layers.1.q_proj", "lm_head"]
    patterns = [r".*q_proj", r"(?!.*\.0\.).*proj", "lm_head|nothing", "q_proj"]
    assert match(patterns, names) == [[i for i, name in enumerate(names) if re.fullmatch(pattern, name)] for pattern in patterns]
    with pytest.raises(ValueError, match="unterminated"):
        match(["("], names)
    with pytest.raises(OverLimitError):
        match([r"(a+)+b"], ["a" * 60])


@pytest.mark.parametrize("name", KINDS)
def test_a_familys_template_renders_as_in_transformers(name: str) -> None:
    tokenizer = build_tokenizer(KINDS[name])
    render = partial(tokenizer.apply_chat_template, enable_thinking=False)
    assert read_markup(BoundedTemplate.of(tokenizer)) == read_markup(SimpleNamespace(apply_chat_template=render))


def test_what_templates_use_renders_as_in_transformers() -> None:
    tokenizer = build_tokenizer(next(iter(KINDS.values())))
    tokenizer.chat_template = (
        "{{ bos_token }}{{ eos_token }}{%- for m in messages if true %}\n  {% if loop.index > 9 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m['content'] | tojson }}{% endgeneration %}<{{ m.role | upper }}>\n{% endfor %}"
        "{{ strftime_now('%Y') }}{{ tools is none }}{{ add_generation_prompt }}"
    )
    said = [{"role": "user", "content": [{"type": "text", "text": "größer & <b>"}]}]
    expected = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert BoundedTemplate.of(tokenizer).apply_chat_template(said, tokenize=False, add_generation_prompt=True) == expected


def test_templates_that_are_none() -> None:
    tokenizer = build_tokenizer(next(iter(KINDS.values())))
    for template, said in (
        (None, "no chat template"),
        ({"tool_use": "x"}, "no chat template"),
        ("a" * (MAX_CHARACTERS + 1), "characters, over"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(TemplateError, match=said):
            BoundedTemplate.of(tokenizer)
