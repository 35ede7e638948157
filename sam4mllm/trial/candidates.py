"""Reads the candidates of a trial from a TOML file, which has a table for each of them.

::

    [points]
    model = "FOLDER"
    segmenter = "vit_h:sam_vit_h_4b8939.pth"

    [box-in-4-bit]
    model = "FOLDER"
    strategy = "box"
    quantize = "4bit"

The keys are options of ``sam4mllm evaluate``; a key that is left out has the default of that option. Relative paths are relative to the
folder where the command is run.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from sam4mllm.errors import EvaluationError
from sam4mllm.options import (
    PATTERN,
    PATTERNS,
    AskedStrategy,
    DtypeName,
    Options,
    Pattern,
    PointsName,
    Precision,
    QuantizeName,
    known_strategies,
)
from sam4mllm.plain_text import listed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
"""Matches a candidate's name, which also names its log file and heads a column."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "points": get_args(PointsName),
    "pattern": PATTERNS,
    "quantize": get_args(QuantizeName),
    "dtype": get_args(DtypeName),
}


@dataclass(frozen=True)
class Contender:
    """A candidate: the models to load and how to ask them; ``name`` is its name in the tables."""

    name: str
    model: str | None = None
    segmenter: str | None = None
    adapter: str | None = None
    strategy: AskedStrategy = "auto"
    points: PointsName | None = None
    pattern: Pattern = PATTERN
    threshold: float = Options.threshold
    quantize: QuantizeName = "none"
    dtype: DtypeName = "auto"
    dialect: str | None = None
    device: str | None = None

    @property
    def options(self) -> Options:
        """The options that say how the models are asked."""
        joint = None if self.points is None else self.points == "joint"
        return Options(strategy=self.strategy, joint=joint, pattern=self.pattern, threshold=self.threshold)

    @property
    def precision(self) -> Precision:
        """The number format of the model's weights."""
        return Precision(self.dtype, self.quantize)

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, by key."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default and one.name != "name"}


KEYS = tuple(field.name for field in fields(Contender) if field.name != "name")


def read_candidates(path: Path) -> list[Contender]:
    """The candidates of a file, in its order. Whether their models can be loaded is not checked.

    Raises EvaluationError if the file cannot be read, is no TOML or has no candidate, or if a candidate's name, a key or a value is wrong;
    the message then names the candidate and the key, as far as there are both.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}); give a TOML file with a table for each candidate") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is no TOML ({error})") from error
    if not tables:
        raise EvaluationError(f'{path} has no candidate; write a table for each, such as [points] with strategy = "pqpp" in it')
    try:
        return [_candidate(name, table) for name, table in tables.items()]
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error


def _candidate(name: str, table: object) -> Contender:
    if not isinstance(table, dict):
        raise EvaluationError(f"{listed([name])} stands outside of a candidate; write it under a table such as [points]")
    if NAME.fullmatch(name) is None:
        raise EvaluationError(f"a candidate cannot be called {ascii(name)[:120]}; take at most 40 letters, digits, and . _ - between them")
    unknown = table.keys() - set(KEYS)
    if unknown:
        raise EvaluationError(f"{name} has the unknown key {listed(unknown)}; known are {', '.join(KEYS)}")
    return Contender(name, **{key: _value(name, key, value) for key, value in table.items()})


def _value(name: str, key: str, value: object) -> Any:
    if key == "threshold":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise EvaluationError(f"{name}: threshold is a number from 0 to 1, not {_quoted(value)}")
        return float(value)
    if not isinstance(value, str) or not value.strip():
        raise EvaluationError(f"{name}: {key} is a text, not {_quoted(value)}")
    known = ("auto", *known_strategies()) if key == "strategy" else CHOICES.get(key)
    if known is not None and value not in known:
        raise EvaluationError(f"{name}: {key} is one of {', '.join(known)}, not {_quoted(value)}")
    return value


def _quoted(value: object) -> str:
    """Return an untrusted value as error messages quote it: in ASCII, at most 80 characters."""
    return ascii(value)[:80]
