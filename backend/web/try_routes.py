"""The page to try phrases, strategies and thresholds on: a picture of one's own, a task, or the first tasks of a project side by side."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Response, redirect, request

from backend.errors import LabelStudioError, WireError
from backend.images.store import LoadedImage
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import Parameters, read_parameters
from backend.label_studio.phrases import split_phrases
from backend.label_studio.wire import Task, is_row_id, read_task
from backend.service import Service
from backend.serving.answerer import bulk_question
from backend.serving.trying import Tried, try_out
from backend.setup.connect import set_parameters
from backend.setup.project_checks import sample_tasks
from backend.web.error_handlers import status_of
from backend.web.form_guard import TOKEN, FormGuard
from backend.web.http_parts import note_reason
from sam4mllm.errors import PhraseError, Sam4mllmError
from sam4mllm.images import image_sha256
from sam4mllm.options import STRATEGIES
from sam4mllm.page import render

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("pages") / "try.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
TASKS = 6
"""Of a project, its first, that are shown side by side."""


@dataclass(frozen=True)
class Form:
    """What the page's form says, as it is shown again."""

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
        """A project's or a task's number, None for none. Raises WireError."""
        text = getattr(self, name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or not is_row_id(int(text)):
            raise WireError(f"a {name} is given by its number, as in the address of its page")
        return int(text)

    def parameters(self, before: Parameters) -> Parameters:
        """A project's parameters with strategy and threshold as they are chosen here. Raises ParametersError."""
        chosen = read_parameters({"strategy": self.strategy or None, "threshold": _number(self.threshold)})
        return replace(before, strategy=chosen.strategy, threshold=chosen.threshold)


@dataclass(frozen=True)
class Shown:
    """A picture on the page: what it is, its address in Label Studio if it has one, and what came of it or why nothing did."""

    title: str
    link: str = ""
    tried: Tried | None = None
    wrong: str = ""


def add_try_routes(app: Flask, service: Service) -> None:
    """``GET /try`` shows the form, ``POST /try`` what came of it, ``POST /try/use`` sets a project's parameters."""
    guard = FormGuard()

    def page(form: Form, shown: list[Shown], status: HTTPStatus = HTTPStatus.OK, **told: str) -> Response:
        """``told``: what is ``said`` or ``wrong``, and the ``command`` that has a project asked so."""
        text = render(
            PAGE,
            root=request.script_root,
            token=guard.token,
            token_field=TOKEN,
            form=form,
            shown=shown,
            strategies=STRATEGIES,
            **{"said": "", "wrong": "", "command": "", **told},
            tasks=TASKS,
            version=service.version,
            label_studio=service.settings.label_studio_url,
        )
        answer = Response(text.encode(errors="replace"), status, mimetype="text/html")
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.get("/try")
    def try_form() -> Response:
        """The form, and nothing tried yet."""
        set_for = request.args.get("set", "")
        return page(Form.read(), [], said=f"Project {set_for} is asked so from now on." if set_for.isdigit() else "")

    @app.post("/try")
    def try_now() -> Response:
        """Try what the form says."""
        request.max_content_length = (service.settings.max_image_mb + 1) << 20
        form = Form.read()
        try:
            guard.check()
            shown, command = _try(service, form)
        except Sam4mllmError as error:
            note_reason(error)
            log.warning("on the page to try: %s", error)
            return page(form, [], status_of(error), wrong=str(error))
        return page(form, shown, command=command)

    @app.post("/try/use")
    def use() -> Response:
        """Set the form's strategy and threshold for its project, in Label Studio."""
        form = Form.read()
        try:
            guard.check()
            project = form.number("project")
            if project is None:
                raise WireError("give a project's number")
            parameters = form.parameters(service.parameters.of(project))
            set_parameters(_label_studio(service), service.settings, project, parameters, [service.version])
        except Sam4mllmError as error:
            note_reason(error)
            log.warning("on the page to try: %s", error)
            return page(form, [], status_of(error), wrong=str(error))
        return app.make_response(redirect(f"{request.script_root}/try?project={project}&set={project}", HTTPStatus.SEE_OTHER))


def _try(service: Service, form: Form) -> tuple[list[Shown], str]:
    """What came of the form, and the command that sets it for its project, if there is one. Raises Sam4mllmError."""
    phrases = split_phrases(form.phrases)
    project, task = form.number("project"), form.number("task")
    upload = request.files.get("picture")
    parameters = form.parameters(service.parameters.of(project))
    if upload is not None and upload.filename:
        if not phrases:
            raise PhraseError("say what to find in the picture, for example: the left cup")
        data = upload.read()
        image = LoadedImage(service.decoder.decode(data, service.settings.deadline), image_sha256(data))
        return [_shown(service, "your picture", "", image, phrases, parameters)], ""
    if project is None:
        raise WireError("choose a picture, or give the number of a project in Label Studio")
    label_studio = _label_studio(service)
    config = read_label_config(label_studio.project(project)["label_config"], service.settings.prompt_control)
    tasks = sample_tasks(label_studio, project, TASKS) if task is None else [label_studio.request("GET", f"/api/tasks/{task:d}/")]
    if not tasks:
        raise WireError(f"project {project} has no task yet; import pictures")
    shown = list(_each(service, config, tasks, project, phrases, parameters))
    return shown, f"sam4mllm connect {project} --parameters {shlex.quote(parameters.to_json() or '{}')}"


def _each(
    service: Service, config: LabelConfig, tasks: list[Any], project: int, phrases: tuple[str, ...], parameters: Parameters
) -> Iterator[Shown]:
    """One task after the other; what is wrong with one stays with it."""
    for raw in tasks:
        title, link = "a task", ""
        try:
            task = read_task(raw)
            title, link = f"task {task.id}", f"{service.settings.label_studio_url.rstrip('/')}/projects/{project}/data?task={task.id}"
            asked = phrases or _phrases_of(service, task, config, parameters)
            image = service.images.load(config.pictures(task.data)[0], task.id, service.settings.deadline)
            yield _shown(service, title, link, image, asked, parameters)
        except Sam4mllmError as error:
            yield Shown(title, link, wrong=str(error))


def _phrases_of(service: Service, task: Task, config: LabelConfig, parameters: Parameters) -> tuple[str, ...]:
    question = bulk_question(task, config, service.settings.phrase_field, parameters)
    return tuple(one.phrase for one in question.wanted)


def _shown(service: Service, title: str, link: str, image: LoadedImage, phrases: tuple[str, ...], parameters: Parameters) -> Shown:
    tried = try_out(service.engine, service.predictor.answerer, image, phrases, parameters, service.settings.deadline)
    return Shown(title, link, tried)


def _label_studio(service: Service) -> LabelStudio:
    if service.label_studio is None or not service.label_studio.has_token:
        cure = "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or choose a picture of your own"
        raise LabelStudioError(f"tasks are had from Label Studio: {cure}")
    return service.label_studio


def _number(text: str) -> object:
    """A number, or the text itself, for ``read_parameters`` to refuse."""
    try:
        return float(text) if text else None
    except ValueError:
        return text
