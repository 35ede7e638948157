"""EfficientViT-SAM (Zhang et al., 2024; the published choice) as a Segmenter: SAM's prompts and masks behind another image encoder.

The package ``efficientsam`` is the authors' code on PyPI; it comes with the extra ``[efficientvit]`` and is imported only here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.errors import ModelError
from sam4mllm.segmentation.sam import SamSegmenter

NAMES = tuple(f"efficientvit-sam-{size}" for size in ("l0", "l1", "l2", "xl0", "xl1"))
"""The EfficientViT-SAM authors' names of their five models; the SAM4MLLM paper uses xl1."""


class EfficientViTSegmenter(SamSegmenter):
    """Implements :class:`~sam4mllm.segmentation.protocol.Segmenter`. The encoder sees the image at 512 pixels (l0 to l2) or 1,024 (xl0
    and xl1), prompts are always in a frame of 1,024.
    """

    def _side(self) -> int:
        side: int = self.model.image_size[0]
        return side

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        pixels: Tensor = self.model.transform(np.array(image))  # its transform warns of an array that cannot be written to
        return pixels[None].to(self.device)


def build(name: str) -> Any:
    """The model of a name in ``NAMES``, its weights random. Raises ModelError if the package is missing."""
    try:
        from efficientsam.sam_model_zoo import create_efficientvit_sam_model  # noqa: PLC0415 – an extra
    except ModuleNotFoundError as error:
        raise ModelError(f"{name} needs the package efficientsam: pip install 'sam4mllm[efficientvit]'") from error
    return create_efficientvit_sam_model(name, pretrained=False)
