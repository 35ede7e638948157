"""doctor and connect against a real Label Studio: a healthy set-up is silent, and each of ten planted faults is named with its cure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from backend.corrections.log import CorrectionLog
from backend.demo.local_label_studio import FIXED_ENVIRONMENT, LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from backend.support.child import HOST, check_port
from benchmarks.waiting import wait_for
from tests.e2e.conftest import serving
from tests.e2e.test_backend import save, scene
from tests.e2e.test_commands import COMMAND

SECRETS = {"SAM4MLLM_AUTH_PASSWORD": "a password", "SAM4MLLM_WEBHOOK_SECRET": "a-secret"}
NO_MASK = '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/></View>'
CODES = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/><BrushLabels name="mask" toName="image">'
    '<Label value="Horse"/><Label value="cls_03"/></BrushLabels></View>'
)


class Team(NamedTuple):
    """A Label Studio, a server, and the environment that both commands are run in."""

    studio: LocalLabelStudio
    url: str
    environment: dict[str, str]

    def run(self, *arguments: object, before: tuple[str, ...] = (), code: int = 0, **given: str) -> subprocess.CompletedProcess[str]:
        command = [*before, str(COMMAND), *map(str, arguments)]
        variables = os.environ | self.environment | given
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def finding(self, project: int | None, **variables: str) -> tuple[str, str, str]:
        """The one thing that doctor finds."""
        asked = () if project is None else (project,)
        [found] = json.loads(self.run("doctor", *asked, "--json", code=1, **variables).stdout)["findings"]
        return found["check"], found["problem"], found["cure"]

    def project(self, config: str = DEMO_CONFIG, **data: object) -> int:
        """A new project with one task."""
        number = self.studio.create_project("doctor's", config)
        self.studio.import_tasks(number, [data or {"image": inline_picture(), "description": "the horse"}])
        return number


def inline_picture() -> str:
    packed = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(packed, "PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


@pytest.fixture(scope="module")
def team(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    home = tmp_path_factory.mktemp("doctor")
    with serving(home, label_studio, **SECRETS) as url:
        own = {
            "SAM4MLLM_HOME": str(home),
            "SAM4MLLM_PORT": url.rpartition(":")[2],
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
        }
        yield Team(label_studio, url, own | SECRETS)


@pytest.fixture(scope="module")
def healthy(team: Team, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A connected project with an uploaded picture and one in a local file."""
    number = team.project()
    picture = save(scene(1).image, tmp_path_factory.mktemp("pictures") / "a.png")
    [upload] = team.studio.upload(number, [picture])
    team.studio.import_tasks(number, [{"image": upload, "description": "the horse"}])
    team.run("connect", number)
    return number


def test_a_healthy_set_up_is_silent(team: Team, healthy: int) -> None:
    done = team.run("doctor", healthy)
    assert done.stdout.startswith("all is well: ")
    assert done.stdout.count("\n") == 1
    said = json.loads(team.run("doctor", healthy, "--json").stdout)
    assert said["ok"] is True
    assert said["findings"] == []
    assert any(note.startswith("the demo's models serve, made for drawn scenes") for note in said["notes"])
    assert any(note.endswith("is asked for 'the horse' (label Object): its 'description'") for note in said["notes"])
    assert said["next"].startswith("next: try six tasks at http://127.0.0.1:")
    assert {"gate", "backend", "webhook", "config", "phrases", "images", "token", "disk"} <= set(said["checks"])


def test_connect_twice_changes_nothing_the_second_time_and_events_arrive(team: Team) -> None:
    number = team.project()
    first = json.loads(team.run("connect", number, "--json").stdout)
    assert [step["changed"] for step in first["steps"]] == [False, True, True, True, False]  # the last says whose models serve
    assert "`sam4mllm doctor" in first["next"]
    [view] = team.studio.api("GET", f"/api/dm/views/?project={number}")
    assert "tasks:predictions_score" not in view["data"]["hiddenColumns"]["explore"]
    assert "tasks:updated_at" in view["data"]["hiddenColumns"]["explore"]
    entries, hooks = (team.studio.api("GET", f"/api/{what}?project={number}") for what in ("ml", "webhooks/"))
    second = json.loads(team.run("connect", number, "--json").stdout)
    assert second["changed"] is False
    assert len(team.studio.api("GET", f"/api/ml?project={number}")) == len(entries) == 1
    assert team.studio.api("GET", f"/api/webhooks/?project={number}") == hooks
    assert hooks[0]["headers"] == {"X-Webhook-Secret": SECRETS["SAM4MLLM_WEBHOOK_SECRET"]}
    [task] = team.studio.api("GET", f"/api/tasks?project={number}&fields=all")["tasks"]
    team.studio.api("POST", f"/api/tasks/{task['id']}/annotations/", json={"result": []})
    log = CorrectionLog(Path(team.environment["SAM4MLLM_HOME"]) / "corrections.sqlite")
    wait_for("the event", lambda: any(event.action == "ANNOTATION_CREATED" and event.project == number for event in log.events()), 60)
    log.close()


def test_a_projects_parameters_reach_the_server_and_the_predictions(team: Team, tmp_path: Path) -> None:
    number = team.project()
    [upload] = team.studio.upload(number, [save(scene(1).image, tmp_path / "a.png")])
    team.studio.import_tasks(number, [{"image": upload, "caption": "the horse", "description": "the lighthouse"}])
    team.run("connect", number, "--parameters", '{"field": "caption", "strategy": "box"}')
    [entry] = team.studio.api("GET", f"/api/ml?project={number}")
    assert entry["extra_params"] == {"field": "caption", "strategy": "box"}
    team.studio.retrieve_predictions(number)
    tasks = team.studio.api("GET", f"/api/tasks?project={number}&fields=all")["tasks"]
    task = next(one["id"] for one in tasks if one["data"].get("caption"))
    [prediction] = team.studio.api("GET", f"/api/predictions?task={task}")
    told = [region["meta"]["text"] for region in prediction["result"] if "text" in region.get("meta", {})]
    assert told == [["for: the horse; by the project's parameters: strategy box"]]
    assert json.loads(team.run("doctor", number, "--json").stdout)["ok"]
    login = {"auth_method": "BASIC_AUTH", "basic_auth_user": "sam4mllm", "basic_auth_pass": SECRETS["SAM4MLLM_AUTH_PASSWORD"]}
    changed = {"url": entry["url"], "project": number, "extra_params": {"threshold": 7}, **login}
    team.studio.api("PATCH", f"/api/ml/{entry['id']}", json=changed)
    check, problem, cure = team.finding(number)
    assert (check, "from 0 to 1, not 7" in problem, "--parameters" in cure) == ("parameters", True, True)


@pytest.mark.parametrize(
    ("key", "problem", "cure"),
    [
        pytest.param("a" * 40, "does not take the token (401): it is wrong", "make a personal access token", id="wrong token"),
        pytest.param("Bearer {personal}", "personal access token used directly", "set the token alone", id="personal token used directly"),
        pytest.param("{expired}", "the personal access token expired on 2026-01-01", "make a personal access token", id="expired token"),
    ],
)
def test_faults_of_the_token(team: Team, healthy: int, key: str, problem: str, cure: str) -> None:
    keys = {"personal": personal_token(team.studio), "expired": forge(team.studio, 1767225600)}
    found = team.finding(healthy, LABEL_STUDIO_API_KEY=key.format(**keys))
    assert found[0] == "token"
    assert problem in found[1]
    assert cure in found[2]


def test_a_personal_token_is_fine_and_label_studio_refuses_the_expired_one_itself(team: Team, healthy: int) -> None:
    team.run("doctor", healthy, LABEL_STUDIO_API_KEY=personal_token(team.studio))
    for end, taken in ((4102444800, True), (1767225600, False)):  # forged in the same way, so that it is the time that is refused
        refreshed = subprocess.run(
            ["curl", "-s", "-X", "POST", "-d", f"refresh={forge(team.studio, end)}", f"{team.studio.url}/api/token/refresh/"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("access" in json.loads(refreshed.stdout)) is taken


def test_no_webhook_header(team: Team) -> None:
    number = team.project()
    team.run("connect", number)
    [hook] = team.studio.api("GET", f"/api/webhooks/?project={number}")
    team.studio.api("PATCH", f"/api/webhooks/{hook['id']}/", json={"headers": {}, "actions": hook["actions"]})
    check, problem, cure = team.finding(number)
    assert (check, cure) == ("webhook", f"run `sam4mllm connect {number}`")
    assert "X-Webhook-Secret" in problem
    team.run("connect", number)
    team.run("doctor", number)


def test_localhost_url(team: Team) -> None:
    """The entry's localhost is not the machine that the server is on: made while another server listened there."""
    number = team.project()
    with stand_in() as url:
        team.run("connect", number, "--url", url)
    check, problem, cure = team.finding(number)
    assert check == "backend"
    assert f"cannot reach {url}: there, localhost is Label Studio's own machine" in problem
    assert "--url" in cure
    port = check_port(0)
    check, problem, cure = team.finding(number, LABEL_STUDIO_URL=f"http://localhost:{port}")
    assert check == "Label Studio"
    assert "localhost is this machine or container itself" in cure
    team.run("connect", number)
    team.run("doctor", number)


@pytest.mark.parametrize(
    ("config", "check", "problem", "cure"),
    [
        pytest.param(NO_MASK, "config", "has none of BrushLabels", "add one", id="missing control"),
        pytest.param(CODES, "phrases", "the label 'cls_03' has no phrase", 'alias="', id="label without phrase"),
    ],
)
def test_faults_of_the_config(team: Team, config: str, check: str, problem: str, cure: str) -> None:
    number = team.project()
    team.run("connect", number)
    team.studio.api("PATCH", f"/api/projects/{number}/", json={"label_config": config})
    found = team.finding(number)
    assert found[0] == check
    assert problem in found[1]
    assert cure in found[2]


def test_connect_offers_a_config_and_sets_it_when_asked(team: Team) -> None:
    number = team.project(NO_MASK)
    refused = team.run("connect", number, code=1)
    assert "<BrushLabels" in refused.stdout
    assert "--config default" in refused.stderr
    team.run("connect", number, "--config", "default")
    assert json.loads(team.run("connect", number, "--config", "default", "--json").stdout)["changed"] is False
    team.run("doctor", number)


def test_unreachable_image_host(team: Team) -> None:
    dead = f"http://{HOST}:{check_port(0)}"
    number = team.project(image=f"{dead}/a.png", description="the horse")
    team.run("connect", number)
    check, problem, cure = team.finding(number, SAM4MLLM_ALLOW_HOSTS=dead)
    assert check == "images"
    assert f"{dead} cannot be connected to" in problem
    assert "check that it runs" in cure
    assert "SAM4MLLM_ALLOW_HOSTS" in team.finding(number)[2]


def test_full_disk(team: Team, healthy: int, tmp_path: Path) -> None:
    """A file system of one megabyte, in a mount namespace that ends with the command."""
    fill = f'mount -t tmpfs -o size=1m full {tmp_path} && dd if=/dev/zero of={tmp_path}/x bs=1k 2>/dev/null; exec "$@"'
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", fill, "sh")
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    done = team.run("doctor", healthy, "--json", before=namespace, code=1, SAM4MLLM_HOME=str(tmp_path))
    [found] = json.loads(done.stdout)["findings"]
    assert found["check"] == "disk"
    assert found["problem"] == f"the disk of SAM4MLLM_HOME is full ({tmp_path})"
    assert "free space" in found["cure"]


def test_gate_on(team: Team, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same Label Studio, restarted on a copy of its data with what it does by default."""
    connected, fresh = team.project(), team.project()
    team.run("connect", connected)
    folder = tmp_path_factory.mktemp("gate") / "label-studio"
    shutil.copytree(team.studio.folder, folder)
    monkeypatch.setitem(FIXED_ENVIRONMENT, "USE_DEFAULT_BANNED_SUBNETS", "true")
    with LocalLabelStudio(team.studio.executable, folder) as gated:
        for number in (connected, fresh):
            done = team.run("doctor", number, "--json", code=1, LABEL_STUDIO_URL=gated.url)
            [found] = json.loads(done.stdout)["findings"]
            assert found["check"] == "gate"
            assert "USE_DEFAULT_BANNED_SUBNETS=false" in found["cure"]
        refused = team.run("connect", fresh, code=1, LABEL_STUDIO_URL=gated.url)
        assert "USE_DEFAULT_BANNED_SUBNETS=false" in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        pytest.param(("connect", 999_999), {}, "there is no project 999999", id="no project"),
        pytest.param(("connect", 1), {"LABEL_STUDIO_URL": "http://127.0.0.1:9"}, "cannot be reached", id="nobody there"),
        pytest.param(("connect", 1), {"LABEL_STUDIO_API_KEY": ""}, "LABEL_STUDIO_API_KEY is not set", id="no token"),
        pytest.param(("connect", 1), {"LABEL_STUDIO_URL": "ls:8080"}, "LABEL_STUDIO_URL", id="no address"),
        pytest.param(("connect", 1, "--url", "http://backend:9090"), {}, "host name without a dot", id="a name without a dot"),
        pytest.param(("connect", 1, "--config", "nowhere.xml"), {}, "nowhere.xml cannot be read", id="no such config"),
    ],
)
def test_bad_input_of_connect_is_one_line(team: Team, arguments: tuple[object, ...], variables: dict[str, str], line: str) -> None:
    done = team.run(*arguments, code=1, **variables)
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_another_server_is_not_taken_for_label_studio(team: Team) -> None:
    check, problem, _ = team.finding(1, LABEL_STUDIO_URL=team.url)
    assert check == "Label Studio"
    assert "is not Label Studio" in problem
    assert "is not Label Studio" in team.run("connect", 1, code=1, LABEL_STUDIO_URL=team.url).stderr


def test_a_project_that_is_not_there(team: Team) -> None:
    assert team.finding(999_999)[:2] == ("project", f"there is no project 999999 at {team.studio.url}")


def personal_token(studio: LocalLabelStudio) -> str:
    """A user has one at a time, which is shown once."""
    path = studio.folder / "personal-token"
    if not path.exists():
        path.write_text(studio.api("POST", "/api/token/", json={})["token"])
    return path.read_text()


def forge(studio: LocalLabelStudio, end: int) -> str:
    """A personal access token with another end, signed with this Label Studio's own key."""
    key = (studio.folder / ".env").read_text().partition("SECRET_KEY=")[2].splitlines()[0]
    header, payload, _ = personal_token(studio).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))) | {"exp": end}
    signed = f"{header}.{_b64(json.dumps(claims).encode())}"
    return f"{signed}.{_b64(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class stand_in:
    """Something that Label Studio takes for a backend, as long as the block lasts."""

    def __enter__(self) -> str:
        self.server = ThreadingHTTPServer((HOST, 0), _Backend)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return f"http://localhost:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Backend(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"status": "UP", "model_version": "another"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_: Any) -> None:
        """Quiet."""
