"""What came of a training run, as one page to read and one file to compute with; no model, and nothing of the server, is needed for it.

``report.html`` is complete in itself: its style, its curve and its pictures are inside it, nothing is fetched and nothing runs.
``report.json`` says the same without the pictures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.learning.gate import Decision, Figures
from backend.learning.paired_tests import TIE
from backend.learning.run_folder import RunFolder
from backend.learning.runs import Run, RunState
from sam4mllm.durable import replace_file
from sam4mllm.page import find_ticks, render

CURVE_POINTS = 400
"""Most points of the curve, about two pixels apart; of more, neighbours are averaged."""
SMOOTHED_OVER = 0.05
"""Share of the curve's points that are averaged for one point of its smoothed line."""
PLOT_WIDTH, PLOT_HEIGHT = 720, 240
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 70, 14, 36, 36
"""Room around the curve, in its own units, for the figures of its axes."""
VERDICTS = {
    "promote": "The new version is better",
    "keep": "The old version stays",
    "wait": "Too few corrections to decide",
}


@dataclass(frozen=True)
class Change:
    """A holdout phrase as the champion answered it (before) and the challenger (after): each a PNG file's bytes, and the IoU with the
    reviewer's mask, 0–1.

    Of a phrase that means nothing in its image, the IoU is 1 where the answer was "none" and else 0.
    """

    phrase: str
    label: str
    before_iou: float
    after_iou: float
    before_png: bytes
    after_png: bytes


@dataclass(frozen=True)
class RunReport:
    """A run that has ended.

    ``run`` is its name, ``state`` how it ended, ``started`` the time at which it was asked for, as text, ``seconds`` the time from then to
    its end, ``config`` its training job, ``curve`` the (step, loss) in order, ``validation`` the (step, validation loss), empty if it was
    not measured, ``decision`` the gate's, None if it made none, ``challenger`` and ``champion`` are versions, ``counts`` the examples by
    split and the refused ones.
    """

    run: str
    state: str
    started: str
    seconds: float
    config: dict[str, Any]
    curve: list[tuple[int, float]]
    decision: Decision | None
    challenger: str
    champion: str
    counts: dict[str, int]
    pictures: list[Change] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """The losses of a run in the coordinates of an SVG: ``line`` and ``smooth`` are the ``points`` of the training loss, ``validation``
    those of the validation loss, empty if it was not measured. ``across`` and ``upward`` are the ticks of the axes, as (position, text).
    ``first`` and ``last`` are the smoothed training losses at the curve's ends.
    """

    line: str
    smooth: str
    validation: str
    across: tuple[tuple[float, str], ...]
    upward: tuple[tuple[float, str], ...]
    first: float
    last: float


def report_of(run: Run, state: RunState, decision: Decision, found: Mapping[str, Any], folder: RunFolder) -> RunReport:
    """Gather the report of a run that ends now, in ``state``. ``found`` is its evaluation. Raises OSError if a file cannot be read."""
    pairs = found["pairs"]
    changes = [
        Change(
            pairs[index]["phrase"],
            pairs[index]["label"],
            pairs[index]["champion"],
            pairs[index]["challenger"],
            folder.picture(index, "before").read_bytes(),
            folder.picture(index, "after").read_bytes(),
        )
        for index in found["pictures"]
    ]
    return RunReport(
        run=run.id,
        state=state,
        started=datetime.fromtimestamp(run.created, UTC).isoformat(timespec="seconds"),
        seconds=max(0.0, time.time() - run.created),  # 0 if the clock was ahead
        config=json.loads(folder.job.read_text(encoding="utf-8")),
        curve=folder.read_curve(),
        validation=folder.read_validation(),
        decision=decision,
        challenger=run.challenger,
        champion=run.champion,
        counts=run.counts,
        pictures=changes,
    )


def choose_changes(before: Sequence[float], after: Sequence[float], count: int = 10) -> list[int]:
    """Choose which of N samples to show: at most ``count`` indices, the largest absolute change first, none without a change.

    A fifth of the ``count`` places, and at least one if there are two or more, is reserved for gains, and as many for losses. Reserved
    places that cannot be filled go to others.

    Args:
        before: (N,) IoU with the champion.
        after: (N,) IoU with the challenger.
        count: at least 0.

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    if len(before) != len(after):
        raise ValueError(f"each sample has an IoU before and one after, not {len(before)} and {len(after)}")
    changes = [new - old for old, new in zip(before, after, strict=True)]
    order = sorted((index for index, change in enumerate(changes) if abs(change) > TIE), key=lambda index: (-abs(changes[index]), index))
    kept = min(count // 2, max(1, count // 5))
    gains, losses = [index for index in order if changes[index] > 0], [index for index in order if changes[index] < 0]
    sure = [*gains[:kept], *losses[:kept]]
    chosen = {*sure, *[index for index in order if index not in sure][: count - len(sure)]}
    return [index for index in order if index in chosen]


def write_report(folder: RunFolder, report: RunReport) -> None:
    """Write a run's ``report.json`` and ``report.html`` into its folder; each is replaced whole. Raises OSError if the disk refuses."""
    replace_file(folder.report_record, json.dumps(_record(report), indent=1, allow_nan=False).encode())
    replace_file(folder.report_page, _page(report).encode(errors="replace"))  # a phrase may hold half of a character


def _record(report: RunReport) -> Any:
    pictures = [
        {"phrase": one.phrase, "label": one.label, "before_iou": one.before_iou, "after_iou": one.after_iou} for one in report.pictures
    ]
    return _plain({**asdict(replace(report, pictures=[])), "pictures": pictures})


def _plain(value: object) -> Any:
    """Return the value as JSON can hold it: None for a number that is not finite, and ``str(value)`` for a type that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _page(report: RunReport) -> str:
    decision = report.decision
    return render(
        Path(__file__).with_name("pages") / "report.html",
        report=report,
        decision=decision,
        verdict=VERDICTS[decision.verdict] if decision else "This run came to no decision",
        labels=_by_pairs(decision.labels) if decision else [],
        plot=draw_curve(report.curve, report.validation),
        settings=_flat(report.config),
        width=PLOT_WIDTH,
        height=PLOT_HEIGHT,
        left=PLOT_LEFT,
        right=PLOT_WIDTH - PLOT_RIGHT,
        bottom=PLOT_HEIGHT - PLOT_BOTTOM,
    )


def _by_pairs(labels: Mapping[str, Figures]) -> list[tuple[str, Figures]]:
    """Return the labels with their figures, the label with the most pairs first."""
    return sorted(labels.items(), key=lambda item: (-(item[1]["pairs"] or 0), item[0]))


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return rows


# -- the curve -----------------------------------------------------------------------------------------------------------------------------


def draw_curve(curve: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]] = ()) -> Plot | None:
    """Draw the losses over the steps; the axis of the losses begins at 0, or at the lowest loss if that is negative.

    Losses that are not finite are left out, and so are validation losses at steps outside of the drawn curve. None if fewer than two points
    of ``curve`` remain, or all are of one step.
    """
    points = _thinned([(float(step), loss) for step, loss in curve if math.isfinite(loss)])
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    measured = [(float(step), loss) for step, loss in validation if math.isfinite(loss) and steps[0] <= step <= steps[-1]]
    every = [*losses, *(loss for _, loss in measured)]
    low, high = min(0.0, *every), max(every)
    upward, across = find_ticks(low, high, 4), find_ticks(steps[0], steps[-1], 6)
    top = max(high, upward[-1], low + 1e-12)

    def x(step: float) -> float:
        return PLOT_LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT)

    def y(loss: float) -> float:
        return PLOT_HEIGHT - PLOT_BOTTOM - (loss - low) / (top - low) * (PLOT_HEIGHT - PLOT_TOP - PLOT_BOTTOM)

    def line(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)

    smooth = _smoothed(losses)
    return Plot(
        line=line(points),
        smooth=line(zip(steps, smooth, strict=True)),
        validation=line(measured),
        across=tuple((round(x(step), 1), f"{step:,.0f}") for step in across),
        upward=tuple((round(y(loss), 1), f"{loss:.3g}") for loss in upward),
        first=smooth[0],
        last=smooth[-1],
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // CURVE_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(loss for _, loss in group) / len(group)) for group in groups]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of the values around each value (SMOOTHED_OVER); at the ends, of those that there are."""
    reach = max(1, round(len(values) * SMOOTHED_OVER / 2))
    windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]
