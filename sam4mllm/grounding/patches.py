"""A vision tower's first layer as the matrix product that it is.

The towers of Qwen-VL and GLM-V from 2 on cut the image into patches before their first layer, a convolution whose kernel is a whole patch:
each output is one inner product. On a processor, and on GPUs with numbers of 16 bits, a three-dimensional convolution takes many times as
long as the product.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchProduct(nn.Conv3d):
    """A convolution without a margin whose steps are its kernel's sides; patches (N, channels, *kernel) become (N, width, 1, 1, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != self.weight.shape[2:]:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def multiply_patches(model: nn.Module) -> None:
    """Compute a model's patch embeddings by products from now on; weights and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and _takes_patches(module):
            module.__class__ = PatchProduct


def _takes_patches(module: nn.Conv3d) -> bool:
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding in {(0, 0, 0), 0, "valid"}
    return plain and module.stride == module.kernel_size
