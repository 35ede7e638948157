"""The extra parameters of each project, as Label Studio last sent them. Parameters that cannot be used are reported and change nothing."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Protocol

from backend.corrections.log_faults import LogError
from backend.corrections.log_file import SOON
from backend.errors import ParametersError
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, check_parameters, read_parameters, without_effect
from sam4mllm.errors import ModelError
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)


class ParameterLog(Protocol):
    """Where the parameters are kept from one start of the server to the next. Its methods raise LogError."""

    def parameters(self, project: int, wait: float) -> Parameters: ...
    def note_parameters(self, project: int, parameters: Parameters) -> None: ...


class ProjectParameters:
    """The extra parameters by which each project is asked. Threads may share it."""

    def __init__(self, kept: ParameterLog) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._now: dict[int, Parameters] = {}
        self._problems: dict[int, str] = {}

    @property
    def problems(self) -> dict[int, str]:
        """What is wrong with the parameters that Label Studio last sent, by project. Where they cannot be used, the former ones hold."""
        with self._lock:
            return dict(sorted(self._problems.items()))

    def of(self, project: int | None) -> Parameters:
        """Return the parameters of a project; NO_PARAMETERS if it has none, or ``project`` is None.

        They are NO_PARAMETERS also while the log cannot be read: the next ``/setup`` request of Label Studio brings them.
        """
        if project is None:
            return NO_PARAMETERS
        with self._lock:
            if project in self._now:
                return self._now[project]
        try:
            kept = self._kept.parameters(project, SOON)
        except LogError as error:
            log.error("the parameters of project %d could not be read: %s", project, error)
            return NO_PARAMETERS
        with self._lock:
            return self._now.setdefault(project, kept)

    def note(self, project: int | None, given: object, config: LabelConfig, pipeline: Pipeline | None) -> None:
        """Take the parameters that Label Studio sent for a project with this config (``given``, not checked yet).

        They are kept over restarts; if they cannot be written, they hold until the server ends. ``pipeline`` is the one that serves, None
        while it loads. If the parameters cannot be used, the server's log says so once, ``problems`` says why, and the former ones stay,
        without their strategy if ``pipeline`` cannot do it. Nothing is done if ``project`` is None.
        """
        if project is None:
            return
        try:
            parameters = read_parameters(given)
            check_parameters(parameters, config)
            if pipeline is not None and parameters.strategy is not None:
                pipeline.resolve(parameters.strategy)
        except (ParametersError, ModelError) as error:
            self._tell(project, f"its extra parameters are not used: {error}")
            self._keep_possible(project, pipeline)
            return
        problem = without_effect(parameters, pipeline.strategy) if pipeline is not None else ""
        self._tell(project, f"of its extra parameters, {problem}" if problem else "")
        if parameters == self.of(project):
            return
        try:
            self._kept.note_parameters(project, parameters)
        except LogError as error:
            log.error("the parameters of project %d hold until the server ends: %s", project, error)
        with self._lock:
            self._now[project] = parameters
        log.info("project %d is asked by %s", project, parameters.to_json() or "no parameters of its own")

    def _keep_possible(self, project: int, pipeline: Pipeline | None) -> None:
        """Drop the strategy of a project's present parameters if these models cannot do it: it may date from a server with other models.

        The server's own strategy applies from then on.
        """
        held = self.of(project)
        if pipeline is None or held.strategy is None:
            return
        try:
            pipeline.resolve(held.strategy)
        except ModelError:
            with self._lock:
                self._now[project] = replace(held, strategy=None)

    def _tell(self, project: int, problem: str) -> None:
        with self._lock:
            known = self._problems.pop(project, "")
            if problem:
                self._problems[project] = problem
        if problem and problem != known:
            log.warning("project %d: %s", project, problem)
