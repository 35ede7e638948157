"""A promptable segmenter without weights: GrabCut (Rother et al. 2004), which separates the colours in a box from those around it.

It is chosen with ``--segmenter grabcut``, or ``--segmenter grabcut:8`` for eight rounds instead of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.errors import ModelError
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt

ROUNDS = 5
LONGEST_SIDE = 384
"""Longest side, in pixels, of the picture that GrabCut works on; larger pictures are reduced, because its time grows with their pixels."""
DOT = 0.02
"""Radius around a point within which all pixels take the point's label, as a share of the picture's longer side."""


@dataclass(frozen=True)
class SmallImage(Embedding):
    """A picture at the size at which GrabCut works on it: ``image`` (h, w, 3) uint8 BGR, whose sides are ``scale`` times the original's."""

    image: NDArray[np.uint8]
    scale: float


class GrabCut:
    """A :class:`~sam4mllm.segmentation.protocol.Segmenter`."""

    def __init__(self, rounds: int = ROUNDS) -> None:
        self._rounds = rounds

    @property
    def identity(self) -> str:
        return f"grabcut-{self._rounds}-{LONGEST_SIDE}"

    @property
    def nbytes(self) -> int:
        return 0

    def to(self, device: torch.device) -> None:
        """It has no weights to move."""

    def encode(self, image: NDArray[np.uint8]) -> SmallImage:
        height, width = image.shape[:2]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1].copy(), np.uint8)
        return SmallImage(width, height, small.nbytes, small, scale)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        assert isinstance(embedding, SmallImage)
        return [self._draw(embedding, prompt) for prompt in prompts]

    def _draw(self, small: SmallImage, prompt: Prompt) -> Masks:
        """Return the only candidate mask for a prompt, drawn on the small picture and enlarged only on request."""
        seeds = self._seeds(small, prompt)
        if {cv2.GC_FGD, cv2.GC_PR_FGD} & set(np.unique(seeds)) and {cv2.GC_BGD, cv2.GC_PR_BGD} & set(np.unique(seeds)):
            cv2.setRNGSeed(0)  # GrabCut's mixtures of colours are initialised at random
            colours = np.zeros((2, 1, 65))
            cv2.grabCut(small.image, seeds, (0, 0, 1, 1), colours[0], colours[1], self._rounds, cv2.GC_INIT_WITH_MASK)
        mask = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
        enlarge = partial(cv2.resize, dsize=(small.width, small.height), interpolation=cv2.INTER_NEAREST)
        one = np.ones(1)  # it does not know how sure it is
        return Masks(mask[None], one, one, lambda _: np.asarray(enlarge(mask.astype(np.uint8)) > 0, np.bool_))

    @staticmethod
    def _seeds(small: SmallImage, prompt: Prompt) -> NDArray[np.uint8]:
        """Return (h, w) GrabCut's initial label of each pixel: outside the box background, inside it probably the object, and around each
        point what the point says. Without a box, all other pixels are probably background.
        """
        height, width = small.image.shape[:2]
        seeds = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
        if prompt.box_px is not None:
            x1, y1, x2, y2 = (prompt.box_px * small.scale).round().astype(int)
            seeds[:] = cv2.GC_BGD
            seeds[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = cv2.GC_PR_FGD
        for point, label in zip(prompt.points_px * small.scale, prompt.labels, strict=True):
            centre = (int(point[0]), int(point[1]))
            cv2.circle(seeds, centre, max(1, round(DOT * max(height, width))), int(cv2.GC_FGD if label else cv2.GC_BGD), -1)
        return seeds


def load(path: str, dtype: torch.dtype) -> GrabCut:
    """Return the segmenter for a setting.

    ``path`` is the text behind ``grabcut:``, empty if there is no colon; ``dtype`` is for segmenters with weights. Raises ModelError if
    ``path`` is no number of rounds.
    """
    del dtype
    if path and not path.isdecimal():
        raise ModelError(f"grabcut:{path} has no number of rounds behind the colon; write grabcut or grabcut:8")
    return GrabCut(int(path) if path else ROUNDS)
