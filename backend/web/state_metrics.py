"""What ``/metrics`` tells of the server's state: read when it is asked for, so that nobody has to keep it up to date."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import get_args

from flask import Flask, Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.corrections.log_faults import LogError
from backend.learning.agreement import draw_trend, measure_reliability
from backend.learning.runs import ENDED, RunState
from backend.service import Service
from backend.serving.engine import State
from sam4mllm.errors import RegistryError


def add_metrics(app: Flask, service: Service) -> None:
    """Add ``GET /metrics``, which sends what the service has counted, and the metrics that a StateCollector computes from its state."""
    service.metrics.registry.register(StateCollector(service))

    @app.get("/metrics")
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), mimetype="text/plain; version=0.0.4")


class StateCollector(Collector):
    """Computes the metrics of a service's queue, caches, version, runs, reviews, worth of pre-annotations, and disk."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from self._caches()
        yield from self._version()
        yield from self._learning()
        yield from self._agreement()
        yield from self._worth()
        yield from self._disk()

    def _engine(self) -> Iterator[Metric]:
        engine, settings, backlog = self._service.engine, self._service.settings, self._service.backlog
        yield _by("sam4mllm_state", "1 for the state the server is in.", "state", {one: one == engine.state for one in get_args(State)})
        yield _one("sam4mllm_queue_waiting", "Pieces of work that wait for the models.", engine.waiting)
        yield _by("sam4mllm_requests_in_house", "Requests that wait or run, by kind.", "kind", engine.taken)
        yield _one("sam4mllm_places", "Requests of either kind that may wait or run at once.", settings.queue)
        yield _one("sam4mllm_late_tasks", "Tasks that missed their deadline and are still worked on.", backlog.waiting if backlog else 0)

    def _caches(self) -> Iterator[Metric]:
        hits = CounterMetricFamily("sam4mllm_cache_hits", "Found in a cache.", labels=["cache"])
        misses = CounterMetricFamily("sam4mllm_cache_misses", "Not found in a cache.", labels=["cache"])
        size = GaugeMetricFamily("sam4mllm_cache_bytes", "Bytes in a cache.", labels=["cache"])
        for name, cache in self._service.caches.items():
            hits.add_metric([name], cache.hits)
            misses.add_metric([name], cache.misses)
            size.add_metric([name], cache.nbytes)
        yield from (hits, misses, size)

    def _version(self) -> Iterator[Metric]:
        service = self._service
        named = {"version": service.version, "model": service.settings.model, "segmenter": service.settings.segmenter}
        yield InfoMetricFamily("sam4mllm_serving", "What serves.", value=named)
        try:
            tenure, versions = service.versions.registry.tenure(), service.versions.registry.survey()[0]
        except RegistryError:
            return  # the status page says what is wrong with it
        yield _one("sam4mllm_versions", "Adapters that can be promoted.", len(versions))
        if tenure is not None and service.settings.has_model:
            yield _one("sam4mllm_promoted_timestamp_seconds", "When the serving adapter was promoted.", tenure.since)

    def _learning(self) -> Iterator[Metric]:
        learner = self._service.learner
        runs = learner.runs.all()
        states = Counter(run.state for run in runs)
        yield _by("sam4mllm_runs", "Training runs by state.", "state", {state: states[state] for state in get_args(RunState)})
        with suppress(LogError):  # the log cannot be read; the status page says why
            yield _one("sam4mllm_new_corrections", "Corrections since the last run was asked for.", learner.count_new())
        ended = next((run for run in runs if run.state in ENDED), None)
        if ended is not None and ended.ended is not None:
            yield _one("sam4mllm_last_run_ended_timestamp_seconds", "When the last run ended.", ended.ended)
            yield _one("sam4mllm_last_run_failed", "1 if the last run that ended has failed.", ended.state == "failed")
        active = next((run for run in runs if run.state not in ENDED), None)
        if active is not None:
            told = learner.runs.folder(active.id).read_progress()
            share = told["done"] / told["of"] if told.get("of") else 0.0
            stage = str(told.get("stage", active.state))
            yield _by("sam4mllm_run_progress", "Share of the active run's stage that is done.", "stage", {stage: share})
            yield _one("sam4mllm_run_seconds", "Seconds since the active run was asked for.", max(0.0, time.time() - active.created))

    def _agreement(self) -> Iterator[Metric]:
        learner = self._service.learner
        yield _one("sam4mllm_reviews", "Served answers that reviewers have dealt with.", len(learner.judged))
        trend, reliability, control = draw_trend(learner.judged), measure_reliability(learner.judged), learner.watch.state
        leases = self._service.engine.model
        calibrated = leases is not None and leases.current.calibration is not None
        yield _one("sam4mllm_score_calibrated", "1 if the score is fitted on reviews; 0 while it orders only.", calibrated)
        if trend is not None:
            yield _one("sam4mllm_agreement", "Mean IoU of the last 20 answers with what reviewers made of them.", trend.last)
        if control is not None:
            yield _one("sam4mllm_agreement_since_promotion", "Moving average of agreement since the promotion.", control.average)
            yield _one("sam4mllm_agreement_limit", "Below it, for long enough, the former version serves again.", control.limit)
        if reliability is not None:
            yield _one("sam4mllm_score_calibration_error", "Mean distance of scores from the share accepted.", reliability.error)

    def _worth(self) -> Iterator[Metric]:
        worth = self._service.learner.worth
        rows = {"assisted": worth.assisted, "unassisted": worth.unassisted, **{one.name: one for one in worth.versions}}
        yield _by("sam4mllm_reviewed_tasks", "Submitted tasks.", "tasks", {name: one.tasks for name, one in rows.items()})
        for field, about in (
            ("seconds", "Median seconds of a submitted task."),
            ("agreement", "Mean IoU of served masks with what reviewers made of them."),
            ("unchanged", "Share of phrases whose masks were let stand."),
        ):
            values = {name: float(value) for name, one in rows.items() if (value := getattr(one, field)) is not None}
            if values:
                yield _by(f"sam4mllm_task_{field}", about, "tasks", values)

    def _disk(self) -> Iterable[Metric]:
        home = self._service.settings.home
        try:
            yield _one("sam4mllm_home_free_bytes", "Free space where events and versions are kept.", shutil.disk_usage(home).free)
        except OSError:
            return


def _one(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))


def _by(name: str, about: str, label: str, values: dict[str, int] | dict[str, bool] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
