"""LoRA adapters of a segmenter's mask decoder: a fresh one to train, and a stored one merged into a copy of the decoder.

The decoder alone changes, a hundred-and-fiftieth of the weights of SAM ViT-H. So the pipelines of several versions share one encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn

from sam4mllm.adapters.factors import declare, fill, pick_factors
from sam4mllm.adapters.fields import CONFIG, SEGMENTER_CONFIG, SEGMENTER_FILES, SEGMENTER_WEIGHTS, WEIGHTS
from sam4mllm.adapters.files import check_adapter, hash_files
from sam4mllm.adapters.lora import wrap
from sam4mllm.checkpoints import FAULTS
from sam4mllm.errors import ModelError, first_line
from sam4mllm.identity import digest_of
from sam4mllm.segmentation.detection import DetectingSegmenter
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam import SamSegmenter
from sam4mllm.segmentation.transformers_sam import TransformersSegmenter

Promptable = SamSegmenter | TransformersSegmenter
"""Segmenters with a mask decoder."""


def promptable(segmenter: Segmenter) -> Promptable:
    """The segmenter that draws: itself, or what stands behind a detector. Raises ModelError if it has no mask decoder to adapt."""
    drawing = segmenter.segmenter if isinstance(segmenter, DetectingSegmenter) else segmenter
    if not isinstance(drawing, SamSegmenter | TransformersSegmenter):
        raise ModelError("an adapter of the segmenter changes SAM's mask decoder, and this segmenter has none; use SAM or a kin of it")
    return drawing


def attach_to_decoder(segmenter: Promptable, rank: int) -> PeftModel:
    """A fresh adapter on all linear layers of the mask decoder, ready to train; all else is frozen.

    The segmenter draws with it from now on, as before until it has learned.
    """
    segmenter.model.requires_grad_(False)
    decoder = segmenter.model.mask_decoder
    names = [name for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)]
    return wrap(decoder, LoraConfig(r=rank, lora_alpha=rank, target_modules=names, bias="none"), "default", in_float32=True)


def save_of_decoder(model: PeftModel, segmenter: Promptable, name: str, folder: Path) -> None:
    """Write what ``attach_to_decoder`` gave, trained, as SEGMENTER_FILES; ``name`` is how the segmenter is called."""
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = name, segmenter.fingerprint
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    del written["auto_mapping"]  # names a class to import
    (folder / SEGMENTER_CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG).unlink()
    (folder / WEIGHTS).rename(folder / SEGMENTER_WEIGHTS)


def with_adapter(segmenter: Segmenter, folder: Path) -> Segmenter:
    """The segmenter with the adapter in a folder merged into its mask decoder.

    Raises RegistryError if it is not safe, ModelError if it is another segmenter's.
    """
    drawing = promptable(segmenter)
    config = check_adapter(folder, SEGMENTER_FILES)
    _check_own(drawing, config, folder)
    try:
        decoder = _merged(drawing.model.mask_decoder, config, folder)
    except FAULTS as error:
        reason = first_line(error).replace(CONFIG, SEGMENTER_CONFIG).replace(WEIGHTS, SEGMENTER_WEIGHTS)  # told as of an MLLM's adapter
        raise ModelError(f"the segmenter's adapter in {folder} does not fit its mask decoder: {reason}") from error
    return _replaced(segmenter, drawing.with_decoder(decoder, decoder_digest(hash_files(folder))))


def named_with(segmenter: Segmenter, files: Mapping[str, str]) -> Segmenter:
    """What has the identity of what ``with_adapter`` gives, and draws as before: nothing is read. ``files`` are an adapter's hashes."""
    drawing = promptable(segmenter)
    return _replaced(segmenter, drawing.with_decoder(drawing.model.mask_decoder, decoder_digest(files)))


def decoder_digest(files: Mapping[str, str]) -> str:
    """What tells one adapter's part for the segmenter from another's; empty if these hashes of its files name none."""
    own = {name: files[name] for name in SEGMENTER_FILES if name in files}
    return digest_of(own)[:12] if own else ""


def _merged(decoder: nn.Module, config: Mapping[str, Any], folder: Path) -> nn.Module:
    decoder = deepcopy(decoder)
    declared = declare(config, decoder, "")
    for name in declared.ranks:
        if not isinstance(decoder.get_submodule(name), nn.Linear):  # some convolutions run where an image is taken in
            raise ValueError(f"target_modules names {name}, and only linear layers are changed")
    found = pick_factors(load_file(folder / SEGMENTER_WEIGHTS), declared, decoder)
    model = wrap(decoder, declared.to_peft(), "default", in_float32=True)
    fill({name: decoder.get_submodule(name) for name in declared.ranks}, "default", found)
    merged = cast("Any", model).merge_and_unload()
    if not all(weight.isfinite().all() for weight in merged.parameters()):
        raise ValueError("its factors are so large that the weights are no numbers; train again with a lower rate")
    return cast("nn.Module", merged.requires_grad_(False).eval())


def _check_own(drawing: Promptable, config: Mapping[str, Any], folder: Path) -> None:
    """By the fingerprint, where the adapter was made here."""
    fingerprint, name = config.get("revision"), config.get("base_model_name_or_path")
    if fingerprint not in (None, drawing.fingerprint):
        raise ModelError(f"the segmenter's adapter in {folder} is of another segmenter, {name}; start with that one, or train it again")


def _replaced(segmenter: Segmenter, drawing: Promptable) -> Segmenter:
    return DetectingSegmenter(segmenter.detector, drawing) if isinstance(segmenter, DetectingSegmenter) else drawing
