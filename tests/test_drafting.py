"""Drafts of answers: whatever they are, the answer is that of plain greedy decoding, in fewer passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sam4mllm.grounding.decoding import Written, write
from sam4mllm.grounding.drafting import BoxSpelling, spell
from sam4mllm.grounding.encoders import with_text
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.prompts.conversation import box_answer
from sam4mllm.prompts.dialects import DEFAULT, DEMO, DIALECTS, GLM_V, INTERNVL, LLAVA, MOLMO2, QWEN2_5_VL, QWEN2_VL, Dialect
from tests.family_base import make_family
from tests.family_models import KINDS, PHRASES
from tests.test_mllm import picture

torch.set_num_threads(1)

END = 0
BASE = 1_000
"""Tokens from here on are numbers of one token each: 1333 is "333"."""

Encode = Callable[[str], list[int]]


def by_character(text: str) -> list[int]:
    return list(map(ord, text))


def by_number(text: str) -> list[int]:
    """As the demo's tokenizer: thousandths are one token each, and spaces none."""
    words = text.replace("[", " [ ").replace("]", " ] ").split()
    return [token for word in words for token in ([BASE + int(word)] if word.isdigit() else by_character(word))]


def is_number(token: int) -> bool:
    return token >= BASE or chr(token).isdigit()


class Scripted:
    """A model that has an answer for each question, and says something else where it was fed something else.

    A question is one token and its number. It checks that each token has its position, and sees its own question and answer alone.
    """

    def __init__(self, answers: Sequence[Sequence[int]], wander: int) -> None:
        self.answers = answers
        self.wander = wander
        self.passes = 0
        self.checkpoint: Any = self
        self.tokenizer = self

    @staticmethod
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def forward(
        self,
        scene: Any,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Any = None,
        of: Any = None,
    ) -> tuple[Tensor, Any]:
        self.passes += 1
        known = [*(cache or []), *zip(ids.tolist(), offsets.tolist(), strict=True)]
        assert mask.shape == (len(ids), len(known))
        logits = torch.full((len(keep), 3_000), -9.0)
        for row, place in enumerate(keep):
            seen = [known[column] for column in np.flatnonzero(mask[place])]
            assert [offset for _, offset in seen] == list(range(len(seen)))
            logits[row, self.following([token for token, _ in seen])] = 0.0
        return logits, known

    def following(self, seen: Sequence[int]) -> int:
        assert seen[0] == ord("?")
        answer = [*self.answers[seen[1]], END]
        said = list(seen[2:])
        if said == answer[: len(said)]:
            return answer[len(said)]
        usual = answer[min(len(said), len(answer) - 1)]
        return usual if hash((*said, self.wander)) % 3 else (hash(tuple(said)) + self.wander) % 3_000


def decode(answers: Sequence[Sequence[int]], spellings: Sequence[BoxSpelling | None] | None, wander: int = 0) -> tuple[list[Written], int]:
    model = Scripted(answers, wander)
    questions = [[ord("?"), index] for index in range(len(answers))]
    return write(model, None, questions, frozenset({END}), 60, None, spellings), model.passes  # type: ignore[arg-type]


def spelling_of(dialect: Dialect, encode: Encode, phrase: str = "the cup") -> BoxSpelling | None:
    return spell(dialect, phrase, encode, is_number)


def as_told(found: Sequence[Written]) -> list[tuple[object, ...]]:
    return [(one.ids, one.text, one.log_probabilities, one.finished, one.beginnings.tolist()) for one in found]


boxes = st.lists(st.tuples(*[st.integers(0, 999)] * 4), max_size=4)
odd = st.lists(st.one_of(st.integers(32, 126), st.integers(BASE, BASE + 999)), max_size=30)


@pytest.mark.parametrize(
    ("dialect", "encode"), [(DEMO, by_number), (QWEN2_5_VL, by_character), (LLAVA, by_character), (INTERNVL, by_character)]
)
@given(data=st.data(), wander=st.integers(0, 99))
def test_the_answer_is_the_one_without_drafts(dialect: Dialect, encode: Encode, data: st.DataObject, wander: int) -> None:
    answers = [
        data.draw(odd) if data.draw(st.integers(0, 3)) == 0 else encode(box_answer(dialect, "the cup", data.draw(boxes)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    plain, plain_passes = decode(answers, None)
    drafted, passes = decode(answers, [spelling_of(dialect, encode)] * len(answers), wander)
    assert as_told(drafted) == as_told(plain)
    assert passes <= plain_passes


@pytest.mark.parametrize(
    ("dialect", "encode", "answer", "passes"),
    [
        pytest.param(DEMO, by_number, "[1 2 3 4]", 3, id="numbers of one token: 7 tokens, each number once wrong and once right"),
        pytest.param(DEMO, by_number, "none", 5, id="no box"),
        pytest.param(
            QWEN2_5_VL, by_character, '[{"bbox_2d": [12, 345, 67, 8]}]', 10, id="a pass for each digit, that of bbox_2d included: 31 tokens"
        ),
        pytest.param(INTERNVL, by_character, "<ref>the cup</ref><box>[[1, 2, 3, 4]]</box>", 5, id="the phrase, too, 43 tokens"),
    ],
)
def test_passes_of_an_answer(dialect: Dialect, encode: Encode, answer: str, passes: int) -> None:
    tokens = encode(answer)
    found, taken = decode([tokens], [spelling_of(dialect, encode)])
    assert list(found[0].ids) == tokens
    assert taken == passes


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_every_dialect_is_spelled_but_those_that_point(dialect: Dialect) -> None:
    spelling = spelling_of(dialect, by_character)
    assert (spelling is None) == dialect.answers_with_points


@pytest.mark.parametrize(
    ("dialect", "said", "draft"),
    [
        pytest.param(DEFAULT, "", "[", id="the beginning"),
        pytest.param(DEFAULT, "[1", ",", id="after a digit what ends the number"),
        pytest.param(DEFAULT, "[1,2,3,4", "]", id="the end"),
        pytest.param(DEFAULT, "[1,2,3,4] ", "[", id="another box"),
        pytest.param(QWEN2_VL, "<|box_start|>(1,2", "),(", id="literals of different lengths"),
        pytest.param(GLM_V, "<|begin_of_box|>[[1,2,3,4],", "[", id="in the middle of what is between"),
        pytest.param(GLM_V, "<|begin_of_box|>[[1,2,3,4", "]]<|end_of_box|>", id="an end of several tokens"),
        pytest.param(DEFAULT, "It is at", "", id="other words"),
        pytest.param(DEFAULT, "[1.5", ",", id="a number in another spelling"),
    ],
)
def test_what_is_drafted(dialect: Dialect, said: str, draft: str) -> None:
    spelling = spelling_of(dialect, by_character)
    assert spelling is not None
    assert "".join(map(chr, spelling.draft(by_character(said)))) == draft


def test_a_phrase_with_digits_in_the_answer_is_not_drafted() -> None:
    assert spelling_of(INTERNVL, by_character, "cup no. 7") is None


def test_no_spelling_of_points() -> None:
    assert spelling_of(MOLMO2, by_character) is None


# -- trained models ------------------------------------------------------------------------------------------------------------------------

TAUGHT = {PHRASES[0]: [(12, 340, 567, 899)], PHRASES[1]: [(7, 8, 90, 412), (300, 40, 55, 666)]}


def taught(name: str, folder: Path) -> MllmGrounder:
    """A tiny model of a family that has learned two answers by heart."""
    grounder = MllmGrounder(load_checkpoint(make_family(KINDS[name], folder), torch.device("cpu")), max_new_tokens=80)
    checkpoint = grounder.checkpoint
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(picture(3)))
    lessons = []
    for phrase, answer in TAUGHT.items():
        question = grounder.question(phrase)
        ids = [*question, *grounder.encode(box_answer(grounder.dialect, phrase, answer)), grounder.end]
        lessons.append((with_text(encoded, torch.tensor(ids), torch.arange(len(ids))), torch.tensor(ids[len(question) :])))
    weights = list(checkpoint.model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, 5e-3)
    for _ in range(60):
        losses = []
        for inputs, wanted in lessons:
            hidden = checkpoint.model.model(**inputs, use_cache=False, return_dict=True).last_hidden_state
            said = logits_of(checkpoint.model, hidden[0, -len(wanted) - 1 : -1])
            losses.append(torch.nn.functional.cross_entropy(said, wanted))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return grounder


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "LLaVA-NeXT, Llama 3"])
def test_a_model_that_writes_boxes_writes_the_same_in_fewer_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grounder = taught(name, tmp_path)
    passes = [0]
    forward = grounder.forward

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return forward(*given)

    monkeypatch.setattr(grounder, "forward", counted)
    scene = grounder.open(picture(3))
    drafted, few = grounder.ground(scene, list(TAUGHT)), passes[0]
    monkeypatch.setattr("sam4mllm.grounding.mllm.spell", lambda *_: None)
    plain, many = grounder.ground(scene, list(TAUGHT)), passes[0] - few
    assert [len(one.boxes_px) for one in plain] == [1, 2]
    for one, other in zip(drafted, plain, strict=True):
        np.testing.assert_array_equal(one.boxes_px, other.boxes_px)
        np.testing.assert_allclose(one.box_probabilities, other.box_probabilities, atol=1e-5)
    assert few <= 0.6 * many
