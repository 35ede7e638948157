"""Projects and reviewers, and which of them nothing is learned from: told by the settings, or on the status page."""

from __future__ import annotations

import json
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backend.corrections.reviews import Review
from backend.errors import LearningError
from backend.settings import PARTICIPANT
from sam4mllm.durable import replace_file
from sam4mllm.errors import first_line

FILE = "left-out.json"


@dataclass(frozen=True)
class Participant:
    """A project or a reviewer, with the ``name`` ``project:N`` or ``reviewer:N``.

    ``reviews`` is the number of reviews, ``agreement`` their mean IoU with what was served, None if nothing was, ``left_out`` whether
    nothing is learned from them, and ``fixed`` whether the settings say so: then the page cannot change it.
    """

    name: str
    reviews: int
    agreement: float | None
    left_out: bool
    fixed: bool


class Participants:
    """Keeps which projects and reviewers nothing is learned from. Threads may share it."""

    def __init__(self, home: Path, fixed: Iterable[str] = ()) -> None:
        """``fixed`` are the names that the settings leave out. Raises LearningError if the file that the status page writes is damaged."""
        self._path = home / FILE
        self._fixed = frozenset(fixed)
        self._lock = threading.Lock()
        self._chosen = self._read()

    def is_left_out(self, review: Review) -> bool:
        out = self._fixed | self._chosen
        return bool(out) and not out.isdisjoint(names_of(review))

    def leave_out(self, name: str) -> None:
        """Learn nothing more from a project or a reviewer, until :meth:`take_in`.

        Raises LearningError if ``name`` is neither ``project:N`` nor ``reviewer:N``, or if the file cannot be written.
        """
        with self._lock:
            self._write(self._chosen | {_checked(name)})

    def take_in(self, name: str) -> None:
        """Learn from a project or a reviewer again. Raises LearningError as :meth:`leave_out`, also if the settings leave it out."""
        if name in self._fixed:
            raise LearningError(f"{name} is left out by SAM4MLLM_LEAVE_OUT; change it there")
        with self._lock:
            self._write(self._chosen - {_checked(name)})

    def survey(self, reviews: Iterable[Review]) -> tuple[Participant, ...]:
        """Return the projects and reviewers that have reviews or are left out, projects first, by number."""
        agreements: defaultdict[str, list[float | None]] = defaultdict(list)
        for review in reviews:
            for name in filter(PARTICIPANT.fullmatch, names_of(review)):
                agreements[name].append(review.iou)
        out = self._fixed | self._chosen
        return tuple(
            Participant(name, len(agreements[name]), _mean(agreements[name]), name in out, name in self._fixed)
            for name in sorted({*agreements, *out}, key=_number)
        )

    def _read(self) -> frozenset[str]:
        try:
            names = json.loads(self._path.read_text(encoding="utf-8"))
            return frozenset(_checked(name) for name in names)
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError, RecursionError, LearningError) as error:
            raise LearningError(f'{self._path} is damaged ({first_line(error)}); write a list as ["project:3"] into it') from error

    def _write(self, chosen: frozenset[str]) -> None:
        try:
            replace_file(self._path, json.dumps(sorted(chosen)).encode())
        except OSError as error:
            raise LearningError(f"{self._path} could not be written ({error.strerror})") from error
        self._chosen = chosen


def names_of(review: Review) -> tuple[str, ...]:
    """Return the names of a review's project and, where it is known, its reviewer, such as ``project:3`` and ``reviewer:7``."""
    project = f"project:{review.project}"
    return (project,) if review.reviewer is None else (project, f"reviewer:{review.reviewer}")


def _checked(name: object) -> str:
    if not isinstance(name, str) or not PARTICIPANT.fullmatch(name):
        raise LearningError(f"{ascii(name)[:40]} is no participant; write project:3 or reviewer:7")
    return name


def _number(name: str) -> tuple[str, int]:
    kind, number = name.split(":")
    return kind, int(number)


def _mean(agreements: Iterable[float | None]) -> float | None:
    known = [one for one in agreements if one is not None]
    return statistics.fmean(known) if known else None
