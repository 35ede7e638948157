"""The sizes of Qwen-VL-Chat. Defaults are those of the published 7B checkpoint's config.json."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen2Config
from transformers.configuration_utils import SubConfigSpec

MODEL_TYPE = "qwen_vl_chat"
"""In the config.json of a converted folder; the published one says ``qwen``, as that of Qwen's first text models does."""
IMAGE_TOKEN = "<imgpad>"


@strict
class QwenVLChatVisionConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The vision tower, ViT-bigG/14, and the resampler behind it.

    ``out_hidden_size`` is the width of the resampler, which is the language model's; ``resampler_heads`` of 128 each share it.
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
    """The whole model; its language model is Qwen2's with as many key heads as heads.

    The language model's ``max_position_embeddings`` is a limit, 2,048 in the published checkpoint (``seq_length``): beyond it the published
    code scales the rotary base and the queries (dynamic NTK, logn), and up to it both are the identity.
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
