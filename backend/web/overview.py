"""What there is to know of a running server, in one value: the status page shows it, ``GET /api`` sends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from backend.batch.on_server import RUNNING, BulkRun
from backend.corrections.log_faults import LogError
from backend.learning.agreement import Reliability, ReviewedAnswer, Trend, draw_trend, measure_reliability
from backend.learning.auto_rollback import ControlChart
from backend.learning.edge_offers import EdgeOffer
from backend.learning.participants import Participant
from backend.learning.report import Plot, draw_curve
from backend.learning.run_folder import RunFolder, ShownPair
from backend.learning.runs import Run
from backend.learning.worth import Worth
from backend.service import Service
from backend.support.demo_project import demo_notice
from backend.support.metrics import Failure, Request
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.adapters.registry import Broken, Promotion
from sam4mllm.errors import RegistryError

SHOWN_RUNS = 10
"""Training runs on one page; older ones are on the next."""
SHOWN_CHANGES = 3
BASE_MODEL = "the base model"


@dataclass(frozen=True)
class Version:
    """An adapter of the registry. ``serving``: it is the champion, and there is an MLLM.

    ``usable``: it was trained on the base model that is loaded, so it can serve; true also while the models load or if they could not be
    loaded, false where a segmenter is loaded without an MLLM.
    """

    version: str
    created: float
    metrics: dict[str, float]
    serving: bool
    usable: bool


@dataclass(frozen=True)
class Active:
    """A run that is going on or waits. ``progress`` is what its process reports (stage, done, of), ``curve`` and ``validation``
    are the training and the validation loss so far, as (step, loss).
    """

    run: Run
    progress: dict[str, Any]
    curve: list[tuple[int, float]]
    validation: list[tuple[int, float]]

    @cached_property
    def plot(self) -> Plot | None:
        return draw_curve(self.curve, self.validation)


@dataclass(frozen=True)
class Overview:
    """The state of the server at one moment; times are in seconds since 1970.

    - ``version``: that of predictions, as :attr:`Service.version` says it. ``champion``: the version that the registry says serves, empty
      for the base model.
    - ``serves_since``: when the champion was promoted, None if the history does not say or there is no MLLM.
    - ``rolls_back_to``: what a rollback would let serve, None where there is nothing to roll back. It is the base model, too, where the
      history does not say what served before; a rollback is then refused.
    - ``demo``: a notice that the demo's models serve a project that is not the demo's, else empty.
    - ``parameters``: by project, what is wrong with its extra parameters.
    - ``untrained``: why no run trains a LoRA, empty if runs do.
    - ``unassisted_minutes``: how many minutes longer a hundred tasks take because some of them come without a pre-annotation; None while
      the time of either kind of task is not known.
    - ``standing``: a line on how many pictures are corrected, and how many more it takes until a run can be judged, or why that cannot be
      read; empty if no run trains a LoRA. ``missing``: about how many more; None if that cannot be read, or no run trains a LoRA.
    - ``projects``: the ids of the projects that the log of corrections knows, none if it cannot be read. ``bulk``: the last bulk run of
      each project that had one.
    - ``active``: the training runs that are not over.
    - ``runs``: one page of runs, the newest first, without the ``first`` newest ones; ``run_count`` is the number of all runs.
    - ``changes``: at most SHOWN_CHANGES held-out phrases with pictures from before and after ``changed_by``, the last run that was judged;
      both are empty if none was.
    - ``problem``: why the registry or the log of corrections cannot be read, empty if both can.
    """

    state: str
    failure: str
    version: str
    champion: str
    serves_since: float | None
    rolls_back_to: str | None
    waiting: int
    places: int
    model: str
    demo: str
    parameters: dict[int, str]
    untrained: str
    label_studio: str
    reconciliation: str
    agreement: ControlChart | None
    judged: tuple[ReviewedAnswer, ...]
    reliability: Reliability | None
    worth: Worth
    unassisted_minutes: float | None
    edge_offers: tuple[EdgeOffer, ...]
    edges: tuple[tuple[int, str, str], ...]
    participants: tuple[Participant, ...]
    standing: str
    missing: int | None
    projects: list[int]
    bulk: list[BulkRun]
    active: list[Active]
    runs: list[Run]
    first: int
    run_count: int
    changes: list[ShownPair]
    changed_by: str
    versions: list[Version]
    broken: list[Broken]
    history: list[Promotion]
    failures: list[Failure]
    requests: list[Request]
    events: list[Request]
    problem: str

    @property
    def bulk_running(self) -> bool:
        return any(one.state in RUNNING for one in self.bulk)

    @property
    def label_studio_page(self) -> str:
        return page_address(self.label_studio)

    @cached_property
    def trend(self) -> Trend | None:
        return draw_trend(self.judged)

    def to_json(self) -> dict[str, Any]:
        """As ``GET /api`` sends it."""
        return asdict(self)


@dataclass(frozen=True)
class _Shelf:
    """The part of :class:`Overview` that is read from the registry; ``problem`` says why it could not be."""

    champion: str = ""
    since: float | None = None
    back: str | None = None
    versions: tuple[Version, ...] = ()
    broken: tuple[Broken, ...] = ()
    history: tuple[Promotion, ...] = ()
    problem: str = ""


def page_address(label_studio_url: str) -> str:
    """Return Label Studio's address if a browser may reach it too, else an empty text.

    A host name without a dot, other than localhost, is taken for a container's, which a browser cannot resolve.
    """
    host = urlsplit(label_studio_url).hostname or ""
    return label_studio_url.rstrip("/") if "." in host or ":" in host or host == "localhost" else ""


def look(service: Service, first: int = 0) -> Overview:
    """Return the state of the server now, with a page of runs that skips the ``first`` newest. Nothing here waits for the models."""
    engine, learner, settings = service.engine, service.learner, service.settings
    strategy = engine.model.current.strategy if engine.model is not None else settings.strategy
    runs = learner.runs.all()
    shelf = _read_shelf(service)
    projects = _projects(service)
    judged_run = next((run for run in runs if run.decision), None)
    return Overview(
        state=engine.state,
        failure=engine.failure,
        version=service.version,
        champion=shelf.champion,
        serves_since=shelf.since,
        rolls_back_to=shelf.back,
        waiting=engine.waiting,
        places=settings.queue,
        model=f"{settings.model if settings.has_model else 'none (no MLLM)'}, segmenter {settings.segmenter}, strategy {strategy}",
        demo=_tell_demo(service, projects),
        parameters=service.parameters.problems,
        untrained=settings.untrained,
        label_studio=settings.label_studio_url,
        reconciliation=learner.reconciliation,
        agreement=learner.watch.state,
        judged=learner.judged,
        reliability=measure_reliability(learner.judged),
        worth=learner.worth,
        unassisted_minutes=learner.worth.cost(settings.unassisted_share),
        edge_offers=learner.edge_offers,
        edges=tuple((project, label, str(edge)) for project, label, edge in learner.edges.adopted),
        participants=learner.survey,
        standing="" if settings.untrained else learner.standing(),
        missing=None if settings.untrained else learner.missing(),
        projects=projects,
        bulk=service.bulk.runs,
        active=[_active(run, learner.runs.folder(run.id)) for run in runs if not run.over],
        runs=runs[first : first + SHOWN_RUNS],
        first=first,
        run_count=len(runs),
        changes=learner.runs.folder(judged_run.id).read_changes(SHOWN_CHANGES) if judged_run else [],
        changed_by=judged_run.id if judged_run else "",
        versions=list(shelf.versions),
        broken=list(shelf.broken),
        history=list(shelf.history),
        failures=service.metrics.recent,
        requests=service.metrics.requests,
        events=service.metrics.events,
        problem="; ".join(filter(None, (shelf.problem, service.corrections.problem))),
    )


def _active(run: Run, folder: RunFolder) -> Active:
    return Active(run, folder.read_progress(), folder.read_curve(), folder.read_validation())


def _read_shelf(service: Service) -> _Shelf:
    registry, leases, used = service.versions.registry, service.engine.model, service.settings.has_model
    base = leases.loader.base_sha256 if leases is not None and leases.loader is not None else None
    try:
        champion, tenure, good, broken = registry.serving(), registry.tenure(), *registry.survey()
        back = (registry.before()[0] or BASE_MODEL) if champion is not None and used else None
        return _Shelf(
            champion=champion or "",
            since=tenure.since if tenure and used else None,
            back=back,
            versions=tuple(_shown(one, champion if used else None, base) for one in reversed(good)),
            broken=tuple(broken),
            history=tuple(reversed(registry.history())),
        )
    except RegistryError as error:
        return _Shelf(problem=str(error))


def _shown(manifest: Manifest, champion: str | None, base_sha256: str | None) -> Version:
    return Version(
        version=manifest.version,
        created=datetime.fromisoformat(manifest.created).timestamp(),
        metrics=manifest.metrics,
        serving=manifest.version == champion,
        usable=base_sha256 in (None, manifest.base_sha256),
    )


def _projects(service: Service) -> list[int]:
    try:
        return service.corrections.projects()
    except LogError:  # the page is needed most when the log is in trouble
        return []


def _tell_demo(service: Service, projects: Sequence[int]) -> str:
    """Return the first notice that the demo's models serve a project that is not the demo's, empty if they do not.

    Where no project is known yet, the notice is about any that may come.
    """
    told = [demo_notice(service.settings, project) for project in projects] or [demo_notice(service.settings)]
    return next(filter(None, told), "")
