"""Model families: which folder loads as what, in which dialect, and how positions are counted.

A family is an entry in FAMILIES, keyed by the ``model_type`` of the checkpoint's config.json. Loading is the same for the demo
model and for any other: ``load_checkpoint(source)``. Only safetensors weights are read and no code from a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from sam4mllm.errors import ModelError, first_line
from sam4mllm.prompts.dialects import DEFAULT, Dialect, load_dialect

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "assets" / "mllm"


@dataclass(frozen=True)
class Encoded:
    """A prefix with its image, ready for the model: ``inputs`` by the model's own names, ``positions`` (rows, 1, L) int64."""

    inputs: dict[str, Tensor]
    positions: Tensor
    resized: tuple[int, int]
    """(width, height) of the image as the processor resized it."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what belongs to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    dialect: Dialect
    encode: Callable[[Checkpoint, str, Any], Encoded]
    """``encode(checkpoint, opening, image)``: tokens, pixels and positions of the text that opens a conversation."""
    lora_targets: str
    source: str
    fingerprint: str
    """Hash of the folder's files, weights and all; of a hub model, its name and commit."""


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    dialect: Dialect
    encode: Callable[[Checkpoint, str, Any], Encoded]
    lora_targets: str
    """Matches the full names of the linear layers that LoRA changes: the language model's and the projector's. The vision tower stays as
    it is (paper, section 3)."""


def _encode_qwen_vl(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Qwen-VL from 2 on: the placeholder is repeated for each merged patch, and positions have three rows (time, height, width)."""
    config = checkpoint.model.config
    vision = checkpoint.image_processor(images=[image], return_tensors="pt")
    grid = vision["image_grid_thw"]
    merge, patch = config.vision_config.spatial_merge_size, config.vision_config.patch_size
    ids: list[int] = checkpoint.tokenizer(opening, add_special_tokens=False)["input_ids"]
    if ids.count(config.image_token_id) != 1:
        raise ModelError(f"{checkpoint.source}: the chat template must write the image token exactly once")
    at = ids.index(config.image_token_id)
    count = int(grid[0].prod()) // merge**2
    tokens = torch.tensor([ids[:at] + [config.image_token_id] * count + ids[at + 1 :]])
    kinds = (tokens == config.image_token_id).int()
    positions, _ = checkpoint.model.model.get_rope_index(tokens, image_grid_thw=grid, mm_token_type_ids=kinds)
    inputs = {
        "input_ids": tokens,
        "pixel_values": vision["pixel_values"],
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }
    return Encoded(inputs, positions, (int(grid[0, 2]) * patch, int(grid[0, 1]) * patch))


_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_MERGER_2 = r"model\.visual\.merger\.mlp\.[02]"
_MERGER_3 = r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"

FAMILIES = {
    "qwen2_vl": Family(DEFAULT, _encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen2_5_vl": Family(DEFAULT, _encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen3_vl": Family(DEFAULT, _encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_3}"),
}


def resolve(source: str) -> str:
    """``demo`` to the shipped folder; anything else as it is."""
    return str(DEMO_FOLDER) if source == "demo" else source


def load_checkpoint(source: str, device: torch.device) -> Checkpoint:
    """Load a model folder or hub id. Raises ModelError with one line on what is wrong and what to do."""
    name = resolve(source)
    _check_folder(name, source)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise ModelError(f"{source}: models of type {config.model_type!r} are not supported; use one of {', '.join(FAMILIES)}")
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=default_dtype(device), use_safetensors=True, attn_implementation="sdpa", trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)  # type: ignore[no-untyped-call]
        model.to(device)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{source} could not be loaded as a model: {first_line(error)}") from error
    return Checkpoint(
        model.eval(),
        tokenizer,
        image_processor,
        _dialect(name, family),
        family.encode,
        family.lora_targets,
        source,
        _fingerprint(name, model),
    )


def default_dtype(device: torch.device) -> torch.dtype:
    """On a GPU bfloat16, or float16 where that is only emulated; on a CPU float32, for bfloat16 costs accuracy and often time there."""
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _fingerprint(name: str, model: Any) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _dialect(name: str, family: Family) -> Dialect:
    path = Path(name) / "dialect.json"
    return load_dialect(path) if path.is_file() else family.dialect


def _check_folder(name: str, source: str) -> None:
    """Say what a local folder lacks before a library fails on it in its own words."""
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")) or source == "demo":
            raise ModelError(f"{source}: there is no such folder ({name})")
        return
    if not folder.is_dir():
        raise ModelError(f"{source} is a file; give the model's folder")
    needed = (("config.json",), ("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",))
    missing = [files[0] for files in needed if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"{source} is not a complete model folder: {', '.join(missing)} is missing")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{source} has no .safetensors weights; convert them with transformers' save_pretrained, other formats are refused"
        )
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{source}: config.json is not valid JSON ({error})") from error
