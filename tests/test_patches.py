"""A patch embedding as a product: the same numbers as the convolution, and only where it is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.patches import PatchProduct, multiply_patches
from tests.family_models import KINDS, make_family

KERNEL = (2, 4, 4)
OTHERS = [
    pytest.param(nn.Conv3d(3, 8, KERNEL), id="overlapping"),
    pytest.param(nn.Conv3d(3, 8, KERNEL, KERNEL, padding=1), id="with a margin"),
    pytest.param(nn.Conv3d(4, 8, KERNEL, KERNEL, groups=2), id="in groups"),
    pytest.param(nn.Conv3d(3, 8, KERNEL, KERNEL, dilation=2), id="with holes"),
    pytest.param(nn.Conv2d(3, 8, 4, 4), id="of two dimensions"),
]


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 8, KERNEL, KERNEL, bias=bias)
    patches, larger = torch.randn(5, 3, *KERNEL), torch.randn(1, 3, 4, 8, 8)
    expected = [convolution(patches), convolution(larger)]
    names = set(convolution.state_dict())
    multiply_patches(nn.Sequential(convolution))
    assert isinstance(convolution, PatchProduct)
    for given, wanted in zip((patches, larger), expected, strict=True):
        assert convolution(given).shape == wanted.shape
        torch.testing.assert_close(convolution(given), wanted, rtol=0, atol=1e-6)
    assert set(convolution.state_dict()) == names


@pytest.mark.parametrize("layer", OTHERS)
def test_any_other_layer_stays(layer: nn.Module) -> None:
    kind = type(layer)
    multiply_patches(nn.Sequential(layer))
    assert type(layer) is kind


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_model_that_is_loaded_has_it(name: str, tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS.values() if kind.model_type == name)
    model = load_checkpoint(str(make_family(kind, tmp_path / "model")), torch.device("cpu")).model
    assert [type(module) for module in model.modules() if isinstance(module, nn.Conv3d)] == [PatchProduct]
