"""From the names in settings to a Pipeline."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sam4mllm.errors import ModelError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.pipeline import Options, Pipeline
from sam4mllm.segmentation.loading import load_segmenter


def load_pipeline(model: str, segmenter: str, device: str | None, options: Options | None) -> Pipeline:
    """See :func:`sam4mllm.load`."""
    place = pick_device(device)
    grounder = MllmGrounder(load_checkpoint(model, place))
    return Pipeline(grounder, load_segmenter(segmenter, place), options, slug(model))


def pick_device(device: str | None) -> torch.device:
    """The named device, or a GPU if there is one. Raises ModelError if the name is not ``cpu`` or ``cuda``, or there is no such GPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no device: use cpu, cuda or cuda:0") from error
    if place.type not in ("cpu", "cuda"):
        raise ModelError(f"{device!r} is not supported: use cpu, cuda or cuda:0")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device!r} is not there: {torch.cuda.device_count()} CUDA devices were found; use cpu or another number")
    return place


def slug(model: str) -> str:
    """A model's name as the first part of a version: lower case, at most 32 of ``[a-z0-9.-]``."""
    return re.sub(r"[^a-z0-9.-]+", "-", Path(model).name.lower()).strip("-")[:32] or "model"
