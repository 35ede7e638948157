"""A family of MLLMs: checkpoints whose config.json says ``"model_type": "lantern_vl"``.

Lantern has the layers of Qwen3-VL and a dialect of its own, which is the wording of questions and answers. A family with other layers
registers its own transformers classes instead, and one with another vision tower brings its own ``encode`` function.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from sam4mllm.grounding.encoders import encode_qwen_vl
from sam4mllm.grounding.families import Family
from sam4mllm.prompts.dialects import Dialect


class LanternConfig(Qwen3VLConfig):  # type: ignore[no-untyped-call]
    model_type = "lantern_vl"


class LanternForConditionalGeneration(Qwen3VLForConditionalGeneration):  # type: ignore[no-untyped-call]
    config_class = LanternConfig


AutoConfig.register(LanternConfig.model_type, LanternConfig)
AutoModelForImageTextToText.register(LanternConfig, LanternForConditionalGeneration)

DIALECT = Dialect(
    name="lantern",
    box_question="find {phrase}",
    prompt_question="mark {phrase}",
    points_head="in {box} ",
    box="[{x1} {y1} {x2} {y2}]",
    point="{x} {y}",
    frame="milli",
    points_view="close-up",
    answer_separator=" ",
    yes="yes",
    no="no",
)
"""How Lantern is asked and how it answers, as in its training. A box is written as ``[012 345 678 901]``, in thousandths of the image's
sides."""

FAMILY = Family(
    DIALECT,
    encode_qwen_vl,
    lora_targets=r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    r"|model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
)
