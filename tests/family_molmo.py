"""Molmo 2 as a tiny random checkpoint: a family that answers with points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
    PreTrainedTokenizerFast,
)

from sam4mllm.prompts.dialects import MOLMO2
from tests.family_base import VISION, Kind

TEMPLATE = (
    "{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<|image|>{% endif %}{% endfor %}"
    "{% for turn in messages %}{% if turn['role'] == 'user' %}{% if not loop.first %}{{ '<|im_end|>\n' }}{% endif %}<|im_start|>user\n"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %} {{ '<|im_start|>assistant\n' + turn['content'][0]['text'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The family's shape: the image comes before the first turn, and a stray space before a stored answer's."""
SIDE = 56
"""Of a crop in pixels: four patches of 14, of which two are its own and one on either side is shared with its neighbour."""
_TOKENS = (
    "<|im_start|>", "<im_patch>", "<im_col>", "<im_low>", "<im_start>", "<low_res_im_start>", "<im_end>",
    "<frame_start>", "<frame_end>", "<|video|>",
)  # fmt: skip
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
    find = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = Molmo2Config(
        text_config={**text, "head_dim": 16, "additional_vocab_size": 8, "rope_parameters": rope},
        vision_config={**VISION, **_HEADS, "image_size": [SIDE, SIDE], "patch_size": 14},
        adapter_config={"vision_feature_layer": [1, 0], "hidden_size": 32, **_HEADS, "intermediate_size": 48, "text_hidden_size": 32},
        image_start_token_id=find("<im_start>"),
        low_res_image_start_token_id=find("<low_res_im_start>"),
        image_end_token_id=find("<im_end>"),
        image_patch_id=find("<im_patch>"),
        frame_start_token_id=find("<frame_start>"),
        frame_end_token_id=find("<frame_end>"),
        tie_word_embeddings=False,
        initializer_range=text["initializer_range"],  # of the head, which else would hardly tell one token from another
    )
    Molmo2ForConditionalGeneration(config).save_pretrained(folder)
    Molmo2Processor(
        Molmo2ImageProcessor(size={"height": SIDE, "width": SIDE}, max_crops=4, overlap_margins=[1, 1]),
        Molmo2VideoProcessor(),
        tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


MOLMO = {
    "Molmo 2": Kind(
        "molmo2",
        MOLMO2,
        TEMPLATE,
        _TOKENS,
        "<|im_end|>",
        "<|image|>",
        _save,
    )
}
