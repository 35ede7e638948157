"""The sizes of Qwen-VL-Chat. Defaults are those of the published 7B checkpoint's config.json."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen2Config
from transformers.configuration_utils import SubConfigSpec

MODEL_TYPE = "qwen_vl_chat"
"""The ``model_type`` in a converted folder's config.json. The published one is ``qwen``, which Qwen's first text models have too."""
IMAGE_TOKEN = "<imgpad>"


@strict
class QwenVLChatVisionConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The configuration of the vision tower, ViT-bigG/14, and of the resampler that follows it.

    ``out_hidden_size`` is the width of the resampler, which equals the language model's; it is divided into ``resampler_heads`` heads (of
    128 each in the published checkpoint). ``queries`` is the number of embeddings that the resampler makes of an image.
    """

    model_type: ClassVar[str] = "qwen_vl_chat_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    patch_size: int = 14
    image_size: int = 448
    layer_norm_eps: float = 1e-6
    out_hidden_size: int = 4096
    resampler_heads: int = 32
    queries: int = 256
    initializer_range: float = 0.02

    @property
    def patches(self) -> int:
        """Tokens of an image before the resampler."""
        return int(self.image_size // self.patch_size) ** 2


@strict
class QwenVLChatConfig(PreTrainedConfig):
    """The configuration of the whole model. Its language model is a Qwen2 with as many key and value heads as query heads.

    The language model's ``max_position_embeddings`` is the number of positions, 2,048 in the published checkpoint (``seq_length``). A row
    of packed questions may have more tokens than that. Beyond these positions the published code scales the rotary base and the queries
    (dynamic NTK, logn), which is not implemented here; up to them, neither scaling changes anything.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=Qwen2Config, model_type="qwen2"),  # type: ignore[no-untyped-call]
        "vision_config": QwenVLChatVisionConfig,
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 151859
    tie_word_embeddings: bool = False
