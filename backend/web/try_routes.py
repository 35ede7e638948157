"""The page to try phrases, strategies and thresholds on: a picture of one's own, a task, or the first tasks of a project side by side."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Response, redirect, request

from backend.errors import LabelStudioError, NotReadyError, ParametersError, WireError
from backend.images.store import LoadedImage
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, read_parameters
from backend.label_studio.phrases import split_phrases
from backend.label_studio.wire import read_task
from backend.service import Service
from backend.serving.answerer import bulk_question
from backend.serving.trying import Tryout, try_out
from backend.setup.connect import change_parameters
from backend.setup.project_checks import sample_tasks
from backend.web.error_handlers import status_of
from backend.web.form_guard import TOKEN, FormGuard
from backend.web.http_parts import note_reason, read_number
from backend.web.overview import page_address
from sam4mllm.errors import PhraseError, Sam4mllmError
from sam4mllm.images import image_sha256
from sam4mllm.options import known_strategies
from sam4mllm.page import render

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("pages") / "try.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
TASKS = 6
"""How many of a project's first tasks are shown side by side."""


@dataclass(frozen=True)
class Form:
    """The texts in the fields of the page's form, with which the answer shows the form again."""

    project: str = ""
    task: str = ""
    phrases: str = ""
    strategy: str = ""
    threshold: str = ""

    @classmethod
    def read(cls) -> Form:
        given = request.form if request.method == "POST" else request.args
        return cls(**{name: given.get(name, "").strip() for name in ("project", "task", "phrases", "strategy", "threshold")})

    def number(self, name: str) -> int | None:
        """Return the number in the field ``project`` or ``task``, None if the field is empty. Raises WireError if it holds no number."""
        text = getattr(self, name)
        return read_number(text, name) if text else None

    def parameters(self, before: Parameters) -> Parameters:
        """Return the project's parameters ``before`` with the strategy and the threshold that the form chooses, if any.

        Raises ParametersError if one of these two is not valid.
        """
        chosen = read_parameters({"strategy": self.strategy or None, "threshold": _number(self.threshold)})
        return replace(before, **chosen.shaping())


@dataclass(frozen=True)
class Shown:
    """A picture on the page. ``link`` is its task's address in Label Studio, if it has one; ``tried`` is the result, or ``wrong`` the
    error.
    """

    title: str
    link: str = ""
    tried: Tryout | None = None
    wrong: str = ""


def add_try_routes(app: Flask, service: Service) -> None:
    """``GET /try`` shows the form, ``POST /try`` what came of it, ``POST /try/use`` sets a project's parameters."""
    guard = FormGuard()

    def page(form: Form, shown: list[Shown], status: HTTPStatus = HTTPStatus.OK, **told: str) -> Response:
        return _page(service, guard, form, shown, status, **told)

    def refused(form: Form, error: Sam4mllmError) -> Response:
        note_reason(error)
        log.warning("on the page to try: %s", error)
        return page(form, [], status_of(error), wrong=str(error))

    @app.get("/try")
    def try_form() -> Response:
        """The form, and nothing tried yet."""
        set_for = request.args.get("set", "")
        return page(Form.read(), [], said=f"Project {set_for} is asked so from now on." if set_for.isdigit() else "")

    @app.post("/try")
    def try_now() -> Response:
        """Try what the form says."""
        request.max_content_length = (service.settings.max_image_mb + 1) << 20
        form = Form()
        try:
            guard.check()
            form = Form.read()
            shown, command = _try(service, form)
        except Sam4mllmError as error:
            return refused(form, error)
        return page(form, shown, command=command)

    @app.post("/try/use")
    def use() -> Response:
        """Set the form's strategy and threshold for its project, in Label Studio."""
        form = Form()
        try:
            guard.check()
            form = Form.read()
            project = form.number("project")
            if project is None:
                raise WireError("give a project's number")
            _check(service, form.parameters(NO_PARAMETERS))
            change_parameters(_label_studio(service), service.settings, project, form.parameters, [service.version])
            if problem := service.parameters.problems.get(project):
                raise ParametersError(f"they are set, and {problem}")
        except Sam4mllmError as error:
            return refused(form, error)
        return app.make_response(redirect(f"{request.script_root}/try?project={project}&set={project}", HTTPStatus.SEE_OTHER))


def _page(service: Service, guard: FormGuard, form: Form, shown: list[Shown], status: HTTPStatus, **told: str) -> Response:
    """Render the page.

    ``told`` may hold ``said`` (a message), ``wrong`` (an error) and ``command`` (the command that sets the tried parameters for the
    project).
    """
    text = render(
        PAGE,
        root=request.script_root,
        token=guard.token,
        token_field=TOKEN,
        form=form,
        shown=shown,
        strategies=known_strategies(),
        tasks=TASKS,
        version=service.version,
        **{"said": "", "wrong": "", "command": "", **told},
    )
    answer = Response(text.encode(errors="replace"), status, mimetype="text/html")
    answer.headers["Content-Security-Policy"] = POLICY
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _check(service: Service, parameters: Parameters) -> None:
    """Raises ModelError if the models that serve cannot do the strategy; NotReadyError if they still load or could not be loaded."""
    if service.engine.model is None:
        raise NotReadyError(service.engine.failure or "the models are loading; try again in a few seconds")
    if parameters.strategy is not None:
        service.engine.model.current.resolve(parameters.strategy)


def _try(service: Service, form: Form) -> tuple[list[Shown], str]:
    """Try what the form says. Return the pictures to show, and the command that sets the tried parameters for the project.

    An uploaded picture is tried instead of the project's tasks; the command is then empty. An error with a task is shown with that task.
    Raises Sam4mllmError for any other error.
    """
    phrases = split_phrases(form.phrases)
    project, task = form.number("project"), form.number("task")
    upload = request.files.get("picture")
    parameters = form.parameters(service.parameters.of(project))
    _check(service, parameters)
    deadline = time.monotonic() + service.settings.deadline
    if upload is not None and upload.filename:
        if not phrases:
            raise PhraseError("say what to find in the picture, for example: the left cup")
        with service.engine.place(True):
            data = upload.read()
            image = LoadedImage(service.decoder.decode(data, deadline - time.monotonic()), image_sha256(data))
            return [Shown("your picture", tried=_tried(service, image, phrases, parameters, deadline))], ""
    if project is None:
        raise WireError("choose a picture, or give the number of a project in Label Studio")
    label_studio = _label_studio(service)
    config = parameters.apply(read_label_config(label_studio.project(project)["label_config"], service.settings.prompt_control))
    tasks = sample_tasks(label_studio, project, TASKS) if task is None else [_task_of(label_studio, project, task)]
    if not tasks:
        raise WireError(f"project {project} has no task yet; import pictures")
    with service.engine.place(False):
        shown = [_answer(service, config, raw, project, phrases, parameters, deadline) for raw in tasks]
    return shown, f"sam4mllm connect {project} --parameters {shlex.quote(parameters.to_json() or '{}')}"


def _task_of(label_studio: LabelStudio, project: int, task: int) -> Any:
    """A task, its data as it was imported. Raises LabelStudioError, and WireError if it is another project's."""
    found = label_studio.request("GET", f"/api/tasks/{task:d}/?resolve_uri=false")
    if not isinstance(found, dict) or found.get("project") != project:
        raise WireError(f"task {task} is not of project {project}")
    return found


def _answer(
    service: Service, config: LabelConfig, raw: Any, project: int, phrases: tuple[str, ...], parameters: Parameters, deadline: float
) -> Shown:
    """Try the phrases on a task's first picture; without phrases, those that the task itself is asked for.

    An error is returned in ``wrong`` and not raised, so that the other tasks are still shown.
    """
    title, link = "a task", ""
    try:
        task = read_task(raw)
        title = f"task {task.id}"
        address = page_address(service.settings.label_studio_url)
        link = f"{address}/projects/{project}/data?task={task.id}" if address else ""
        asked = phrases or tuple(one.phrase for one in bulk_question(task, config, service.settings.phrase_field, parameters).wanted)
        image = service.images.load(config.pictures(task.data)[0], task.id, deadline - time.monotonic())
        return Shown(title, link, _tried(service, image, asked, parameters, deadline, interactive=False))
    except Sam4mllmError as error:
        return Shown(title, link, wrong=str(error))


def _tried(
    service: Service, image: LoadedImage, phrases: tuple[str, ...], parameters: Parameters, deadline: float, interactive: bool = True
) -> Tryout:
    return try_out(service.engine, service.predictor.answerer, image, phrases, parameters, deadline, interactive)


def _label_studio(service: Service) -> LabelStudio:
    if service.label_studio is None or not service.label_studio.has_token:
        cure = "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or choose a picture of your own"
        raise LabelStudioError(f"tasks are had from Label Studio: {cure}")
    return service.label_studio


def _number(text: str) -> object:
    """Return the number in a text, None for an empty one; a text that is no number is returned as it is, so that ``read_parameters``
    refuses it.
    """
    try:
        return float(text) if text else None
    except ValueError:
        return text
