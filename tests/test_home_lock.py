"""One server a home: the second says who has it and ends; nothing else is kept out, and nothing stale stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend import plugin
from backend.corrections.log import CorrectionLog
from backend.errors import SettingsError
from backend.support.child import check_port, serve_command
from backend.support.home_lock import FILE, hold_home, release_home

HOLD = "import sys, time; from pathlib import Path; from backend.support.home_lock import hold_home; hold_home(Path(sys.argv[1]), 'x:1'); "
ROOT = Path(__file__).parent.parent


def start(home: Path, port: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "SAM4MLLM_HOME": str(home), "SAM4MLLM_PORT": str(port), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        serve_command("tests.serve_fakes:app"), env=environment, cwd=home, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def is_up(port: int, seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success
        except httpx.TransportError:
            time.sleep(0.1)
    return False


def child(home: Path, more: str) -> subprocess.Popen[str]:
    """A process that holds the home; it has written a line when it does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + more, str(home)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_second_server_ends_and_the_first_outlives_its_worker_and_leaves_nothing(tmp_path: Path) -> None:
    port, other = check_port(0), check_port(0)
    first = start(tmp_path, port)
    try:
        assert is_up(port)
        second = start(tmp_path, other)
        _, told = second.communicate(timeout=100)
        [line] = [line for line in told.splitlines() if line.startswith("error: ")]
        assert second.returncode == 1
        assert f"in use by the server at 127.0.0.1:{port} (process {first.pid} on " in line
        assert "Traceback" not in told
        workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        os.kill(int(workers[0]), signal.SIGKILL)
        time.sleep(1)
        assert is_up(port), "another worker of the same server"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    hold_home(tmp_path, "y:2", patience=5.0)
    release_home(tmp_path)


def test_the_plugin_in_another_server_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    monkeypatch.setattr("backend.plugin.hold_home", lambda home, address: hold_home(home, address, patience=0.1))
    monkeypatch.setattr("backend.plugin.keep_from_children", lambda: None)
    holder = child(tmp_path, "print(flush=True); time.sleep(60)")
    plugin._service.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"in use by the server at x:1 \(process"):
            plugin.service()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_commands_and_bulk_runs_beside_a_server_are_not_refused(tmp_path: Path) -> None:
    holder = child(tmp_path, "print(flush=True); time.sleep(60)")
    try:
        CorrectionLog(tmp_path / "corrections.sqlite").close()
        environment = {**os.environ, "SAM4MLLM_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        listed = subprocess.run([sys.executable, "-m", "sam4mllm", "adapters", "list"], env=environment, capture_output=True, check=False)
        assert listed.returncode == 0
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("import subprocess; subprocess.Popen(['sleep', '30']); print(flush=True); time.sleep(60)", id="a training process"),
        pytest.param(
            "from backend.support.home_lock import keep_from_children; import os; keep_from_children()\n"
            "if os.fork() == 0: time.sleep(30); os._exit(0)\n"
            "print(flush=True); time.sleep(60)",
            id="a helper that was forked",
        ),
    ],
)
def test_what_outlives_its_server_does_not_hold_the_home(tmp_path: Path, more: str) -> None:
    code = (HOLD.rstrip("; ") + "\n" + more) if "\n" in more else HOLD + more
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        hold_home(tmp_path, "y:2", patience=5.0)
        assert json.loads((tmp_path / FILE).read_text())["address"] == "y:2"
    finally:
        release_home(tmp_path)
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"pid": 1}', '{"pid": {}, "host": "a\\nb", "since": [], "address": null}'])
def test_a_lock_that_is_not_signed_is_held_all_the_same(tmp_path: Path, text: str) -> None:
    holder = child(tmp_path, "print(flush=True); time.sleep(60)")
    (tmp_path / FILE).write_text(text)
    try:
        with pytest.raises(SettingsError, match="is in use by ") as caught:
            hold_home(tmp_path, "y:2", patience=0.0)
        assert len(str(caught.value).splitlines()) == 1
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_file_that_is_left_holds_nothing(tmp_path: Path) -> None:
    who: dict[str, Any] = {"pid": 1, "host": "h", "since": "s", "address": "a"}
    (tmp_path / FILE).write_text(json.dumps(who))
    hold_home(tmp_path, "y:2")
    hold_home(tmp_path, "y:2")
    release_home(tmp_path)
