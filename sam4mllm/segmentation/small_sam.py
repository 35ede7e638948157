"""The demo's segmenter: segment-anything's own classes, made small. Sizes are ours, chosen to train on two CPU cores."""

from __future__ import annotations

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

SEGMENTER_SIZE = 384
SEGMENTER_PATCH = 8
SEGMENTER_DIM = 128


def build_segmenter(size: int = SEGMENTER_SIZE) -> Sam:
    """The demo segmenter with random weights, for a square input of ``size`` pixels a side.

    At the default size its embedding has 48×48 cells, and its masks have 192×192.
    """
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
