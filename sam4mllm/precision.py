"""How a model is held: its dtype, whether it is quantised, and whether it is on one device or spread over several.

What is quantised is the language model's linear layers, which are nine tenths of a model and more. The rest stays in the dtype: the vision
tower and the projector, for an error there moves every coordinate; the embeddings, which are looked up, not multiplied; and the head, whose
logits of yes and no are what the thresholds compare. LLM.int8 keeps the head for the same reason (Dettmers et al. 2022, section 3). LoRA
trains the projector, too, which gains from exact weights.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from sam4mllm.errors import ModelError
from sam4mllm.options import Precision, QuantizeName

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""torch's name for each short name of a dtype."""

QUANTISED = r"(?!.*vis(?:ual|ion)).*\b(?:layers|h|transformer\.blocks)\.\d+\."
"""Matches the beginning of the full name of a module or tensor inside a language model's layers, as transformers calls them now
(``model.language_model.layers.0``), as older checkpoints do (``language_model.model.layers.0``), Qwen-VL-Chat (``transformer.h.0``) or
Molmo 2 as published (``transformer.blocks.0``).
"""
KEPT = rf"(?!{QUANTISED}).*"
"""Matches all other names; transformers takes it as the pattern of the modules that are not to be quantised."""


def torch_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of all that is not quantised, and of the arithmetic."""
    named: torch.dtype = default_dtype(device) if precision.dtype == "auto" else getattr(torch, DTYPES[precision.dtype])
    return named


def describe(precision: Precision, device: torch.device) -> str:
    """Describe a precision in words: ``bf16``, or ``4bit (bf16)``."""
    named = str(torch_dtype(precision, device))
    name = next(short for short, long in DTYPES.items() if named == f"torch.{long}")
    return name if precision.quantize == "none" else f"{precision.quantize} ({name})"


def loading_options(precision: Precision, device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained``. Raises ModelError if bitsandbytes is needed and not there."""
    options: dict[str, Any] = {"dtype": torch_dtype(precision, device)}
    if precision.device_map is not None:
        options["device_map"] = precision.device_map
    elif device.type == "cuda" or precision.quantize != "none":
        options["device_map"] = {"": device}  # straight to it: the CPU need not have room for the whole model
    if precision.quantize != "none":
        options["quantization_config"] = _quantization(precision.quantize, options["dtype"])
    return options


def check_quantised(precision: Precision, model: Any, source: str) -> None:
    """Raise ModelError if the model was to be quantised and no layer was; keep bitsandbytes from changing quantised weights later.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs 4 bit weights anew at their first use outside training, with coarser scales, so that
    serving would see other weights than training. This is switched off in each layer.
    """
    layers = quantised_layers(model)
    if precision.quantize != "none" and not layers:
        raise ModelError(f"{source} has no layers that can be quantised; use SAM4MLLM_QUANTIZE=none")
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def default_dtype(device: torch.device) -> torch.dtype:
    """On a GPU bfloat16, or float16 where that is only emulated; on a CPU float32, for bfloat16 costs accuracy and often time there."""
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def refuse_twice(config: Any, precision: Precision, source: str) -> None:
    """Raises ModelError if a checkpoint is quantised on disk and is to be quantised again."""
    if precision.quantize != "none" and getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{source} is quantised already; use SAM4MLLM_QUANTIZE=none, and it loads as it is")


def quantised_layers(model: Any) -> list[Any]:
    """Return the layers of a model that bitsandbytes quantised. peft's wrappers have classes of the same names, but are no
    ``nn.Linear``.
    """
    return [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__ in ("Linear8bitLt", "Linear4bit")
    ]


def movable(model: Any) -> bool:
    """Whether a model is on one device; what is spread over several cannot leave them."""
    return len(set((getattr(model, "hf_device_map", None) or {"": ""}).values())) == 1


def move(model: Any, device: torch.device) -> None:
    """Put a model on a device, the scales of its 8 bit layers too.

    After a layer's first use bitsandbytes 0.50 keeps its weights and scales outside the weight, where ``Module.to`` does not find them.
    """
    model.to(device)
    for layer in quantised_layers(model):
        state = getattr(layer, "state", None)
        if state is None:  # 4 bit: the weight takes its scales along
            continue
        for holder in (layer.weight, state):
            if getattr(holder, "CB", None) is not None:
                holder.CB = layer.weight.data
            if getattr(holder, "SCB", None) is not None:
                holder.SCB = holder.SCB.to(device)


def _quantization(kind: QuantizeName, dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"SAM4MLLM_QUANTIZE={kind} needs bitsandbytes: pip install 'sam4mllm[quant]'")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its casts at every call of every layer
    config: Any = BitsAndBytesConfig
    if kind == "8bit":
        return config(load_in_8bit=True, llm_int8_skip_modules=[KEPT])
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[KEPT],
    )
