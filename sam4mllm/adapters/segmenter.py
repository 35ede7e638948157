"""LoRA adapters of a segmenter's mask decoder: a fresh one to train, and a stored one merged into a copy of the decoder.

Only the decoder changes, which has a 150th of the weights of SAM ViT-H. So the pipelines of several versions can share one image encoder.
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
"""The segmenters that have a mask decoder of SAM's kind, which an adapter can change."""


def promptable(segmenter: Segmenter) -> Promptable:
    """Return the segmenter that draws the masks: the given one, or the one behind a detector.

    Raises ModelError if it has no mask decoder to adapt.
    """
    drawing = segmenter.segmenter if isinstance(segmenter, DetectingSegmenter) else segmenter
    if not isinstance(drawing, SamSegmenter | TransformersSegmenter):
        raise ModelError("an adapter of the segmenter changes SAM's mask decoder, and this segmenter has none; use SAM or a kin of it")
    return drawing


def attach_to_decoder(segmenter: Promptable, rank: int) -> PeftModel:
    """Attach a new adapter to all linear layers of the mask decoder, ready to train; all other weights are frozen.

    The segmenter draws with the adapter from now on. Its masks stay the same until the adapter is trained.
    """
    segmenter.model.requires_grad_(False)
    decoder = segmenter.model.mask_decoder
    names = [name for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)]
    return wrap(decoder, LoraConfig(r=rank, lora_alpha=rank, target_modules=names, bias="none"), "default", in_float32=True)


def save_of_decoder(model: PeftModel, segmenter: Promptable, name: str, folder: Path) -> None:
    """Write the trained adapter that ``attach_to_decoder`` returned, as SEGMENTER_FILES; ``name`` is the segmenter's name.

    The folder must not hold an adapter for the MLLM: peft first writes under the names of FILES, and those files are then renamed.
    """
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = name, segmenter.fingerprint
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    del written["auto_mapping"]  # it names the decoder's class, for peft to import; nothing here needs it
    (folder / SEGMENTER_CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG).unlink()
    (folder / WEIGHTS).rename(folder / SEGMENTER_WEIGHTS)


def with_adapter(segmenter: Segmenter, folder: Path) -> Segmenter:
    """Return the segmenter with a folder's adapter merged into a copy of its mask decoder.

    Raises RegistryError if the adapter is not safe to load; OSError if a file cannot be opened; ModelError if the adapter does not fit, is
    another segmenter's, or the segmenter has no mask decoder.
    """
    drawing = promptable(segmenter)
    config = check_adapter(folder, SEGMENTER_FILES)
    _check_own(drawing, config, folder)
    try:
        decoder = _merged(drawing.model.mask_decoder, config, folder)
    except FAULTS as error:
        reason = first_line(error).replace(CONFIG, SEGMENTER_CONFIG).replace(WEIGHTS, SEGMENTER_WEIGHTS)  # worded for an MLLM's files
        raise ModelError(f"the segmenter's adapter in {folder} does not fit its mask decoder: {reason}") from error
    return _replaced(segmenter, drawing.with_decoder(decoder, decoder_digest(hash_files(folder))))


def named_with(segmenter: Segmenter, files: Mapping[str, str]) -> Segmenter:
    """Return a segmenter with the identity that ``with_adapter`` would give it, but with the unchanged decoder; no file is read.

    ``files`` are the hashes of the adapter's files.
    """
    drawing = promptable(segmenter)
    return _replaced(segmenter, drawing.with_decoder(drawing.model.mask_decoder, decoder_digest(files)))


def decoder_digest(files: Mapping[str, str]) -> str:
    """Return a short hash of an adapter's part for the segmenter, from the hashes of its files; empty if it has no such part."""
    own = {name: files[name] for name in SEGMENTER_FILES if name in files}
    return digest_of(own)[:12] if own else ""


def _merged(decoder: nn.Module, config: Mapping[str, Any], folder: Path) -> nn.Module:
    decoder = deepcopy(decoder)
    declared = declare(config, decoder, "")
    for name in declared.ranks:
        # the decoder's convolutions also run while an image is encoded, and pipelines of several versions share that encoding
        if not isinstance(decoder.get_submodule(name), nn.Linear):
            raise ValueError(f"target_modules names {name}, and only linear layers are changed")
    found = pick_factors(load_file(folder / SEGMENTER_WEIGHTS), declared, decoder)
    model = wrap(decoder, declared.to_peft(), "default", in_float32=True)
    fill({name: decoder.get_submodule(name) for name in declared.ranks}, "default", found)
    merged = cast("Any", model).merge_and_unload()
    if not all(weight.isfinite().all() for weight in merged.parameters()):
        raise ValueError("its factors are so large that the weights are no numbers; train again with a lower rate")
    return cast("nn.Module", merged.requires_grad_(False).eval())


def _check_own(drawing: Promptable, config: Mapping[str, Any], folder: Path) -> None:
    """Raises ModelError if an adapter's configuration has the fingerprint of another segmenter. An adapter that was made elsewhere has no
    fingerprint and is let through.
    """
    fingerprint, name = config.get("revision"), config.get("base_model_name_or_path")
    if fingerprint not in (None, drawing.fingerprint):
        raise ModelError(f"the segmenter's adapter in {folder} is of another segmenter, {name}; start with that one, or train it again")


def _replaced(segmenter: Segmenter, drawing: Promptable) -> Segmenter:
    return DetectingSegmenter(segmenter.detector, drawing) if isinstance(segmenter, DetectingSegmenter) else drawing
