"""Which models fit which GPU: the table of docs/models.md, computed from the models' configs, without weights and without a GPU.

    python -m benchmarks.fits [--rank 64]

The tensors are counted on torch's meta device. Prints a Markdown table: for each model and segmenter the memory needed to serve in bf16,
and the plan that ``sam4mllm serve --plan auto`` takes on cards of 12 to 80 GB. A plan says how the language model's weights are held, and
whether a training run goes on beside serving, while serving pauses, or not at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from sam4mllm.fitting import QUANTISATIONS, Demand, Fit, choose_fit
from sam4mllm.memory import Need, Stored, demand_of, segmenter_working
from sam4mllm.training.config import read_plan

CARDS_GIB = (12, 16, 24, 48, 80)
USABLE = 0.97
"""Share of a card's nominal memory that can be used; a desktop, the driver and error correction take the rest."""
DTYPE = torch.bfloat16
SEGMENTERS = {"vit_l": 1_249_524_607, "vit_h": 2_564_550_879}
"""Sizes in bytes of SAM's published checkpoints; their weights take as much memory as on disk."""
HEADS = ("MLLM", "SAM", "parameters", "to serve, bf16", *(f"{gib} GB" for gib in CARDS_GIB))


@dataclass(frozen=True)
class Published:
    """A published model, with the numbers of its config.json; ``tied`` is whether its head shares the weights of the embeddings."""

    name: str
    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool


def _text(hidden: int, inner: int, layers: int, heads: int, key_value_heads: int, words: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": words}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": key_value_heads, **more}


def _tower(depth: int, hidden: int, inner: int, out: int, **more: Any) -> dict[str, Any]:
    return {"depth": depth, "hidden_size": hidden, "intermediate_size": inner, "num_heads": 16, "out_hidden_size": out, **more}


_INTERN = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16, "image_size": [448, 448]}
_SMALL, _LARGE = {"deepstack_visual_indexes": [5, 11, 17]}, {"deepstack_visual_indexes": [8, 16, 24]}
MODELS = (
    Published("Qwen2.5-VL-3B", "qwen2_5_vl", _text(2048, 11008, 36, 16, 2, 151_936), _tower(32, 1280, 3420, 2048), True),
    Published("Qwen2.5-VL-7B", "qwen2_5_vl", _text(3584, 18944, 28, 28, 4, 152_064), _tower(32, 1280, 3420, 3584), False),
    Published("Qwen3-VL-2B", "qwen3_vl", _text(2048, 6144, 28, 16, 8, 151_936, head_dim=128), _tower(24, 1024, 4096, 2048, **_SMALL), True),
    Published("Qwen3-VL-4B", "qwen3_vl", _text(2560, 9728, 36, 32, 8, 151_936, head_dim=128), _tower(24, 1024, 4096, 2560, **_SMALL), True),
    Published(
        "Qwen3-VL-8B", "qwen3_vl", _text(4096, 12288, 36, 32, 8, 151_936, head_dim=128), _tower(27, 1152, 4304, 4096, **_LARGE), False
    ),
    Published("InternVL3-2B", "internvl", _text(1536, 8960, 28, 12, 2, 151_674, model_type="qwen2"), _INTERN, False),
    Published("InternVL3-8B", "internvl", _text(3584, 18944, 28, 28, 4, 151_674, model_type="qwen2"), _INTERN, False),
)


@cache
def count(name: str) -> tuple[Any, tuple[Stored, ...]]:
    """Return a model's config and its tensors, without their values; tied tensors are listed once."""
    model = next(one for one in MODELS if one.name == name)
    tied = {"tie_word_embeddings": model.tied}
    config: Any = AutoConfig.for_model(model.kind, text_config={**model.text, **tied}, vision_config=model.vision, **tied)
    with torch.device("meta"):
        make: Any = AutoModelForImageTextToText
        made = make.from_config(config)
    return config, tuple(Stored(name, "BF16", tuple(weight.shape)) for name, weight in made.named_parameters())


def demands_of(name: str, segmenter: str, rank: int) -> list[Demand]:
    """Return what a model needs together with a segmenter, for each way to hold its weights (QUANTISATIONS)."""
    config, tensors = count(name)
    masks = Need(SEGMENTERS[segmenter], segmenter_working(segmenter))
    return [demand_of(tensors, config, masks, rank, DTYPE, quantize) for quantize in QUANTISATIONS]


def rows(rank: int) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each row of the table."""
    for model in MODELS:
        for segmenter in SEGMENTERS:
            demands = demands_of(model.name, segmenter, rank)
            parameters = sum(tensor.count for tensor in count(model.name)[1])
            fits = [choose_fit(demands, gib * 2**30 * USABLE) for gib in CARDS_GIB]
            needed = demands[0].peak("none")
            yield model.name, segmenter, f"{parameters / 1e9:.2f} B", f"{needed / 1e9:.1f}", *(spell(fit) for fit in fits)


def spell(fit: Fit | None) -> str:
    """Return a plan as the table shows it, such as ``4bit, pause``, or a dash where nothing fits."""
    if fit is None:
        return "–"
    held = "bf16" if fit.demand.quantize == "none" else fit.demand.quantize
    return f"{held}, {'serves only' if fit.mode == 'none' else fit.mode}"


def render(rank: int) -> str:
    """Return the table as Markdown; ``rank`` is that of the LoRA that is trained."""
    lines = [HEADS, ("---",) * len(HEADS), *rows(rank)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=read_plan("server").rank, help="of the LoRA that is trained")  # type: ignore[arg-type]
    print(render(parser.parse_args().rank), end="")


if __name__ == "__main__":
    main()
