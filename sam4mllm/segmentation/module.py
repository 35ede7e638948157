"""What segmenters and detectors made of a torch module have in common: identity, memory, device, precision, and work in batches."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sam4mllm.segmentation.enlarging import Enlarging
from sam4mllm.values import Masks, Prompt

STABILITY_OFFSET = 1.0
"""How far the threshold of mask logits is raised and lowered to measure stability (segment-anything's automatic mask generator)."""

AT_ONCE = 32
"""Prompts that are decoded in one batch. A prompt of SAM 2 takes 18 MB by the shapes of its tensors (its copy of the features 4, two
enlarged maps 4 and 8, four masks 1), so hundreds of prompts would not fit beside an MLLM."""

PHRASES_AT_ONCE = 4
"""Phrases that are asked about in one batch. A phrase takes 0.4 GB by the shapes of its tensors: in SAM 3 five maps of 256 x 288 x 288, in
Grounding DINO the points that 22,000 tokens sample in 8 heads, 4 levels and 4 places."""


class ModuleSegmenter:
    """The base of the segmenters and the detectors.

    Args:
        model: a torch module with its weights, in eval mode.
        source: what it was loaded from, part of its identity.
        dtype: precision in which images are encoded, by autocast. Prompts and masks stay float32: bfloat16 has 8 bits of precision, so
            coordinates beyond 512 would move by as many as 2 pixels.
    """

    def __init__(self, model: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self._source = source
        self._dtype = dtype
        self.adapter = ""
        """The hash of the adapter that is merged into its mask decoder; empty if there is none."""

    @property
    def identity(self) -> str:
        precision = "" if self._dtype is torch.float32 else f":{self._dtype}"
        adapted = f"+{self.adapter}" if self.adapter else ""
        return hashlib.sha256((self._source + precision + adapted).encode()).hexdigest()[:8]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of ``source`` in 64 hexadecimal digits: the same on every device and in every precision, whatever adapter is
        merged.
        """
        return hashlib.sha256(self._source.encode()).hexdigest()

    def with_decoder(self, decoder: Any, adapter: str) -> Self:
        """Return a copy of this segmenter that has ``decoder`` as its mask decoder; this one stays as it is.

        ``adapter`` is the hash of the adapter in that decoder, empty if there is none. The two share all other weights, so an embedding of
        one serves both.
        """
        other = copy(self)
        other.model = copy(self.model)
        other.model._modules = {**self.model._modules, "mask_decoder": decoder}
        other.adapter = adapter
        return other

    @property
    def nbytes(self) -> int:
        return weights_nbytes(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def precision(self) -> torch.autocast:
        """Return the autocast context in which an image is encoded; with float32 it changes nothing.

        Autocast holds only for the thread that enters the context, so enter it in the thread that encodes.
        """
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not torch.float32)


def weights_nbytes(model: torch.nn.Module) -> int:
    """Bytes of a module's parameters; its buffers are not counted."""
    return sum(weight.nbytes for weight in model.parameters())


class SharedTokenizer:
    """A tokenizer that several threads may call. It takes a lock, because transformers sets padding and truncation on the tokenizer itself
    at each call.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()

    def __call__(self, texts: str | Sequence[str], **how: Any) -> Any:
        with self._lock:
            return self._tokenizer(texts, **how)


def tell_cut(tokenizer: Any, text: str, most: int) -> str:
    """Return a note for the user if a text has more than ``most`` tokens, which is all that the model reads; else an empty text."""
    count = len(tokenizer(text, verbose=False)["input_ids"])
    return f"the segmenter reads {most} tokens of a phrase, and this one has {count}: say it in fewer words" if count > most else ""


def decode_alike(prompts: Sequence[Prompt], decode: Callable[[Sequence[Prompt]], list[Masks]]) -> list[Masks]:
    """Return the masks of prompts, in order, by calling ``decode`` on batches of at most AT_ONCE prompts that are alike.

    Alike are prompts with the same number of points that agree in whether they have a box, a former mask and a ``single`` candidate. So no
    padding is needed, and each prompt is decoded as if alone.
    """
    alike: dict[tuple[bool, int, bool, bool], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        alike[prompt.box_px is not None, len(prompt.labels), prompt.single, prompt.mask_logits is not None].append(index)
    found: dict[int, Masks] = {}
    for indices in alike.values():
        for start in range(0, len(indices), AT_ONCE):
            batch = indices[start : start + AT_ONCE]
            found.update(zip(batch, decode([prompts[index] for index in batch]), strict=True))
    return [found[index] for index in range(len(prompts))]


def candidates_of(logits: Tensor, predicted: Tensor, how: Enlarging) -> list[Masks]:
    """Masks of logits (P, N, h, w) and predicted IoU (P, N), an entry a prompt; none is enlarged yet."""
    kept = logits.float().cpu()  # they are small, and on the CPU they take no room from the next image
    scores = numbers(stability(kept, how.threshold))
    expected = numbers(predicted)
    return [
        Masks(how.coarse(kept[index]), expected[index], scores[index], partial(_enlarge, how, kept[index])) for index in range(len(kept))
    ]


def _enlarge(how: Enlarging, logits: Tensor, index: int) -> NDArray[np.bool_]:
    return how.full(logits[index])


def stability(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """Return the stability (...) of mask logits (..., h, w): the IoU of the mask at a raised threshold with the mask at a lowered one; 0 if
    both are empty.
    """
    score: Tensor = calculate_stability_score(logits, threshold, STABILITY_OFFSET)
    return score.nan_to_num(0.0)


def numbers(scores: Tensor) -> NDArray[Any]:
    """Scores of any precision and device as float64."""
    return scores.double().cpu().numpy()
