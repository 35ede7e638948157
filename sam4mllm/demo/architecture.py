"""The shapes of the demo's MLLM and segmenter: real classes, made small. Sizes are ours, chosen to train on two CPU cores."""

from __future__ import annotations

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

PATCH = 16
MERGE = 2
MAX_PIXELS = 288 * 288
MIN_PIXELS = 224 * 224
HIDDEN = 192
HEADS = 6
LANGUAGE_LAYERS = 6
POSITIONS_PER_SIDE = 18

SEGMENTER_SIZE = 384
SEGMENTER_PATCH = 8
SEGMENTER_DIM = 128


def mllm_config(vocabulary: int, image_token: int, vision_start: int, vision_end: int, end: int, pad: int) -> Qwen3VLConfig:
    """The demo MLLM, 5 M parameters.

    Qwen3-VL and not Qwen2-VL: its tower has learned absolute positions, resampled to any grid. Qwen2-VL's has only relative ones,
    and from scratch its boxes stayed at the blind guess for as long as we looked.
    """
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LANGUAGE_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HIDDEN // HEADS,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 6,
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_heads": HEADS,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": POSITIONS_PER_SIDE**2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "deepstack_visual_indexes": [],
        },
        image_token_id=image_token,
        video_token_id=pad,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=True,
    )


def build_mllm(config: Qwen3VLConfig) -> Qwen3VLForConditionalGeneration:
    """The demo MLLM with random weights."""
    return Qwen3VLForConditionalGeneration(config)


def build_segmenter(size: int = SEGMENTER_SIZE) -> Sam:
    """The demo segmenter with random weights: segment-anything's own classes, an embedding of 48×48, masks of 192×192."""
    grid = size // SEGMENTER_PATCH
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=SEGMENTER_PATCH,
            embed_dim=144,
            depth=4,
            num_heads=4,
            mlp_ratio=3,
            out_chans=SEGMENTER_DIM,
            qkv_bias=True,
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(3,),
            norm_layer=nn.LayerNorm,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=SEGMENTER_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=SEGMENTER_DIM, mlp_dim=256, num_heads=4),
            transformer_dim=SEGMENTER_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
        pixel_mean=[127.5] * 3,
        pixel_std=[127.5] * 3,
    )
