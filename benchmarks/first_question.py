"""Forward passes and CPU seconds of a phrase about a new picture: its question read in one pass with the picture, and in a pass of its own.

    python -m benchmarks.first_question [--pictures 40] [--seed 990032]

The demo model answers one phrase about each picture in both ways, in turn: box, points in a close-up, mask. Bars: at most 0.8 of the
passes, and every mask equal in each pixel. Ends with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from unittest.mock import patch

import numpy as np

import sam4mllm
from benchmarks.bulk import count_passes
from sam4mllm.cli.options import hush
from sam4mllm.demo.scenes import make_scene
from sam4mllm.grounding.prefix import LONGEST
from sam4mllm.values import Segmentation

BAR = 0.8
WAYS = {"apart": 0, "together": LONGEST}
"""Most tokens of a prefix that waits for its question, by the way."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=990_032)
    arguments = parser.parse_args()
    hush()
    pipeline = sam4mllm.load()
    passes = count_passes(pipeline)
    spent: defaultdict[str, float] = defaultdict(float)
    made: defaultdict[str, int] = defaultdict(int)
    equal = 0
    for index in range(-1, arguments.pictures):  # the first warms up
        scene = make_scene((arguments.seed, index + 1))
        answers = dict[str, Segmentation]()
        for way, longest in WAYS.items():
            before, began = passes[0], time.process_time()
            with patch("sam4mllm.grounding.mllm.LONGEST", longest):
                [answers[way]] = pipeline.segment(scene.image, [scene.expressions[0].phrase])
            if index >= 0:
                spent[way] += time.process_time() - began
                made[way] += passes[0] - before
        equal += index >= 0 and same(*answers.values())
    together, apart = (made[way] / arguments.pictures for way in ("together", "apart"))
    print(f"passes a phrase {together:.2f} instead of {apart:.2f}, {together / apart:.2f} x (bar: {BAR})")
    print(f"CPU seconds {spent['together'] / spent['apart']:.2f} x; {equal} of {arguments.pictures} answers equal in every pixel")
    raise SystemExit(together > BAR * apart or equal < arguments.pictures)


def same(one: Segmentation, other: Segmentation) -> bool:
    """Whether two answers have the same masks."""
    pairs = zip(one.instances, other.instances, strict=False)
    return len(one.instances) == len(other.instances) and all(np.array_equal(first.mask, second.mask) for first, second in pairs)


if __name__ == "__main__":
    main()
