"""When to train: after Label Studio's button "Start Training", on request, and after a number of new corrections. One run at a time.

Start Training and a request wake the scheduler's thread and do not wait for it. Two requests before a run has begun lead to one run.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from backend.corrections.log import CorrectionLog
from backend.corrections.reconcile import reconcile
from backend.corrections.review_book import ReviewBook
from backend.corrections.reviews import Review, in_order
from backend.errors import LearningError, NotReadyError, where
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import START_TRAINING
from backend.learning.agreement import ReviewedAnswer, judged_of
from backend.learning.auto_rollback import AutoRollback
from backend.learning.conductor import TRAINER, Conductor
from backend.learning.edge_offers import EdgeOffer, find_offer, groups
from backend.learning.holdout import count_missing, standing
from backend.learning.participants import Participant, Participants
from backend.learning.runs import Run, Runs
from backend.learning.snapshot import Files
from backend.learning.worth import NOTHING, measure_worth
from backend.serving.calibration import Scorer
from backend.serving.edges import Edges
from backend.serving.engine import Engine
from backend.serving.leases import Leases
from backend.serving.versions import Versions
from backend.settings import Settings
from backend.support.metrics import Metrics
from sam4mllm.edges import Edge
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
AHEAD_SECONDS = 60.0
"""Seconds. If the log's last stamp is further ahead of the clock than this, the clock was wrong when it was written."""
EARLIEST = 1.0
"""A position in the log of corrections before all others but 0, which stands for none."""
LOOK_SECONDS = 20.0
"""The fewest seconds between two looks at the reviews, unless it was changed who is left out."""
GROWTH = 1.2
"""Factor by which the number of a label's edited pictures has to grow before its edge is fitted again, unless another edge was adopted or
another mask decoder serves.
"""
LATEST = 5_000
"""The most reviews, those that came last, for the rollback, the figures shown and the edges: a look must not take longer with each that
comes. The score and ``corrected`` take all reviews.
"""


class Learner:
    """The learning loop of a server. It starts training runs, and follows the reviews: it refits the score, offers other edges of masks
    (:mod:`sam4mllm.edges`), and rolls a version back.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine[Leases],
        versions: Versions,
        corrections: CorrectionLog,
        files: Files,
        metrics: Metrics,
        *,
        label_studio: LabelStudio | None,
        scorer: Scorer,
        edges: Edges,
        trainer: Sequence[str] = TRAINER,
    ) -> None:
        self.runs = Runs(settings.home)
        self.watch = AutoRollback(versions.registry.tenure, versions.rollback)
        self._settings = settings
        self._engine = engine
        self._versions = versions
        self._log = corrections
        self._metrics = metrics
        self._scorer = scorer
        self.edges = edges
        self.offers: tuple[EdgeOffer, ...] = ()
        """The offers of edges that are open, for all mask decoders. A look at the reviews drops only offers for the decoder that serves."""
        self._edges_seen: dict[tuple[str, int, str], tuple[Edge, int]] = {}
        self._adopting = threading.Lock()
        self._edges_due: dict[tuple[int, str], list[Review]] = {}
        self._files = files
        self._label_studio = label_studio
        self.participants = Participants(settings.home, settings.leave_out)
        self.survey: tuple[Participant, ...] = ()
        """The projects and reviewers that have reviews or are left out, as of the last look at the reviews."""
        self._book = ReviewBook(
            corrections,
            settings.phrase_field,
            settings.prompt_control,
            is_left_out=self.participants.is_left_out,
            renamed=settings.renamed,
        )
        self._conductor = Conductor(
            settings, engine, versions, corrections, self._book, files, self.runs, metrics, reconcile=self._reconcile, command=trainer
        )
        self._heeded = 0
        self._promotion = ("", 0.0)
        self._problems: dict[str, str] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._ticker = threading.Thread(target=self._tick_until_closed, name="learning", daemon=True)
        self._worker: threading.Thread | None = None
        self._reconciled = 0.0
        self._next_look, self._looked, self._must_look = 0.0, 0.0, False
        self.corrected = 0
        """How many pictures have a review, also one that accepts what was served, as of the last look at the reviews."""
        self.judged: tuple[ReviewedAnswer, ...] = ()
        """What reviewers made of served answers, by those of the LATEST reviews for which something was served, as of the last look."""
        self.worth = NOTHING
        """What pre-annotations are worth by the LATEST reviews, as of the last look at the reviews."""
        self.reconciliation = ""
        """What the last look at Label Studio's API said; empty before."""

    def start(self) -> None:
        """Start the thread that looks for work, and return. A run that a restart broke off goes on once the models are loaded."""
        if self._settings.untrained:
            log.info("%s", self._settings.untrained)
        self._ticker.start()

    def close(self, seconds: float) -> None:
        """End the threads, and wait up to about ``seconds`` for that. A run in progress saves its training state and goes on later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._conductor.interrupt()
        deadline = time.monotonic() + seconds
        for thread in (self._ticker, self._worker):
            if thread is not None and thread.is_alive():
                thread.join(max(0.1, deadline - time.monotonic()))

    def ask(self, reason: str) -> Run:
        """Record a new run, which starts when all earlier ones are over, and return it. If a run still waits, or one that has begun has all
        corrections that there are, return that run instead.

        ``reason`` is recorded. Raises LearningError if the disk refuses the record, and LogError if the log cannot be read.
        """
        with self._changed:
            try:
                run = self._same() or self.runs.create(reason, self._log.position(), self._settings.untrained)
            except OSError as error:
                raise LearningError(f"the run could not be written ({error.strerror}); free space in {self._settings.home}") from error
            self._changed.notify_all()
            return run

    def _look_at_reviews(self) -> None:
        """If there are new corrections, or if who is left out was changed, take all reviews: update the figures, refit the score, roll the
        version back if agreement fell, and note the labels whose edges are due.

        Nothing is done while the models are not loaded, or, unless who is left out was changed, within LOOK_SECONDS of the last look.
        """
        leases, position = self._engine.model, self._log.position()
        if leases is None or not (self._must_look or (time.monotonic() >= self._next_look and self._log.count_new(self._looked))):
            return
        anew, self._must_look = self._must_look, False
        self._next_look = time.monotonic() + LOOK_SECONDS
        found = self._book.read()
        self._log.note_refusals("reviews", {one.annotation: one.reason for one in found.refused})
        self._metrics.refused_annotations(len(self._log.refusals()))
        self.survey = self.participants.survey([*found.reviews, *found.left_out])
        latest = heapq.nlargest(LATEST, found.reviews, in_order)
        if self._settings.has_model:  # without an MLLM the champion does not serve, so no review is about it
            self.watch.look(latest, self.serves_since())
        if self._scorer.refit(found.reviews, leases.current.version, anew=anew):
            leases.calibrate(self._scorer.calibration)
        self.judged, self.worth = judged_of(latest), measure_worth(latest)
        self._look_at_edges(latest)
        self.corrected = len({review.image for review in found.reviews})
        self._looked = position

    def leave_out(self, name: str) -> None:
        """Learn nothing more from a project or a reviewer, whose ``name`` has the form of PARTICIPANT in :mod:`backend.settings`.

        Raises LearningError for another name, or if the choice cannot be written.
        """
        self.participants.leave_out(name)
        self._look_again()

    def take_in(self, name: str) -> None:
        """Use the reviews of a project or a reviewer again; ``name`` as for ``leave_out``.

        Raises LearningError as ``leave_out`` does, and if the settings leave it out.
        """
        self.participants.take_in(name)
        self._look_again()

    def _look_again(self) -> None:
        self._must_look = True
        self.wake()

    @property
    def edge_offers(self) -> tuple[EdgeOffer, ...]:
        """The offers for the mask decoder that serves."""
        return tuple(one for one in self.offers if one.decoder == self.edges.decoder)

    def adopt_edge(self, project: int, label: str, edge: Edge, decoder: str | None = None) -> None:
        """Draw a label's masks with ``edge`` from now on; AS_DRAWN takes the adopted edge back. The label's offer is dropped.

        The edge holds for the mask decoder whose adapter has the hash ``decoder``, None for the one that serves. Raises LearningError if it
        cannot be stored, and NotReadyError while the models are not loaded; the former edge then holds again.
        """
        with self._adopting:
            decoder = self.edges.decoder if decoder is None else decoder
            former = self.edges.of(project, label, decoder)
            self.edges.adopt(project, label, edge, decoder)
            try:
                self._versions.name_edges(self.edges.digest_of)
            except NotReadyError:
                self.edges.adopt(project, label, former, decoder)
                raise
        self.offers = tuple(one for one in self.offers if (one.project, one.label, one.decoder) != (project, label, decoder))

    def _look_at_edges(self, reviews: Iterable[Review]) -> None:
        """Note the labels whose edge is to be fitted: for the first time, or anew as GROWTH says. Labels that now have too few edited
        pictures lose their offer for the decoder that serves.
        """
        found = groups(reviews, self.edges)
        decoder = self.edges.decoder
        self.offers = tuple(one for one in self.offers if one.decoder != decoder or (one.project, one.label) in found)
        self._edges_due = {key: some for key, some in found.items() if self._is_fresh(key, self.edges.of(*key), len(some))}

    def _fit_next_edge(self) -> None:
        """Fit the edge (:class:`sam4mllm.edges.Edge`: how far outlines are moved, and whether holes are filled) of one label that is due.

        The offer, or that there is none, replaces the label's former offer for the mask decoder that serves. Nothing is replaced if another
        edge was adopted, or another decoder came to serve, during the fit. One label at a time, because pictures of many megapixels take
        seconds.
        """
        if not self._edges_due:
            return
        key = next(iter(self._edges_due))
        due = self._edges_due.pop(key)
        decoder, present = self.edges.decoder, self.edges.of(*key)
        offer = find_offer(list(self._book.with_masks(due)), self.edges)
        others = [one for one in self.offers if (one.project, one.label, one.decoder) != (*key, decoder)]
        # nobody adopted another one meanwhile, and no version came to serve that draws otherwise
        if (self.edges.decoder, self.edges.of(*key)) == (decoder, present):
            self.offers = tuple(sorted([*others, *([offer] if offer else [])], key=lambda one: (one.project, one.label)))
            self._edges_seen[decoder, *key] = present, len(due)

    def _is_fresh(self, key: tuple[int, str], edge: Edge, count: int) -> bool:
        known, before = self._edges_seen.get((self.edges.decoder, *key), (edge, 0))
        return edge != known or count >= GROWTH * before

    def serves_since(self) -> float:
        """Return the log's position at the promotion of the champion; 0 if the base model serves, or if the registry's history does not say
        since when the champion serves.

        When the promotion is first seen, its position is worked out from the promotion's date and time, and recorded in the log. If the
        log's stamps are ahead of the clock, they cannot be compared with that time, and the present position is recorded.
        """
        tenure = self._versions.registry.tenure()
        if tenure is None:
            return 0.0
        name = f"promotion {tenure.version} {tenure.since:.0f}"
        if self._promotion[0] != name:
            since = self._log.mark(name)
            if not since:
                position = self._log.position()
                ahead = position > time.time() + AHEAD_SECONDS  # the clock was wrong, so times of day cannot be found in the log
                since = position if ahead else self._log.since(tenure.since) or EARLIEST
                self._log.set_mark(name, since)
            self._promotion = (name, since)
        return self._promotion[1]

    def _position_of(self, run: Run) -> float:
        return self._log.since(run.created) if run.position is None else run.position

    def _same(self) -> Run | None:
        """Return a run that is not over and that would learn from the same corrections as a new one, or None."""
        pending = [run for run in self.runs.all() if not run.over]
        return next((run for run in pending if run.state == "waiting" or not self._log.count_new(self._position_of(run))), None)

    def standing(self) -> str:
        """Return a line on how far the next run is (:func:`holdout.standing`), or why that cannot be read."""
        try:
            return standing(self.corrected, self.runs.holdout().expect(self.corrected))
        except LearningError as error:
            return str(error)

    def missing(self) -> int | None:
        """How many more corrected pictures a run takes to be judged, about; None if that cannot be read."""
        try:
            return count_missing(self.corrected, self.runs.holdout().expect(self.corrected))
        except LearningError:
            return None

    def wake(self) -> None:
        """Begin the next tick at once, for example because Start Training is in the log."""
        with self._changed:
            self._changed.notify_all()

    def stop(self, run: str) -> Run | None:
        """Stop a run for good, if it is not over, and return it; None if there is no such run. A run that has begun ends a little later."""
        found = self.runs.load(run)
        if found is None or found.over:
            return found
        self._conductor.cancel(run)  # even if it waits: it may begin just now
        if found.state == "waiting":
            return self.runs.save(found, state="stopped", message="stopped before it began")
        return found

    # -- the thread that looks -------------------------------------------------------------------------------------------------------------

    def _tick_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(TICK_SECONDS)
                if self._closed:
                    return
            for step in (
                self._log.drain,
                self._heed_button,
                self.serves_since,
                self._versions.sync,
                self._look_at_reviews,
                self._fit_next_edge,
                self._reconcile_in_time,
                self._count,
                self._begin_next,
            ):
                self._try(step)

    def _try(self, step: Callable[[], object]) -> None:
        """Call one step of a tick. Its error is logged, but not at each tick again, and not raised, so that the other steps are done."""
        problem = ""
        try:
            step()
        except Sam4mllmError as error:
            problem = str(error)
        except Exception as error:
            problem = f"learning: {where(error)}"
            log.debug("the traceback", exc_info=True)
        if problem and problem != self._problems.get(step.__name__):
            log.error("%s", problem)
        self._problems[step.__name__] = problem

    def _heed_button(self) -> None:
        """Ask for a run if "Start Training" was pressed since the last call.

        The press is in the log: a restart does not lose it, and another process may have written it there.
        """
        pressed = self._log.last(START_TRAINING)
        if pressed <= self._heeded:
            return
        if pressed > (self._log.mark(START_TRAINING) or self._heeded_before()):
            self.ask("Label Studio's Start Training")
            self._log.set_mark(START_TRAINING, pressed)
        self._heeded = pressed

    def _heeded_before(self) -> int:
        """Return the event number of the last press that an older release acted on; 0 if there is none.

        It is the last press before the end of the newest run that such a release recorded or, if that run has no end, before it was asked
        for.
        """
        newest = next((run for run in self.runs.all() if run.position is None), None)
        return 0 if newest is None else self._log.last_until(START_TRAINING, max(newest.created, newest.ended or 0.0))

    def count_new(self) -> int:
        """How many annotations, neither deleted nor skipped, came or changed since the last run was asked for; all if there was no run."""
        return self._log.count_new(max(map(self._position_of, self.runs.all()), default=0.0))

    def _count(self) -> None:
        if (after := self._settings.train_after) and not self._settings.untrained and (new := self.count_new()) >= after:
            self.ask(f"{new} new corrections")

    def _reconcile_in_time(self) -> None:
        if time.monotonic() - self._reconciled > 60 * self._settings.reconcile_minutes or not self._reconciled:
            self._reconcile()

    def _reconcile(self) -> None:
        self._reconciled = time.monotonic()
        found = reconcile(self._log, self._label_studio, self._log.projects())
        if found.problem and found.problem != self.reconciliation:
            log.warning("%s", found.problem)
        self.reconciliation = found.problem or f"{found.projects} project{'s' * (found.projects != 1)} compared with Label Studio"

    def _begin_next(self) -> None:
        if self._engine.state != "ready" or (self._worker is not None and self._worker.is_alive()):
            return
        pending = [run for run in self.runs.all() if not run.over and self._may_go_on(run)]
        if pending:
            self._worker = threading.Thread(target=self._conductor.perform, args=(pending[-1],), name="run", daemon=True)
            self._worker.start()

    def _may_go_on(self, run: Run) -> bool:
        """Whether a run may be performed here: one that has begun to train must wait while this server's settings do not allow training."""
        return not self._settings.untrained or run.state in ("waiting", "preparing")
