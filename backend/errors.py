"""The errors that the backend raises on purpose; their tree continues that of :mod:`sam4mllm.errors`.

::

    Sam4mllmError
    └── BackendError         base; ``reason`` is a short word for logs and metrics
        ├── SettingsError    a setting cannot be used, or something that a command needs is missing
        ├── ConfigError      the labelling config lacks what is needed, or is no XML
        ├── ParametersError  a project's extra parameters cannot be used
        ├── WireError        a request is not what Label Studio sends
        ├── TaskError        a task cannot be answered, or an annotation cannot be used
        ├── FetchError       an image could not be fetched, or must not be
        ├── LabelStudioError Label Studio refused, did not answer or answered wrongly, or cannot be asked
        ├── QueueFullError   too much is waiting already
        ├── NotReadyError    the models are not loaded or are paused, or the server is shutting down
        ├── LearningError    a training run failed, or a file or choice of the learning cannot be used
        ├── BatchError       a bulk run cannot go on, or left tasks without an answer
        ├── ExportError      an export cannot be written, or lacks something that was drawn
        ├── DeadlineError    a task, or a pause or swap of the models, was not done in time
        ├── StrangerError    a form was not sent from a page of this server
        └── LogError         the log of events cannot be read or written (in :mod:`backend.corrections.log_faults`)
"""

from __future__ import annotations

import traceback
from typing import ClassVar

from sam4mllm.errors import Sam4mllmError


def where(error: BaseException) -> str:
    """Return an unexpected error as one line for the log: its class and the place in the code. Its text is left out: it may hold foreign
    input.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


class BackendError(Sam4mllmError):
    """Base of the backend's errors; its text is one line, fit to be shown to a user."""

    reason: ClassVar[str] = "error"


class SettingsError(BackendError):
    """A setting or an option cannot be used, or something that a command needs, such as a package or a program, is missing."""

    reason = "settings"


class ConfigError(BackendError):
    """The labelling config lacks what is needed, or is no XML."""

    reason = "config"


class ParametersError(BackendError):
    """A project's extra parameters cannot be used; the text says which, and why."""

    reason = "parameters"


class WireError(BackendError):
    """A request is not what Label Studio sends."""

    reason = "request"


class TaskError(BackendError):
    """A task cannot be answered, or an annotation of it cannot be used; the text says why."""

    reason = "task"


class FetchError(BackendError):
    """An image could not be fetched, or must not be."""

    reason = "fetch"


class LabelStudioError(BackendError):
    """Label Studio refused a request, gave no answer or an unexpected one, or cannot be asked with these settings. In the demo: one of the
    two servers did not start, or ended.

    ``status`` is the HTTP status of the answer, 0 if there was none or if it does not matter; ``passing``: the same request may succeed
    later, as after a restart of Label Studio; ``detail`` is what Label Studio said of the error.
    """

    reason = "label_studio"

    def __init__(self, message: str, status: int = 0, passing: bool = False, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.detail = detail


class QueueFullError(BackendError):
    """Too many requests are waiting already; the caller may send this one again later."""

    reason = "queue_full"


class NotReadyError(BackendError):
    """The models cannot be used: they are loading and the caller does not wait, could not be loaded, or are paused; or the server is
    shutting down. Work that waits for the loading gets a DeadlineError if that takes too long.
    """

    reason = "not_ready"


class LearningError(BackendError):
    """A training run cannot be started, or failed; or a file or choice that the learning depends on cannot be read, written or used."""

    reason = "learning"


class BatchError(BackendError):
    """A bulk run cannot begin or go on, was stopped, or left tasks without an answer; or there is no run to stop."""

    reason = "batch"


class ExportError(BackendError):
    """An export cannot be written, or lacks something that was drawn."""

    reason = "export"


class DeadlineError(BackendError):
    """The time for something was over before it was done: for a task in a request, for a pause of the models, or for a swap of versions."""

    reason = "deadline"


class StrangerError(BackendError):
    """A form was sent from another site's page, or from a page that was loaded before this server started."""

    reason = "stranger"
