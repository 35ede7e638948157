"""Model families: which folder loads as what, in which dialect, and which layers learn.

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
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedConfig

from sam4mllm.errors import ModelError, first_line
from sam4mllm.grounding.encoders import TALK, Encoded, encode_internvl, encode_llava, encode_qwen_vl
from sam4mllm.grounding.qwen_vl_chat import is_qwen_vl_chat, refusal
from sam4mllm.precision import AUTO, Precision, refuse_twice
from sam4mllm.prompts.dialects import INTERNVL, LLAVA, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, Dialect, load_dialect

__all__ = ["FAMILIES", "Checkpoint", "Encoded", "Family", "load_checkpoint"]

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "assets" / "mllm"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what belongs to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    """Or the whole processor, where the family's counts the tokens of tiles."""
    dialect: Dialect
    encode: Callable[[Checkpoint, str, Any], Encoded]
    """``encode(checkpoint, opening, image)``: tokens, pixels and positions of the text that opens a conversation."""
    lora_targets: str
    source: str
    fingerprint: str
    """Hash of the folder's files, weights and all; of a hub model, its name and commit."""
    window: int | None = None
    """How many tokens back the model was made to see; None for all of them."""
    precision: Precision = AUTO


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    dialect: Dialect
    encode: Callable[[Checkpoint, str, Any], Encoded]
    lora_targets: str
    """Matches the full names of the linear layers that LoRA changes: the language model's and the projector's. The vision tower stays as
    it is (paper, section 3)."""
    processor: Any = AutoImageProcessor


_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_MERGER_2 = r"model\.visual\.merger\.mlp\.[02]"
_MERGER_3 = r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"

_PROJECTOR = r"model\.multi_modal_projector\.linear_[12]"

FAMILIES = {
    "qwen2_vl": Family(QWEN2_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen2_5_vl": Family(QWEN2_5_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen3_vl": Family(QWEN3_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_3}"),
    "llava_next": Family(LLAVA, encode_llava, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
    "llava_onevision": Family(LLAVA, encode_llava, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
    "internvl": Family(INTERNVL, encode_internvl, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
}


def resolve(source: str) -> str:
    """``demo`` to the shipped folder; anything else as it is."""
    return str(DEMO_FOLDER) if source == "demo" else source


def load_checkpoint(source: str, device: torch.device, precision: Precision = AUTO, *, trust_remote_code: bool = False) -> Checkpoint:
    """Load a model folder or hub id. Raises ModelError with one line on what is wrong and what to do.

    ``trust_remote_code`` allows a family whose code comes with its weights; the others never run such code.
    """
    name = resolve(source)
    family = find_family(name, source, trust_remote_code)
    _check_folder(name, source)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        window = see_everything(config.get_text_config(), source)
        refuse_twice(config, precision, source)
        options = precision.options(device)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, config=config, use_safetensors=True, attn_implementation="sdpa", trust_remote_code=False, **options
        )
        precision.check(model, source)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        image_processor = family.processor.from_pretrained(name, trust_remote_code=False)
        if getattr(image_processor, "chat_template", None):  # the tokenizer's own may be that of its text model
            tokenizer.chat_template = image_processor.chat_template
        if "device_map" not in options:
            model.to(device)
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"{source} does not fit into the memory of {device}; {precision.advice}") from error
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
        window,
        precision,
    )


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


def find_family(name: str, source: str, trust_remote_code: bool = False) -> Family:
    """By the config.json of a folder or hub id, without running code. Raises ModelError."""
    config = _read_config(name, source)
    if is_qwen_vl_chat(config):
        raise refusal(source, trust_remote_code)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{source}: models of type {kind!r} are not supported; use one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def see_everything(text: Any, source: str) -> int | None:
    """Lift a text model's window, and say how wide it was. Within the window, full attention is the same, and a packed row, whose
    positions restart, can be longer than it. Raises ModelError if the window is too narrow, or a layer does not attend at all.
    """
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(f"{source}: layers of the kind {min(kinds - {'full_attention'})} cannot be asked several questions at once")
    window: int | None = getattr(text, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return None
    if window < 2 * TALK:
        raise ModelError(f"{source}: its layers see {window} tokens back, fewer than an image with its questions; use another model")
    text.sliding_window = None
    if kinds:
        text.layer_types = ["full_attention"] * len(text.layer_types)
    return window


def _read_config(name: str, source: str) -> dict[str, Any]:
    folder = Path(name)
    if folder.is_file():
        raise ModelError(f"{source} is a file; give the model's folder")
    if not folder.exists():
        if name.startswith((".", "/", "~")) or source == "demo":
            raise ModelError(f"{source}: there is no such folder ({name})")
        try:
            return dict(PreTrainedConfig.get_config_dict(name)[0])
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{source} is neither a folder nor a model that can be had from the hub ({first_line(error)}); the model "
                "(SAM4MLLM_MODEL, --model) is `demo`, a folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
            ) from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{source} is not a complete model folder: config.json is missing")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{source}: config.json is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{source}: config.json is not valid JSON of a model")
    return config


def _check_folder(name: str, source: str) -> None:
    """Say what a local folder lacks before a library fails on it in its own words."""
    folder = Path(name)
    if not folder.exists():
        return
    needed = (("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",))
    missing = [files[0] for files in needed if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"{source} is not a complete model folder: {', '.join(missing)} is missing")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{source} has no .safetensors weights; convert them with transformers' save_pretrained, other formats are refused"
        )
