"""Writes the results of a trial: ``report.html`` for people, with pictures side by side, and ``trial.json`` for programs.

The page contains all that it shows and runs no script.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import sam4mllm
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.durable import replace_file
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.run import by_image
from sam4mllm.masks import union
from sam4mllm.overlay import draw_compared
from sam4mllm.page import SHARED, render
from sam4mllm.run_lengths import from_rle
from sam4mllm.trial.run import Tried
from sam4mllm.trial.tried import TriedPhrase
from sam4mllm.trial.verdict import HEADS, TrialRow, is_beaten, tell, trial_cells, trial_fields

PAGE, RECORD = "report.html", "trial.json"
DISPUTED, CHANCE = 8, 4
"""The most phrases that are shown: DISPUTED on which the candidates differ most, and CHANCE of the others, drawn at random. A page of four
candidates then has some 2 MB.
"""
LONG_SIDE = 320
"""The length, in pixels, of the longer side of each picture in a row."""
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Panel:
    """One picture of a row as a JPEG file's bytes, with what it is called and what is said of it."""

    title: str
    note: str
    jpeg: bytes


@dataclass(frozen=True)
class PanelRow:
    """A phrase: its picture, the truth, and what each candidate drew."""

    phrase: str
    image: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, eq=False)
class ComparedPhrase:
    """An example and what came of it under each candidate, by name, the best candidate first."""

    example: Example
    tried: Mapping[str, TriedPhrase]

    @property
    def spread(self) -> float:
        """How far the candidates are apart, in IoU."""
        ious = [one.sample.iou for one in self.tried.values()]
        return max(ious) - min(ious)


def compare_phrases(examples: Sequence[Example], tried: Sequence[Tried], rows: Sequence[TrialRow]) -> list[ComparedPhrase]:
    """Return every example, in the order of ``choose``, with the results of the candidates that did not fail."""
    by_name = {one.candidate.name: one for one in tried if not one.failure}
    return [
        ComparedPhrase(example, {row.name: by_name[row.name].pictures[example.image].phrases[at] for row in rows})
        for group in by_image(examples)
        for at, example in enumerate(group)
    ]


def write_trial(
    folder: Path, dataset: Path, source: str, examples: Sequence[Example], tried: Sequence[Tried], rows: Sequence[TrialRow], command: str
) -> dict[str, Any]:
    """Write ``trial.json`` and ``report.html``, each replaced as a whole, and return the contents of ``trial.json``.

    Args:
        folder: the folder to write to; it must exist.
        dataset: the dataset's folder, which has the pictures.
        source: the name of the export or dataset that was used, for people to read.
        examples: the dataset's examples that were tried.
        tried: the results of each candidate.
        rows: the figures of ``tried``, by ``tabulate_trial``.
        command: the command line that repeats the trial.

    Raises:
        EvaluationError: the folder cannot be written.
        DatasetError: a picture cannot be read any more.
    """
    pictures = len({example.image for example in examples})
    phrases = compare_phrases(examples, tried, rows) if rows else []
    facts = {
        "source": source,
        "pictures": pictures,
        "phrases": len(examples),
        "package": sam4mllm.__version__,
        "command": command,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    failed = {one.candidate.name: one.failure for one in tried if one.failure}
    sentence = tell(rows, pictures)
    record = {**facts, "sentence": sentence, "candidates": [trial_fields(row) for row in rows], "failed": failed}
    record["by_phrase"] = [_fields(one) for one in phrases]
    page = render(
        SHARED / "trial.html",
        facts=facts,
        sentence=sentence,
        heads=HEADS,
        rows=[(row, trial_cells(row), is_beaten(row)) for row in rows],
        failed=failed,
        shown={title: [draw_row(dataset, one) for one in some] for title, some in pick_phrases(phrases).items() if some},
    )
    try:
        replace_file(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
        replace_file(folder / PAGE, page.encode(errors="replace"))
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written ({error.strerror}); choose another folder with --out") from error
    return record


def pick_phrases(phrases: Sequence[ComparedPhrase], seed: int = 0) -> dict[str, list[ComparedPhrase]]:
    """Return the phrases to show, by heading: those on which the candidates are farthest apart, and some of the others drawn at random."""
    order = sorted(range(len(phrases)), key=lambda at: -phrases[at].spread)
    disputed = [at for at in order[:DISPUTED] if phrases[at].spread > 0]
    others = [at for at in range(len(phrases)) if at not in disputed]
    drawn = sorted(np.random.default_rng(seed).permutation(others)[:CHANCE].tolist()) if others else []
    return {"Where they differ most": [phrases[at] for at in disputed], "By chance": [phrases[at] for at in drawn]}


def draw_row(dataset: Path, one: ComparedPhrase) -> PanelRow:
    """Draw the panels of a phrase, all of the same part of the picture. Raises DatasetError if the picture cannot be read."""
    example = one.example
    image, truth = load_example_image(dataset, example), example.union()
    masks = {name: from_rle(tried.rle, example.height, example.width) for name, tried in one.tried.items()}
    shown, nothing = union(np.array([truth, *masks.values()])), np.zeros_like(truth)
    panels = [("picture", "", nothing, nothing), ("truth", "" if example.has_target else "there is none", truth, nothing)]
    panels += [(name, _note(one.tried[name]), truth, mask) for name, mask in masks.items()]
    drawn = []
    for title, note, true, predicted in panels:
        file = io.BytesIO()
        draw_compared(image, true, predicted, (), shown, LONG_SIDE).save(file, "JPEG", quality=JPEG_QUALITY)
        drawn.append(Panel(title, note, file.getvalue()))
    return PanelRow(example.phrase, Path(example.image).name, tuple(drawn))


def _note(tried: TriedPhrase) -> str:
    if tried.correction is None:
        return "“none”, rightly" if tried.sample.predicted_empty else "found what is not there"
    clicks, reached = tried.correction.clicks, tried.correction.reached
    needs = f"{clicks} click{'' if clicks == 1 else 's'}" if reached else f"not after {clicks} clicks"
    return f"{tried.sample.iou:.2f}" + ("" if clicks == 0 and reached else f", {needs}")


def _fields(one: ComparedPhrase) -> dict[str, Any]:
    example = one.example
    answers = {
        name: {"iou": tried.sample.iou, "bound": tried.bound, "clicks": None if tried.correction is None else tried.correction.clicks}
        for name, tried in one.tried.items()
    }
    return {"image": example.image, "sha256": example.sha256, "phrase": example.phrase, "candidates": answers}
