"""Swaps of real adapters under load over HTTP: 100 promotions, and 10 automatic rollbacks after reviewers' corrections.

    python -m benchmarks.swaps [--swaps 100] [--rollbacks 10] [--load 3]

Three versions draw differently: the demo's base model and two adapters of random weights. Each draws every picture once before there is any
load. While they are then swapped, each answer must be exactly the one that the version it names gave before. The server runs in threads of
this process, so that its memory can be measured here.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from werkzeug.serving import WSGIRequestHandler, make_server

from backend import brush
from backend.corrections.reviews import read_reviews
from backend.learning.auto_rollback import BASELINE, LEAST
from backend.service import Service, build
from backend.settings import Settings
from backend.web.app import create_app
from benchmarks.beside import correction
from benchmarks.novel import novel_tasks
from benchmarks.predict import body
from benchmarks.random_adapter import write_random_adapter
from benchmarks.waiting import READY_SECONDS, wait_for

SEED = 730_000
PICTURES = 3
NOTHING = "[]"
"""The masks of an answer that has none, as :class:`Drawn` holds them."""
A_REQUEST = 2
"""Tasks in a request, each of another picture, so that a swap may come between them."""
PORT = 9393
URL = f"http://127.0.0.1:{PORT}"
MIB = 1 << 20


class Drawn(NamedTuple):
    """What is compared of an answer: the version that it names, the number of its picture, and its masks as JSON.

    The score is left out, because reviews change its calibration whichever version serves.
    """

    version: str
    picture: int
    masks: str


class Silent(WSGIRequestHandler):
    """A request handler that writes no line to the log for a request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--load", type=int, default=3, help="clients that ask without a pause")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as service:
        trial = Trial(service, [add_adapter(service, Path(home) / f"adapter-{seed}", seed) for seed in (1, 2)])
        trial.draw_in_quiet()
        with trial.load(arguments.load):
            memory = [trial.swap(arguments.swaps // 5) for _ in range(5)]
            rolled_back = trial.roll_back(arguments.rollbacks)
    answers, versions = len(trial.seen), len({one.version for one in trial.seen})
    print(
        f"{arguments.swaps} swaps and {rolled_back} of {arguments.rollbacks} rollbacks; {answers} answers by {versions} versions meanwhile"
    )
    print(
        f"failed requests: {trial.failed}; requests with two versions: {trial.mixed}; answers of another version: {trial.strange} (bars: 0)"
    )
    print(f"memory after each fifth of the swaps: {', '.join(f'{mib:.0f}' for mib in memory)} MiB")
    sys.exit(trial.failed + trial.mixed + trial.strange > 0 or rolled_back < arguments.rollbacks)


@contextmanager
def serving(home: Path) -> Iterator[Service]:
    """Serve the demo models over HTTP. The block begins when they are loaded.

    The cache of images is small, so that a leak of memory would be seen.
    """
    service = build(Settings(home=home, cache_mb=64))
    service.start()
    wait_for("the models", lambda: service.engine.state != "loading", READY_SECONDS)
    server = make_server("127.0.0.1", PORT, create_app(service), threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        service.close(10)


def add_adapter(service: Service, folder: Path, seed: int) -> str:
    """Add a version with random weights to the service's registry, and return its name."""
    write_random_adapter(folder, seed)
    return service.versions.add(folder, "00" * 32, {}).version


def cornered(region: dict[str, Any]) -> dict[str, Any]:
    """Return a region with a mask in the upper left corner instead of its own, as the editor sends a mask that was painted over."""
    mask = np.zeros((region["original_height"], region["original_width"]), np.bool_)
    mask[:9, :9] = True
    return {**region, "origin": "prediction-changed", "value": {**region["value"], "rle": brush.encode(mask)}}


class Trial:
    """Sends requests, swaps versions, and counts what goes wrong.

    ``known`` has the masks of each version and picture without load; ``seen`` has all answers under load. ``failed`` counts failed
    requests, ``mixed`` those answered by two versions, and ``strange`` answers whose masks are not those of the version that they name.
    """

    def __init__(self, service: Service, versions: list[str]) -> None:
        self.service, self.versions = service, versions
        self.known: dict[tuple[str, int], str] = {}
        self.seen: list[Drawn] = []
        self.failed = self.mixed = self.strange = 0
        self._bodies: list[Any] = []
        self._tasks = count(1)

    def draw_in_quiet(self) -> None:
        """Choose PICTURES pictures in which the base model finds something, and keep the masks of each version in them."""
        for seed in count(SEED):
            self._bodies.append(body(seed))
            if self.ask([len(self._bodies) - 1])[0].masks == NOTHING:
                del self._bodies[-1]
            if len(self._bodies) == PICTURES:
                break
        for promote in (None, *self.versions):
            if promote:
                self.service.versions.promote(promote)
            for picture in range(PICTURES):
                [drawn] = self.ask([picture])
                self.known[drawn.version, picture] = drawn.masks
        assert len(set(self.known.values())) == len(self.known), "the versions draw alike, so nothing would be seen"

    def ask(self, pictures: list[int]) -> list[Drawn]:
        """Send one request with a task for each of these pictures, and return the answers.

        The tasks have new numbers, so that no answer comes from a cache. Raises ``httpx.HTTPError``, or ValueError if a task got no answer.
        """
        tasks: Any = [{**self._bodies[picture]["tasks"][0], "id": next(self._tasks)} for picture in pictures]
        answer = httpx.post(f"{URL}/predict", json={**self._bodies[0], "tasks": tasks}, timeout=100).raise_for_status()
        found = []
        for picture, one in zip(pictures, answer.json()["results"], strict=True):
            if not one:
                raise ValueError("a task got no answer")
            masks = [region["value"]["rle"] for region in one["result"] if region["type"] == "brushlabels"]
            found.append(Drawn(one["model_version"], picture, json.dumps(masks)))
        return found

    @contextmanager
    def load(self, clients: int) -> Iterator[None]:
        over = threading.Event()

        def ask_on(first: int) -> None:
            for number in count(first):
                if over.is_set():
                    return
                self._account([(number + step) % PICTURES for step in range(A_REQUEST)])

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask_on, client) for client in range(clients)]
            try:
                yield
            finally:
                over.set()
                for one in asking:
                    one.result()

    def _account(self, pictures: list[int]) -> None:
        try:
            found = self.ask(pictures)
        except (httpx.HTTPError, ValueError):
            self.failed += 1
            return
        self.mixed += len({one.version for one in found}) > 1
        self.strange += sum(self.known.get((one.version, one.picture)) != one.masks for one in found)
        self.seen += found

    def swap(self, times: int) -> float:
        """Promote the two adapters in turn, and return the resident memory of this process afterwards, in MiB."""
        for number in range(times):
            self.service.versions.promote(self.versions[number % 2])
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MIB

    def roll_back(self, times: int) -> int:
        """Promote the second version so many times, and return after how many of them the first one was rolled back to.

        Reviewers accept what the first version draws, and redraw what the second one does.
        """
        good, worse = self.versions
        self.service.versions.promote(good)
        self._review(BASELINE, accept=True)
        rolled_back = 0
        for _ in range(times):
            self.service.versions.promote(worse)
            time.sleep(1.1)  # promotions have times in whole seconds, and reviews must be later
            self._review(LEAST, accept=False)
            learner = self.service.learner
            learner.watch.look(read_reviews(self.service.corrections, "description").reviews, learner.serves_since())
            rolled_back += self.service.versions.serving == good
        return rolled_back

    def _review(self, times: int, accept: bool) -> None:
        """Ask for a prediction and send a correction of it as a webhook, so many times: with the masks as they are if ``accept``, else with
        masks in a corner.
        """
        [task_like] = novel_tasks(1, 771_001)
        for _ in range(times):
            number = next(self._tasks)
            task: Any = {**self._bodies[0]["tasks"][0], "id": number}
            served = httpx.post(f"{URL}/predict", json={**self._bodies[0], "tasks": [task]}, timeout=100).json()["results"][0]
            event = correction(number, task_like, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            event["task"]["data"] = task["data"]
            event["annotation"]["result"] = served["result"] if accept else [cornered(region) for region in served["result"]]
            httpx.post(f"{URL}/webhook", json=event).raise_for_status()


if __name__ == "__main__":
    main()
