"""The same backend as a class for label-studio-ml's own server: 1.0.9 from PyPI, or 2.x.

::

    from backend.plugin import Sam4mllmBackend  # a subclass of whichever LabelStudioMLBase is installed

    app = init_app(model_class=Sam4mllmBackend)

Those servers make a new object of the class for each request or project, so this module holds the models, once for each process. 2.x calls
``fit`` in the process that has the models, and the event is handled as by this project's own webhook. 1.0.9 calls ``fit`` in another
process, without models: ``fit`` then writes the event to the log, where the process with the models finds it. Settings come from the
environment, as for ``sam4mllm serve``. docs/label-studio-ml.md lists what these servers lack.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import request

from backend.corrections.log import CorrectionLog
from backend.errors import ConfigError, SettingsError, where
from backend.label_studio.events import SECRET_HEADER, START_TRAINING
from backend.label_studio.label_config import read_label_config
from backend.label_studio.wire import PredictRequest, read_predict
from backend.service import Service, build
from backend.settings import Settings, read_settings
from backend.support.home_lock import hold_home, keep_from_children
from backend.web.http_parts import knows_password, same
from sam4mllm.errors import Sam4mllmError, first_line

log = logging.getLogger(__name__)

_lock = threading.Lock()


def service() -> Service:
    """Return the one service of this process. The first call starts it, and does not wait for the models.

    Raises SettingsError if settings cannot be used, or another server uses their SAM4MLLM_HOME, and else what :func:`build` raises.
    """
    with _lock:
        return _service()


@lru_cache(maxsize=1)
def _service() -> Service:
    settings = read_settings()
    hold_home(settings.home, "label-studio-ml's server")
    keep_from_children()
    built = build(settings)
    built.start()
    return built


class _Backend:
    """The methods that label-studio-ml calls, in 1.x and 2.x. The base class LabelStudioMLBase, added later, sets ``label_config``."""

    label_config: str | None
    _new: bool
    """Whether the base class is of 2.x, which keeps values by ``set`` and asks ``setup`` for the version."""

    def setup(self) -> None:
        """Set the version, in 2.x and once one is known; 2.x calls this for every new object.

        Without a version Label Studio would predict all tasks again at each view.
        """
        if self._new and service().version:
            self.set("model_version", service().version)  # type: ignore[attr-defined]

    def set_extra_params(self, params: object) -> None:
        """Store the extra parameters as JSON text, for the store of 2.x holds texts only.

        2.x calls this at each setup if the backend has extra parameters in Label Studio.
        """
        self.set("extra_params", params if isinstance(params, str) else json.dumps(params))  # type: ignore[attr-defined]

    def predict(self, tasks: Sequence[Any], context: Mapping[str, Any] | None = None, **_: Any) -> list[Any]:
        """Return one prediction for each task, or ``[]`` for a task that failed, ran out of time or gets none on purpose.

        The task of an annotator's prompt or click gets an empty prediction if it failed. Raises WireError if the request is malformed, and
        the errors of :meth:`backend.serving.predictor.Predictor.predict` and of :func:`service`.
        """
        asks = isinstance(context, Mapping) and isinstance(context.get("result"), list)  # 2.x hands on an empty context with a batch
        body = {"tasks": tasks, "project": getattr(self, "project_id", None), "label_config": self.label_config}
        request = read_predict({**body, "params": {"context": context} if asks else None})
        if self._new:
            self._note_parameters(request)
        answers = [json.loads(answer) for answer in service().predictor.predict(request)]
        return answers if self._new else [_without_version(answer) for answer in answers]

    def _note_parameters(self, request: PredictRequest) -> None:
        """Take for the project the extra parameters that 2.x has stored at the last setup, unless its config cannot be used."""
        with contextlib.suppress(ConfigError):  # each task of the request reports this error itself
            config = read_label_config(request.label_config, service().settings.prompt_control)
            kept = self.get("extra_params") if self.has("extra_params") else None  # type: ignore[attr-defined]
            service().note_parameters(request.project, kept, config)

    def fit(self, *args: Any, event: object = "", data: object = None, workdir: str | None = None, **_: Any) -> None:
        """Store the event; Start Training starts a run. 1.x calls ``fit((), event=…, data=…)``, 2.x ``fit(event, data)``.

        Errors are logged and not raised, for these servers cannot report them in an answer.
        """
        if args and isinstance(args[0], str):
            event, data = args[0], args[1] if len(args) > 1 else data
        if not isinstance(event, str) or not isinstance(data, Mapping | None):
            kinds = type(event).__name__, type(data).__name__
            log.error("an event is a name and an object, as Label Studio sends them, not %s and %s; nothing is kept of it", *kinds)
            return
        try:
            (service().receive if self._new else _leave_to_the_server)({**(data or {}), "action": event})
            if workdir is not None:
                _leave_no_job(Path(workdir))
        except (Sam4mllmError, OSError) as error:
            log.error("an event could not be kept: %s", first_line(error))
        except Exception as error:
            log.error("an event could not be kept: %s", where(error))
            log.debug("the traceback", exc_info=True)


def _guard(settings: Settings) -> None:
    """Let label-studio-ml's server ask for our password and our webhooks' secret. Raises SettingsError if it cannot be made to."""
    password, secret = settings.auth_password.get_secret_value(), settings.webhook_secret.get_secret_value()
    if not password and not secret:
        return
    try:
        from label_studio_ml.api import _server as app

        app.before_request(lambda: _refuse(settings, password, secret))
    except Exception as error:  # not label-studio-ml's own server, or one that has answered a request and takes no more hooks
        raise SettingsError(
            "this label-studio-ml cannot check SAM4MLLM_AUTH_PASSWORD and SAM4MLLM_WEBHOOK_SECRET: unset both and protect the server "
            "otherwise, or run `sam4mllm serve`"
        ) from error


def _refuse(settings: Settings, password: str, secret: str) -> tuple[dict[str, str], int, dict[str, str]] | None:
    """Return the refusal of the current request, None if it may pass.

    ``/health`` is open. The webhook asks for its secret in the header or for the password; where only one of the two is set, it asks for
    that one. All else asks for the password, and is open if none is set.
    """
    if request.path == "/health" or (password and knows_password(settings)):
        return None
    if request.path == "/webhook":
        wanted = secret or password
        if wanted and not (secret and same(request.headers.get(SECRET_HEADER, ""), secret)):
            return {"error": f"the webhook's secret is wrong; send it as {SECRET_HEADER}"}, 401, {}
        return None
    if password:
        return {"error": "a user name and a password are needed"}, 401, {"WWW-Authenticate": "Basic"}
    return None


def _leave_to_the_server(body: Mapping[str, Any]) -> None:
    """Store an event from a process of 1.x without models. The process with models reads the log, once it was asked for a prediction."""
    corrections = CorrectionLog(read_settings().home / "corrections.sqlite")
    try:
        corrections.store(body)
        if body["action"] == START_TRAINING:
            log.info("the training begins once the server has been asked for a prediction")
    finally:
        corrections.close()


def _without_version(answer: Any) -> Any:
    """Return a prediction without its version. In ``/setup`` 1.x tells Label Studio a version that is named after its jobs; predictions
    that name another would be made again at each view.
    """
    return {key: value for key, value in answer.items() if key != "model_version"} if isinstance(answer, dict) else answer


def _leave_no_job(folder: Path) -> None:
    """Remove the folder of the job that 1.x made for an event, which is in this project's own log. 1.x takes a job without a result for a
    failed training, and logs that at each ``/setup``.
    """
    with contextlib.suppress(OSError):
        (folder / "event.json").unlink()
        folder.rmdir()


def __getattr__(name: str) -> Any:
    """Make the class ``Sam4mllmBackend`` at its first use, so that this module can be imported without label-studio-ml.

    Raises AttributeError for any other name, ImportError if label-studio-ml cannot be imported, and SettingsError if settings cannot be
    used or label-studio-ml cannot be made to check the password and the secret.
    """
    if name != "Sam4mllmBackend":
        raise AttributeError(name)
    from label_studio_ml.model import LabelStudioMLBase

    _guard(read_settings())
    heard = dict.fromkeys((*getattr(LabelStudioMLBase, "TRAIN_EVENTS", ()), START_TRAINING))  # 1.x knows no Start Training
    attributes = {"__module__": __name__, "_new": hasattr(LabelStudioMLBase, "set"), "TRAIN_EVENTS": tuple(heard)}
    made = type(name, (_Backend, LabelStudioMLBase), attributes)
    globals()[name] = made  # so that a process of 1.x finds it by name
    return made
