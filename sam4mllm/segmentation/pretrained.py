"""Segmenters in transformers' checkpoint format, from a folder or the hub: config.json's ``model_type`` says which is which."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
)

from sam4mllm.checkpoints import FAULTS, IMAGE_PROCESSOR, check_folder, fingerprint, load_model, read_config
from sam4mllm.errors import ModelError, first_line
from sam4mllm.segmentation import proposals, semantic, transformers_sam
from sam4mllm.segmentation.proposals import ProposalSegmenter
from sam4mllm.segmentation.semantic import SemanticSegmenter
from sam4mllm.segmentation.transformers_sam import TransformersSegmenter

NEEDED = (IMAGE_PROCESSOR,)
"""What a segmenter's folder holds beside its configuration and weights."""
_SEGMENTERS: dict[str, tuple[Any, type[TransformersSegmenter] | type[ProposalSegmenter]]] = {
    **dict.fromkeys(transformers_sam.MODEL_TYPES, (AutoModelForMaskGeneration, TransformersSegmenter)),
    **dict.fromkeys(proposals.MODEL_TYPES, (AutoModelForUniversalSegmentation, ProposalSegmenter)),
    **dict.fromkeys(semantic.MODEL_TYPES, (AutoModelForSemanticSegmentation, SemanticSegmenter)),
}


def load_transformers(source: str, dtype: torch.dtype) -> TransformersSegmenter | ProposalSegmenter:
    """The segmenter in a checkpoint folder or of a hub id, on the CPU. Only safetensors weights are read and no code of it is run.

    Raises ModelError.
    """
    kind = read_config(source, source, NEEDED).get("model_type")
    if not isinstance(kind, str) or kind not in _SEGMENTERS:
        raise ModelError(f"{source}: models of type {kind!r:.80} are no segmenters; use one of {', '.join(_SEGMENTERS)}")
    check_folder(source, source, NEEDED)
    auto, segmenter = _SEGMENTERS[kind]
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_packages(source, config)
        model = load_model(auto, source, source, config, dtype=torch.float32)
        image_processor = AutoImageProcessor.from_pretrained(source, config=config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except FAULTS as error:
        raise ModelError(f"{source} could not be loaded as a segmenter: {first_line(error)}") from error
    origin = fingerprint(source, getattr(config, "_commit_hash", None))
    return segmenter(model.eval(), image_processor, f"{config.model_type}:{origin}", dtype)


def _check_packages(source: str, config: PreTrainedConfig) -> None:
    """Say what the extra would bring before a library asks for it in its own words."""
    backbone = config.model_type.startswith("edgetam") or getattr(config, "backbone_config", None)
    timm = backbone is True or getattr(backbone, "model_type", "").startswith("timm")
    needed = [*(["timm"] if timm else []), *(["scipy"] if config.model_type in proposals.MODEL_TYPES else [])]
    absent = [package for package in needed if find_spec(package) is None]
    if absent:
        raise ModelError(f"{source} is a {config.model_type}, which needs {' and '.join(absent)}: pip install 'sam4mllm[segmenters]'")
