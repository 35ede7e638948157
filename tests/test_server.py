"""A real process: what SIGTERM ends, and what ``kill -9`` cannot take."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.corrections.log import CorrectionLog
from backend.support.child import check_port, serve_command
from sam4mllm.adapters.registry import Registry
from tests.adapter_files import ORIGIN, adapter
from tests.backend_fakes import CONFIG, task
from tests.learning_fakes import FakeLoader

ROOT = Path(__file__).parents[1]


class Server:
    """gunicorn with our configuration and fake models."""

    def __init__(self, home: Path, app: str = "tests.serve_fakes:app", **environment: str) -> None:
        self.port = check_port(0)
        variables = {"SAM4MLLM_PORT": str(self.port), "SAM4MLLM_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
        self.process = subprocess.Popen(serve_command(app), env={**os.environ, **variables}, cwd=home, stderr=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            try:
                if httpx.get(self.url + "/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not get ready")

    def predict(self, number: int) -> Any:
        body = {"tasks": [task(number, description="the dog")], "project": "1.1", "label_config": CONFIG}
        return httpx.post(self.url + "/predict", json=body, timeout=30)

    def stop(self) -> None:
        """Without ceremony, and without leaving the worker behind."""
        if self.process.poll() is None:
            for child in self.workers():
                os.kill(child, signal.SIGKILL)
            self.process.kill()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.process.communicate()

    def workers(self) -> list[int]:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(number) for number in listed.stdout.split()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(**environment: str) -> Server:
        started.append(Server(tmp_path, **environment))
        started[-1].wait()
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_health_and_setup_answer_while_every_place_is_taken(serve: Callable[..., Server]) -> None:
    server = serve(FAKE_SECONDS="60", SAM4MLLM_QUEUE="4")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(_unanswered, server.predict, number) for number in range(4)]
        time.sleep(1.0)
        assert _quickest(lambda: httpx.get(server.url + "/health")) < 0.2
        assert _quickest(lambda: httpx.post(server.url + "/setup", json={"project": "1.1", "schema": CONFIG})) < 1.0
        refused = server.predict(9)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        server.stop()
        assert all(one.result() for one in waiting)


def _quickest(ask: Callable[[], httpx.Response]) -> float:
    """Seconds of the quickest of five answers, all of them good: a machine under load may be slow once."""
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        assert ask().status_code == 200
        seconds.append(time.monotonic() - began)
    return min(seconds)


def _unanswered(predict: Callable[[int], Any], number: int) -> bool:
    try:
        predict(number)
    except httpx.TransportError:
        return True
    return False


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(serve: Callable[..., Server]) -> None:
    server = serve(FAKE_SECONDS="1.5")
    with ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(server.predict, 1)
        kept = httpx.Client(base_url=server.url)
        assert kept.get("/ready").status_code == 200
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert kept.get("/ready").status_code == 503
        kept.close()
        time.sleep(0.4)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/ready", timeout=1)
        assert in_flight.result().json()["results"][0]["result"]
    assert server.process.wait(20) == 0


def test_kill_9_loses_no_acknowledged_webhook(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    acknowledged: list[int] = []

    def send(number: int) -> None:
        try:
            answer = httpx.post(server.url + "/webhook", json={"action": "ANNOTATION_CREATED", "number": number}, timeout=5)
        except httpx.TransportError:
            return
        if answer.status_code == 201:
            acknowledged.append(number)

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, number) for number in range(300)]
        while len(acknowledged) < 60:
            time.sleep(0.005)
        server.stop()
        for one in sent:
            one.result()
    stored = {event.body["number"] for event in CorrectionLog(tmp_path / "corrections.sqlite").events()}
    assert len(acknowledged) < 300
    assert set(acknowledged) <= stored


def test_a_body_that_is_too_large_is_refused_unread(serve: Callable[..., Server]) -> None:
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {10**10}\r\n\r\n{{".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_connections_that_do_not_go_on_stop_nobody(serve: Callable[..., Server]) -> None:
    """More of each kind than there are threads, all at once; a new one of the others is answered meanwhile."""
    server = serve(SAM4MLLM_QUEUE="4")
    kinds = {
        "nothing": b"",
        "half a head": HEAD,
        "half a body": HEAD + b'Content-Length: 100\r\n\r\n{"tasks":',
        "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\n{",
        "answered and not closed": b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "kept": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    }
    held = []
    try:
        for sent in kinds.values():
            for _ in range(100):  # more than there is room for: the oldest make room
                held.append(socket.create_connection(("127.0.0.1", server.port), 10))
                held[-1].sendall(sent)
            began = time.monotonic()
            assert httpx.get(server.url + "/health", timeout=10).status_code == 200
            assert server.predict(len(held)).status_code == 200
            assert time.monotonic() - began < 8, "on a busy machine; a thread that waits would take 10 s or for ever"
    finally:
        for one in held:
            one.close()


@pytest.mark.parametrize(
    "chunk", [pytest.param(b"xyz\r\n{}\r\n0\r\n\r\n", id="no size"), pytest.param(b"5\r\n{}\r\n0\r\n\r\n", id="a wrong size")]
)
def test_a_broken_chunk_is_the_senders_fault(serve: Callable[..., Server], chunk: bytes) -> None:
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        connection.shutdown(socket.SHUT_WR) if chunk[:1] == b"5" else None
        assert b" 500 " not in (answer := connection.recv(1000))
        assert not answer or answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        pytest.param({"SAM4MLLM_HOST": "0.0.0.0"}, "SAM4MLLM_AUTH_PASSWORD", id="open to others without a password"),
        pytest.param({"SAM4MLLM_QUEUE": "many"}, "SAM4MLLM_QUEUE", id="no number"),
        pytest.param({"SAM4MLLM_TRAIN_CONFIG": "/nowhere.toml"}, "SAM4MLLM_TRAIN_CONFIG: /nowhere.toml cannot be read", id="no plan"),
        pytest.param({"SAM4MLLM_TRAIN_STEPS": "60"}, "SAM4MLLM_TRAIN_CONFIG", id="a setting that is gone"),
        pytest.param({"LABEL_STUDIO_URL": "localhost:8080"}, "LABEL_STUDIO_URL", id="no scheme"),
        pytest.param({"LABEL_STUDIO_URL": "http://user:hunter2@host"}, "user name", id="user name"),
        pytest.param({"SAM4MLLM_ALLOW_HOSTS": "http://minio:9000/bucket"}, "SAM4MLLM_ALLOW_HOSTS", id="an origin with a path"),
        pytest.param({"SAM4MLLM_HOME": "/proc/nowhere"}, "SAM4MLLM_HOME", id="a home that cannot be written"),
        pytest.param(
            {"SAM4MLLM_HOST": "0.0.0.0", "SAM4MLLM_AUTH_PASSWORD": "x"}, "SAM4MLLM_WEBHOOK_SECRET", id="open without a webhook secret"
        ),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    server = Server(tmp_path, "backend.wsgi:app", **environment)
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode != 0
    assert says in errors
    assert "Traceback" not in errors
    assert "hunter2" not in errors


def test_kill_9_in_the_middle_of_promotions_leaves_a_champion_that_serves(tmp_path: Path) -> None:
    """Killed at random moments while versions are promoted one after the other; each start serves what the registry names, verified."""
    registry = Registry(tmp_path)
    origin: Any = {**ORIGIN, "identity": FakeLoader().base.identity}
    versions = [registry.add(adapter(0.01 * number), **origin).version for number in range(1, 9)]
    rng = random.Random(4)
    for _ in range(5):
        server = Server(tmp_path, "tests.swap_fakes:app")
        try:
            server.wait()
            champion = registry.champion()
            assert httpx.get(server.url + "/ready").json()["version"] == (champion.version if champion else FakeLoader().base.version)
            promoted: list[str] = []
            with ThreadPoolExecutor(1) as pool:
                promoting = pool.submit(_promote_until_it_dies, server.url, versions, promoted)
                while not (promoted or promoting.done()):
                    time.sleep(0.01)
                time.sleep(rng.uniform(0.02, 0.4))
                for worker in server.workers():
                    os.kill(worker, signal.SIGKILL)
                server.process.kill()
                promoting.result()
        finally:
            server.stop()
        last = versions.index(promoted[-1])
        champion = registry.champion()
        assert champion is not None
        assert champion.version in (versions[last], versions[(last + 1) % len(versions)])
        registry.verify(champion.version)


def _promote_until_it_dies(url: str, versions: list[str], promoted: list[str]) -> None:
    """One after the other, round and round; those that the server has answered go into ``promoted``."""
    for version in itertools.cycle(versions):
        try:
            httpx.post(f"{url}/api/versions/{version}/promote", json={}, timeout=60).raise_for_status()
        except httpx.TransportError:
            return
        promoted.append(version)
