"""SAM's image attention without its matrix of positions.

segment-anything adds two terms to each attention score, one for how far the key is below the query and one for how far it is beside it
(decomposed relative positions, ViTDet, arXiv 2203.16527, section 3). Per head and image they make a matrix of all tokens by all tokens,
which is written out several times. For a given query the terms depend only on the key's row and column, so they can be written as dot
products: the query is extended by its terms for every row and every column, and the key by one-hot vectors of its own row and column. One
call of fused attention then computes everything.

    query  [ q · scale | below (H) | beside (W) ]
    key    [ k         | 0 … 1 … 0 | 0 … 1 … 0  ]

On a CPU each further dimension costs time. There the matrix is written after all, for some queries of one head at a time, so that it stays
in the CPU's cache.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

QUERIES_AT_ONCE = 64
"""Queries whose scores are computed at once on a CPU. Their scores for 4,096 keys take a megabyte; 32 to 128 were as fast."""


class FusedAttention(nn.Module):
    """Takes the place of an :class:`~segment_anything.modeling.image_encoder.Attention` with relative positions: the same weights under the
    same names, the same results but for rounding.
    """

    def __init__(self, former: Attention) -> None:
        super().__init__()
        self.heads, self.scale = former.num_heads, former.scale
        self.qkv, self.proj = former.qkv, former.proj
        self.rel_pos_h, self.rel_pos_w = former.rel_pos_h, former.rel_pos_w

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, H, W, C) to the same shape."""
        batch, height, width, _ = tokens.shape
        heads = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        below, beside = self._distances(query, height, width)
        in_parts = tokens.device.type == "cpu" and batch == 1 and not torch.is_grad_enabled()
        attend = attend_in_parts if in_parts else attend_fused
        found = attend(query * self.scale, key, value, below, beside)
        joined: Tensor = self.proj(found.transpose(1, 2).reshape(batch, height, width, -1))
        return joined

    def _distances(self, query: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the terms that each query (B, heads, H·W, C) adds for keys in each row, (B, heads, H·W, H), and in each column, (B, heads,
        H·W, W).
        """
        grid = query.reshape(*query.shape[:2], height, width, -1)
        below = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, self.rel_pos_h))
        beside = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, self.rel_pos_w))
        return below.flatten(2, 3).to(query.dtype), beside.flatten(2, 3).to(query.dtype)


def attend_fused(query: Tensor, key: Tensor, value: Tensor, below: Tensor, beside: Tensor) -> Tensor:
    """Return what attention finds, (B, heads, H·W, C), in one fused call.

    ``query`` (already scaled), ``key`` and ``value`` have that shape; ``below`` and ``beside`` are the queries' terms for rows and columns.
    """
    height, width = below.shape[-1], beside.shape[-1]
    places = _places(height, width, key).expand(*key.shape[:2], -1, -1)
    return F.scaled_dot_product_attention(
        torch.cat([query, below, beside], -1),
        torch.cat([key, places], -1),
        F.pad(value, (0, height + width)),  # fused kernels want values as wide as keys
        scale=1.0,
    )[..., : value.shape[-1]]


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, below: Tensor, beside: Tensor) -> Tensor:
    """Return the same as :func:`attend_fused`, computed for QUERIES_AT_ONCE queries at a time, and without gradients."""
    found = torch.empty_like(query)
    for image, head in np.ndindex(*query.shape[:2]):
        own_key, own_value = key[image, head].T.contiguous(), value[image, head].contiguous()
        for start in range(0, query.shape[2], QUERIES_AT_ONCE):
            part = image, head, slice(start, start + QUERIES_AT_ONCE)
            scores = (below[part][:, :, None] + beside[part][:, None]).flatten(1)
            found[part] = scores.addmm_(query[part], own_key).softmax(-1) @ own_value
    return found


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """(H·W, H + W): each token's row and column as ones among zeros."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], -1)


def fuse_attention(model: Sam) -> Sam:
    """The same model, its image encoder's attention fused in place."""
    for block in model.image_encoder.blocks:
        if isinstance(block.attn, Attention) and block.attn.use_rel_pos:
            block.attn = FusedAttention(block.attn)
    return model
