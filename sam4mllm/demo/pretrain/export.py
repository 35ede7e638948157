"""From training states to the folders that the package ships."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLImageProcessor

from sam4mllm.demo.architecture import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH
from sam4mllm.demo.pretrain.tower import DemoTrainee
from sam4mllm.demo.tokenizer import save_tokenizer
from sam4mllm.errors import ModelError
from sam4mllm.prompts.dialects import DEMO, dump_dialect
from sam4mllm.segmentation.small_sam import build_segmenter
from sam4mllm.training.state import load_weights

EMBEDDINGS = "model.language_model.embed_tokens.weight"
HEADS = "heads.safetensors"
"""The name of the file with the dense heads, beside the model folders. Serving does not use it; training can go on from it."""


def read_trainee(state: Path) -> DemoTrainee:
    """The trainee of a saved state (``step-<n>``) of the tower or the language stage. Raises what ``load_weights`` raises."""
    trainee = DemoTrainee()
    load_weights(state / "model.safetensors", trainee)
    return trainee


def average(trainee: DemoTrainee, other: DemoTrainee, share: float) -> None:
    """Replace a trainee's weights by the weighted mean of its own and those of another, with a weight of ``share`` (0 to 1) for its own.

    The mean of a model before and after further training loses less of what the first could do, and keeps most of what the training brought
    (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """
    with torch.no_grad():
        for own, others in zip(trainee.parameters(), other.parameters(), strict=True):
            own.lerp_(others, 1 - share)


def export_heads(trainee: DemoTrainee, folder: Path) -> None:
    """Write the dense heads (half precision) to the file HEADS in ``folder``, over one that is there. The trainee stays as it is."""
    save_file({name: tensor.half() for name, tensor in trainee.heads.state_dict().items()}, folder / HEADS)


def load_shipped(trainee: DemoTrainee, mllm: Path, heads: Path) -> None:
    """Load exported weights into a trainee: the MLLM from the folder ``mllm``, the dense heads from the folder ``heads``.

    Tokens that these weights do not have yet keep the direction of their random embeddings, scaled to the median length of the known ones.
    The head ``owned``, if it is not there, starts as a copy of ``fine``. Raises ModelError if the MLLM's weights have other names than the
    trainee's, and RuntimeError if weights have other shapes, or if the heads other than ``fine`` and ``owned`` have other names.
    """
    weights = load_file(mllm / "model.safetensors")
    words, known = trainee.words().detach().clone(), weights[EMBEDDINGS]
    if len(known) <= len(words):
        size = known.norm(dim=1).median() / words[len(known) :].norm(dim=1, keepdim=True)
        words = torch.cat([known.to(words.dtype), words[len(known) :] * size])
        weights[EMBEDDINGS] = words
    missing, unexpected = trainee.mllm.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelError(f"{mllm} holds the weights of another model")
    read = load_file(heads / HEADS)
    trainee.heads.load_state_dict({**{name.replace("fine", "owned"): read[name] for name in ("fine.weight", "fine.bias")}, **read})


def export_mllm(trainee: DemoTrainee, folder: Path) -> None:
    """Write a complete model folder (half precision), in place of what is there.

    The trainee's own MLLM is converted to half precision, too.
    """
    processor = Qwen2VLImageProcessor(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=MERGE,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with _replacing(folder) as new:
        trainee.mllm.half().save_pretrained(new)  # type: ignore[no-untyped-call]
        save_tokenizer(new)
        processor.save_pretrained(new)
        (new / "dialect.json").write_text(dump_dialect(DEMO), encoding="utf-8")


def export_segmenter(state: Path, folder: Path) -> None:
    """Write the segmenter's folder (half precision), in place of what is there, from a saved state of its stage at full size.

    Raises what ``load_weights`` raises.
    """
    model = build_segmenter()
    load_weights(state / "model.safetensors", model)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    with _replacing(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in halves.items()}, new / "model.safetensors")
        (new / "config.json").write_text(json.dumps({"architecture": "demo"}) + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give the block an empty folder to fill, which replaces ``folder`` when the block ends. An error in the block leaves ``folder`` as it
    was.

    The folder to fill is ``<name>.new`` beside it. After an error it stays until the next call, which removes it. A kill between the two
    renames at the end leaves the former folder under the name ``<name>.old`` only.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
