"""Training plans in files: those that come with the package, and a user's own in JSON or TOML.

A file may set the fields of :class:`~sam4mllm.training.plan.TrainingPlan`, and in a table ``asking`` those of
:class:`~sam4mllm.training.asking.Asking`.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sam4mllm.errors import TrainingError
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan, plan_of

FOLDER = Path(__file__).parent / "configs"
NAMES = ("default", "demo", "server", "paper", "released")
"""The names of the plans that come with the package."""


@dataclass(frozen=True)
class Config:
    """How an adapter is trained, and how images are asked about."""

    plan: TrainingPlan
    asking: Asking


def read_config(source: str | Path | None, **given: Any) -> Config:
    """Read one of the package's plans by its name, or a JSON or TOML file; None gives the defaults of the classes.

    The plan's fields in ``given`` that are not None override those in the file, and the defaults. Raises TrainingError, with one line on
    what is wrong, if the file cannot be read or parsed, or if a field is unknown or its value not allowed.
    """
    if source is None:
        return Config(plan_of({}, **given), Asking())
    path = FOLDER / f"{source}.toml" if str(source) in NAMES else Path(source)
    values = _read_table(path)
    try:
        return Config(plan_of({name: value for name, value in values.items() if name != "asking"}, **given), _asking(values))
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error


def read_plan(path: Path | None, **given: Any) -> TrainingPlan:
    """Return the plan alone of what ``read_config`` returns for the same arguments. Raises TrainingError as that does."""
    return read_config(path, **given).plan


def _asking(values: dict[str, Any]) -> Asking:
    table = values.get("asking", {})
    if not isinstance(table, dict):
        raise TrainingError(f"asking must be a table, not {table!r}")
    names = [field.name for field in fields(Asking)]
    unknown = sorted(table.keys() - set(names))
    if unknown:
        raise TrainingError(f"unknown {', '.join(map(repr, unknown))[:200]} in asking; known are {', '.join(names)}")
    return Asking(**table)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        known = ", ".join(NAMES)
        raise TrainingError(f"{path} cannot be read ({error.strerror}); give one of {known}, or a JSON or TOML file") from error
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is neither JSON nor, by its name, TOML ({error})") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path} is not an object with some of a plan's fields")
    return values
