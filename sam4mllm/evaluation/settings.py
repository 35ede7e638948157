"""What ``ablate`` compares: settings that each differ from a base in one thing, beside the published one and the upper bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.controls import ANSWERS, Answers
from sam4mllm.options import PATTERN_SIZE, PLAIN, Options, Strategy, Thresholds, known_strategies

COUNTS = ("5", "10", "15", "30")
"""Numbers of points: a sixth, a third, half and all of the published pattern. The published inference asks half of it."""
THRESHOLDS = ("0.5/0.5", "0.6/0.75", "0.75/0.9", "0.9/0.95")
"""Thresholds as P(yes)/P(no): a pair that drops no answer, one looser than the published pair, the published pair, and a stricter one."""
USUAL: Mapping[str, tuple[str, ...]] = {
    "points": ("packed", "joint"),
    "count": COUNTS,
    "thresholds": THRESHOLDS,
    "answers": ANSWERS,
}
ANYWHERE: tuple[Strategy, ...] = ("box", "ppg", "pqpp")
"""The strategies that any MLLM and any segmenter can do: the others need a model that thinks, or a segmenter that takes phrases."""
PUBLISHED: Mapping[str, Any] = {
    "strategy": "pqpp",
    "joint": True,
    "count": 15,
    "thresholds": Thresholds(0.75, 0.90),
    "pattern": "spread",
    "choice": "predicted",
    "look_back": "off",
}
"""The released inference notebook: 15 points of the blue-noise pattern in one question, P(yes) > 0.75 and P(no) > 0.9, of three masks
the one of best predicted IoU."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    ``names`` are the setting's roles: ``base``, ``published``, ``oracle`` (the segmenter gets true boxes and points), or a value of an axis
    such as ``count=15``. ``segmenter`` is what ``--segmenter`` takes. ``adapter`` is a folder or a version, None for the base model alone.
    ``answers`` says whether the model's own answers are used or a control's (:mod:`sam4mllm.evaluation.controls`). ``segmenter_adapter`` is
    a folder or a version with an adapter of the mask decoder; None uses the one in ``adapter``, if any, and PLAIN uses none in any case.
    """

    names: tuple[str, ...]
    options: Options
    segmenter: str = "demo"
    adapter: str | None = None
    oracle: bool = False
    answers: Answers = "model"
    segmenter_adapter: str | None = None

    @property
    def label(self) -> str:
        """The names, joined. For the base, those of single values are left out, because it has one on every axis."""
        return ", ".join(name for name in self.names if "base" not in self.names or "=" not in name)

    @property
    def what(self) -> tuple[object, ...]:
        """A key that is equal for settings that draw the same masks."""
        return (*self._what, self.segmenter_adapter)

    @property
    def _what(self) -> tuple[object, ...]:
        if self.oracle:
            return ("oracle", self.segmenter)
        look_back = self.options.look_back
        match self.options.strategy:  # "box" leaves out the choice of a mask, which works with answers about points
            case "pqpp" | "choose" | "reason":
                same = self.answers == "shuffled-thoughts" and self.options.strategy != "reason"
                answers = "model" if same else self.answers
                return (replace(self.options, count=self.options.points), self.segmenter, self.adapter, answers)
            case "ppg":
                return ("ppg", self.options.choice, self.segmenter, self.adapter, look_back)
            case "concept":
                return ("concept", self.options.threshold, self.segmenter, look_back, self.adapter if look_back != "off" else None)
            case "box":
                return ("box", self.segmenter, self.adapter, look_back)
        return (self.options, self.segmenter, self.adapter, self.answers)  # a strategy of another package may use every option


def plan(
    base: Setting,
    axes: Mapping[str, Sequence[str]],
    adapters: Mapping[str, str] | None = None,
    grid: bool = False,
    strategies: Sequence[Strategy] = ANYWHERE,
) -> list[Setting]:
    """Return the rows: the base, the published setting, one for each value of each axis, and the upper bound of each segmenter (and of each
    adapter of its mask decoder).

    Settings that draw the same masks become one row with the names of both.

    Args:
        base: the setting that the other rows vary. Its strategy ``auto`` becomes ``pqpp``, because most axes are about points.
        axes: the values of each axis, in order; an empty sequence stands for those of ``defaults``.
        adapters: folders or versions by name; the names are the values of the axis ``rank``.
        grid: make a row for every combination of values, instead of varying one thing at a time.
        strategies: the default values of the axis ``strategy``: what model and segmenter can do.

    Raises:
        EvaluationError: an axis or a value is not known, or an axis without default values has none. The values of ``segmenter`` and
            ``segmenter-adapter`` are not checked here, but when they are loaded.
    """
    known = adapters or {}
    if base.options.strategy == "auto":
        base = replace(base, options=replace(base.options, strategy="pqpp"))
    base = replace(base, options=replace(base.options, joint=bool(base.options.joint)))
    values = {axis: tuple(given) or defaults(axis, base, known, strategies) for axis, given in axes.items()}
    rows = [replace(base, names=("base",)), replace(base, names=("published",), options=published(base.options))]
    if grid:
        for combination in product(*values.values()):
            setting = base
            for axis, value in zip(values, combination, strict=True):
                setting = vary(setting, axis, value, known)
            rows.append(replace(setting, names=(" ".join(f"{axis}={value}" for axis, value in zip(values, combination, strict=True)),)))
    else:
        rows += [replace(vary(base, axis, value, known), names=(f"{axis}={value}",)) for axis, some in values.items() for value in some]
    for segmenter, adapted in dict.fromkeys((row.segmenter, row.segmenter_adapter) for row in list(rows)):
        other = "" if segmenter == base.segmenter else f" segmenter={segmenter}"
        other += "" if adapted == base.segmenter_adapter else f" segmenter-adapter={adapted}"
        rows.append(replace(base, names=(f"oracle{other}",), segmenter=segmenter, segmenter_adapter=adapted, oracle=True))
    return _merged(rows)


def vary(base: Setting, axis: str, value: str, adapters: Mapping[str, str] | None = None) -> Setting:
    """Return the base with one thing changed. Raises EvaluationError if there is no such axis, or the axis has no such value.

    The values of ``segmenter`` and ``segmenter-adapter`` are not checked. ``adapters`` are those of the axis ``rank``, by name.
    """
    match axis:
        case "segmenter":
            return replace(base, segmenter=value)
        case "segmenter-adapter":
            return replace(base, segmenter_adapter=value)
        case "rank":
            known = adapters or {}
            return replace(base, adapter=known[_one_of(axis, value, tuple(known))])
        case "answers":
            return replace(base, answers=_one_of(axis, value, ANSWERS))
        case _ if axis in OPTIONS:
            return replace(base, options=replace(base.options, **OPTIONS[axis](value)))
        case _ if axis in choices():
            return replace(base, options=replace(base.options, **{axis: _one_of(axis, value, choices()[axis])}))
    raise EvaluationError(_unknown(axis))


def defaults(
    axis: str, base: Setting, adapters: Mapping[str, str] | None = None, strategies: Sequence[Strategy] = ANYWHERE
) -> tuple[str, ...]:
    """Return the default values of an axis. Raises EvaluationError if it has none, or there is no such axis."""
    match axis:
        case _ if axis in USUAL:
            return USUAL[axis]
        case "strategy":
            return tuple(strategies)
        case "rank":
            if not adapters:
                raise EvaluationError("name the adapters of the ranks, for example --adapters r16=FOLDER,r128=FOLDER")
            return tuple(adapters)
        case "segmenter":
            raise EvaluationError(f"name the segmenters, for example --values segmenter={base.segmenter},vit_h:FILE")
        case "segmenter-adapter":
            raise EvaluationError(f"name the adapters of the segmenter, for example --values segmenter-adapter={PLAIN},FOLDER")
        case _ if axis in choices():
            return choices()[axis]
    raise EvaluationError(_unknown(axis))


def choices() -> dict[str, tuple[str, ...]]:
    """Return the options whose type is a Literal, each with its values, and ``strategy`` with the strategies known here."""
    named = {name: get_args(kind) for name, kind in get_type_hints(Options).items() if get_origin(kind) is Literal}
    return {"strategy": known_strategies(), **named}


def published(options: Options) -> Options:
    """Return the options with the values of PUBLISHED; the options that PUBLISHED does not name stay."""
    return replace(options, **PUBLISHED)


# -- the options of the points -------------------------------------------------------------------------------------------------------------


def _joint(value: str) -> dict[str, Any]:
    return {"joint": _one_of("points", value, ("packed", "joint")) == "joint"}


def _count(value: str) -> dict[str, Any]:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= PATTERN_SIZE:
        raise EvaluationError(f"count={value} is no number of points; take 1 to {PATTERN_SIZE}")
    return {"count": int(value)}


def _thresholds(value: str) -> dict[str, Any]:
    try:
        positive, negative = (float(number) for number in value.split("/"))
    except ValueError:
        positive = negative = -1.0
    if not (0 <= positive <= 1 and 0 <= negative <= 1):
        raise EvaluationError(f"thresholds={value} is not P(yes)/P(no), two numbers from 0 to 1 such as 0.75/0.9")
    return {"thresholds": Thresholds(positive, negative)}


OPTIONS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "points": _joint,
    "count": _count,
    "thresholds": _thresholds,
}


def _unknown(axis: str) -> str:
    return f"{axis!r} cannot be varied; what can: {', '.join((*choices(), *OPTIONS, 'answers', 'segmenter', 'segmenter-adapter', 'rank'))}"


def _one_of(axis: str, value: str, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise EvaluationError(f"{axis}={value} is not known; what is: {', '.join(known) or 'nothing'}")
    return value


def _merged(rows: Sequence[Setting]) -> list[Setting]:
    merged: dict[object, Setting] = {}
    for row in rows:
        former = merged.get(row.what)
        merged[row.what] = row if former is None else replace(former, names=(*former.names, *row.names))
    return list(merged.values())
