"""Tiny random checkpoints of the real segmenter classes, each in the folder that its own ``save_pretrained`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DetrConfig,
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVisionConfig,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    Sam3VisionConfig,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
    TimmWrapperConfig,
)

from tests import tiny_concepts

SIDE = 64
SQUARE = {"height": SIDE, "width": SIDE}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
PYRAMID = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32}

write_sam3_video = tiny_concepts.write_sam3_video

Made = tuple[Any, Any]
"""A model and its processor."""


def _padded() -> SamImageProcessor:
    return SamImageProcessor(size={"longest_edge": SIDE}, pad_size=SQUARE)


def _first(config: Any, **decoder: int) -> Any:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "output_channels": 16,
        "mlp_dim": 32,
        "window_size": 4,
        "global_attn_indexes": [1, 2],
        "num_pos_feats": 8,
    }
    prompts = {**PROMPTS, "hidden_size": 16, "patch_size": 8}
    return config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config={**DECODER, "hidden_size": 16, **decoder})


def _sam() -> Made:
    return SamModel(_first(SamConfig)), SamProcessor(_padded())


def _sam_hq() -> Made:
    return SamHQModel(_first(SamHQConfig, vit_dim=16)), SamHQProcessor(_padded())


def _hiera() -> Sam2VisionConfig:
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    return Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], num_feature_levels=3, **PYRAMID)


def _sam2() -> Made:
    config = Sam2Config(vision_config=_hiera(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    return Sam2Model(config), Sam2Processor(Sam2ImageProcessor(size=SQUARE))


def _sam2_video() -> Made:
    """As SAM 2.1 lies on the hub: the video model, of which images need a part."""
    config = Sam2VideoConfig(
        vision_config=_hiera(),
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
        image_size=SIDE,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
    )
    return Sam2VideoModel(config), Sam2Processor(Sam2ImageProcessor(size=SQUARE))


def _sam3_tracker() -> Made:
    side = 56
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "pretrain_image_size": side,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    config = Sam3TrackerConfig(
        vision_config=Sam3VisionConfig(backbone_config=backbone, **PYRAMID),
        prompt_encoder_config={**PROMPTS, "image_size": side, "patch_size": 14},
        mask_decoder_config=DECODER,
    )
    return Sam3TrackerModel(config), Sam3TrackerProcessor(Sam3ImageProcessor(size={"height": side, "width": side}))


def _edgetam() -> Made:
    shape = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], "embed_dim": [8, 8, 8, 8], "depth": [1, 1, 1, 1]}
    backbone = TimmWrapperConfig(architecture="repvit_m1", model_args=shape)
    vision = EdgeTamVisionConfig(backbone_config=backbone, backbone_channel_list=[8, 8, 8, 8], **PYRAMID)
    config = EdgeTamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    return EdgeTamModel(config), Sam2Processor(Sam2ImageProcessor(size=SQUARE))


def _swin() -> SwinConfig:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return SwinConfig(  # type: ignore[call-arg]  # these classes take more than their typed fields
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_features=stages
    )


def _mask2former() -> Made:
    config = Mask2FormerConfig(  # type: ignore[call-arg]
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        num_labels=1,
    )
    size = {"shortest_edge": SIDE, "longest_edge": 3 * SIDE // 2}
    return Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor(size=size, pad_size={"height": 128, "width": 128})


def _maskformer() -> Made:
    decoder = DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
    )
    config = MaskFormerConfig(  # type: ignore[call-arg]
        fpn_feature_size=32, mask_feature_size=32, backbone_config=_swin(), decoder_config=decoder, num_labels=3
    )
    return MaskFormerForInstanceSegmentation(config), MaskFormerImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 3 * SIDE // 2})


def _eomt() -> Made:
    config = EomtConfig(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        num_queries=6,
        num_blocks=1,
        num_upscale_blocks=1,
        mlp_ratio=2,
        num_labels=3,
    )
    processor = EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    return EomtForUniversalSegmentation(config), processor


def _segformer() -> Made:
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(["Background", "cup", "bowl", "sky", "road"])),
    )
    return SegformerForSemanticSegmentation(config), SegformerImageProcessor(size=SQUARE)


_MADE: dict[str, Callable[[], Made]] = {
    "sam": _sam,
    "sam_hq": _sam_hq,
    "sam2": _sam2,
    "sam2_video": _sam2_video,
    "sam3_tracker": _sam3_tracker,
    "edgetam": _edgetam,
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "eomt": _eomt,
    "segformer": _segformer,
}
PROPOSING = ("mask2former", "maskformer", "eomt", "segformer")
PROMPTABLE = (*(name for name in _MADE if name not in PROPOSING), "sam3_video")


def make_segmenter(name: str, folder: Path) -> Path:
    """A random checkpoint with weights so large that masks have edges and predictions differ."""
    if name == "sam3_video":
        return write_sam3_video(folder)
    torch.manual_seed(11)
    model, processor = _MADE[name]()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if name == "sam" else 0.25)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
