"""What is done with the stack: up, connected, asked, corrected, stopped while it answers, and upgraded with all that it kept."""

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
"""Answered while the backend is told to stop."""
SCENES = "sam4mllm scenes /tmp/scenes --count {count} --seed 2014 >/dev/null && cat /tmp/scenes/examples.jsonl"
CORRECTIONS = """
from pathlib import Path
from backend.corrections.log import CorrectionLog
events = CorrectionLog(Path("/data/corrections.sqlite")).events()
print(*(event.body["annotation"]["id"] for event in events if event.action == "ANNOTATION_CREATED"))
"""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy of the environment is between us and this machine."""


class Story:
    """One project of one stack, from the first start to after an upgrade."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.project = self.correction = 0
        self.tasks: list[int] = []

    def api(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Label Studio's answer, None if it is empty. Exits if it refuses."""
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
        """What a command in the backend's container prints."""
        return self.stack.compose("exec", "-T", "backend", *command)

    def up(self) -> None:
        """Start both and wait until they are healthy."""
        self.stack.compose("up", "--detach", *(["--wait"] if self.stack.waits else []))
        end = time.monotonic() + HEALTHY_SECONDS
        for service in SERVICES:
            while (state := self.stack.inspect(service, ".State.Health.Status")) != "healthy":
                ended = self.stack.inspect(service, ".State.Running") != "true" or self.stack.inspect(service, ".RestartCount") != "0"
                if state == "unhealthy" or ended or time.monotonic() > end:
                    state = "has ended" if ended else f"is {state}"
                    sys.exit(f"error: {service} {state}, and is not healthy: {self.stack.last_words(service)}")
                time.sleep(1)
        with DIRECT.open(f"{self.stack.backend}/health", timeout=10) as answer:  # by its published port
            answer.read()

    def make_project(self) -> None:
        """A project with pictures that the backend's own command drew, as files uploaded to Label Studio."""
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
        """As docs/docker.md says."""
        self.backend("sam4mllm", "connect", str(self.project), "--config", "default")
        self.backend("sam4mllm", "doctor", str(self.project))

    def predict(self, *tasks: int) -> None:
        """Label Studio asks the backend, which fetches the pictures from it."""
        chosen = {"selectedItems": {"all": False, "included": list(tasks)}}
        self.api("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={self.project}", chosen)
        for task in tasks:
            if not self.masks(task):
                sys.exit(f"error: task {task} has no mask after its predictions were asked for")

    def masks(self, task: int) -> list[dict[str, Any]]:
        predictions = self.api("GET", f"/api/predictions?task={task}")
        return [region for one in predictions for region in one["result"] if region["type"] == "brushlabels"]

    def correct(self) -> None:
        """A reviewer takes over one mask; the webhook brings it to the log."""
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
        """Stop the backend while it answers: what it was asked for comes, and it exits with 0."""
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(self.predict, *self.tasks[1:])
            time.sleep(1)
            self.stack.compose("stop", "backend")
            asked.result()
        self.check_exit()

    def stop(self) -> None:
        """Both, when there is nothing to do."""
        self.stack.compose("stop")
        self.check_exit()

    def check_exit(self) -> None:
        if (code := self.stack.inspect("backend", ".State.ExitCode")) != "0":
            sys.exit(f"error: the backend ended with {code} when it was stopped")

    def upgrade(self) -> None:
        """Another version of the code: its image takes over what did not change, and new containers of both take over the volumes."""
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
        """All that was in the volumes is there, and works without being connected again."""
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
    """One file as a browser's form sends it, and the type to send it with."""
    border = "rehearsal-of-the-stack"
    head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + f"\r\n--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def tell(stack: Stack) -> None:
    """Each step with its time. Exits with one line if one fails."""
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
    """Images, then the story, under an engine whose images are in ``data``. Raises NoEngine if none can be started."""
    command, waits = find_compose()
    own = scratch / "engine"
    own.mkdir()
    began = time.monotonic()
    with engine(data, own) as host:
        stack = prepare(scratch / "checkout", command, waits, host)
        print(f"Compose {stack.compose('version', '--short')}: compose.yaml {'as it is' if waits else 'in a form for 1.29'}", flush=True)
        build(stack, scratch)
        try:
            stack.compose("down", "--volumes")  # of a run that was broken off, where the data was kept
            tell(stack)
        finally:
            stack.compose("down", "--volumes", "--timeout", "5")
    print(f"the stack works: {time.monotonic() - began:.0f} s in all")
