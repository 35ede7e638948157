"""The steps that the rehearsal takes with the stack (Label Studio and the backend), from the first start to after an upgrade."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rehearse_base import timed
from rehearse_engine import Stack, build, engine, find_compose, prepare

SERVICES = ("label-studio", "backend")
HEALTHY_SECONDS, LOGGED_SECONDS = 900, 60
TASKS = 6
"""Pictures drawn for the project. All its tasks but the first are still being answered when the backend is told to stop."""
SCENES = "sam4mllm scenes /tmp/scenes --count {count} --seed 2014 >/dev/null && cat /tmp/scenes/examples.jsonl"
CORRECTIONS = """
from pathlib import Path
from backend.corrections.log import CorrectionLog
events = CorrectionLog(Path("/data/corrections.sqlite")).events()
print(*(event.body["annotation"]["id"] for event in events if event.action == "ANNOTATION_CREATED"))
"""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without a proxy, whatever the environment says, because all services are on this machine."""


class Story:
    """The steps with one project of one stack. Each exits with an error if something is not as it should be."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.project = self.correction = 0
        self.tasks: list[int] = []

    def api(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Send a request to Label Studio and return its answer, None if it is empty. Exits if Label Studio refuses or does not answer.

        ``kind`` is the content type of the body, which is sent as JSON unless it is bytes.
        """
        sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.stack.studio}{path}", sent, method=method)
        asked.add_header("Authorization", f"Token {self.stack.token}")
        asked.add_header("Content-Type", kind)
        try:
            with DIRECT.open(asked, timeout=150) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            sys.exit(f"error: Label Studio answers {error.code} to {method} {path}: {error.read()[:300].decode(errors='replace')}")
        except OSError as error:
            sys.exit(f"error: Label Studio does not answer {method} {path}: {error}")
        return json.loads(said) if said else None

    def backend(self, *command: str) -> str:
        """Run a command in the backend's container and return what it prints. Exits if it fails."""
        return self.stack.compose("exec", "-T", "backend", *command)

    def up(self) -> None:
        """Start both services and wait until they are healthy. Exits if one ends, becomes unhealthy or takes too long."""
        self.stack.compose("up", "--detach", *(["--wait"] if self.stack.waits else []))
        end = time.monotonic() + HEALTHY_SECONDS
        for service in SERVICES:
            while (state := self.stack.inspect(service, ".State.Health.Status")) != "healthy":
                ended = self.stack.inspect(service, ".State.Running") != "true" or self.stack.inspect(service, ".RestartCount") != "0"
                if state == "unhealthy" or ended or time.monotonic() > end:
                    state = "has ended" if ended else f"is {state}"
                    sys.exit(f"error: {service} {state}, and is not healthy: {self.stack.last_words(service)}")
                time.sleep(1)
        with DIRECT.open(f"{self.stack.backend}/health", timeout=10) as answer:  # through the port that is published on this machine
            answer.read()

    def make_project(self) -> None:
        """Create a project with pictures that the backend's own command draws, uploaded to Label Studio as files."""
        self.project = self.api("POST", "/api/projects/", {"title": "rehearsal"})["id"]
        lines = self.backend("sh", "-c", SCENES.format(count=TASKS)).splitlines()
        examples = {one["image"]: one["phrase"] for one in map(json.loads, lines) if one["instances"]}
        for image, phrase in examples.items():
            picture = self.stack.run(*self.stack.compose_command, "exec", "-T", "backend", "cat", f"/tmp/scenes/{image}")
            body, kind = as_form(Path(image).name, picture)
            sent = self.api("POST", f"/api/projects/{self.project}/import?commit_to_project=false", body, kind)
            stored = self.api("GET", f"/api/import/file-upload/{sent['file_upload_ids'][0]}")["file"]
            task = {"data": {"image": f"/data/{stored}", "description": phrase}}
            self.api("POST", f"/api/projects/{self.project}/import", [task])
        self.tasks = sorted(one["id"] for one in self.api("GET", f"/api/tasks?project={self.project}&page_size=100")["tasks"])

    def connect(self) -> None:
        """Connect the project to the backend and check the connection, with the commands that docs/docker.md gives."""
        self.backend("sam4mllm", "connect", str(self.project), "--config", "default")
        self.backend("sam4mllm", "doctor", str(self.project))

    def predict(self, *tasks: int) -> None:
        """Make Label Studio ask the backend for predictions of tasks; the backend fetches the pictures from Label Studio. Exits if a task
        then has no mask.
        """
        chosen = {"selectedItems": {"all": False, "included": list(tasks)}}
        self.api("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={self.project}", chosen)
        for task in tasks:
            if not self.masks(task):
                sys.exit(f"error: task {task} has no mask after its predictions were asked for")

    def masks(self, task: int) -> list[dict[str, Any]]:
        predictions = self.api("GET", f"/api/predictions?task={task}")
        return [region for one in predictions for region in one["result"] if region["type"] == "brushlabels"]

    def correct(self) -> None:
        """Submit one mask of the first task as a reviewer's correction, and wait until its webhook has brought it to the backend's log."""
        changed = [region | {"origin": "prediction-changed"} for region in self.masks(self.tasks[0])[:1]]
        self.correction = self.api("POST", f"/api/tasks/{self.tasks[0]}/annotations/", {"result": changed})["id"]
        end = time.monotonic() + LOGGED_SECONDS
        while not self.is_logged():
            if time.monotonic() > end:
                sys.exit(f"error: the correction is not in the backend's log after {LOGGED_SECONDS} s: its webhook does not arrive")
            time.sleep(1)

    def is_logged(self) -> bool:
        return str(self.correction) in self.backend("python", "-c", CORRECTIONS).split()

    def drain(self) -> None:
        """Stop the backend while it answers: all predictions it was asked for must still come, and it must exit with 0."""
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(self.predict, *self.tasks[1:])
            time.sleep(1)
            self.stack.compose("stop", "backend")
            asked.result()
        self.check_exit()

    def stop(self) -> None:
        """Stop both services while they have nothing to do; the backend must exit with 0."""
        self.stack.compose("stop")
        self.check_exit()

    def check_exit(self) -> None:
        if (code := self.stack.inspect("backend", ".State.ExitCode")) != "0":
            sys.exit(f"error: the backend ended with {code} when it was stopped")

    def upgrade(self) -> None:
        """Upgrade to another version of the code: build its image, which shares the unchanged layers, and replace both containers.

        The new containers use the same volumes.
        """
        file = self.stack.folder / "sam4mllm/__init__.py"
        text = re.sub(r'^(__version__ = "[^"]+)"', r'\1+rehearsal"', file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        file.write_text(text, encoding="utf-8")
        former = {service: self.stack.container(service) for service in SERVICES}
        timed(lambda: self.stack.compose("build", "backend"), name="sam4mllm, built again after a change of its code")
        self.stack.compose("up", "--detach", "--force-recreate")
        self.up()
        same = [service for service in SERVICES if self.stack.container(service) == former[service]]
        if same or "+rehearsal" not in self.backend("sam4mllm", "--version"):
            sys.exit(f"error: the upgrade did not replace {', '.join(same) or 'the code'}")

    def check_kept(self) -> None:
        """Check that what was in the volumes is still there, and that a further correction arrives without connecting again."""
        kept = {one["id"] for one in self.api("GET", f"/api/tasks/{self.tasks[0]}/annotations/")}
        if self.correction not in kept or not self.is_logged():
            sys.exit("error: the correction did not survive the upgrade")
        self.backend("sam4mllm", "doctor", str(self.project))
        self.correct()

    def sizes(self) -> None:
        for name in self.stack.docker("volume", "ls", "--quiet", "--filter", "name=sam4mllm_").split():
            place = Path(self.stack.docker("volume", "inspect", "--format", "{{.Mountpoint}}", name))
            print(f"{sum(one.lstat().st_size for one in place.rglob('*')) / 1e6:6.1f} MB  volume {name}", flush=True)


def as_form(name: str, content: bytes) -> tuple[bytes, str]:
    """Return the body in which a browser's form sends one file, and the body's content type."""
    border = "rehearsal-of-the-stack"
    head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + f"\r\n--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def tell(stack: Stack) -> None:
    """Take all steps with a stack, and print the time of each. Exits with one line if one fails."""
    story = Story(stack)
    steps: list[tuple[Callable[[], None], str]] = [
        (story.up, "first start: both services healthy"),
        (story.make_project, f"a project with {TASKS} uploaded pictures"),
        (story.connect, "connect and doctor: all is well"),
        (lambda: story.predict(story.tasks[0]), "a prediction, by way of Label Studio"),
        (story.correct, "a correction, by the webhook in the backend's log"),
        (story.drain, f"{TASKS - 1} tasks asked for, the backend stopped meanwhile: all answered, exit 0"),
        (story.up, "up again: both healthy"),
        (story.stop, "stop: exit 0"),
        (story.upgrade, "upgrade: new containers, both healthy"),
        (story.check_kept, "project, correction and log kept; a further correction arrives"),
        (story.stop, "stop: exit 0"),
    ]
    for step, name in steps:
        timed(step, name=name)
    story.sizes()


def rehearse(data: Path, scratch: Path) -> None:
    """Start an engine that keeps its images in ``data``, build the images, and take all steps.

    ``scratch`` is a folder for all other files. Raises NoEngine if no engine can be started or there is no Compose.
    """
    command, waits = find_compose()
    own = scratch / "engine"
    own.mkdir()
    began = time.monotonic()
    with engine(data, own) as host:
        stack = prepare(scratch / "checkout", command, waits, host)
        print(f"Compose {stack.compose('version', '--short')}: compose.yaml {'as it is' if waits else 'in a form for 1.29'}", flush=True)
        build(stack, scratch)
        try:
            stack.compose("down", "--volumes")  # remove what an interrupted run left, if its data was kept
            tell(stack)
        finally:
            stack.compose("down", "--volumes", "--timeout", "5")
    print(f"the stack works: {time.monotonic() - began:.0f} s in all")
