"""A server with its default limits under hostile requests, one kind of attack after another and then all at once.

python -m benchmarks.hostile

Starts ``sam4mllm serve`` with the demo models. During each attack ``/health`` is asked every tenth of a second, and tasks of another team
are sent one after the other. Exits with 1 if ``/health`` took longer than a second, one of these tasks was not answered within the
deadline, the server's processes took more than 1 GiB beyond idle, or the worker was restarted. Names of attacks as arguments (``B4 B7
all``) choose some of them.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil
from PIL import Image

from backend.support.child import HOST, check_port
from benchmarks.waiting import server
from sam4mllm.demo.scenes import DemoScene, make_scene
from tests.hostile_files import huge_tile, many_scans

HEALTH_SECONDS = 1.0
DEADLINE = 100.0
"""Seconds after which Label Studio gives up."""
MEMORY = 1 << 30
LOCKED_SECONDS = 60.0
SLOW_CONNECTIONS = 60
CONFIG = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="mask" toName="image">{labels}</BrushLabels></View>'
)


@dataclass
class Watched:
    """What was measured during one attack.

    ``health``: seconds of each health check; ``answered``: seconds of each answered task of the other team; ``unanswered``: the number of
    the others; ``memory``: most bytes of the server's processes; ``done``: set when the watching is to end.
    """

    name: str
    health: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    unanswered: int = 0
    memory: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def misses(self, idle: int) -> list[str]:
        found = []
        if not self.health or max(self.health) > HEALTH_SECONDS:
            found.append("health")
        if self.unanswered or not self.answered or max(self.answered) > DEADLINE:
            found.append("task")
        if self.memory - idle > MEMORY:
            found.append("memory")
        return found


@dataclass
class Target:
    """The server under attack: its port, its home folder and its process, and requests to it."""

    port: int
    home: Path
    pid: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def post(self, path: str, body: bytes, seconds: float = 200.0) -> int:
        """Send a request and return the answer's status; 0 if the connection failed or was closed.

        This does not use httpx, which would copy a large body many times.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=seconds)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        return 0

    def memory(self) -> int:
        total = 0
        for process in (parent := psutil.Process(self.pid), *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.pid).children() if "gunicorn" in " ".join(child.cmdline())}


def image_body(image: bytes, kind: str, phrase: str, labels: str = '<Label value="thing"/>', number: int = 1) -> bytes:
    """Return the body of a prediction request for one task, which contains its picture. ``labels`` are the label config's tags."""
    data = {"image": f"data:image/{kind};base64,{base64.b64encode(image).decode()}", "description": phrase}
    return json.dumps({"tasks": [{"id": number, "data": data}], "project": "7.1", "label_config": CONFIG.format(labels=labels)}).encode()


def long_labels(target: Target) -> None:
    """B1: label configs with one label of 80,000 underscores, and with 9,500 labels of twelve aliases each."""
    picture = plain_picture()
    many = "".join(
        f'<Label value="label{number}" alias="{",".join(f"alias{number}x{other}" for other in range(12))}"/>' for number in range(9500)
    )
    for labels in (f'<Label value="{"_" * 80_000}"/>', many):
        target.post("/setup", json.dumps({"project": "7.1", "schema": CONFIG.format(labels=labels)}).encode())
        target.post("/predict", image_body(picture, "png", "the thing", labels))


def scans(target: Target) -> None:
    """B2: five different progressive JPEGs of 7,000 x 7,000 pixels with 20,000 scans each."""
    together([partial(target.post, "/predict", image_body(many_scans(7000, 20_000 + n), "jpeg", "it", number=n)) for n in range(5)])


def tiles(target: Target) -> None:
    """B3: eight small TIFFs of at least 64 x 64 pixels, each in a single tile of 24,000 x 20,000."""
    together([partial(target.post, "/predict", image_body(huge_tile(64 + n), "tiff", "it", number=n)) for n in range(8)])


def slow_connections(target: Target) -> None:
    """B4: connections that send an incomplete head or body and stay open until the server closes them, for at most 40 s."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    held = []
    for number in range(SLOW_CONNECTIONS):
        held.append(socket.create_connection((HOST, target.port), 30))
        held[-1].sendall(head + (b"" if number % 2 else b"Content-Length: 1000\r\n\r\n{"))
    end = time.monotonic() + 40
    for number, one in enumerate(held):
        with suppress(OSError), one:
            one.settimeout(max(0.1, end - time.monotonic()))
            if number % 4 == 0:
                one.sendall(b"{")
            one.recv(1000)


def large_bodies(target: Target) -> None:
    """B7: forty bodies of 40 MB of empty lists, and four of 20 MB that are one mask."""
    lists = b'{"action":"ANNOTATION_CREATED","x":[' + b"[]," * 13_000_000 + b"[]]}"
    mask = b'{"action":"OTHER","rle":[' + b"255," * 5_000_000 + b"0]}"
    together([partial(target.post, "/webhook", body) for body in [lists] * 40 + [mask] * 4], at_once=40)


def locked_database(target: Target) -> None:
    """B8: this process locks the database of the server's log for a minute, while events are sent."""
    with closing(sqlite3.connect(target.home / "corrections.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        end = time.monotonic() + LOCKED_SECONDS
        while time.monotonic() < end:
            event = json.dumps({"action": "ANNOTATION_CREATED", "project": {"id": 7}}).encode()
            together([partial(target.post, "/webhook", event, 15.0) for _ in range(20)])
            time.sleep(0.5)
        database.execute("ROLLBACK")


ATTACKS: dict[str, Callable[[Target], None]] = {
    "B1 labels": long_labels,
    "B2 scans": scans,
    "B3 tiles": tiles,
    "B4 slow connections": slow_connections,
    "B7 large bodies": large_bodies,
    "B8 locked database": locked_database,
}


def all_at_once(target: Target) -> None:
    together([partial(attack, target) for attack in ATTACKS.values()])


def together(calls: list[Callable[[], object]], at_once: int = 32) -> None:
    with ThreadPoolExecutor(min(len(calls), at_once)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def plain_picture() -> bytes:
    return packed(Image.new("RGB", (64, 64), "green"))


def packed(image: Image.Image) -> bytes:
    with tempfile.SpooledTemporaryFile() as file:
        image.save(file, "PNG")
        file.seek(0)
        return file.read()


PROBE = """
import http.client, sys, time
while True:
    began = time.monotonic()
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
    try:
        connection.request("GET", "/health")
        good = connection.getresponse().status == 200
    except OSError:
        good = False
    connection.close()
    print(time.monotonic() - began if good else "inf", flush=True)
    time.sleep(0.1)
"""
"""Program that prints the seconds of a health check again and again. It runs in a process of its own, because the attacking threads keep
this process's interpreter busy."""


def watch_health(target: Target, seen: Watched) -> None:
    """Watch the health checks and the memory of the server's processes until ``seen.done`` is set."""
    with subprocess.Popen([sys.executable, "-c", PROBE, HOST, str(target.port)], stdout=subprocess.PIPE, text=True) as probe:
        while not seen.done.is_set():
            seen.memory = max(seen.memory, target.memory())
            seen.done.wait(0.1)
        probe.terminate()
        assert probe.stdout is not None
        seen.health += [float(line) for line in probe.stdout.read().split()]


def other_team(target: Target, scene: DemoScene, seen: Watched) -> None:
    """Send the other team's tasks one after another, each with a new number, until ``seen.done`` is set; at least one is sent.

    A request that fails is repeated until the deadline.
    """
    for number in range(1, 10_000):
        began = time.monotonic()
        phrase = scene.expressions[number % len(scene.expressions)].phrase
        body = image_body(packed(Image.fromarray(scene.image)), "png", phrase, number=10_000 + number)
        answer: list[object] = []
        while not answer and time.monotonic() - began < DEADLINE:
            with suppress(httpx.HTTPError, ValueError, KeyError):
                sent = httpx.post(target.url + "/predict", content=body, headers={"Content-Type": "application/json"}, timeout=DEADLINE)
                answer = sent.json()["results"][0]
        if answer:
            seen.answered.append(time.monotonic() - began)
        else:
            seen.unanswered += 1
        if seen.done.wait(0.5):
            return


def attack_with(target: Target, name: str, attack: Callable[[Target], None], scene: DemoScene) -> Watched:
    """Attack the server, and return what was measured during the attack and the two seconds after it."""
    seen = Watched(name)
    watchers = [threading.Thread(target=watch_health, args=(target, seen)), threading.Thread(target=other_team, args=(target, scene, seen))]
    for watcher in watchers:
        watcher.start()
    attack(target)
    time.sleep(2)
    seen.done.set()
    for watcher in watchers:
        watcher.join()
    return seen


def main() -> None:
    """Print a line for each attack; exit with 1 if any bar is missed."""
    attacks = {**ATTACKS, "all at once": all_at_once}
    chosen = {name: attack for name, attack in attacks.items() if not sys.argv[1:] or name.split()[0] in sys.argv[1:]}
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), check_port(0)
        with server(home, port) as child:
            passed = run(Target(port, home, child.process.pid), chosen)
    sys.exit(0 if passed else 1)


def run(target: Target, attacks: dict[str, Callable[[Target], None]]) -> bool:
    scene = make_scene((7, 0))
    other_team(target, scene, warm := Watched("idle", done=_set()))
    idle, workers = target.memory(), target.workers()
    print(f"idle: {idle / 2**20:,.0f} MB; a task takes {warm.answered[0]:.1f} s")
    print(f"{'attack':22}{'health, s':>12}{'task, s':>10}{'tasks':>7}{'memory, MB':>12}  missed")
    passed = True
    for name, attack in attacks.items():
        seen = attack_with(target, name, attack, scene)
        missed = seen.misses(idle) + (["worker restarted"] if target.workers() != workers else [])
        passed = passed and not missed
        slowest, health = max(seen.answered, default=float("inf")), max(seen.health, default=float("inf"))
        more = (seen.memory - idle) / 2**20
        print(f"{name:22}{health:12.2f}{slowest:10.1f}{len(seen.answered):7}{more:+12,.0f}  {', '.join(missed) or '-'}", flush=True)
    return passed


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


if __name__ == "__main__":
    main()
