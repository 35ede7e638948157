"""What is counted, for Prometheus and for the status page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

RECENT = 50
BUCKETS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 100.0)
"""Upper bounds of the histograms' buckets, in seconds; Label Studio gives up after 100."""


@dataclass(frozen=True)
class Failure:
    """A task that got no answer: its id, its project if known, how often it has failed, and when (seconds since 1970) and why (in one line)
    it failed the last time.
    """

    when: float
    project: int | None
    task: str
    times: int
    reason: str
    message: str


@dataclass(frozen=True)
class Request:
    """A request that was answered: when (seconds since 1970), its id, method and route, the ``tasks`` that it was about, as a text, the
    seconds that it took, and the status of the answer. ``message`` says in one line why it was refused, or is empty.
    """

    when: float
    id: str
    method: str
    route: str
    tasks: str
    seconds: float
    status: int
    message: str


class Metrics:
    """Counters in a registry of their own, so that two apps in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tasks = Counter("sam4mllm_tasks", "Tasks by outcome.", ("outcome",), registry=self.registry)
        self._failures = Counter("sam4mllm_failed_tasks", "Tasks without an answer, by reason.", ("reason",), registry=self.registry)
        self._events = Counter("sam4mllm_events", "Webhook events stored, by action.", ("action",), registry=self.registry)
        self._requests = Counter("sam4mllm_refused_requests", "Requests refused, by reason.", ("reason",), registry=self.registry)
        self._stages = Histogram(
            "sam4mllm_stage_seconds", "Seconds of a task's stages.", ("stage",), buckets=BUCKETS, registry=self.registry
        )
        self._seconds = Histogram(
            "sam4mllm_request_seconds",
            "Seconds of a request, by route and status.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._annotations = Gauge(
            "sam4mllm_refused_annotations", "Annotations in the log that nothing is learned from.", registry=self.registry
        )
        self._recent: dict[tuple[int | None, str], Failure] = {}
        self._last: deque[Request] = deque(maxlen=RECENT)
        self._events_taken: deque[Request] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def served(self, regions: int) -> None:
        self._tasks.labels("served" if regions else "nothing_found").inc()

    def failed(self, task: object, reason: str, message: str, project: int | None = None) -> None:
        self._tasks.labels("failed").inc()
        self._failures.labels(reason).inc()
        with self._lock:
            before = self._recent.pop((project, str(task)), None)
            times = before.times + 1 if before else 1
            self._recent[project, str(task)] = Failure(time.time(), project, str(task), times, reason, message)
            while len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]

    def mended(self, task: object, project: int | None) -> None:
        """Forget the failures of a task in ``recent``, because it has got an answer; the counters keep them."""
        with self._lock:
            self._recent.pop((project, str(task)), None)

    def stored(self, action: str) -> None:
        self._events.labels(action).inc()

    def refused_annotations(self, count: int) -> None:
        self._annotations.set(count)

    def refused(self, reason: str) -> None:
        self._requests.labels(reason).inc()

    def spent(self, seconds: Mapping[str, float]) -> None:
        for stage, spent in seconds.items():
            self._stages.labels(stage).observe(spent)

    def answered(self, request: Request) -> None:
        self._seconds.labels(request.method, request.route, str(request.status)).observe(request.seconds)

    def remember(self, request: Request) -> None:
        """Keep a request among the last RECENT webhook events, or among the last RECENT other requests, for the status page."""
        with self._lock:
            (self._events_taken if request.route.startswith("/webhook") else self._last).append(request)

    @property
    def requests(self) -> list[Request]:
        """The last requests from Label Studio other than webhook events, at most RECENT, newest first."""
        with self._lock:
            return list(reversed(self._last))

    @property
    def events(self) -> list[Request]:
        """The last webhook events from Label Studio, at most RECENT, newest first. They are kept apart because there are many more of them
        than of other requests.
        """
        with self._lock:
            return list(reversed(self._events_taken))

    @property
    def recent(self) -> list[Failure]:
        """The tasks that failed and have no answer since, at most RECENT, each once, the one that failed last first."""
        with self._lock:
            return list(reversed(self._recent.values()))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
