"""A cache of the frozen vision tower's outputs, for the next time that an image comes up in a run.

The tower is the same at every step, because only layers after it learn. So the outputs of its blocks are kept and not computed again; the
result is the same bit for bit. This needs a tower whose blocks are a list and whose outputs are read at known blocks, as in the Qwen-VL
families; with any other tower, nothing is kept and nothing changes.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Features = dict[int, Tensor]
"""The outputs of some of the tower's blocks, on the CPU, by the block's index."""


class VisionMemory:
    """The features of the images that were used last, in main memory.

    Args:
        model: the model with its adapter attached. The ``forward`` of its vision tower's blocks is replaced for good; outside ``of`` they
            compute as before.
        most_bytes: the most bytes of features to keep; 0 keeps nothing.
    """

    def __init__(self, model: Any, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, Features] = OrderedDict()
        self._bytes = 0
        self._known: Features | None = None
        self._new: Features | None = None
        blocks = _frozen_blocks(model) if most_bytes else []
        self._read = {len(blocks) - 1, *getattr(getattr(_tower(model), "config", None), "deepstack_visual_indexes", ())}
        for index, block in enumerate(blocks):
            block.forward = functools.partial(self._forward, index, block.forward)

    @contextmanager
    def of(self, image: NDArray[np.uint8]) -> Iterator[None]:
        """Use and fill the cache within the context, where the model may be given only this image (H, W, 3), always preprocessed alike."""
        key = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.shape).encode()).digest() if self._most_bytes else b""
        self._known = self._kept.get(key)
        self._new = {}
        try:
            yield
            if self._known is not None:
                self._kept.move_to_end(key)
            elif self._read <= self._new.keys():  # the tower finished; memory may have run out halfway, which the caller catches
                self._keep(key, self._new)
        finally:
            self._known = self._new = None

    def _forward(self, index: int, forward: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a block's output, and note it if it is read later.

        If the image's features are known, compute nothing: return the kept output of a block whose output is read later, and for any other
        block its input, which stands for an output that nobody reads.
        """
        if self._known is not None:
            return self._known[index].to(hidden.device) if index in self._read else hidden
        found = forward(hidden, *args, **kwargs)
        if self._new is not None and index in self._read:
            self._new[index] = found.detach().cpu()
        return found

    def _keep(self, key: bytes, features: Features) -> None:
        size = _nbytes(features)
        if size > self._most_bytes:
            return
        self._kept[key] = features
        self._bytes += size
        while self._bytes > self._most_bytes:
            self._bytes -= _nbytes(self._kept.popitem(last=False)[1])


def _nbytes(features: Features) -> int:
    return sum(tensor.nbytes for tensor in features.values())


def _tower(model: Any) -> Any:
    return getattr(getattr(model, "model", None), "visual", None)


def _frozen_blocks(model: Any) -> list[Any]:
    """Return the blocks of the vision tower; none if the tower learns, has dropout, or does not keep its blocks in a list."""
    tower = _tower(model)
    blocks = getattr(tower, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        return []
    parts = [module for part in (blocks, getattr(tower, "patch_embed", None)) if part is not None for module in part.modules()]
    learns = any(weight.requires_grad for part in parts for weight in part.parameters())
    chance = any((isinstance(part, nn.Dropout) and part.p > 0) or getattr(part, "attention_dropout", 0) > 0 for part in parts)
    return [] if learns or chance else list(blocks)
