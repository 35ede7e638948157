"""CPU seconds and memory of drawing masks of large images, as serving draws them and with every candidate enlarged.

    python -m benchmarks.large_masks

A demo scene is enlarged to 12 megapixels for one mask and to 50 megapixels for sixteen. ``served``: only the chosen candidate mask is
enlarged, and only the pixels along its edge are computed. ``plain``: torch enlarges all three candidates and computes every pixel before
one is chosen. Either way the chosen mask is then cleaned. Ends with an error if the two ways give different masks.

Bars, against a release that worked in the plain way: 0.4 of its time and 0.4 of its memory. They are not checked here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.cli.options import hush
from sam4mllm.demo.scenes import make_scene
from sam4mllm.masks import clean
from sam4mllm.segmentation.enlarging import Enlarging, enlarge_plainly
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Prompt

SEED = 990_025
SIZES = ((3500, 3500, 1), (6250, 8000, 16))
"""Height, width and the number of prompts."""
REPEATS = 3


def draw(segmenter: Segmenter, embedding: Embedding, prompts: list[Prompt], all_of_them: bool) -> list[NDArray[np.bool_]]:
    """Return the best mask of each prompt, cleaned. With ``all_of_them``, every candidate is enlarged before the best is chosen."""
    decoded = segmenter.decode(embedding, prompts)
    if all_of_them:
        enlarged = [one.masks for one in decoded]
        return [clean(masks[one.best]) for masks, one in zip(enlarged, decoded, strict=True)]
    return [clean(one.mask(one.best)) for one in decoded]


def plainly(how: Enlarging, logits: torch.Tensor) -> NDArray[np.bool_]:
    return enlarge_plainly(logits, how)


@contextmanager
def peak_mb(found: list[float]) -> Iterator[None]:
    """Measure the block's peak of resident memory in MiB above what this process had before; it is appended to ``found`` at the end."""
    done, before, most = threading.Event(), _resident_mb(), [0.0]

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], _resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    found.append(most[0] - before)


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def measure(work: Callable[[], list[NDArray[np.bool_]]]) -> tuple[float, float, list[NDArray[np.bool_]]]:
    """Return the CPU seconds of ``work``, its peak of memory in MiB, and the masks that it returns."""
    began, peaks = time.process_time(), list[float]()
    with peak_mb(peaks):
        masks = work()
    return time.process_time() - began, peaks[0], masks


def main() -> None:
    hush()
    torch.set_num_threads(1)
    segmenter, scene = sam4mllm.load().segmenter, make_scene((SEED,))
    print("| image | prompts | served, s | plain, s | | served, MB | plain, MB | |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for height, width, count in SIZES:
        embedding = segmenter.encode(np.asarray(cv2.resize(scene.image, (width, height)), np.uint8))
        scale = np.array([width / scene.image.shape[1], height / scene.image.shape[0]] * 2, np.float32)
        boxes = [scene.boxes_px[index % len(scene.boxes_px)] * scale for index in range(count)]
        prompts = [Prompt(box.astype(np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) for box in boxes]
        rows = []
        for _ in range(REPEATS):
            served = measure(partial(draw, segmenter, embedding, prompts, all_of_them=False))
            with patch.object(Enlarging, "full", plainly):
                plain = measure(partial(draw, segmenter, embedding, prompts, all_of_them=True))
            if not all(np.array_equal(*pair) for pair in zip(served[2], plain[2], strict=True)):
                raise SystemExit("the masks differ")
            rows.append((*served[:2], *plain[:2]))
            del served, plain
        seconds, mb, plain_seconds, plain_mb = np.median(rows, axis=0)
        times = f"{seconds:.2f} | {plain_seconds:.2f} | {seconds / plain_seconds:.2f}"
        print(f"| {width} x {height} | {count} | {times} | {mb:.0f} | {plain_mb:.0f} | {mb / plain_mb:.2f} |", flush=True)


if __name__ == "__main__":
    main()
