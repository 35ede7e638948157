"""A former mask as part of a prompt: SAM was trained to refine a mask by clicks, given its logits on the grid of the model's own masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import PromptError
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Prompt

SURE = 10.0
"""Logit of a cell that lies wholly in a mask which is not the model's own; a cell wholly outside has -SURE (as in SAM 2's video model:
20 · mask - 10)."""


@runtime_checkable
class MaskTaker(Segmenter, Protocol):
    """A segmenter that looks at :attr:`~sam4mllm.values.Prompt.mask_logits`; any other draws as if there were none."""

    def as_logits(self, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Return the logits (1, h, w) that stand for a mask (H, W) of the image; None if this segmenter only passes prompts on to one that
        takes no masks.
        """
        ...


def mask_as_logits(mask: NDArray[np.bool_], input_size: tuple[int, int], side: int, grid: int) -> NDArray[np.float32]:
    """(1, ``grid``, ``grid``) float32, from -SURE to SURE by the share of each cell that a mask (H, W) covers.

    ``input_size``: height and width of the image in the model's square frame of ``side`` pixels; what was padded is no part of the mask.
    """
    rows, columns = (max(1, round(length * grid / side)) for length in input_size)
    shares = np.zeros((1, grid, grid), np.float32)
    shares[0, :rows, :columns] = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return (2 * shares - 1) * np.float32(SURE)


def stack_logits(prompts: Sequence[Prompt], grid: int) -> NDArray[np.float32] | None:
    """Return the mask logits (P, 1, ``grid``, ``grid``) of P prompts that all have a former mask; None if none of them has one. Prompts are
    never mixed, because :func:`~sam4mllm.segmentation.module.decode_alike` parts them.

    Raises PromptError if the logits have another grid, which means that they were made for another segmenter.
    """
    given = [prompt.mask_logits for prompt in prompts if prompt.mask_logits is not None]
    for logits in given:
        if logits.shape != (1, grid, grid):
            raise PromptError(
                f"logits of a former mask are (1, {grid}, {grid}) here, not {logits.shape}; those of another segmenter do not fit"
            )
    return np.stack(given).astype(np.float32) if given else None


def mask_logits_of(segmenter: Segmenter, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """A mask (H, W) of the image as a segmenter takes it; None if it takes none."""
    return segmenter.as_logits(embedding, mask) if isinstance(segmenter, MaskTaker) else None
