"""Forward passes and CPU seconds of box answers with and without drafts (speculative decoding), and whether the answers are the same.

    python -m benchmarks.drafts [--answers 300] [--seed 990024]

The models are the demo's, and tiny ones of two other dialects that have learned two answers by heart. Each phrase is answered first without
and then with drafts, on a picture that the model has already taken in. Bars, for each model: at most 0.6 of the passes, and every answer
equal. Ends with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.cli.options import hush
from sam4mllm.demo.scenes import make_scene
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.values import Grounding
from tests.test_drafting import TAUGHT, taught
from tests.test_mllm import picture

BAR = 0.6
TAUGHT_TWO = ("Qwen2.5-VL", "LLaVA-NeXT, Llama 3")


def same(one: Grounding, other: Grounding) -> bool:
    """Whether two answers have the same boxes and note, and the same probabilities except for rounding."""
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
    assert isinstance(closer.whole, MllmGrounder)
    met = compare("demo", closer.whole, scenes(arguments.seed), arguments.answers)
    for name in TAUGHT_TWO:
        with tempfile.TemporaryDirectory() as folder:
            met &= compare(f"tiny {name}", taught(name, Path(folder)), noise(arguments.seed), arguments.answers)
    raise SystemExit(not met)


def scenes(seed: int) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """Yield the pictures (H, W, 3) of demo scenes without end, each with its phrases."""
    for index in itertools.count():
        scene = make_scene((seed, index))
        yield scene.image, [expression.phrase for expression in scene.expressions]


def noise(seed: int) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """Yield pictures (H, W, 3) of noise without end, which no tiny model was taught on, each with the phrases that they were taught."""
    for index in itertools.count(seed):
        yield picture(index), list(TAUGHT)


def compare(what: str, grounder: MllmGrounder, asked: Iterator[tuple[NDArray[np.uint8], list[str]]], answers: int) -> bool:
    """Answer so many of the phrases in both ways, print the passes, and return whether the bars are met."""
    passes, forward = [0], grounder.forward

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return forward(*given)

    counts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seconds, different = [0.0, 0.0], 0
    with patch.object(grounder, "forward", counted):
        for image, phrases in asked:
            opened = grounder.open(image)
            assert opened.cache.get_seq_length()  # read now, so that neither way has to
            for phrase in phrases[: answers - sum(map(len, counts.values()))]:
                found, taken = [], []
                for way in range(2):
                    passes[0], began = 0, time.process_time()
                    if way:
                        found += grounder.ground(opened, [phrase])
                    else:
                        with patch("sam4mllm.grounding.mllm.spell", lambda *_: None):
                            found += grounder.ground(opened, [phrase])
                    seconds[way] += time.process_time() - began
                    taken.append(passes[0])
                different += not same(*found)
                counts[len(found[0].boxes_px)].append((taken[0], taken[1]))
            if sum(map(len, counts.values())) >= answers:
                break
    print(f"{what}\n\n| boxes | answers | passes without drafts | with |\n|---:|---:|---:|---:|")
    for boxes, taken_by in sorted(counts.items()):
        print(f"| {boxes} | {len(taken_by)} | {np.mean([a for a, _ in taken_by]):.2f} | {np.mean([b for _, b in taken_by]):.2f} |")
    plain, drafted = (sum(pair[way] for pairs in counts.values() for pair in pairs) for way in range(2))
    print(
        f"\npasses {drafted / plain:.3f} of those without drafts, CPU seconds {seconds[1] / seconds[0]:.3f}; {different} answers differ\n",
        flush=True,
    )
    return not different and drafted <= BAR * plain


if __name__ == "__main__":
    main()
