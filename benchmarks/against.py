"""This checkout compared with another one: CPU seconds of a ``/predict`` request and of a picture in a bulk run; and this one's memory.

    python -m benchmarks.against TREE [--requests 40] [--pictures 200] [--mixed 0] [--seed 990025]

TREE is another checkout with the same ``sam4mllm/demo/assets``. This interpreter runs both, on one thread each. Each request is sent over
HTTP to one server and then to the other, so that other load on the machine affects both alike; the time of a server's child processes
counts. The cost of a picture is the difference between a bulk run over all pictures and one over eight, divided by the number of pictures
between them, so that loading does not count. With ``--mixed N``, N requests of all kinds are sent to this checkout's server alone, to watch
its memory.

Bars: /predict ≤ 0.65 x, a bulk picture ≤ 0.85 x, memory in the last fifth of the mixed requests ≤ 1.05 x that in the second fifth. Ends
with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import resource
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from backend.support.child import HOST, Child
from benchmarks.bulk import draw
from benchmarks.predict import body
from benchmarks.team import PORT, click_on
from benchmarks.waiting import READY_SECONDS
from sam4mllm.demo.scenes import make_scene

HERE = Path(__file__).parent.parent
REQUEST, PICTURE, MEMORY = 0.65, 0.85, 1.05
"""The bars: CPU seconds of a request and of a bulk picture here, as shares of those in the other checkout, and the growth of memory."""
FIRST = 8
"""Number of pictures in the short bulk run, whose time is subtracted from that of the run over all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--mixed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=990_025)
    arguments = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.requests:
            met &= compare_requests(arguments.tree, folder, arguments.requests, arguments.seed)
        if arguments.pictures:
            met &= compare_bulk(arguments.tree, folder, arguments.pictures, arguments.seed)
        if arguments.mixed:
            met &= watch_memory(folder, arguments.mixed, arguments.seed)
    raise SystemExit(not met)


# -- /predict ------------------------------------------------------------------------------------------------------------------------------


def compare_requests(tree: Path, folder: Path, count: int, seed: int) -> bool:
    with serving(HERE, folder / "here", PORT) as here, serving(tree, folder / "there", PORT + 1) as there:
        bodies = [body(seed + index) for index in range(count + 2)]
        for one in bodies[:2]:
            spend(here, PORT, one)
            spend(there, PORT + 1, one)
        spent = np.array([(spend(here, PORT, one), spend(there, PORT + 1, one)) for one in bodies[2:]])
    own, other = spent.mean(0)
    print(f"/predict, {count} requests: {own:.3f} CPU seconds here, {other:.3f} there, {own / other:.2f} x (bar: {REQUEST})", flush=True)
    return bool(own / other <= REQUEST)


def spend(child: Child, port: int, asked: dict[str, Any]) -> float:
    """Return the CPU seconds that a server and its child processes spend on a request."""
    before = cpu_seconds(child)
    answer = httpx.post(f"http://{HOST}:{port}/predict", json=asked, timeout=100)
    assert answer.json()["results"][0], answer.text
    return cpu_seconds(child) - before


def cpu_seconds(child: Child) -> float:
    return float(sum(sum(one.cpu_times()[:4]) for one in family(child)))


def memory_mb(child: Child) -> float:
    return float(sum(one.memory_info().rss for one in family(child)) / 1e6)


def family(child: Child) -> list[psutil.Process]:
    process = psutil.Process(child.process.pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def serving(tree: Path, home: Path, port: int) -> Iterator[Child]:
    """Run a checkout's server; the block begins when the demo models are loaded, and at its end the server is stopped."""
    home.mkdir()
    settings = {"SAM4MLLM_PORT": str(port), "SAM4MLLM_HOME": str(home)}
    child = Child("server", [*command(tree), "serve"], {**environment(tree), **settings}, home / "server.log")
    try:
        child.wait_until(lambda: is_ready(port), READY_SECONDS, print)
        yield child
    finally:
        child.stop()


def is_ready(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://{HOST}:{port}/health", timeout=10).json()["status"] == "UP")
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def command(tree: Path) -> list[str]:
    """Return the command line of the checkout's own ``sam4mllm``, whatever is installed and whatever the working directory is."""
    module, _, name = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["sam4mllm"].partition(":")
    return ["env", "-C", str(tree), sys.executable, "-c", f"from {module} import {name}; {name}()"]


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# -- bulk ----------------------------------------------------------------------------------------------------------------------------------


def compare_bulk(tree: Path, folder: Path, count: int, seed: int) -> bool:
    for name, pictures in (("few", FIRST), ("all", count)):
        draw(folder / name, pictures, seed)
    own, other = ((run(where, folder, "all") - run(where, folder, "few")) / (count - FIRST) for where in (HERE, tree))
    ratio = own / other
    print(f"bulk, {count} pictures: {own:.3f} CPU seconds each here, {other:.3f} there, {ratio:.2f} x (bar: {PICTURE})", flush=True)
    return bool(ratio <= PICTURE)


def run(tree: Path, folder: Path, name: str) -> float:
    """Return the CPU seconds of a checkout's ``sam4mllm batch`` over the dataset ``name`` in the folder."""
    place = folder / f"{name} by {tree.name}"
    told = {**environment(tree), "SAM4MLLM_HOME": str(place / "home")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = [*command(tree), "batch", str(folder / name), "--out", str(place / "out")]
    subprocess.run(asked, env=told, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# -- memory --------------------------------------------------------------------------------------------------------------------------------


def watch_memory(folder: Path, count: int, seed: int) -> bool:
    """Send requests of all kinds, print the server's memory, and return whether it stays within the bar.

    The requests have one phrase or three, small pictures or large ones, pictures seen before or new ones, and clicks.
    """
    rng = np.random.default_rng(seed)
    seen: list[float] = []
    with serving(HERE, folder / "mixed", PORT) as child:
        for index in range(count):
            asked = mixed(seed + int(rng.integers(count)), rng)
            httpx.post(f"http://{HOST}:{PORT}/predict", json=asked, timeout=100).raise_for_status()
            seen.append(memory_mb(child))
            if index % 200 == 199:
                print(f"  {index + 1} requests: {seen[-1]:.0f} MB", flush=True)
    fifths = [float(np.median(part)) for part in np.array_split(seen, 5)]
    grown = fifths[4] / fifths[1]
    print(f"memory of each fifth of {count} requests in MB: {[round(one) for one in fifths]}, {grown:.3f} x (bar: {MEMORY})")
    return bool(grown <= MEMORY)


def mixed(seed: int, rng: np.random.Generator) -> dict[str, Any]:
    asked = body(seed)
    kind = rng.integers(4)
    if kind == 0:
        scene = make_scene((seed,))
        asked["tasks"][0]["data"]["description"] = [one.phrase for one in scene.expressions[:3]]
    elif kind == 1:
        asked |= click_on(rng.uniform(20, 80, 2).tolist())
    elif kind == 2:
        asked["tasks"][0]["data"]["image"] = enlarged(seed, int(rng.integers(2, 5)))
    return asked


def enlarged(seed: int, times: int) -> str:
    """Return the scene's picture as a data URL, each pixel enlarged to a square of ``times`` x ``times`` pixels."""
    file = io.BytesIO()
    Image.fromarray(make_scene((seed,)).image.repeat(times, 0).repeat(times, 1)).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
