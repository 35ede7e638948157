"""Performs a training run, from the corrections to the gate's decision, in three steps: prepare, train, decide.

Training and comparison are the work of the training process (:mod:`backend.learning.trainer`); this module writes its job, waits for its
end, and has the gate weigh what it found.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.review_book import ReviewBook
from backend.errors import LearningError, NotReadyError, where
from backend.learning.evaluation import read_evaluation
from backend.learning.gate import Checks, Decision, decide
from backend.learning.holdout import count_missing, standing
from backend.learning.job import STOPPED, TrainingJob, training_threads
from backend.learning.report import report_of, write_report
from backend.learning.run_folder import RunFolder
from backend.learning.runs import Run, Runs, RunState
from backend.learning.snapshot import HOLDOUT, TRAIN, Files, newest, write_snapshot
from backend.serving.engine import Engine
from backend.serving.leases import Leases
from backend.serving.versions import Versions
from backend.settings import Settings
from backend.support.child import Child
from backend.support.metrics import Metrics
from sam4mllm.adapters.manifest import is_same_adapter
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.durable import file_sha256, remove
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a run's training process may be started before the run counts as failed. A start does not count if the server was shut down in
order meanwhile; it does if the server crashed. A process that ends with an error fails the run at once."""
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0
"""Seconds that a process which was asked to stop has to save its training state; then it is ended by force."""
DISK_REFUSES = frozenset((errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO))
SMOKE_SECONDS = 600.0
OVERTIME, COMPARISON_SECONDS = 2.0, 3600.0
"""A run's training process is stopped after OVERTIME times its training budget plus COMPARISON_SECONDS, and the run fails, so that none
blocks later runs."""
RETRY_SECONDS = 60.0
"""Seconds to wait before a run is tried again that a full disk or an unreadable log broke off."""
PAUSE_SECONDS = 120.0
"""Seconds allowed for the requests in flight to end, which have a shorter deadline, and as many for each move of the models."""
TRAINER = ("nice", "-n", "19", sys.executable, "-P", "-m", "backend.learning.trainer")
"""Begins the training process. ``nice`` gives serving precedence; ``-P``: no module is imported from the working directory."""
PATIENT = {"OMP_WAIT_POLICY": "passive"}
"""The training process's OpenMP threads must not spin while they wait: with ``nice`` on busy cores that was ten times slower."""


class _InterruptedError(Exception):
    """The server ends, or somebody else stopped the training process; the run goes on later."""


class _PauseError(Exception):
    """The disk refuses writes, even of the run's own record, or the log cannot be read; the run is tried again later."""


class _CancelledError(Exception):
    """Somebody stopped the run for good."""


class Conductor:
    """Performs runs, one at a time."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine[Leases],
        versions: Versions,
        corrections: CorrectionLog,
        book: ReviewBook,
        files: Files,
        runs: Runs,
        metrics: Metrics,
        *,
        reconcile: Callable[[], None],
        command: Sequence[str] = TRAINER,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._versions = versions
        self._log = corrections
        self._book = book
        self._files = files
        self._runs = runs
        self._metrics = metrics
        self._reconcile = reconcile
        self._command = command
        self._interrupted = threading.Event()
        self._cancelled = ""

    def interrupt(self) -> None:
        """Have :meth:`perform` end soon, now and whenever it is called later; the run goes on after the server's next start."""
        self._interrupted.set()

    def cancel(self, run: str) -> None:
        """Have :meth:`perform` end this run for good, as stopped, at its next check. Only the run that was named last is remembered."""
        self._cancelled = run

    def perform(self, run: Run) -> None:
        """Go through a run's steps from the one that its record names; the result, or why the run failed, is written into the record.

        If the server ends, the run stays as it is. If the disk refuses writes or the log cannot be read, it stays so as well, and this
        method waits RETRY_SECONDS before it returns. In both cases the run has to be performed again.
        """
        try:
            self._perform(run)
        except _InterruptedError:
            log.info("%s was stopped and goes on later", run.id)
        except _PauseError as error:
            log.error("%s: %s; tried again in %.0f s", run.id, error, RETRY_SECONDS)
            self._interrupted.wait(RETRY_SECONDS)
        except OSError as error:
            if error.errno not in DISK_REFUSES:
                raise
            log.error("%s: its record could not be written (%s); tried again in %.0f s", run.id, error.strerror, RETRY_SECONDS)
            self._interrupted.wait(RETRY_SECONDS)

    def _perform(self, run: Run) -> None:
        try:
            if run.state in ("waiting", "preparing"):
                run = self._prepare(self._runs.save(run, state="preparing"))
            if run.state == "training":
                run = self._train(run)
            if run.state == "deciding":
                run = self._decide(run)
        except _InterruptedError:
            raise
        except LogError as error:  # not final: the corrections are still there, so the run is tried again
            self._check_ending(error)
            raise _PauseError(str(error)) from error
        except _CancelledError:
            run = self._end(run, "stopped", "stopped on request")
        except Sam4mllmError as error:
            self._check_ending(error)
            run = self._end(run, "failed", str(error))
        except Exception as error:
            self._check_ending(error)
            if isinstance(error, OSError) and error.errno in DISK_REFUSES:
                raise _PauseError(f"the disk refuses ({error.strerror})") from error
            log.error("%s: %s", run.id, where(error))
            log.debug("the traceback", exc_info=True)
            run = self._end(run, "failed", "internal error; see the server's log")
        log.info("%s: %s, %s", run.id, run.state, run.message)
        if run.state != "failed":  # a failed run keeps its files: there may be no other copy of its adapter
            with contextlib.suppress(OSError):  # files that stay only take room
                self._runs.folder(run.id).prune()

    # -- steps -----------------------------------------------------------------------------------------------------------------------------

    def _prepare(self, run: Run) -> Run:
        """Fetch the corrections once more, write the dataset to learn from and to be judged by, and write the process's job.

        A dataset that the run's record counts already, from before a restart, is kept. Refused annotations are noted in the log and in
        ``refused.json``. The run is postponed if this server does not train, or if there are too few corrections.
        """
        self._reconcile()
        reviews = self._book.read()
        folder = self._runs.folder(run.id)
        if not run.counts:
            remove(folder.data)  # a former start may have been killed before it recorded what it had written
            chosen = self._book.with_masks(newest(reviews.reviews))
            written = write_snapshot(chosen, self._files, folder.data, self._runs.holdout(), lambda: self._check_halted(run))
            self._log.note_refusals("reviews", {one.annotation: one.reason for one in reviews.refused})
            self._log.note_refusals("snapshot", dict(written.refused))
            refused = self._log.refusals()
            self._metrics.refused_annotations(len(refused))
            folder.refused.write_text(json.dumps(list(refused.items())))
            run = self._runs.save(run, counts={**written.counts, "refused": len(refused)})
        if self._settings.untrained:
            return self._end(run, "postponed", self._settings.untrained)
        if not run.counts[TRAIN] + run.counts[HOLDOUT]:
            return self._end(run, "postponed", "there is no correction to learn from; correct some masks first")
        sides = {example.image: example.split for example in read_examples(folder.data)}
        held_out = list(sides.values()).count(HOLDOUT)
        if count_missing(len(sides), held_out):
            return self._end(run, "postponed", standing(len(sides), held_out))
        self._job(self._versions.serving, folder).write(folder)
        return self._runs.save(run, state="training", champion=self._serving(), message=self._needs())

    def _train(self, run: Run) -> Run:
        """Have the training process train and compare. If it was killed with the server, it goes on from its last saved state.

        Raises LearningError if it fails, takes too long, or was started ATTEMPTS times already; _InterruptedError if somebody else stopped
        it; and what :meth:`_run_process` and :meth:`_room` raise.
        """
        if run.attempts >= ATTEMPTS:
            raise LearningError(
                f"its process was started {run.attempts} times and never came to an end; see {self._runs.folder(run.id).path}"
            )
        run = self._runs.save(run, attempts=run.attempts + 1)
        # the plan in the job is the one that the run began with; the settings may have changed since
        limit = OVERTIME * TrainingJob.read(self._runs.folder(run.id)).plan.budget_seconds + COMPARISON_SECONDS
        try:
            with self._room():
                code = self._run_process("training", run, [str(self._runs.folder(run.id).path)], limit)
        except (_InterruptedError, Sam4mllmError) as error:
            if isinstance(error, _InterruptedError) or self._is_ending:
                self._runs.save(run, attempts=run.attempts - 1)  # that the server ends is no fault of the run
                raise _InterruptedError from error
            raise
        if code == STOPPED:  # with the server, or by somebody else; its training state is saved
            self._runs.save(run, attempts=run.attempts - self._is_ending)
            raise _InterruptedError
        if code:
            raise LearningError(self._last_line(run, "training"))
        return self._runs.save(run, state="deciding")

    def _decide(self, run: Run) -> Run:
        """Store the challenger as a version, have a fresh process try it, have the gate decide, promote the challenger if it is better, and
        write the report. A challenger that was stored before a restart is not stored again.
        """
        folder = self._runs.folder(run.id)
        found, pairs = read_evaluation(folder)
        if not run.challenger:
            self._check_champion(run)
            metrics = {"holdout": sum(pair.challenger for pair in pairs) / max(1, len(pairs))}
            if found["golden_challenger"] is not None:
                metrics["golden"] = found["golden_challenger"]
            added = self._versions.add(folder.adapter, file_sha256(folder.data / EXAMPLES), metrics)
            run = self._runs.save(run, challenger=added.version)
        with self._room():
            smoke = self._run_process("smoke", run, ["smoke", str(folder.path)], SMOKE_SECONDS) == 0
        decision = decide(pairs, Checks(found["golden_champion"], found["golden_challenger"], smoke=smoke))
        state: RunState = "kept" if decision.verdict == "keep" else "postponed"
        message = "; ".join(decision.reasons)
        if decision.verdict == "promote":
            state, message = self._promote(run, run.challenger, message)
        return self._report(run, state, message, decision, found)

    def _promote(self, run: Run, version: str, message: str) -> tuple[RunState, str]:
        """Promote the challenger, unless another version than the compared champion serves by now; return the run's state and message.

        The challenger itself may serve already, if the server was killed just after the promotion.
        """
        with contextlib.suppress(RegistryError, ModelError):
            self._versions.sync()  # somebody may have promoted another just now
        serving = self._serving()
        # an update or another setting may call the same adapter by another name
        if not any(is_same_adapter(serving, one) for one in (run.champion, version)):
            return "kept", f"{serving} was promoted meanwhile, and this version was not compared with it"
        self._versions.promote(version)
        return "promoted", message

    # -- inside ----------------------------------------------------------------------------------------------------------------------------

    def _job(self, champion: str | None, folder: RunFolder) -> TrainingJob:
        settings = self._settings
        home = settings.home.resolve()
        folder_of_champion = str(self._versions.registry.path(champion).resolve()) if champion else None
        return TrainingJob(
            model=settings.model,
            segmenter=settings.segmenter,
            device=settings.train_device,
            strategy=settings.strategy,
            joint=settings.options.joint,
            pattern=settings.pattern,
            threshold=settings.threshold,
            thought_tokens=settings.thought_tokens,
            look_back=settings.look_back,
            dataset=str(folder.data.resolve()),
            replay=str(settings.replay.resolve()) if settings.replay else None,
            golden=str(settings.golden.resolve()) if settings.golden else None,
            home=str(home),
            champion=folder_of_champion,
            start=folder_of_champion,
            champion_version=self._serving(),
            plan=settings.training.plan,
            asking=settings.training.asking if settings.train_config or champion is None else None,
            threads=training_threads(),
            precision=settings.precision,
        )

    def _needs(self) -> str:
        """Return a line for the run's record, written before the training: where the run trains, and how much memory that takes."""
        leases = self._engine.model
        weights = leases.loader.nbytes if leases is not None and leases.loader is not None else 0
        size = f"{weights / 1e9:.1f} GB" if weights >= 1e8 else f"{weights / 1e6:.0f} MB"
        where = {"beside": "beside the serving models", "pause": "while serving pauses"}
        place = where.get(self._settings.train_mode, f"on {self._settings.train_device}")
        return f"trains {place}: {size} for the models once more, and room for activations"

    def _serving(self) -> str:
        leases = self._engine.model
        return leases.current.version if leases is not None else ""

    def _run_process(self, name: str, run: Run, arguments: list[str], seconds: float = float("inf")) -> int:
        """Run a process and return its exit code; it is stopped if the run is cancelled, the server ends or ``seconds`` are over.

        ``name`` is "training" or "smoke". Raises _CancelledError, _InterruptedError, LearningError if it takes too long, or SettingsError
        if it cannot be started.
        """
        child = Child(name, [*self._command, *arguments], {**os.environ, **PATIENT}, self._runs.folder(run.id).log_of(name))
        try:
            deadline = time.monotonic() + seconds
            while (code := child.process.poll()) is None:
                if time.monotonic() > deadline:
                    raise LearningError(f"its {name} took longer than {seconds:.0f} s")
                self._check_halted(run)
                self._interrupted.wait(POLL_SECONDS)
            return int(code)
        finally:
            _stop(child)

    def _check_champion(self, run: Run) -> None:
        """Raise LearningError if the run was resumed with other models: its adapter belongs to the former ones."""
        if self._serving().rsplit("-", 2)[0] != run.champion.rsplit("-", 2)[0]:
            raise LearningError(f"it was trained beside {run.champion}, and {self._serving()} serves now; start another")

    def _check_ending(self, error: Exception) -> None:
        """Raise _InterruptedError if the server is ending: then ``error`` may only mean that the engine refuses work."""
        if self._is_ending:
            raise _InterruptedError from error

    @property
    def _is_ending(self) -> bool:
        return self._interrupted.is_set() or self._engine.state == "draining"

    def _check_halted(self, run: Run) -> None:
        if self._cancelled == run.id:
            raise _CancelledError
        if self._interrupted.is_set():
            raise _InterruptedError

    @contextmanager
    def _room(self) -> Iterator[None]:
        """In the train mode ``pause``, move the serving models off their device for the block, and tell requests to come again later.

        In other modes nothing is done. Raises DeadlineError if the requests in flight or a move of the models take longer than
        PAUSE_SECONDS, NotReadyError if the models could not be loaded or the engine has ended, and _InterruptedError if the models cannot
        be moved back because the server ends.
        """
        if self._settings.train_mode != "pause":
            yield
            return
        self._engine.pause("a new version is being trained; ask again in some minutes", PAUSE_SECONDS)
        try:
            self._engine.run(lambda leases: leases.away(), False, time.monotonic() + PAUSE_SECONDS)
            yield
        finally:
            try:
                self._engine.run(lambda leases: leases.back(), False, time.monotonic() + PAUSE_SECONDS)
            except NotReadyError as error:
                self._check_ending(error)
                raise
            finally:
                self._engine.resume()

    def _end(self, run: Run, state: RunState, message: str) -> Run:
        return self._runs.save(run, state=state, message=message)

    def _report(self, run: Run, state: RunState, message: str, decision: Decision, found: dict[str, Any]) -> Run:
        """Write the run's report, then its record, so that a run that is over has its report. Return the ended run.

        If the report cannot be written, the log says so, and the run ends all the same.
        """
        ended = replace(run, state=state, message=message, decision=asdict(decision))
        folder = self._runs.folder(run.id)
        try:
            write_report(folder, report_of(run, state, decision, found, folder))
        except OSError as error:
            log.error("%s: its report could not be written: %s", run.id, error.strerror)
        return self._runs.save(ended)

    def _last_line(self, run: Run, name: str) -> str:
        path = self._runs.folder(run.id).log_of(name)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told[-1] if told else f"its process ended without a word; see {path}"


def _stop(child: Child) -> None:
    """Ask a process to end and give it STOP_SECONDS, because saving the training state takes time; then end it by force."""
    if child.process.poll() is None:
        os.killpg(child.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(STOP_SECONDS)
    child.stop()
