"""The trial: one candidate after the other, each in a process of its own, and what came of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sam4mllm.data.examples import Example
from sam4mllm.durable import locked
from sam4mllm.errors import EvaluationError, Sam4mllmError
from sam4mllm.evaluation.run import by_image
from sam4mllm.plain_text import one_line
from sam4mllm.trial.candidates import Contender
from sam4mllm.trial.tried import TrialJournal, TriedPicture, keys_of
from sam4mllm.trial.worker import JOURNAL, Job

WORKER = (sys.executable, "-P", "-m", "sam4mllm.trial.worker")
"""The command that runs a worker. ``-P`` keeps it from importing modules of the working directory."""
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
ONE_TRIAL = "trial.lock"
STOP_SECONDS = 10.0
"""How long to wait for a killed worker to end, before TimeoutExpired is raised. Usually it ends at once; it takes longer only while the
kernel is busy with it."""

Track = Callable[[Iterable[str], int, str], Iterable[str]]
"""Wraps the pictures of a candidate for a progress bar: it takes their paths, how many they are and the candidate's name,
and yields the paths."""


@dataclass(frozen=True)
class Tried:
    """A candidate and its results, by the picture's path in the dataset.

    If the candidate failed, ``failure`` says why in one line, and ``pictures`` is empty.
    """

    candidate: Contender
    pictures: dict[str, TriedPicture]
    failure: str = ""


def try_all(
    candidates: Sequence[Contender],
    dataset: Path,
    examples: Sequence[Example],
    folder: Path,
    split: str | None = None,
    track: Track = lambda pictures, total, what: pictures,
    command: Sequence[str] = WORKER,
) -> list[Tried]:
    """Try each candidate on the pictures that the journal in ``folder`` does not know yet, and return its results for all pictures.

    A candidate that fails does not end the trial; its ``Tried.failure`` says why.

    Args:
        candidates: the candidates, in the order in which they are tried.
        dataset: the dataset's folder.
        examples: its examples, as ``choose`` returned them.
        folder: the folder of the journal and the logs; it must exist.
        split: the split that ``choose`` was given.
        track: for a progress bar; it gets only the pictures that the journal does not know.
        command: the command that runs a worker.

    Raises:
        EvaluationError: another trial is running in ``folder``, the journal cannot be read, or a log cannot be written.
        OSError: the lock file in ``folder`` cannot be opened.
    """
    images = by_image(examples)
    with _alone(folder):
        return [_try(candidate, dataset, images, folder, split, track, command) for candidate in candidates]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with locked(folder / ONE_TRIAL, wait=False):
            yield
    except BlockingIOError as error:
        raise EvaluationError(f"another trial is at work in {folder}; wait for it, or choose another folder with --out") from error


def _try(
    candidate: Contender,
    dataset: Path,
    images: Sequence[Sequence[Example]],
    folder: Path,
    split: str | None,
    track: Track,
    command: Sequence[str],
) -> Tried:
    try:
        keys = keys_of(candidate, images)
    except Sam4mllmError as error:
        return Tried(candidate, {}, str(error))
    journal = TrialJournal(folder / JOURNAL)
    missing = {image: key for image, key in keys.items() if journal.find(key) is None}
    if missing:
        job = Job(asdict(candidate), str(dataset.resolve()), split, str(folder.resolve()), missing)
        with TrialProcess(job, command, folder / f"{candidate.name}.log") as worker:
            for _ in track(worker.pictures(), len(missing), candidate.name):
                pass
            failure = worker.failure()
        if failure:
            return Tried(candidate, {}, failure)
        journal = TrialJournal(folder / JOURNAL)
    found = {image: tried for image, key in keys.items() if (tried := journal.find(key)) is not None}
    lost = len(images) - len(found)
    return (
        Tried(candidate, found) if not lost else Tried(candidate, {}, f"{lost} pictures are missing in {folder / JOURNAL}; start it again")
    )


class TrialProcess:
    """A worker process that tries one candidate. It is started when the object is made. As a context manager, the object kills the
    process if it still runs when the block ends, also after an error.

    Raises EvaluationError if its log cannot be written or ``command`` cannot be run.
    """

    def __init__(self, job: Job, command: Sequence[str], log: Path) -> None:
        self._log = log
        self._failed = ""
        try:
            with log.open("wb") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    encoding="utf-8",
                    errors="replace",
                    env=os.environ | QUIET,
                    process_group=0,  # so that a terminal's Ctrl-C reaches the trial only, which then ends the worker
                )
        except OSError as error:
            raise EvaluationError(f"{log} cannot be written ({error.strerror}); free space or choose another folder") from error
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the worker has ended already; ``failure`` says why
            self._process.stdin.write(job.to_line())
            self._process.stdin.flush()

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        self._process.wait(STOP_SECONDS)

    def pictures(self) -> Iterator[str]:
        """Yield the path of each picture when it is done, until the process ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                told = json.loads(line)
            except ValueError:  # a line that a kill left half written
                continue
            self._failed = told.get("failed", "")
            if "image" in told:
                yield told["image"]

    def failure(self) -> str:
        """Wait for the process to end, and return in one line why it failed; empty if it finished its work."""
        code = self._process.wait()
        if self._failed:
            return one_line(self._failed)
        if code == -signal.SIGKILL:
            return (
                "its process was killed, as the system does when memory runs out; set quantize or a smaller dtype, or take a smaller model"
            )
        if code < 0:
            return f"its process was ended by {_name(-code)}; {self._log} says more"
        return f"its process ended with code {code}; {self._log} says more" if code else ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
