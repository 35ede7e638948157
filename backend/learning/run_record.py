"""A run's files, read: each may be of another release, half written, or damaged, and then counts as what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["waiting", "preparing", "training", "deciding", "promoted", "kept", "postponed", "failed", "stopped"]
ENDED: frozenset[State] = frozenset(("promoted", "kept", "postponed", "failed", "stopped"))
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
TEXTS = ("id", "state", "reason", "message", "champion", "challenger")


@dataclass(frozen=True)
class Run:
    """One run; times in seconds since 1970.

    ``reason`` is why it was started, ``message`` what came of it or went wrong, ``champion`` and ``challenger`` versions, ``counts`` the
    examples it saw, ``decision`` the gate's, ``attempts`` how often its process was started. ``position`` is the log's when the run was
    asked for: what came later is news for the next one; None if an older release asked.
    """

    id: str
    state: State
    reason: str
    created: float
    ended: float | None = None
    message: str = ""
    champion: str = ""
    challenger: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    decision: dict[str, Any] | None = None
    attempts: int = 0
    position: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class ShownPair:
    """A held-out phrase with pictures: its ``index`` among the run's pairs, and the IoU to the reviewer's mask before and after, 0–1."""

    index: int
    phrase: str
    label: str
    before_iou: float
    after_iou: float


def parse_run(name: str, text: str) -> Run:
    """The record of the run with this name. Raises ValueError: what is wrong with it, in a few words."""
    values = _object(text)
    found = {one.name: values[one.name] for one in fields(Run) if one.name in values}
    for key in ("id", "state", "reason", "created"):
        if key not in found:
            raise ValueError(f"it has no {key}")
    for key in TEXTS:
        _require(isinstance(found.get(key, ""), str), key, found)
    if found["state"] not in get_args(State):
        raise ValueError(f"its state {ascii(found['state'])[:40]} is not known")
    _require(found["id"] == name, "id", found)
    _require(_is_moment(found["created"]), "created", found)
    for key in ("ended", "position"):
        _require(found.get(key) is None or _is_moment(found[key]), key, found)
    counts, decision = found.get("counts", {}), found.get("decision")
    _require(isinstance(counts, dict) and all(type(count) is int for count in counts.values()), "counts", found)
    _require(not counts or {"train", "holdout"} <= counts.keys(), "counts", found)
    _require(decision is None or (isinstance(decision, dict) and _is_plain(decision)), "decision", found)
    _require(type(found.get("attempts", 0)) is int, "attempts", found)
    return Run(**found)


def unreadable(name: str, why: str) -> Run:
    """What stands for a run whose record cannot be read: one that has failed, which nobody takes up again."""
    return Run(name, "failed", "", 0.0, message=f"run.json cannot be read: {why}; restore it, or remove the folder {name}")


def parse_progress(text: str) -> dict[str, Any]:
    """How far a run is: ``stage``, and what is ``done`` ``of`` how much; empty if the text does not say."""
    try:
        values = _object(text)
    except ValueError:
        return {}
    told: dict[str, Any] = {key: values.get(key) for key in ("stage", "done", "of")}
    whole = isinstance(told["stage"], str) and all(is_number(told[key]) and told[key] >= 0 for key in ("done", "of"))
    return told if whole else {}


def read_curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's folder, in order; empty if there is none yet.

    Steps that were done twice, for a kill came between, count once; a half or strange line does not.
    """
    curve: dict[int, float] = {}
    for line in read_text(run / "curve.jsonl").splitlines():
        try:
            step, loss = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if type(step) is int and is_number(loss):
            curve[step] = float(loss)
    return sorted(curve.items())


def parse_changes(text: str, count: int) -> list[ShownPair]:
    """The first pictures of an evaluation; none if the text is not one."""
    try:
        found = _object(text)
        shown = [(index, found["pairs"][index]) for index in found["pictures"][:count]]
        listed = [ShownPair(index, one["phrase"], one["label"], one["champion"], one["challenger"]) for index, one in shown]
    except (ValueError, LookupError, TypeError):
        return []
    return listed if all(_is_shown(one) for one in listed) else []


def read_text(path: Path) -> str:
    """A file's text; empty if there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number that a float holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _is_moment(value: object) -> bool:
    return is_number(value) and isinstance(value, int | float) and 0 <= value < END_OF_TIME


def _is_shown(one: ShownPair) -> bool:
    texts = isinstance(one.phrase, str) and isinstance(one.label, str)
    return type(one.index) is int and texts and is_number(one.before_iou) and is_number(one.after_iou)


def _is_plain(value: Mapping[str, Any]) -> bool:
    """Whether it can be sent as JSON that every reader takes."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _object(text: str) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    return values


def _require(right: bool, key: str, values: Mapping[str, Any]) -> None:
    if not right:
        raise ValueError(f"its {key} cannot be {ascii(values.get(key))[:40]}")
