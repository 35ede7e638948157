"""The Dockerfile and the compose files as their own linters see them, and what must not be in them."""

from __future__ import annotations

import importlib
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


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that starts an engine."""
    monkeypatch.syspath_prepend(str(DOCKER))
    return importlib.import_module("rehearse_engine")


def test_what_compose_1_29_reads_says_the_same(engine: Any) -> None:
    text = COMPOSE[0].read_text(encoding="utf-8")
    whole, derived = (yaml.safe_load(one) for one in (text, engine.for_old_compose(text)))
    assert whole.pop("name") == "sam4mllm"
    files = whole["services"]["backend"].pop("env_file")
    assert [(one["path"], one["required"]) for one in files] == [("backend.env", False)]
    assert derived["services"]["backend"].pop("env_file") == ["backend.env"]
    assert derived == whole


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("docker", "old", "found"),
    [
        pytest.param("echo 2.26.1-4", "echo 1.29.2", (["docker", "compose"], True), id="a plugin that reads the file"),
        pytest.param("echo v2.31.0", "exit 1", (["docker", "compose"], True), id="its version with a v"),
        pytest.param("exit 1", "echo 1.29.2", (["docker-compose", "--project-name", "sam4mllm"], False), id="1.29"),
        pytest.param("echo 2.20.0", "echo 1.29.2", (["docker-compose", "--project-name", "sam4mllm"], False), id="the plugin is too old"),
        pytest.param("exit 1", "echo 2.26.1", (["docker-compose"], True), id="a new one under the old name"),
        pytest.param("echo 2.20.0", "echo 1.21.0", None, id="none that is known"),
    ],
)
def test_which_compose(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: str, old: str, found: tuple[list[str], bool] | None
) -> None:
    program(tmp_path, "docker", docker)
    program(tmp_path, "docker-compose", old)
    monkeypatch.setenv("PATH", str(tmp_path))
    if found is not None:
        assert engine.find_compose() == found
        return
    with pytest.raises(engine.NoEngine, match="apt-get install docker-compose"):
        engine.find_compose()


def test_no_engine_says_what_to_install(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(engine.NoEngine, match=r"dockerd is not installed: apt-get install docker\.io"), engine.engine(tmp_path, tmp_path):
        pass


def test_what_is_deleted_from_the_image(tmp_path: Path) -> None:
    kept = [
        "torch/lib/libtorch.so",
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
        "scipy/stats/__init__.py",
        "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_cpu.so",
    ]
    deleted = [
        "torch/include/a/b.h",
        "torch/bin/protoc",
        "scipy/stats/tests/data/a.npz",
        "scipy/stats/tests/tests/b.py",
        "nvidia/cu13/lib/libcusolverMg.so.12",
        "nvidia/cu13/lib/libnvrtc.alt.so.13",
        "bitsandbytes/libbitsandbytes_cuda126.so",
    ]
    for name in (*kept, *deleted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n", encoding="utf-8")
    assert run(sys.executable, DOCKER / "slim.py", tmp_path) == "0 of 0 MB deleted\n"
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "torch/version.py"}
    (tmp_path / "bitsandbytes/libbitsandbytes_cuda130.so").rename(tmp_path / "bitsandbytes/libbitsandbytes_cuda128.so")
    run(sys.executable, DOCKER / "slim.py", tmp_path)
    assert (tmp_path / "bitsandbytes/libbitsandbytes_cuda128.so").exists(), "torch's own is not there: which one it takes is its choice"


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
