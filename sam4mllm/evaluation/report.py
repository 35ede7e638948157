"""Writes the results of an evaluation: ``report.html`` for people and ``report.json`` for programs.

The page contains its style, plots and pictures; it fetches nothing and runs no script. The JSON file has the same figures without the
pictures.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import sam4mllm
from sam4mllm.answers import STAGES
from sam4mllm.confidence import ACCEPTED_IOU
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.durable import replace_file
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.metrics import Bin, Figures, reliability
from sam4mllm.evaluation.predictions import JudgedExample
from sam4mllm.evaluation.run import intervals_of, parts, summarize_judged
from sam4mllm.overlay import draw_compared
from sam4mllm.page import SHARED, find_ticks, render

PAGE, RECORD = "report.html", "report.json"
PICTURES = 6
"""The most pictures in each group of :func:`pick`; so many fit on a screen at once."""
IOU_BINS = 20
PLOT_WIDTH, PLOT_HEIGHT = 360, 250
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 40, 14, 14, 40
"""Room around a plot, in its own units, for its axes."""
JPEG_QUALITY = 85
HEADLINE = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "point_accuracy", "oracle_mIoU", "seconds_per_phrase")
SPLIT_COLUMNS = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "count")
MEANINGS = {
    "gIoU": "mean IoU of all phrases; “none” where there is none counts 1",
    "cIoU": "all intersections over all unions",
    "mIoU": "mean IoU of the phrases with a target",
    "N-acc": "phrases without a target that were answered “none”",
    "T-acc": "phrases with a target for which something was drawn",
    "Pr@0.5": "phrases with a target, IoU of 0.5 or more",
    "Pr@0.9": "phrases with a target, IoU of 0.9 or more",
    "point_accuracy": "points in true boxes, yes or no answered rightly",
    "oracle_mIoU": "true boxes and points into the segmenter: the upper bound",
    "seconds_per_phrase": "seconds a phrase, all stages",
}


@dataclass(frozen=True)
class DrawnExample:
    """One example as the report shows it. ``jpeg`` is a JPEG file's bytes, ``image`` the picture's file name, and ``answer`` a caption
    such as "found, 0.87": what was found, and the score.
    """

    phrase: str
    image: str
    iou: float
    answer: str
    jpeg: bytes


@dataclass(frozen=True)
class Shape:
    """A bar whose upper left corner is (x, y), or a dot around (x, y), with a tooltip ``text``."""

    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    radius: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot in the coordinates of an SVG. ``across`` and ``upward`` are the ticks of the two axes, each (position, text)."""

    title: str
    across_title: str
    across: tuple[tuple[float, str], ...]
    upward: tuple[tuple[float, str], ...]
    bars: tuple[Shape, ...] = ()
    dots: tuple[Shape, ...] = ()


def write_report(
    folder: Path, dataset: Path, judged: Sequence[JudgedExample], figures: Figures, version: str, command: str, seed: int = 0
) -> None:
    """Write ``report.json`` and ``report.html``; each is replaced whole.

    Args:
        folder: the folder to write to; it is created if it is missing.
        dataset: the dataset's folder, which has the pictures.
        judged: every example's result, at least one.
        figures: the summary of these results (``summarize_judged``).
        version: the version of the pipeline that was evaluated.
        command: the command line that repeats the evaluation.
        seed: chooses the pictures that are shown by chance.

    Raises:
        EvaluationError: the folder cannot be written.
        DatasetError: a picture cannot be read any more.
    """
    ends = intervals_of(judged)
    several = {name: {part: summarize_judged(some) for part, some in found.items()} for name, found in parts(judged).items()}
    facts = {
        "dataset": dataset.resolve().name,
        "version": version,
        "package": sam4mllm.__version__,
        "command": command,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len({one.example.image for one in judged}),
    }
    points = reliability(np.concatenate([one.inside for one in judged]), np.concatenate([one.on for one in judged]))
    scores = reliability([_clip(one.score) for one in judged], [is_right(one) for one in judged])
    record = {**facts, "figures": figures, "intervals": ends, "parts": several}
    record |= {"calibration": {"points": [asdict(one) for one in points], "score": [asdict(one) for one in scores]}}
    page = render(
        SHARED / "evaluation.html",
        facts=facts,
        figures=figures,
        ends=ends,
        parts=several,
        headline=[name for name in HEADLINE if figures.get(name) is not None],
        columns=SPLIT_COLUMNS,
        meanings=MEANINGS,
        charts=[chart for chart in (draw_ious(judged), draw_reliability("points", points), draw_reliability("score", scores)) if chart],
        stages=_stages(figures),
        pictures={title: draw_pictures(dataset, some) for title, some in pick(judged, seed=seed).items() if some},
        size=(PLOT_WIDTH, PLOT_HEIGHT),
        frame=(PLOT_LEFT, PLOT_TOP, PLOT_WIDTH - PLOT_RIGHT, PLOT_HEIGHT - PLOT_BOTTOM),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
        replace_file(folder / PAGE, page.encode(errors="replace"))
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written ({error.strerror}); choose another folder with --report") from error


def is_right(one: JudgedExample) -> bool:
    """Whether the answer is of the right object: its IoU is ACCEPTED_IOU or more, or it is rightly "none".

    The score is meant to be the probability of this.
    """
    return one.sample.iou >= ACCEPTED_IOU


def pick(judged: Sequence[JudgedExample], count: int = PICTURES, seed: int = 0) -> dict[str, list[JudgedExample]]:
    """Choose up to ``count`` examples of each group to show: the worst and best with a target, those where objects were found and there is
    no target, and some drawn by chance with ``seed``.

    Of examples with the same IoU, those with the highest score come first, because a mistake with a high score is the most instructive.
    Those drawn by chance stay in their order.
    """
    targets = [one for one in judged if one.sample.has_target]
    invented = [one for one in judged if not one.sample.has_target and not one.sample.predicted_empty]
    order = np.random.default_rng(seed).permutation(len(judged))[:count]
    return {
        "Worst": sorted(targets, key=lambda one: (one.sample.iou, -one.score))[:count],
        "Found where there is none": sorted(invented, key=lambda one: -one.score)[:count],
        "Best": sorted(targets, key=lambda one: (-one.sample.iou, -one.score))[:count],
        "By chance": [judged[index] for index in sorted(order.tolist())],
    }


def draw_pictures(dataset: Path, judged: Sequence[JudgedExample]) -> list[DrawnExample]:
    """Each example's picture with the true and the predicted outline, boxes and points.

    Raises DatasetError if a picture cannot be read any more.
    """
    pictures = []
    for one in judged:
        image = load_example_image(dataset, one.example)
        drawn = draw_compared(image, one.example.union(), one.prediction.mask(), one.prediction.instances)
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=JPEG_QUALITY)
        count = len(one.prediction.instances)
        found = f"{count} found" if count > 1 else "found" if count else "answered “none”"
        pictures.append(
            DrawnExample(one.example.phrase, Path(one.example.image).name, one.sample.iou, f"{found}, {one.score:.2f}", file.getvalue())
        )
    return pictures


# -- plots ---------------------------------------------------------------------------------------------------------------------------------


def draw_ious(judged: Sequence[JudgedExample]) -> Chart | None:
    """Draw a histogram of the IoUs of the phrases with a target; None if there are no such phrases."""
    ious = [one.sample.iou for one in judged if one.sample.has_target]
    if not ious:
        return None
    counts, edges = np.histogram(ious, IOU_BINS, (0, 1))
    top = float(counts.max())
    bars = [
        Shape(_x(low) + 1, _y(count / top), _x(high) - _x(low) - 2, _y(0) - _y(count / top), text=f"{low:.2f}–{high:.2f}: {count}")
        for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    upward = tuple((_y(tick / top), f"{tick:,.0f}") for tick in find_ticks(0, top, 4) if tick == int(tick))
    return Chart("How well masks fit: phrases by IoU", "IoU, phrases with a target", _tenths(), upward, bars=tuple(bars))


def draw_reliability(what: str, found: Sequence[Bin]) -> Chart | None:
    """Draw a reliability diagram of ``what``, "points" or "score"; None if there are no answers.

    Its dots lie on the diagonal if the probabilities are calibrated.
    """
    if not found:
        return None
    titles = {
        "points": ("How true P(inside) is: points", "P(inside) as answered; upward the share that is inside"),
        "score": ("How true the score is: phrases", "score; upward the share with IoU ≥ 0.5 or a right “none”"),
    }
    most = max(one.count for one in found)
    dots = tuple(
        Shape(
            _x(one.mean),
            _y(one.true),
            radius=round(2.5 + 5.5 * math.sqrt(one.count / most), 1),
            text=f"{one.count}: {one.mean:.2f} said, {one.true:.2f} true",
        )
        for one in found
    )
    title, across = titles[what]
    return Chart(title, across, _tenths(), tuple((_y(tick), f"{tick:.1f}") for tick in find_ticks(0, 1, 5)), dots=dots)


def _x(share: float) -> float:
    return round(PLOT_LEFT + share * (PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT), 1)


def _y(share: float) -> float:
    return round(PLOT_HEIGHT - PLOT_BOTTOM - share * (PLOT_HEIGHT - PLOT_TOP - PLOT_BOTTOM), 1)


def _tenths() -> tuple[tuple[float, str], ...]:
    return tuple((_x(tick), f"{tick:.1f}") for tick in find_ticks(0, 1, 5))


def _stages(figures: Mapping[str, float | int | None]) -> list[tuple[str, float, float]]:
    """Each stage's seconds a phrase and its share of their sum."""
    taken = {stage: float(figures.get(f"seconds_{stage}") or 0.0) for stage in STAGES}
    whole = sum(taken.values()) or 1.0
    return [(stage, seconds, seconds / whole) for stage, seconds in taken.items()]


def _clip(score: float) -> float:
    return min(1.0, max(0.0, score))
