"""The demo: Label Studio, this backend and a project of drawn scenes, from nothing to a page to try in one command."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.demo.local_label_studio import LocalLabelStudio
from backend.errors import LabelStudioError, SettingsError
from backend.label_studio.click_help import CORRECTING
from backend.label_studio.config_template import DEMO_CONFIG
from backend.support.child import HOST, Child, Progress, check_port, serve_command
from backend.support.demo_project import note_demo
from sam4mllm.demo.pair_phrases import PAIR
from sam4mllm.demo.scenes import make_ambiguous, make_scene

TITLE = "SAM4MLLM demo"
BACKEND_TITLE = "SAM4MLLM"
EXECUTABLE = "SAM4MLLM_LABEL_STUDIO"
"""The variable of the environment that names Label Studio's executable."""
CHECKOUT = Path(__file__).resolve().parents[2]
"""The repository's root, if this package runs from its repository; ``make label-studio`` installs Label Studio into the folder
``.venv-label-studio`` there."""
SEED = 2014
MIN_SCENES = 24
KINDS = ("noun", "plural", "position", PAIR, "plural", "attribute", "plural", "none")
"""The kinds of the scenes' phrases, in turn. Noun, position and attribute phrases mean one thing, plural ones several, PAIR phrases one of
two things whose boxes are nearly the same, and none phrases nothing in the picture."""
READY_TIMEOUT = 300.0
PREDICTION_TIMEOUT = 900.0
"""Seconds that all tasks together may take to get a prediction; a busy machine without a GPU needs some seconds for each."""


class Demo:
    """A running demo; ``stop()`` ends it, and so does the end of a ``with`` block."""

    def __init__(self, label_studio: LocalLabelStudio, backend: Child, backend_url: str, project: int) -> None:
        self.label_studio, self.backend, self.backend_url, self.project = label_studio, backend, backend_url, project

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The project's page."""
        return f"{self.label_studio.url}/projects/{self.project}/data"

    def check(self) -> None:
        """Raise LabelStudioError if one of the two servers has ended."""
        self.label_studio.check()
        self.backend.check()

    def stop(self) -> None:
        """End both servers; a second call does nothing."""
        self.backend.stop()
        self.label_studio.stop()


def run_demo(folder: Path, port: int = 8080, backend_port: int = 9090, scenes: int = MIN_SCENES, open_browser: bool = False) -> None:
    """Start the demo, say what to try, and keep it running until Ctrl-C, SIGTERM or SIGHUP. ``folder`` keeps its data for the next time.

    Raises Sam4mllmError if a server cannot be started, or ends by itself.
    """
    with _stopped_by_signals(), start_demo(folder, port, backend_port, scenes, _say) as demo:
        _say(_invitation(demo))
        if open_browser:
            webbrowser.open(demo.url)
        while True:
            demo.check()
            time.sleep(1)


def start_demo(folder: Path, port: int = 0, backend_port: int = 0, scenes: int = MIN_SCENES, progress: Progress = lambda _: None) -> Demo:
    """Start Label Studio and the backend, and make the project unless ``folder`` holds it. A port of 0 is a free one. A new project gets
    ``scenes`` tasks, but at least MIN_SCENES.

    On return every task has a prediction, "no such object" included. Raises Sam4mllmError, and leaves nothing running then.
    """
    backend_port = check_port(backend_port)
    with contextlib.ExitStack() as undo:
        progress("starting Label Studio; the first start takes a minute or more")
        label_studio = LocalLabelStudio(find_label_studio(), folder / "label-studio", port, progress=progress)
        undo.callback(label_studio.stop)
        label_studio.start()
        project = _project(label_studio, max(scenes, MIN_SCENES), progress)
        note_demo(folder / "backend", project)
        progress("starting the backend")
        backend = start_backend(folder / "backend", backend_port, label_studio)
        undo.callback(backend.stop)
        url = f"http://{HOST}:{backend_port}"
        backend.wait_until(lambda: is_ready(url), READY_TIMEOUT, progress)
        label_studio.connect(project, url, BACKEND_TITLE)
        _predict_all(label_studio, backend, project, progress)
        undo.pop_all()
    return Demo(label_studio, backend, url, project)


def find_label_studio() -> Path:
    """Label Studio's executable: $SAM4MLLM_LABEL_STUDIO, else the one in ``.venv-label-studio`` of this checkout, else one on the path.

    Raises SettingsError if there is none.
    """
    named = os.environ.get(EXECUTABLE)
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"{EXECUTABLE}={named} is no file; give the path of the command label-studio")
        return Path(named).absolute()
    own = CHECKOUT / ".venv-label-studio" / "bin" / "label-studio"
    found = own if own.is_file() else shutil.which("label-studio")
    if found is None:
        raise SettingsError(
            "Label Studio is not installed: run `make label-studio`, or install it into an environment of its own and set "
            f"{EXECUTABLE} to the path of its command"
        )
    return Path(found).absolute()


def start_backend(home: Path, port: int, label_studio: LocalLabelStudio, **settings: str) -> Child:
    """Start this package's server on loopback as a child process, and do not wait until the server is ready. ``home``, its SAM4MLLM_HOME
    and the folder of its log, is made if need be. ``settings`` are further variables of its environment, which override those set here.

    Raises SettingsError if the process cannot be started.
    """
    home.mkdir(parents=True, exist_ok=True)
    own = {
        "SAM4MLLM_HOST": HOST,
        "SAM4MLLM_PORT": str(port),
        "SAM4MLLM_HOME": str(home.absolute()),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        # left empty: Label Studio would have to be given these, too
        "SAM4MLLM_AUTH_PASSWORD": "",
        "SAM4MLLM_WEBHOOK_SECRET": "",
    }
    return Child("the backend", serve_command(), os.environ | own | settings, home / "backend.log")


def is_ready(backend_url: str) -> bool:
    """Whether the backend's models are loaded. Raises LabelStudioError if it says that they cannot be."""
    try:
        said = httpx.get(f"{backend_url}/health", timeout=10, trust_env=False).json()  # /health needs no password
    except (httpx.HTTPError, ValueError):
        return False
    if said.get("state") == "failed":
        raise LabelStudioError(f"the backend could not load its models: {said.get('error')}")
    return bool(said.get("state") == "ready")


def _project(label_studio: LocalLabelStudio, scenes: int, progress: Progress) -> int:
    """Return the id of the demo's project. It is made if it does not exist, and filled with tasks, in one request, if it has none."""
    listed = label_studio.api("GET", "/api/projects/?page_size=1000")["results"]
    known = next((one for one in listed if one["title"] == TITLE), None)
    project = known["id"] if known else label_studio.create_project(TITLE, DEMO_CONFIG)
    if not known or not known["task_number"]:
        progress(f"drawing and uploading {scenes} scenes")
        label_studio.import_tasks(project, _upload_scenes(label_studio, project, scenes))
    return int(project)


def _upload_scenes(label_studio: LocalLabelStudio, project: int, scenes: int) -> list[dict[str, Any]]:
    drawn = [_draw(index) for index in range(scenes)]
    with tempfile.TemporaryDirectory() as folder:
        files = [_save(image, Path(folder) / f"scene-{index:03d}.png") for index, (image, _) in enumerate(drawn)]
        images = label_studio.upload(project, files)
    return [{"image": image, "description": phrase} for image, (_, phrase) in zip(images, drawn, strict=True)]


def _draw(index: int) -> tuple[NDArray[np.uint8], str]:
    """A scene's image and a phrase for it."""
    kind = KINDS[index % len(KINDS)]
    scene = make_ambiguous((SEED, index), told=True) if kind == PAIR else make_scene((SEED, index), kinds=[kind])
    return scene.image, next(said.phrase for said in scene.expressions if said.kind == kind)


def _save(image: NDArray[np.uint8], path: Path) -> Path:
    Image.fromarray(image).save(path)
    return path


def _predict_all(label_studio: LocalLabelStudio, backend: Child, project: int, progress: Progress) -> None:
    """Retrieve predictions until each task has one: a backend that runs out of time leaves tasks for the next request.

    Raises LabelStudioError if some task has none after PREDICTION_TIMEOUT, the backend ends, or Label Studio refuses a request.
    """
    deadline = time.monotonic() + PREDICTION_TIMEOUT
    while missing := _without_prediction(label_studio, project):
        if time.monotonic() > deadline:
            raise LabelStudioError(f"{missing} tasks got no prediction (log: {backend.log})")
        progress(f"predicting, {missing} tasks to go")
        label_studio.retrieve_predictions(project)
        backend.check()
        time.sleep(1)


def _without_prediction(label_studio: LocalLabelStudio, project: int) -> int:
    tasks = label_studio.api("GET", f"/api/tasks?project={project}&page_size=1000&fields=all")["tasks"]
    return sum(not task["total_predictions"] for task in tasks)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The block ends quietly on Ctrl-C, SIGTERM or SIGHUP; further ones are ignored, so that the servers are stopped in peace."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before: list[tuple[int, Callable[..., Any] | int | None]] = [(number, signal.signal(number, end)) for number in numbers]
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    _say("stopped")


def _invitation(demo: Demo) -> str:
    lines = "\n".join(CORRECTING)
    return f"""
    {demo.url}
    login     {demo.label_studio.user}
    password  {demo.label_studio.password}
    status    {demo.backend_url}

Open a task: the mask of its description is there already. Some descriptions mean several things, some nothing in the picture.
{lines}
Or type another description above the picture, press Enter, press the tick.
Ctrl-C stops both servers; the data stays for the next time.
"""


def _say(line: str) -> None:
    print(line, flush=True)
