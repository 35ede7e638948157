"""Segmenters and detectors in transformers' format, from a folder or the hub: config.json's ``model_type`` says which is which."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    PreTrainedConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3TrackerModel,
)

from sam4mllm.checkpoints import FAULTS, IMAGE_PROCESSOR, check_folder, fingerprint, load_model, read_config
from sam4mllm.errors import ModelError, first_line
from sam4mllm.segmentation import grounding_dino, proposals, sam3, semantic, transformers_sam
from sam4mllm.segmentation.detection import Detector
from sam4mllm.segmentation.grounding_dino import GroundingDinoDetector
from sam4mllm.segmentation.module import SharedTokenizer
from sam4mllm.segmentation.proposals import ProposalSegmenter
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam3 import Sam3Finder, Sam3Segmenter, Sam3TrackerSegmenter, SharedFeatures
from sam4mllm.segmentation.semantic import SemanticSegmenter
from sam4mllm.segmentation.transformers_sam import TransformersSegmenter

log = logging.getLogger(__name__)

NEEDED = (IMAGE_PROCESSOR,)
"""Groups of file names. A segmenter's folder must hold one file of each group beside its configuration and weights (``check_folder``)."""
TOKENIZER_FILE = "tokenizer.json"
NEEDED_FOR_PHRASES = (*NEEDED, (TOKENIZER_FILE,))
"""The same groups for the folder of a model that works only with phrases: it needs its tokenizer's file, too."""
_FINDERS: dict[str, Any] = {"sam3": Sam3Model, "sam3_lite_text": Sam3LiteTextModel}


def load_transformers(source: str, dtype: torch.dtype) -> Segmenter:
    """The segmenter in a checkpoint folder or of a hub id, on the CPU. Only safetensors weights are read and no code of it is run.

    Raises ModelError if it cannot be found or loaded, is of a type that is no segmenter, or needs a package that is not installed.
    """
    kind = read_config(source, source, NEEDED).get("model_type")
    if kind in grounding_dino.MODEL_TYPES:
        raise ModelError(f"{source} is a {kind}, which finds boxes and draws no masks: put a segmenter behind it, as {source}+vit_h:PATH")
    if not isinstance(kind, str) or kind not in _SEGMENTERS:
        raise ModelError(f"{source}: models of type {kind!r:.80} are no segmenters; use one of {', '.join(_SEGMENTERS)}")
    loaded: Segmenter = _load(source, dtype, NEEDED_FOR_PHRASES if kind in sam3.ALONE else NEEDED, _SEGMENTERS[kind], "a segmenter")
    return loaded


def load_detector(source: str, dtype: torch.dtype) -> Detector:
    """The detector in a checkpoint folder or of a hub id, as ``load_transformers`` loads a segmenter.

    Raises ModelError as that does, and if the model is of a type that is no detector.
    """
    kind = read_config(source, source, NEEDED_FOR_PHRASES).get("model_type")
    if kind not in grounding_dino.MODEL_TYPES:
        known = " or ".join(grounding_dino.MODEL_TYPES)
        raise ModelError(f"{source}: what stands before the + finds boxes by text; use a {known}, not a model of type {kind!r:.80}")
    loaded: Detector = _load(source, dtype, NEEDED_FOR_PHRASES, _grounding_dino, "a detector")
    return loaded


def takes_phrases(source: str) -> bool:
    """Whether the checkpoint in a folder or of a hub id is of a segmenter that takes phrases itself. Only its config.json is read.

    False also for a ``sam3_video`` folder that lacks the tokenizer's file. Raises ModelError if the config.json cannot be read.
    """
    kind = read_config(source, source, NEEDED).get("model_type")
    return kind in sam3.ALONE or (kind == "sam3_video" and not _lacks_tokenizer(source))


_Make = Callable[[str, PreTrainedConfig, torch.dtype], Callable[[str], Any]]
"""A function that loads the parts of a checkpoint. It returns another, which makes a segmenter or a detector of them, given what becomes
part of the identity."""


def _load(source: str, dtype: torch.dtype, needed: tuple[tuple[str, ...], ...], make: _Make, what: str) -> Any:
    check_folder(source, source, needed)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_packages(source, config)
        made = make(source, config, dtype)
    except FAULTS as error:
        raise ModelError(f"{source} could not be loaded as {what}: {first_line(error)}") from error
    return made(f"{config.model_type}:{fingerprint(source, getattr(config, '_commit_hash', None))}")


def _image_processor(source: str, config: PreTrainedConfig) -> Any:
    return AutoImageProcessor.from_pretrained(source, config=config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def _lacks_tokenizer(source: str) -> bool:
    return Path(source).is_dir() and not (Path(source) / TOKENIZER_FILE).is_file()


def _tokenizer(source: str) -> SharedTokenizer:
    return SharedTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))


def _weights(auto: Any, source: str, config: PreTrainedConfig) -> Any:
    return load_model(auto, source, source, config, dtype=torch.float32).eval()


def _promptable(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], TransformersSegmenter]:
    model, images = _weights(AutoModelForMaskGeneration, source, config), _image_processor(source, config)
    return lambda origin: TransformersSegmenter(model, images, origin, dtype)


def _proposing(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], ProposalSegmenter]:
    model, images = _weights(AutoModelForUniversalSegmentation, source, config), _image_processor(source, config)
    return lambda origin: ProposalSegmenter(model, images, origin, dtype)


def _semantic(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], SemanticSegmenter]:
    model, images = _weights(AutoModelForSemanticSegmentation, source, config), _image_processor(source, config)
    return lambda origin: SemanticSegmenter(model, images, origin, dtype)


def _sam3(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], Sam3Segmenter]:
    tokenizer, images = _tokenizer(source), _image_processor(source, config)
    model = _weights(_FINDERS[config.model_type], source, config)
    return lambda origin: Sam3Segmenter(model, images, tokenizer, origin, dtype)


def _sam3_video(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], TransformersSegmenter]:
    """Load the detector and the tracker of SAM 3. From a folder without the tokenizer's file only the tracker is loaded, for phrases cannot
    be read there.
    """
    if _lacks_tokenizer(source):
        log.warning("%s lacks %s, so it takes box and points and no phrase; fetch that file, too", source, TOKENIZER_FILE)
        return _promptable(source, config, dtype)
    tokenizer, images = _tokenizer(source), _image_processor(source, config)
    tracker = _weights(Sam3TrackerModel, source, config)
    tracker.vision_encoder = SharedFeatures(tracker.vision_encoder.neck)  # frees its backbone, 2 GB, before the detector is loaded
    finder = Sam3Finder(_weights(_FINDERS[config.detector_config.model_type], source, config), tokenizer)
    return lambda origin: Sam3TrackerSegmenter(tracker, images, finder, origin, dtype)


def _grounding_dino(source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Callable[[str], GroundingDinoDetector]:
    tokenizer, images = _tokenizer(source), _image_processor(source, config)
    model = _weights(AutoModelForZeroShotObjectDetection, source, config)
    return lambda origin: GroundingDinoDetector(model, images, tokenizer, origin, dtype)


_SEGMENTERS: dict[str, _Make] = {
    **dict.fromkeys(transformers_sam.MODEL_TYPES, _promptable),
    **dict.fromkeys(sam3.ALONE, _sam3),
    "sam3_video": _sam3_video,
    **dict.fromkeys(proposals.MODEL_TYPES, _proposing),
    **dict.fromkeys(semantic.MODEL_TYPES, _semantic),
}


def _check_packages(source: str, config: PreTrainedConfig) -> None:
    """Raise ModelError if packages are missing that the model needs, naming the extra that has them, before a library fails on them."""
    backbone = config.model_type.startswith("edgetam") or getattr(config, "backbone_config", None)
    timm = backbone is True or getattr(backbone, "model_type", "").startswith("timm")
    needed = [*(["timm"] if timm else []), *(["scipy"] if config.model_type in proposals.MODEL_TYPES else [])]
    absent = [package for package in needed if find_spec(package) is None]
    if absent:
        raise ModelError(f"{source} is a {config.model_type}, which needs {' and '.join(absent)}: pip install 'sam4mllm[segmenters]'")
