"""Trials on fakes: a dataset, what came of made-up candidates, and a worker that loads fakes (``python -m tests.trial_doubles``)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam4mllm.data.examples import Example
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import ModelError
from sam4mllm.evaluation.clicking import Correction
from sam4mllm.evaluation.metrics import Sample
from sam4mllm.evaluation.run import choose
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import to_rle
from sam4mllm.trial import worker
from sam4mllm.trial.candidates import Contender
from sam4mllm.trial.run import Tried
from sam4mllm.trial.tried import TriedPhrase, TriedPicture
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

DOUBLE = (sys.executable, "-m", "tests.trial_doubles")
BOX = (20, 10, 60, 50)


def write_cups(folder: Path, count: int = 3) -> tuple[Path, list[Example]]:
    """Pictures with a cup, each a little farther from where the fakes find it, and no dog; all phrases of a picture stand together."""
    with ExampleWriter(folder) as writer:
        for shade in range(count):
            mask = np.zeros((1, 80, 100), np.bool_)
            mask[0, 10:50, 20 + shade : 60 + shade] = True
            record = writer.add_image(np.full((80, 100, 3), shade, np.uint8))
            writer.add(record, "the cup", mask, "test", "")
            writer.add(record, "the dog", mask[:0], "test", "")
    return folder, choose(folder)


def load_fake(candidate: Contender) -> Pipeline:
    """What the candidate's ``model`` says: a pipeline of fakes, or how it fails."""
    match candidate.model:
        case "refused":
            raise ModelError("refused needs 140.0 GB for weights alone, and cpu has 8.0 GB free; set quantize")
        case "too large":
            raise MemoryError
        case "broken":
            raise KeyError("of ours")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crashed":
            os.kill(os.getpid(), signal.SIGABRT)
        case "slow":
            time.sleep(60)
        case "chatty":
            print("[]\nLoading checkpoint shards", flush=True)
    return Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter(), candidate.options)


def made_up(name: str, ious: Sequence[float], seconds: float = 1.0, clicks: int = 2, model: str | None = None) -> Tried:
    """A candidate that was tried on as many pictures, each with a phrase of that IoU."""
    rle = to_rle(np.ones((4, 5), np.bool_))
    return Tried(
        Contender(name, model=model),
        {
            f"images/{at}.png": TriedPicture(
                (TriedPhrase(Sample(iou, round(100 * iou), 100, True, False), rle, 0.9, Correction(clicks, clicks < 10)),),
                seconds,
                3.0,
                2_000_000_000,
            )
            for at, iou in enumerate(ious)
        },
    )


if __name__ == "__main__":
    worker._load = load_fake
    sys.exit(worker.main())
