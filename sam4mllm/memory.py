"""How much memory models need and how much there is, reported before loading.

Parameters are counted from the headers of the safetensors files, a few kilobytes each; of a hub model that is not on this machine yet, only
the headers are fetched. Working memory is added to the weights: the keys and values of an image and of a full row of questions, and what
one layer holds while it works on the row. Larger images and more kept scenes need more, so the figure is an estimate and not a bound.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from sam4mllm.checkpoints import FAULTS
from sam4mllm.errors import ModelError
from sam4mllm.fitting import QUANTISATIONS, Demand
from sam4mllm.grounding.asking import MAX_ROW
from sam4mllm.grounding.copying import COPIES_AT_ONCE, LINEAR, keeps_states
from sam4mllm.grounding.families import find_family, resolve
from sam4mllm.grounding.windows import window_of
from sam4mllm.options import AUTO, Precision, QuantizeName
from sam4mllm.precision import QUANTISED, describe, torch_dtype
from sam4mllm.segmentation.names import split_name

log = logging.getLogger(__name__)

IMAGE_TOKENS = 2048
"""Tokens of the image that working memory is counted for: 1,536 x 1,024 pixels in Qwen2.5-VL, whose tokens are 28 pixels wide."""
ADAPTER_BYTES = 16
"""Bytes of a LoRA parameter in training: the weight, its gradient and AdamW's two moments, each in float32."""
ABSMAX_BLOCK, SCALES_BLOCK = 64, 256
"""Blocks of nf4 with double quantisation: 64 weights share an 8 bit scale, and 256 of these scales share a float32 (QLoRA, Dettmers et al.
2023, section 3)."""
TABLES = 4 * (16 + 256 + 1)
"""Bytes of a 4 bit layer's two code books and its offset, in float32."""
WORTH_SAYING = 1e9
"""Bytes below which nothing is logged: such a model fits anywhere."""
EMBEDDED = 3
"""How many copies of the embeddings that are made for each layer exist at once: those looked up, those projected from the token's own
embedding, and their sum."""
SAM_TOKENS = 64 * 64
SAM_HEADS = {"vit_b": 12, "vit_l": 16, "vit_h": 16}
SAM_MAPS = 3
"""Attention maps of all heads, in float32, that SAM holds at once where it adds relative positions. It makes 64 x 64 tokens of an image of
1,024 pixels, and in the layers with global attention each attends to all (Kirillov et al. 2023, appendix A)."""
OTHER_WORKING = 1_000_000_000
"""Working bytes of other segmenters, whose attention is windowed: room for their features and the masks of a batch of prompts."""
KEPT_BYTES = 2**30
"""Bytes of the images that a server keeps open, as SAM4MLLM_CACHE_MB allows by default."""
UNLIMITED = 2**60
"""A control group (version 1) whose memory limit in bytes is above this has no limit."""
UNREAD = r"(model\.)?(audio_tower|embed_audio)\."
"""Matches the names of weights that are not loaded, those of a model's parts for sound."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it. ``kind`` is its dtype as safetensors names it, for example "BF16"."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_quantised(self) -> bool:
        """Whether bitsandbytes would quantise it: a linear layer's weight in the language model. Weights of experts are not, because they
        are one parameter once they are loaded, even if a file holds each expert's own.
        """
        linear = len(self.shape) == 2 and self.name.endswith(".weight") and ".experts." not in self.name
        return linear and re.match(QUANTISED, self.name) is not None


@dataclass(frozen=True)
class Need:
    """Bytes: of the weights, and of room to work in."""

    weights: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.working


def read_headers(source: str) -> list[Stored] | None:
    """Return those tensors of a model folder or hub id that will be loaded. The headers of a hub model that is not on this machine are
    fetched from the hub.

    None if the headers cannot be read, or a folder has no safetensors files; loading then reports why.
    """
    folder = Path(resolve(source))
    try:
        here = folder if folder.exists() else Path(snapshot_download(source, local_files_only=True))
        stored = [tensor for file in sorted(here.glob("*.safetensors")) for tensor in _read_file(file)]
    except LocalEntryNotFoundError:
        stored = []
    except (OSError, ValueError, SafetensorError):
        return None
    found = stored or (None if folder.exists() else _fetch_headers(source))
    return None if found is None else [tensor for tensor in found if not re.match(UNREAD, tensor.name)]


def weight_bytes(tensors: Iterable[Stored], precision: Precision, dtype: torch.dtype) -> int:
    """Bytes of the weights once they are loaded. What a checkpoint holds quantised stays as it is."""
    return sum(_tensor_bytes(tensor, precision, dtype.itemsize) for tensor in tensors)


def _tensor_bytes(tensor: Stored, precision: Precision, size: int) -> int:
    if tensor.kind not in FLOATS:
        return tensor.count * SIZES.get(tensor.kind, 1)
    if precision.quantize == "none" or not tensor.is_quantised:
        return tensor.count * size
    if precision.quantize == "8bit":
        return tensor.count + 4 * tensor.shape[0]  # a byte for each weight, and a float32 scale for each row
    blocks = math.ceil(tensor.count / ABSMAX_BLOCK)
    return math.ceil(tensor.count / 2) + blocks + 4 * math.ceil(blocks / SCALES_BLOCK) + TABLES


def working_bytes(config: Any, dtype: torch.dtype) -> int:
    """Return the working bytes of answering: keys and values of an image and a full row, the row's attention masks, a layer's inner values
    over the row, and the states of recurrent layers.
    """
    text = config.get_text_config()
    copies = COPIES_AT_ONCE if keeps_states(config) else 0
    masks = 1 if window_of(config) is None else 2
    token = _kept_values(config)
    tokens = IMAGE_TOKENS + MAX_ROW
    layer = MAX_ROW * (4 * text.hidden_size + 3 * _inner_values(text) + EMBEDDED * _values_of_embeddings(text))
    states = (1 + copies) * _state_bytes(text) if copies else 0
    return int((token * (tokens + copies * IMAGE_TOKENS) + layer + masks * MAX_ROW * tokens) * dtype.itemsize) + states


def _kept_values(config: Any) -> int:
    """Return how many numbers a token's keys and values are, in all layers that have their own."""
    text = config.get_text_config()
    own = text.num_hidden_layers - _recurrent_layers(text) - (getattr(text, "num_kv_shared_layers", 0) or 0)
    if window_of(config) is not None:  # its two kinds of layers have heads of different sizes
        layers = [text.per_layer_config[index] for index in range(own)]
        return int(sum(2 * layer.num_key_value_heads * layer.head_dim for layer in layers))
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * own * (getattr(text, "num_key_value_heads", None) or heads) * head)


def _values_of_embeddings(text: Any) -> int:
    """Return how many numbers a token's per-layer embeddings have in all layers together, because those of all layers are made before the
    first layer; 0 for models without such embeddings.
    """
    return int(text.num_hidden_layers * (getattr(text, "hidden_size_per_layer_input", 0) or 0))


def _recurrent_layers(text: Any) -> int:
    return (getattr(text, "layer_types", None) or []).count(LINEAR)


def _state_bytes(text: Any) -> int:
    """Return the bytes of the states, in float32, that recurrent layers keep for one conversation."""
    return int(_recurrent_layers(text) * text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim * 4)


def _inner_values(text: Any) -> int:
    """Return how many inner values a layer has for a token: its MLP's, or those of the experts that the token is routed to and of the
    shared expert.
    """
    if getattr(text, "enable_moe_block", False):  # Gemma 4 has experts beside an MLP
        return int(text.intermediate_size + text.top_k_experts * text.moe_intermediate_size)
    if getattr(text, "use_double_wide_mlp", False):
        return int(2 * text.intermediate_size)
    experts = getattr(text, "num_experts_per_tok", 0) or 0
    sent = experts * (getattr(text, "moe_intermediate_size", 0) or 0) + (getattr(text, "shared_expert_intermediate_size", 0) or 0)
    return int(max(sent, getattr(text, "intermediate_size", 0) or 0))


def training_bytes(tensors: Iterable[Stored], config: Any, rank: int, dtype: torch.dtype) -> int:
    """Return the bytes that training adds: an adapter with its optimiser, and each layer's input, which is kept for the backward pass."""
    text = config.get_text_config()
    adapter = sum(rank * sum(tensor.shape) for tensor in tensors if tensor.is_quantised)
    kept = text.num_hidden_layers * text.hidden_size * (IMAGE_TOKENS + MAX_ROW) * dtype.itemsize
    return int(adapter * ADAPTER_BYTES + kept)


def estimate(source: str, device: torch.device, precision: Precision = AUTO, rank: int | None = None) -> Need | None:
    """Return what a model needs to answer, or, if ``rank`` is given, to train an adapter of that rank; None if its headers cannot be read.

    If its family or its configuration cannot be read, ``working`` is 0.
    """
    tensors = read_headers(source)
    if tensors is None:
        return None
    dtype = torch_dtype(precision, device)
    try:
        find_family(resolve(source), source)  # imports another package's family, which registers its type with transformers
        config = AutoConfig.from_pretrained(resolve(source), trust_remote_code=False)
        working = working_bytes(config, dtype)
        if rank is not None:
            working += training_bytes(tensors, config, rank, dtype)
    except (*FAULTS, ModelError):  # loading the model meets the same error and reports it
        working = 0
    return Need(weight_bytes(tensors, precision, dtype), working)


def count_demands(source: str, segmenter: str, device: torch.device, precision: Precision, rank: int) -> list[Demand]:
    """Return what each way to quantise a model needs, the most exact first, with a segmenter and to train a LoRA of ``rank``.

    If ``precision`` names a quantisation, there is only that way. If the checkpoint is stored quantised, there is only the way ``none``,
    which loads it as it is stored. The list is empty if the headers or the configuration cannot be read.
    """
    tensors = read_headers(source)
    try:
        find_family(resolve(source), source)  # imports another package's family, which registers its type with transformers
        config = AutoConfig.from_pretrained(resolve(source), trust_remote_code=False)
    except (*FAULTS, ModelError):  # loading the model meets the same error and reports it
        tensors = None
    if tensors is None:
        return []
    once = precision.quantize != "none" or getattr(config, "quantization_config", None) is not None
    ways = (precision.quantize,) if once else QUANTISATIONS
    masks = Need(segmenter_bytes(segmenter), segmenter_working(segmenter))
    return [demand_of(tensors, config, masks, rank, torch_dtype(precision, device), quantize) for quantize in ways]


def demand_of(tensors: Sequence[Stored], config: Any, masks: Need, rank: int, dtype: torch.dtype, quantize: QuantizeName) -> Demand:
    """Return the demand of a model with these tensors and of a segmenter, whose need is ``masks``.

    The model and the segmenter never work at the same time, so the larger of their working bytes counts. A training run first trains
    without a segmenter and then measures with one, so the larger of the two counts. Serving also keeps KEPT_BYTES of opened images.
    """
    weights, working = weight_bytes(tensors, Precision(quantize=quantize), dtype), working_bytes(config, dtype)
    answering = weights + masks.weights + max(working, masks.working)
    training = weights + working + training_bytes(tensors, config, rank, dtype)
    return Demand(quantize, rank, answering + KEPT_BYTES, max(answering, training))


def segmenter_working(segmenter: str) -> int:
    """Bytes that a segmenter works with while it takes in an image."""
    detector, segmenter = split_name(segmenter)
    if detector is not None:  # the two work one after the other
        return max(OTHER_WORKING, segmenter_working(segmenter))
    heads = SAM_HEADS.get(segmenter.partition(":")[0])
    if segmenter == "demo":
        return 0
    return OTHER_WORKING if heads is None else SAM_MAPS * heads * SAM_TOKENS**2 * 4


def free_bytes(device: torch.device, precision: Precision = AUTO) -> int:
    """Return the free bytes that a model could take: on a GPU, or, with ``device_map``, on all GPUs; on the CPU of main memory."""
    if device.type != "cuda":
        return free_ram()
    spread = precision.device_map is not None
    return sum(_free_on(torch.device("cuda", index)) for index in range(torch.cuda.device_count())) if spread else _free_on(device)


def _free_on(device: torch.device) -> int:
    """Return the bytes on a GPU that are free, or that this process's allocator has reserved and does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_ram(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of main memory that this process could take: what the machine has available, or the room in one of the process's
    control groups, if that is less. ``groups`` is the file in which Linux lists the process's groups, ``root`` the folder that has the
    limits of all groups.
    """
    available: int = psutil.virtual_memory().available
    return min([available, *_group_rooms(groups, root)])


def _group_rooms(groups: Path, root: Path) -> list[int]:
    """The room in each control group with a limit, this process's and those around it. Files that can be dropped count as free."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return []
    rooms = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        inner = [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
        rooms += [room for folder in inner if (room := _room_in(folder, *names)) is not None]
    return rooms


def _room_in(folder: Path, limit: str, usage: str, droppable: str) -> int | None:
    """Return the room in a control group, given its folder and the names of its files; None if it has no limit or cannot be read."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        statistics = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
        return None if most > UNLIMITED else max(0, most - used + int(statistics.get(droppable, 0)))
    except (OSError, ValueError):  # "max" is no number
        return None


def announce(
    source: str, device: torch.device, precision: Precision = AUTO, *, segmenter: str | None = None, rank: int | None = None
) -> None:
    """Log what a model and a segmenter need and how much memory is free, unless they need less than WORTH_SAYING or it cannot be known.

    With ``rank``, the model's need includes training an adapter of that rank; with ``segmenter`` None, only the model counts. Raises
    ModelError if their weights alone do not fit, unless ``device_map`` lets the CPU hold the rest of weights that are not quantised.
    """
    need = estimate(source, device, precision, rank)
    if need is None:
        return
    masks = 0 if segmenter is None else segmenter_bytes(segmenter)
    free = free_bytes(device, precision)
    place = "the GPUs have" if device.type == "cuda" and precision.device_map else f"{device} has"
    name = f"{Path(source).name or source} in {describe(precision, device)}"
    if need.weights + masks > free and not (
        precision.device_map and precision.quantize == "none"
    ):  # with both, the CPU holds what does not fit
        raise ModelError(f"{name} needs {_gb(need.weights + masks)} for weights alone, and {place} {_gb(free)} free; {precision.advice}")
    if need.total + masks >= WORTH_SAYING:
        beside = f" and its segmenter {_gb(masks)}" if masks else ""
        tight = "; that is tight, large images may not fit" if need.total + masks > free else ""
        training = " to train" if rank is not None else ""
        log.info("%s needs about %s%s%s, %s %s free%s", name, _gb(need.total), training, beside, place, _gb(free), tight)


def segmenter_bytes(segmenter: str) -> int:
    """Bytes of a segmenter's weights, which are loaded as they are stored, and of its detector's; 0 if they cannot be known."""
    detector, segmenter = split_name(segmenter)
    if detector is not None:
        return segmenter_bytes(detector) + segmenter_bytes(segmenter)
    _, _, path = segmenter.partition(":")
    file = Path((path or segmenter).partition("#")[0])
    if file.is_file():
        return file.stat().st_size
    named = "/" in segmenter or Path(segmenter).exists()  # else it is the demo's, or another package's
    tensors = read_headers(segmenter) if named and not path else None
    return sum(tensor.count * SIZES.get(tensor.kind, 1) for tensor in tensors or ())


def _read_file(path: Path) -> list[Stored]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 – it is no dict
        return [Stored(name, one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()]


def _fetch_headers(source: str) -> list[Stored] | None:
    try:
        files = get_safetensors_metadata(source).files_metadata
    except Exception:  # the hub's client lets through whatever its HTTP library raises
        return None
    return [Stored(name, one.dtype, tuple(one.shape)) for file in files.values() for name, one in file.tensors.items()]


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
