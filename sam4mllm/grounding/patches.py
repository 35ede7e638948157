"""The patch embedding of a vision tower, computed as a matrix product instead of a convolution.

The vision towers of Qwen-VL (from Qwen2-VL on) and of GLM-V get the image cut into patches. Their first layer is a three-dimensional
convolution whose kernel is as large as a patch, so each output is one inner product. On a CPU, and on GPUs in 16-bit precision, the
convolution takes many times as long as the equivalent matrix product.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchProduct(nn.Conv3d):
    """A convolution without padding whose stride equals its kernel size. It maps patches (N, channels, *kernel) to (N, width, 1, 1, 1) by a
    matrix product; inputs of any other size are convolved as usual.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != self.weight.shape[2:]:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def multiply_patches(model: nn.Module) -> None:
    """Change a model in place so that its patch embeddings are computed by matrix products. The weights and their names stay the same."""
    for module in model.modules():
        if type(module) is nn.Conv3d and _takes_patches(module):
            module.__class__ = PatchProduct


def _takes_patches(module: nn.Conv3d) -> bool:
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding in {(0, 0, 0), 0, "valid"}
    return plain and module.stride == module.kernel_size
