"""A training run's folder: where each of its files is, and how those are read and written that tell how far the run is."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sam4mllm.durable import remove

Side = Literal["before", "after"]
"""Which of the two versions drew a picture: the champion, or the challenger."""
PICTURE_SIDES: tuple[Side, Side] = ("before", "after")


@dataclass(frozen=True)
class ShownPair:
    """A held-out phrase with pictures: its ``index`` among the run's pairs, and the IoU to the reviewer's mask before and after, 0–1."""

    index: int
    phrase: str
    label: str
    before_iou: float
    after_iou: float


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, ``<home>/runs/run-000001``; ``path`` need not be there yet. ::

        run-000001/
        ├── run.json            the run's record           written by runs           read by runs: the next start, web
        ├── data/               the corrections, a dataset written by snapshot       read by trainer
        ├── refused.json        what no example was made of, with reasons            written by conductor, for people
        ├── job.json            what the process is to do  written by conductor      read by trainer, report
        ├── .lock               held by the process that works on the run            trainer
        ├── training.log        what the process printed   written by conductor      read by conductor: why it failed
        ├── progress.json       stage, done, of            written by trainer        read by web
        ├── curve.jsonl         [step, loss(es)] a line    written by trainer        read by report, web
        ├── .adapter.run/       training state, step-<n>   written by sam4mllm.training, removed once the adapter is there
        ├── adapter/            the challenger             written by sam4mllm.training, read by trainer and conductor
        ├── evaluation.json     champion and challenger on each held-out phrase      written by trainer, read by conductor, web
        ├── pictures/           <index>-before.png and <index>-after.png             written by trainer, read by report, web
        ├── smoke.log           what the trial of the adapter printed                written by conductor
        ├── report.json         what came of the run       written by report         for programs
        └── report.html         the same as a page         written by report         read by web

    Once a run has ended without a failure, ``data``, ``adapter`` and the training state are removed: the log has the corrections, and the
    registry the adapter. A run is resumed by later releases, so names and formats stay as they are. The methods that read raise no error,
    whatever a file holds: it may be of another release, half written, or damaged.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the run, such as ``run-000001``."""
        return self.path.name

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def refused(self) -> Path:
        return self.path / "refused.json"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def curve(self) -> Path:
        return self.path / "curve.jsonl"

    @property
    def training_state(self) -> Path:
        """Hidden folder beside ``adapter`` in which :class:`sam4mllm.training.session.Session` keeps the state that it resumes from."""
        return self.path / ".adapter.run"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def prune(self) -> None:
        """Remove what a run that is over has no use for. Raises OSError."""
        for path in (self.data, self.adapter, self.training_state):
            remove(path)

    @property
    def report_record(self) -> Path:
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        return self.path / "report.html"

    def picture(self, index: int, side: Side) -> Path:
        """The PNG file with the answer of one version (``side``) to the held-out phrase that has this index among the run's pairs."""
        return self.pictures / f"{index}-{side}.png"

    def log_of(self, process: str) -> Path:
        """What a process of the run printed: "training" or "smoke"."""
        return self.path / f"{process}.log"

    # -- how far the run is ----------------------------------------------------------------------------------------------------------------

    def write_progress(self, stage: str, done: int, of: int) -> None:
        """Replace ``progress.json``: ``done`` of the ``of`` steps or phrases of this ``stage`` are finished. Raises OSError."""
        partial = self.progress.with_name(self.progress.name + ".partial")
        partial.write_text(json.dumps({"stage": stage, "done": done, "of": of}))
        os.replace(partial, self.progress)

    def read_progress(self) -> dict[str, Any]:
        """How far the run is; empty before its process tells."""
        return parse_progress(read_text(self.progress))

    def add_to_curve(self, step: int, loss: float, validation: float | None = None) -> None:
        """Add a step's loss, and the validation loss if it was measured after that step. Raises OSError."""
        losses = [loss] if validation is None else [loss, validation]
        with self.curve.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, *(round(one, 5) for one in losses)]) + "\n")

    def read_curve(self) -> list[tuple[int, float]]:
        """Return (step, loss) in order of the steps; empty if there is none yet.

        Of a step that was done twice, because the process was killed in between, the later loss is taken. Lines that are cut short or
        cannot be read are skipped.
        """
        return self._read_losses(1)

    def read_validation(self) -> list[tuple[int, float]]:
        """Return (step, validation loss) as ``read_curve`` does; empty if none was measured."""
        return self._read_losses(2)

    def _read_losses(self, place: int) -> list[tuple[int, float]]:
        curve: dict[int, float] = {}
        for line in read_text(self.curve).splitlines():
            try:
                values = json.loads(line)
                step, loss = values[0], values[place]
            except (ValueError, TypeError, LookupError, RecursionError):
                continue
            if type(step) is int and is_number(loss):
                curve[step] = float(loss)
        return sorted(curve.items())

    def read_changes(self, count: int) -> list[ShownPair]:
        """Return up to ``count`` phrases that have pictures, as listed in the evaluation; none before the run was judged."""
        return parse_changes(read_text(self.evaluation), count)


def parse_progress(text: str) -> dict[str, Any]:
    """How far a run is: ``stage``, and what is ``done`` ``of`` how much; empty if the text does not say."""
    try:
        values = parse_object(text)
    except ValueError:
        return {}
    told: dict[str, Any] = {key: values.get(key) for key in ("stage", "done", "of")}
    whole = isinstance(told["stage"], str) and all(is_number(told[key]) and told[key] >= 0 for key in ("done", "of"))
    return told if whole else {}


def parse_changes(text: str, count: int) -> list[ShownPair]:
    """Return the first ``count`` phrases with pictures in the text of an ``evaluation.json``; none if the text is not of that form."""
    try:
        found = parse_object(text)
        shown = [(index, found["pairs"][index]) for index in found["pictures"][:count]]
        listed = [ShownPair(index, one["phrase"], one["label"], one["champion"], one["challenger"]) for index, one in shown]
    except (ValueError, LookupError, TypeError):
        return []
    return listed if all(_is_shown(one) for one in listed) else []


def _is_shown(one: ShownPair) -> bool:
    texts = isinstance(one.phrase, str) and isinstance(one.label, str)
    return type(one.index) is int and texts and is_number(one.before_iou) and is_number(one.after_iou)


# -- text and JSON -------------------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A file's text; empty if there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError: what is wrong with the text, in a few words."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    return values


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number that a float holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
