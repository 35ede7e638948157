"""Seconds of packed point questions and of the other ways to ask them, and of ten phrases in one call and in ten calls.

    python benchmarks/packing.py [--model demo] [--images 4] [--json]

Every measurement takes its image in anew, so that nothing is cached between two of them. Prints medians in seconds, speed-ups, and the
largest difference in P(inside) between packed questions and separate ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

import sam4mllm
import sam4mllm.pipeline
from sam4mllm.demo.phrases import KINDS
from sam4mllm.demo.scenes import make_scene
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.grounding.reference import ask_expanded, ask_separately
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import spread
from sam4mllm.values import Grounding

T = TypeVar("T")
SEED = 990_002
PHRASES = 10


def timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def compare_points(grounder: MllmGrounder, index: int) -> dict[str, float]:
    """Ask about the 30 points of one box in three ways, each time with the image taken in anew, and return the seconds and differences."""
    picture = make_scene((SEED, index), kinds=("noun",))
    [target] = picture.expressions[0].targets
    boxes = picture.boxes_px[[target]]
    inquiry = Inquiry(Grounding(picture.expressions[0].phrase, boxes, np.ones(1), 0.0), 0, spread(boxes[0], PATTERN_SIZE))
    image = picture.image
    packed_seconds, [packed] = timed(lambda: grounder.ask(grounder.open(image), [inquiry]))
    separate_seconds, separate = timed(lambda: ask_separately(grounder, image, inquiry))
    expanded_seconds, expanded = timed(lambda: ask_expanded(grounder, grounder.open(image), inquiry))
    return {
        "packed": packed_seconds,
        "separate": separate_seconds,
        "expanded": expanded_seconds,
        "difference": float(np.abs(packed.inside - separate.inside).max()),
        "expanded_difference": float(np.abs(expanded.inside - separate.inside).max()),
    }


def compare_phrases(pipeline: sam4mllm.pipeline.Pipeline, index: int) -> dict[str, float]:
    """Return the seconds of ten phrases in one call, and in ten calls."""
    picture = make_scene((SEED, index))
    others = make_scene((SEED, index + 1000), kinds=KINDS)
    phrases = [expression.phrase for expression in (*picture.expressions, *others.expressions)][:PHRASES]
    together, _ = timed(lambda: pipeline.segment(picture.image, phrases))
    apart, _ = timed(lambda: [pipeline.segment(picture.image, [phrase]) for phrase in phrases])
    return {"together": together, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pipeline = sam4mllm.load(arguments.model)
    grounder = pipeline.grounder.whole if isinstance(pipeline.grounder, CloserGrounder) else pipeline.grounder
    if not isinstance(grounder, MllmGrounder):
        raise SystemExit("only an MLLM of transformers has several ways to ask")
    compare_points(grounder, 999)  # a first measurement warms up and is not counted
    points = [compare_points(grounder, index) for index in range(arguments.images)]
    phrases = [compare_phrases(pipeline, index) for index in range(arguments.images)]
    medians = {name: statistics.median(row[name] for row in points) for name in points[0]}
    medians |= {name: statistics.median(row[name] for row in phrases) for name in phrases[0]}
    medians["difference"] = max(row["difference"] for row in points)
    medians["packed_speedup"] = statistics.median(row["separate"] / row["packed"] for row in points)
    medians["expanded_over_packed"] = statistics.median(row["expanded"] / row["packed"] for row in points)
    medians["together_speedup"] = statistics.median(row["apart"] / row["together"] for row in phrases)
    if arguments.json:
        print(json.dumps(medians))
        return
    for name, value in medians.items():
        print(f"{name:22}{value:12.6f}")


if __name__ == "__main__":
    main()
