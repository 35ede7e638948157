"""The Dockerfile and the compose files as their own linters see them, and what must not be in them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
COMPOSE = [DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"]
SECRET = re.compile(r"PASSWORD|SECRET|KEY|TOKEN")


def installed(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    assert run(installed("hadolint"), "--format", "json", DOCKER / "Dockerfile").strip() == "[]"


def test_the_compose_files_follow_the_schema() -> None:
    run(installed("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *COMPOSE)


def test_the_gpu_overlay_adds_to_services_that_are_there() -> None:
    assert services(COMPOSE[1]).keys() <= services(COMPOSE[0]).keys()


def test_no_secret_has_a_default() -> None:
    text = COMPOSE[0].read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{(\w+)(:?[-?][^}]*)\}", text))
    secrets = {name for name in used if SECRET.search(name)}
    assert {"LABEL_STUDIO_PASSWORD", "LABEL_STUDIO_API_KEY", "SAM4MLLM_AUTH_PASSWORD", "SAM4MLLM_WEBHOOK_SECRET"} == secrets
    assert all(used[name].startswith(":?") for name in secrets)
    example = (DOCKER / ".env.example").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}=$", example, re.MULTILINE) for name in secrets)


def test_every_variable_is_in_the_example() -> None:
    used = {name for path in COMPOSE for name in re.findall(r"\$\{(\w+)", path.read_text(encoding="utf-8"))}
    example = set(re.findall(r"^#?([A-Z0-9_]+)=", (DOCKER / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used == example


def test_a_stop_leaves_time_to_drain() -> None:
    from backend.settings import Settings  # noqa: PLC0415

    seconds = int(services(COMPOSE[0])["backend"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= Settings.model_fields["deadline"].default + 15 + 5


def test_requirements_are_the_packages_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = run(sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "server,quant,segmenters,").splitlines()
    extras = project["optional-dependencies"]
    assert lines == [*project["dependencies"], *extras["server"], *extras["quant"], *extras["segmenters"]]
    assert '"server,$EXTRAS"' in (DOCKER / "Dockerfile").read_text(encoding="utf-8"), "whatever extras are asked for, the image serves"
    asked = subprocess.run([sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "none"], capture_output=True, check=False)
    assert asked.returncode == 1


@pytest.mark.parametrize(
    ("health", "code"),
    [
        pytest.param({"state": "ready", "error": ""}, 0, id="ready"),
        pytest.param({"state": "loading", "error": ""}, 0, id="loading"),
        pytest.param({"state": "failed", "error": "no such folder"}, 1, id="failed"),
        pytest.param([], 1, id="somebody else"),
    ],
)
def test_health(health: Any, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(health).encode())

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.handle_request).start()
        environment = {"SAM4MLLM_PORT": str(server.server_port)}
        done = subprocess.run([sys.executable, DOCKER / "healthcheck.py"], env=environment, capture_output=True, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_health_of_nobody() -> None:
    done = subprocess.run([sys.executable, DOCKER / "healthcheck.py"], env={"SAM4MLLM_PORT": "9"}, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
