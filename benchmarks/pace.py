"""How fast this machine is at the moment, compared with the one on which the bars in seconds were set.

    python -m benchmarks.pace

Machines differ, and so does what else runs on them. So a bar of 900 s allows 900 s at a pace of 1 and 1,800 s at a pace of 2. The measured
work is fixed and uses none of the project's code, so that slower code of the project does not change the pace.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

REFERENCE_SECONDS = 0.53
"""Seconds that one piece of the work took on the machine of the bars. It has two cores, on which the demo's language model trains on 3.1
images a second."""
PIECES = 7
TOKENS, WIDTH, LAYERS = 512, 256, 4


def pace() -> float:
    """Return the median time of PIECES pieces of work on one thread, divided by REFERENCE_SECONDS: 2.0 means half as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
            model, given = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False), torch.randn(4, TOKENS, WIDTH)
        return statistics.median(_seconds(model, given) for _ in range(PIECES)) / REFERENCE_SECONDS
    finally:
        torch.set_num_threads(threads)


def _seconds(model: nn.Module, given: torch.Tensor) -> float:
    began = time.perf_counter()
    model(given).square().mean().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"pace {pace():.2f}")
