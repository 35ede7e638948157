"""The extra parameters of a project's backend entry in Label Studio: they say how its tasks are answered, and come with each ``/setup``.

::

    {
        "prompts": {"Cup": "the coffee cup", "Scratch": ["the scratch", "the dent"], "Blur": null},
        "field": "caption",
        "strategy": "choose",
        "threshold": 0.4,
    }

All of them are optional. They are foreign data: if anything is wrong with them, one line says so, and none of them is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.errors import ParametersError
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.phrases import MAX_PHRASES, split_phrases
from sam4mllm.errors import PhraseError
from sam4mllm.options import BY_CONCEPT, STRATEGIES, Strategy, known_strategies

MAX_CHARACTERS = 100_000
NAMED = 5
"""The most labels that an error's line names."""


@dataclass(frozen=True)
class Parameters:
    """A project's extra parameters; by default none is set.

    ``prompts``: the phrases that stand for a label where a task has no phrase of its own, by the label's value. A label with an empty tuple
    is not asked for. ``field``: the key of a task's data that holds its phrase. ``strategy`` and ``threshold``: they replace the server's
    (:class:`~sam4mllm.options.Options`).
    """

    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    field: str = ""
    strategy: Strategy | None = None
    threshold: float | None = None

    def apply(self, config: LabelConfig) -> LabelConfig:
        """Return a project's labelling config with the project's own phrases for its labels, also for labels that a task adds."""
        return config.asked_by(self.prompts)

    def phrase_field(self, default: str) -> str:
        return self.field or default

    def shaping(self) -> dict[str, Any]:
        """Return the parameters that change the answer to a given phrase, for use in hashes; empty if none is set."""
        return {name: value for name in ("strategy", "threshold") if (value := getattr(self, name)) is not None}

    def tell(self) -> str:
        """Return the parameters of :meth:`shaping` in words; empty if none is set."""
        return ", ".join(f"{name} {value}" for name, value in self.shaping().items())

    def to_json(self) -> str:
        """Return the parameters as JSON that :func:`read_parameters` reads. Equal parameters give the same text; none give an empty one."""
        prompts = {"prompts": {label: list(phrases) or None for label, phrases in self.prompts.items()}} if self.prompts else {}
        told = {**prompts, **({"field": self.field} if self.field else {}), **self.shaping()}
        return json.dumps(told, sort_keys=True, ensure_ascii=False) if told else ""


NO_PARAMETERS = Parameters()


def read_parameters(given: object) -> Parameters:
    """The parameters in an object, or in JSON text of one; nothing, null and blanks are none. Raises ParametersError."""
    if isinstance(given, str):
        given = _parse(given)
    if given is None:
        return NO_PARAMETERS
    if not isinstance(given, Mapping):
        raise ParametersError(f'they must be an object, as {{"field": "caption"}}, not {_kind(given)}')
    known = ("prompts", "field", "strategy", "threshold")
    if unknown := sorted(str(name) for name in given if name not in known):
        raise ParametersError(f"{unknown[0][:40]!r} is not known; use {', '.join(known)}")
    return Parameters(_prompts(given.get("prompts")), _field(given.get("field")), _strategy(given.get("strategy")), _threshold(given))


def check_parameters(parameters: Parameters, config: LabelConfig) -> None:
    """Raise ParametersError if the prompts name a label that the config lacks, or if through them one phrase stands for two labels.

    Where tasks may add labels, a label that the config lacks is no error.
    """
    values = [label.value for label in config.mask.labels]
    unknown = [label for label in parameters.prompts if label not in values]
    if unknown and not config.mask.label_value:  # a task's data may add labels
        has = ", ".join(map(repr, values[:NAMED])) + (" and more" if len(values) > NAMED else "")
        raise ParametersError(f"the label {unknown[0][:40]!r} of prompts is not in the labelling config, which has {has or 'none'}")
    owners: dict[str, str] = {}
    asked = parameters.apply(config)
    for label in asked.mask.labels:
        for phrase in asked.phrases_of(label):
            owner = owners.setdefault(phrase, label.value)
            if owner != label.value and {owner, label.value} & parameters.prompts.keys():
                raise ParametersError(f"{phrase[:40]!r} is asked for two labels, {owner[:40]!r} and {label.value[:40]!r}")


def without_effect(parameters: Parameters, strategy: str) -> str:
    """Return a line on the parameters that have no effect, empty if all have one. ``strategy`` is the server's, which holds unless the
    parameters set their own.
    """
    if parameters.threshold is not None and (parameters.strategy or strategy) not in BY_CONCEPT:
        return f"threshold is for the strategies {' and '.join(BY_CONCEPT)}; {parameters.strategy or strategy} does not look at it"
    return ""


def _parse(text: str) -> object:
    if len(text) > MAX_CHARACTERS:
        raise ParametersError(f"they have {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise ParametersError('they are no JSON; write them as {"field": "caption"}') from error


def _prompts(given: object) -> Mapping[str, tuple[str, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ParametersError(f'prompts must be an object, as {{"Cup": "the coffee cup"}}, not {_kind(given)}')
    return {_text("a label of prompts", str(label)): _phrases(str(label), entry) for label, entry in given.items()}


def _phrases(label: str, given: object) -> tuple[str, ...]:
    entries = [] if given is None else given if isinstance(given, list) else [given]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) != len(entries):
        raise ParametersError(f"the prompt of {label[:40]!r} must be a text, a list of texts, or null")
    try:
        phrases = tuple(dict.fromkeys(phrase for text in texts for phrase in split_phrases(text)))
    except PhraseError as error:
        raise ParametersError(f"the prompt of {label[:40]!r}: {error}") from error
    if given is not None and not phrases:
        raise ParametersError(f"the prompt of {label[:40]!r} is empty; write null if it is not to be asked for")
    if len(phrases) > MAX_PHRASES:
        raise ParametersError(f"the prompt of {label[:40]!r} is {len(phrases)} phrases; at most {MAX_PHRASES} are asked")
    return phrases


def _field(given: object) -> str:
    if given is None:
        return ""
    if not isinstance(given, str) or not given.strip() or len(given) > 200:
        raise ParametersError(f'field must be a key of the tasks\' data, as "caption", not {_kind(given)}')
    return _text("field", given.strip())


def _text(name: str, given: str) -> str:
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise ParametersError(f"{name} is not valid text; it holds half of a character") from error
    return given


def _strategy(given: object) -> Strategy | None:
    if given is None or (isinstance(given, str) and given in STRATEGIES):
        return given
    if not isinstance(given, str) or given not in known_strategies():
        raise ParametersError(f"strategy must be one of {', '.join(known_strategies())}, not {_kind(given)}")
    return given


def _threshold(given: Mapping[Any, object]) -> float | None:
    value = given.get("threshold")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ParametersError(f"threshold must be a number from 0 to 1, not {_kind(value)}")
    return float(value)


def _kind(value: object) -> str:
    """Return at most 40 ASCII characters of a foreign text or number, or the name of another value's type, for an error's line."""
    return ascii(value)[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
