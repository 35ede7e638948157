"""The whole model of Qwen-VL-Chat: an image's embeddings replace its placeholders in the text, and Qwen2's decoder reads the result.

The published decoder is Qwen2's under other names: it rotates positions by halves, has biases only on queries, keys and values, and has a
gated MLP.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel, Qwen2Config, Qwen2Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from sam4mllm.errors import PhraseError
from sam4mllm.qwen_vl_chat.config import MODEL_TYPE, QwenVLChatConfig, QwenVLChatVisionConfig
from sam4mllm.qwen_vl_chat.vision import QwenVLChatResampler, QwenVLChatTower


class QwenVLChatPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The base class of the two models below: the settings that transformers needs for both."""

    config_class = QwenVLChatConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012 – as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "QwenVLChatBlock", "QwenVLChatResampler"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        own = (QwenVLChatTower, QwenVLChatResampler)
        for weight in module.parameters(recurse=False) if isinstance(module, own) else ():
            init.normal_(weight, std=self.config.vision_config.initializer_range)


class QwenVLChatModel(QwenVLChatPreTrainedModel):
    """Tower, resampler and decoder, without the head."""

    def __init__(self, config: QwenVLChatConfig) -> None:
        super().__init__(config)
        text, vision = cast("Qwen2Config", config.text_config), cast("QwenVLChatVisionConfig", config.vision_config)
        self.visual = QwenVLChatTower(vision)
        self.resampler = QwenVLChatResampler(vision)
        self.language_model = Qwen2Model(text)
        self.post_init()  # type: ignore[no-untyped-call]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """(B, queries, hidden_size) from pixels (B, 3, image_size, image_size)."""
        found: Tensor = self.resampler(self.visual(pixel_values))
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Do what Qwen2Model's ``forward`` does, with images (B, 3, image_size, image_size) for the placeholders in ``input_ids`` (B, T).

        Only the highest position is limited, not the length of a row: packed questions that share a prefix begin at the same position.

        Raises:
            PhraseError: a token's position, counted from 0, is ``max_position_embeddings`` or more; never raised in training mode.
            ValueError: the number of placeholders is not the number of the images' embeddings, or images come without ``input_ids``.
        """
        if inputs_embeds is None:
            inputs_embeds = self.language_model.embed_tokens(input_ids)
        if pixel_values is not None:
            inputs_embeds = self._place(inputs_embeds, input_ids, self.embed_images(pixel_values))
        self._check_positions(position_ids, past_key_values, inputs_embeds.shape[1])
        outputs: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return outputs

    def _place(self, embeddings: Tensor, input_ids: Tensor | None, images: Tensor) -> Tensor:
        """Embeddings (B, T, hidden_size) with those of the images at the placeholders, in order."""
        places = (input_ids == self.config.image_token_id) if input_ids is not None else None
        if places is None or int(places.sum()) != images.shape[0] * images.shape[1]:
            raise ValueError(f"an image needs {images.shape[1]} placeholders in the text, one for each of its embeddings")
        return embeddings.masked_scatter(places[..., None], images.to(embeddings))

    def _check_positions(self, position_ids: Tensor | None, past_key_values: Any, length: int) -> None:
        if self.training:  # the published code scales nothing in training, however long the text
            return
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        highest = past + length - 1 if position_ids is None else int(position_ids.max())
        most = self.language_model.config.max_position_embeddings
        if highest >= most:
            raise PhraseError(
                f"image, question and answer come to {highest + 1:,} tokens, and Qwen-VL-Chat reads {most:,}; "
                "use a shorter phrase or fewer points"
            )


class QwenVLChatForConditionalGeneration(QwenVLChatPreTrainedModel, GenerationMixin):
    """The model with its head, which is not tied to the embeddings."""

    def __init__(self, config: QwenVLChatConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = QwenVLChatModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, vocabulary), or if ``logits_to_keep`` is a number above 0, those of that many last tokens.

        A tensor ``logits_to_keep`` selects tokens by their indices. The other arguments are QwenVLChatModel's.
        """
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[:, kept]),
            past_key_values=outputs.past_key_values,
        )


AutoConfig.register("qwen_vl_chat_vision", QwenVLChatVisionConfig, exist_ok=True)
AutoConfig.register(MODEL_TYPE, QwenVLChatConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLChatConfig, QwenVLChatForConditionalGeneration, exist_ok=True)
