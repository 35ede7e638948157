"""Model families: how a model folder is loaded, which dialect the model is spoken to in, and which of its layers LoRA changes.

The ``model_type`` in the checkpoint's config.json names its family: an entry of FAMILIES, or one that another package registers as an entry
point of that name in the group ``sam4mllm.families``. The demo model is loaded as any other: ``load_checkpoint(source)``. Only safetensors
weights are read, and no code from a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil
from transformers.utils.hub import cached_file

from sam4mllm.checkpoints import (
    CHAT_TEMPLATE,
    FAULTS,
    IMAGE_PROCESSOR,
    TOKENIZER,
    check_folder,
    fingerprint,
    load_model,
    read_config,
    read_object,
)
from sam4mllm.errors import ModelError, TemplateError, first_line
from sam4mllm.extensions import find, names
from sam4mllm.grounding.checkpoint import Checkpoint, Encoded
from sam4mllm.grounding.copying import LINEAR
from sam4mllm.grounding.encoders import (
    TALK,
    encode_gemma_4,
    encode_internvl,
    encode_llava,
    encode_molmo2,
    encode_qwen_vl,
    encode_qwen_vl_chat,
)
from sam4mllm.grounding.patches import multiply_patches
from sam4mllm.grounding.windows import WINDOWED
from sam4mllm.options import AUTO, Precision
from sam4mllm.originals import refuse_original
from sam4mllm.precision import check_quantised, loading_options, refuse_twice, torch_dtype
from sam4mllm.prompts.chat_template import BoundedTemplate
from sam4mllm.prompts.conversation import ChatMarkup, read_markup
from sam4mllm.prompts.dialects import (
    GEMMA_4,
    GLM_V,
    INTERNVL,
    LLAVA,
    MOLMO2,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    QWEN_VL_CHAT,
    Dialect,
    load_dialect,
)
from sam4mllm.qwen_vl_chat import model as _qwen_vl_chat  # noqa: F401 – the import registers the model type with transformers
from sam4mllm.qwen_vl_chat.config import MODEL_TYPE as _QWEN_VL_CHAT

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "assets" / "mllm"
NEEDED = (IMAGE_PROCESSOR, TOKENIZER)
"""Groups of file names. A model folder holds at least one file of each group, beside its configuration and weights."""
ADVICE = "the model (SAM4MLLM_MODEL, --model) is `demo`, a folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class Family:
    """One kind of model: its dialect, how it takes an image (``encode``), its LoRA layers, and the class that loads its processor."""

    dialect: Dialect
    encode: Callable[[Checkpoint, str, Any], Encoded]
    lora_targets: str
    """A regular expression that matches the full names of the linear layers that LoRA changes: those of the language model and of the
    projector. The vision tower is not changed (paper, section 3). Neither are experts, which are not linear layers but slices of one
    parameter, nor their routers."""
    processor: Any = AutoImageProcessor


_ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_MERGER_2 = r"model\.visual\.merger\.mlp\.[02]"
_MERGER_3 = r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"

_HYBRID = rf"{_LANGUAGE}|model\.language_model\.layers\.\d+\.linear_attn\.(in_proj_qkv|in_proj_z|out_proj)"
_SHARED = r"model\.language_model\.layers\.\d+\.mlp\.shared_expert\.(gate|up|down)_proj"
_LANGUAGE_GLM = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate_up|down)_proj)"
_MERGER_GLM = r"model\.visual\.merger\.(proj|gate_proj|up_proj|down_proj)"
_PROJECTOR = r"model\.multi_modal_projector\.linear_[12]"
_PROJECTOR_MOLMO = r"model\.multi_modal_projector\.image_projector\.(gate|up|down)_proj"
_EMBEDDER = r"model\.embed_vision\.embedding_projection"
_RESAMPLER = r"model\.resampler\.(kv_proj|proj)"

FAMILIES = {
    "qwen2_vl": Family(QWEN2_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen2_5_vl": Family(QWEN2_5_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_2}"),
    "qwen3_vl": Family(QWEN3_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_3}"),
    "qwen3_vl_moe": Family(QWEN3_VL, encode_qwen_vl, f"{_LANGUAGE}|{_MERGER_3}"),
    "qwen3_5": Family(QWEN3_VL, encode_qwen_vl, f"{_HYBRID}|{_MERGER_3}"),
    "qwen3_5_moe": Family(QWEN3_VL, encode_qwen_vl, f"{_HYBRID}|{_SHARED}|{_MERGER_3}"),
    "glm4v": Family(GLM_V, encode_qwen_vl, f"{_LANGUAGE_GLM}|{_MERGER_GLM}"),
    "glm46v": Family(GLM_V, encode_qwen_vl, f"{_LANGUAGE_GLM}|{_MERGER_GLM}"),
    "glm4v_moe": Family(GLM_V, encode_qwen_vl, _ATTENTION),  # peft takes this type's other layers, by their names, for experts
    "llava_next": Family(LLAVA, encode_llava, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
    "llava_onevision": Family(LLAVA, encode_llava, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
    "internvl": Family(INTERNVL, encode_internvl, f"{_LANGUAGE}|{_PROJECTOR}", AutoProcessor),
    "gemma4": Family(GEMMA_4, encode_gemma_4, f"{_LANGUAGE}|{_EMBEDDER}"),
    "molmo2": Family(MOLMO2, encode_molmo2, f"{_LANGUAGE}|{_PROJECTOR_MOLMO}", AutoProcessor),
    _QWEN_VL_CHAT: Family(QWEN_VL_CHAT, encode_qwen_vl_chat, f"{_LANGUAGE}|{_RESAMPLER}", CLIPImageProcessorPil),
}


def resolve(source: str) -> str:
    """Return the folder of the demo model if ``source`` is ``demo``; any other folder or hub id is returned unchanged."""
    return str(DEMO_FOLDER) if source == DEMO else source


def load_checkpoint(source: str, device: torch.device, precision: Precision = AUTO) -> Checkpoint:
    """Load a model folder or hub id. Raises ModelError or TemplateError with one line on what is wrong and what to do, and ExtensionError
    where another package brings the family and cannot be used.
    """
    return _load_checkpoint(source, device, precision, _load_model)


def outline_checkpoint(source: str, device: torch.device, precision: Precision = AUTO) -> Checkpoint:
    """Load a checkpoint without weights: the model is on the meta device and has only the names, shapes and types of its parameters.

    It takes a second, and is enough to see which model an adapter fits. Raises the same errors as ``load_checkpoint``.
    """
    return _load_checkpoint(source, device, precision, _outline_model)


def _load_checkpoint(source: str, device: torch.device, precision: Precision, load: Callable[..., Any]) -> Checkpoint:
    name = resolve(source)
    family = find_family(name, source)
    check_folder(name, source, NEEDED)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        window = see_everything(config.get_text_config(), source)
        if hasattr(config, "audio_config"):
            config.audio_config = None  # no audio is ever given, so the weights of the audio part are not loaded
        refuse_twice(config, precision, source)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        image_processor = family.processor.from_pretrained(name, config=config, trust_remote_code=False)
        _find_template(name, source, tokenizer, image_processor)
        markup = _read_markup(source, tokenizer)
        model = load(name, source, config, device, precision)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"{source} does not fit into the memory of {device}; {precision.advice}") from error
    except FAULTS as error:
        raise ModelError(f"{source} could not be loaded as a model: {first_line(error)}") from error
    return Checkpoint(
        model.eval(),
        tokenizer,
        image_processor,
        _dialect(name, family),
        markup,
        family.encode,
        family.lora_targets,
        source,
        fingerprint(name, getattr(model.config, "_commit_hash", None)),
        window,
        precision,
    )


def _load_model(name: str, source: str, config: Any, device: torch.device, precision: Precision) -> Any:
    options = loading_options(precision, device)
    model = load_model(AutoModelForImageTextToText, name, source, config, attn_implementation="sdpa", **options)
    check_quantised(precision, model, source)
    multiply_patches(model)
    return model if "device_map" in options else model.to(device)


def _outline_model(name: str, source: str, config: Any, device: torch.device, precision: Precision) -> Any:
    del name, source
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    return model.to(torch_dtype(precision, device))


def _find_template(name: str, source: str, tokenizer: Any, image_processor: Any) -> None:
    """Give the tokenizer the processor's chat template, because its own may be that of the text model alone.

    Older checkpoints keep the processor's template in a file that transformers reads only with a whole processor; it is read here if the
    tokenizer has no template either.
    """
    found = getattr(image_processor, "chat_template", None)
    if not found and not tokenizer.chat_template:
        path = cached_file(name, CHAT_TEMPLATE, _raise_exceptions_for_missing_entries=False)
        found = None if path is None else read_object(Path(path), source).get("chat_template")
    if found:
        tokenizer.chat_template = found


def _read_markup(source: str, tokenizer: Any) -> ChatMarkup:
    """What a model's chat template writes around the turns. Raises TemplateError naming the model."""
    try:
        return read_markup(BoundedTemplate.of(tokenizer))
    except TemplateError as error:
        raise TemplateError(f"{source}: {error}") from error


def _dialect(name: str, family: Family) -> Dialect:
    path = Path(name) / "dialect.json"
    return load_dialect(path) if path.is_file() else family.dialect


def find_family(name: str, source: str) -> Family:
    """Return the family of a folder or hub id by its config.json, without running any code from it. Raises ModelError, or ExtensionError
    where another package brings the family and cannot be used.
    """
    config = read_config(name, source, NEEDED, ADVICE)
    refuse_original(config, source)
    kind = config.get("model_type")
    if isinstance(kind, str) and (extension := find("families", kind, FAMILIES)) is not None:
        family = extension.load()
        if not isinstance(family, Family):
            raise extension.refused("is no sam4mllm.grounding.families.Family")
        return family
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join((*FAMILIES, *names("families", FAMILIES)))
        raise ModelError(f"{source}: models of type {kind!r:.80} are not supported; use one of {known}")
    return FAMILIES[kind]


def see_everything(text: Any, source: str) -> int | None:
    """Turn a text model's sliding-window attention into full attention, in its configuration ``text``, and return how wide the window was;
    None if there was none, or it stays.

    A conversation that fits into the window is read in the same way with full attention, and a packed row, whose positions restart, may be
    longer than the window. Models whose kinds of layers get a mask each keep their windows (:mod:`sam4mllm.grounding.windows`). Raises
    ModelError if the window is too narrow, if a layer is of an unknown kind, or if text tokens see those after them.
    """
    kinds = set(getattr(text, "layer_types", None) or ())
    unknown = kinds - {"full_attention", "sliding_attention", LINEAR}
    if unknown:
        raise ModelError(f"{source}: layers of the kind {min(unknown)} cannot be continued by several questions; use another model")
    window: int | None = getattr(text, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return None
    if getattr(text, "model_type", None) in WINDOWED:
        if text.use_bidirectional_attention == "all":
            raise ModelError(f"{source}: its tokens see those after them, so it writes no answers; use another model")
        return None
    if window < 2 * TALK:
        raise ModelError(f"{source}: its layers see {window} tokens back, fewer than an image with its questions; use another model")
    text.sliding_window = None
    if kinds:
        text.layer_types = ["full_attention"] * len(text.layer_types)
    return window
