"""The image encoder: a vision tower with one token for each patch, and a resampler that turns them into a fixed number of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4mllm.qwen_vl_chat.config import QwenVLChatVisionConfig


class QwenVLChatAttention(nn.Module):
    """Softmax attention of ``heads`` heads without a mask; every projection has a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, Q, width) from queries (B, Q, width), keys and values (B, K, width)."""
        query, key, value = self._split(self.q_proj(queries)), self._split(self.k_proj(keys)), self._split(self.v_proj(values))
        found: Tensor = self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return found

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class QwenVLChatMlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return found


class QwenVLChatBlock(nn.Module):
    """A block of the tower, normalised before attention and before the MLP."""

    def __init__(self, config: QwenVLChatVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = QwenVLChatAttention(width, config.num_attention_heads)
        self.mlp = QwenVLChatMlp(width, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, patches, width) to the same shape."""
        normed = self.norm1(hidden)
        hidden = hidden + self.attn(normed, normed, normed)
        found: Tensor = hidden + self.mlp(self.norm2(hidden))
        return found


class QwenVLChatTower(nn.Module):
    """ViT-bigG/14 without a class token, and without a normalisation after the last block.

    ``positions`` (patches, width) has one row for each patch of an image of ``image_size``. The published table is a coarser grid, which
    the conversion enlarges.
    """

    def __init__(self, config: QwenVLChatVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.positions = nn.Parameter(torch.zeros(config.patches, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.blocks = nn.ModuleList(QwenVLChatBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, patches, hidden_size) from normalised pixels (B, 3, image_size, image_size)."""
        patches: Tensor = self.patch_embed(pixel_values.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        hidden: Tensor = self.norm(patches + self.positions)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class QwenVLChatResampler(nn.Module):
    """One cross-attention layer from learned queries to the patches, without a residual. Positions are added to queries and keys only."""

    def __init__(self, config: QwenVLChatVisionConfig) -> None:
        super().__init__()
        width, eps = config.out_hidden_size, config.layer_norm_eps
        self.query = nn.Parameter(torch.zeros(config.queries, width))
        self.query_positions = nn.Parameter(torch.zeros(config.queries, width), requires_grad=False)
        self.key_positions = nn.Parameter(torch.zeros(config.patches, width), requires_grad=False)
        self.kv_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.norm_q, self.norm_kv, self.norm_post = (nn.LayerNorm(width, eps) for _ in range(3))
        self.attn = QwenVLChatAttention(width, config.resampler_heads)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, queries, out_hidden_size) from the tower's (B, patches, hidden_size)."""
        values = self.norm_kv(self.kv_proj(patches))
        queries = (self.norm_q(self.query) + self.query_positions).expand(len(patches), -1, -1)
        found: Tensor = self.proj(self.norm_post(self.attn(queries, values + self.key_positions, values)))
        return found
