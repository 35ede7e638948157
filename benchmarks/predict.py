"""Seconds of ``/predict`` requests of one task over HTTP: the median, and the mean of each stage as the server measures it.

    python -m benchmarks.predict [--count 30] [--seed 990003]

A first request warms up. Every request is about another demo scene, with one phrase; its picture is in the task itself, so that no other
server takes part.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.waiting import server
from sam4mllm.demo.scenes import make_scene

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Object"/></BrushLabels>'
    '<TextArea name="prompt" toName="image"/></View>'
)
PORT = 9391


def body(seed: int) -> dict[str, Any]:
    """Return the body of a request for one task about the demo scene of a seed, as Label Studio sends it when it fetches predictions."""
    scene = make_scene((seed,))
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    task = {"id": seed, "data": {"image": image, "description": scene.expressions[0].phrase}}
    return {"tasks": [task], "project": "1.1", "label_config": CONFIG}


def stages(url: str) -> dict[str, float]:
    """Return the seconds that the server has spent so far in each stage."""
    text = httpx.get(url + "/metrics").text
    return {name: float(value) for name, value in re.findall(r'sam4mllm_stage_seconds_sum{stage="(\w+)"} (\S+)', text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=990_003)
    arguments = parser.parse_args()
    url = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory() as home, server(Path(home), PORT):
        _ask(url, arguments.seed - 1)
        before = stages(url)
        spent = [_ask(url, arguments.seed + index) for index in range(arguments.count)]
        after = stages(url)
    print(f"median {statistics.median(spent):.3f} s, slowest {max(spent):.3f} s, {arguments.count} requests")
    for stage in after:
        print(f"  {stage:10} {(after[stage] - before.get(stage, 0.0)) / arguments.count:.3f} s a task, mean")


def _ask(url: str, seed: int) -> float:
    request = body(seed)
    began = time.perf_counter()
    answer = httpx.post(url + "/predict", json=request, timeout=100)
    assert answer.json()["results"][0], answer.text
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
