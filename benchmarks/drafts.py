"""Forward passes and CPU seconds of box answers with and without drafts, of the demo model; that the answers are the same.

    python -m benchmarks.drafts [--answers 300] [--seed 990024]

An answer is of one phrase of a demo scene, its image already taken in. Both ways answer each phrase, one after the other.
Bars: at most 0.6 of the passes, and every answer equal. Ends with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import numpy as np

import sam4mllm
from sam4mllm.cli.options import hush
from sam4mllm.demo.scenes import make_scene
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.values import Grounding

BAR = 0.6


def same(one: Grounding, other: Grounding) -> bool:
    """The same boxes, and probabilities but for rounding."""
    first, second = (np.append(answer.box_probabilities, answer.no_target_probability) for answer in (one, other))
    return np.array_equal(one.boxes_px, other.boxes_px) and one.note == other.note and np.allclose(first, second, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--seed", type=int, default=990_024)
    arguments = parser.parse_args()
    hush()
    closer = sam4mllm.load().grounder
    assert isinstance(closer, CloserGrounder)
    grounder = closer.whole
    assert isinstance(grounder, MllmGrounder)
    passes, forward = [0], grounder.forward

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return forward(*given)

    counts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seconds, different, index = [0.0, 0.0], 0, 0
    with patch.object(grounder, "forward", counted):
        while sum(map(len, counts.values())) < arguments.answers:
            scene, index = make_scene((arguments.seed, index)), index + 1
            opened = grounder.open(scene.image)
            for expression in scene.expressions:
                found, taken = [], []
                for way in range(2):
                    passes[0], began = 0, time.process_time()
                    if way:
                        found += grounder.ground(opened, [expression.phrase])
                    else:
                        with patch("sam4mllm.grounding.mllm.spell", lambda *_: None):
                            found += grounder.ground(opened, [expression.phrase])
                    seconds[way] += time.process_time() - began
                    taken.append(passes[0])
                different += not same(*found)
                counts[len(found[0].boxes_px)].append((taken[0], taken[1]))
    print("| boxes | answers | passes without drafts | with |\n|---:|---:|---:|---:|")
    for boxes, taken_by in sorted(counts.items()):
        print(f"| {boxes} | {len(taken_by)} | {np.mean([a for a, _ in taken_by]):.2f} | {np.mean([b for _, b in taken_by]):.2f} |")
    plain, drafted = (sum(pair[way] for pairs in counts.values() for pair in pairs) for way in range(2))
    print(f"passes {drafted / plain:.3f} of those without drafts, CPU seconds {seconds[1] / seconds[0]:.3f}; {different} answers differ")
    if different or drafted > BAR * plain:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
