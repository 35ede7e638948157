"""Tiny random checkpoints of the real classes that take phrases, as they lie on the hub: SAM 3 with and without its tracker, detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3Processor,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
)

SIDE = 112
GRID = SIDE // 14
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
VISION: dict[str, Any] = {
    "model_type": "sam3_vision_model",
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[4 * GRID] * 2, [2 * GRID] * 2, [GRID] * 2],
    "backbone_config": {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "pretrain_image_size": SIDE // 2,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
    },
}
DETECTOR: dict[str, Any] = {
    "vision_config": VISION,
    "geometry_encoder_config": {**SMALL, "num_layers": 1},
    "detr_encoder_config": {**SMALL, "num_layers": 1},
    "detr_decoder_config": {**SMALL, "num_layers": 2, "num_queries": 12},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2, "num_upsampling_stages": 2},
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TRACKER: dict[str, Any] = {
    "vision_config": VISION,
    "image_size": SIDE,
    "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 14, "mask_input_channels": 4},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
}
BERT = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""Where these tokens are in the vocabulary of bert-base-uncased; Grounding DINO counts on three of them."""


def _clip_tokenizer() -> CLIPTokenizer:
    """Each byte is a token, with another at a word's end."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def _text(model_type: str) -> dict[str, Any]:
    size = len(_clip_tokenizer())
    if model_type == "sam3":
        clip = {"model_type": "clip_text_model", "hidden_act": "gelu", "max_position_embeddings": 32}
        return {**TEXT, **clip, "vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    return {**TEXT, "num_hidden_layers": 3, "vocab_size": size, "max_position_embeddings": 32, "repmixer_kernel_size": 3}


def _bert_tokenizer() -> BertTokenizer:
    """Each letter is a token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {**BERT, **{letter: 200 + index for index, letter in enumerate(letters)}}
    vocabulary |= {f"##{letter}": 300 + index for index, letter in enumerate(letters)}
    taken = set(vocabulary.values())
    return BertTokenizer(vocab=vocabulary | {f"[unused{index}]": index for index in range(1100) if index not in taken})


def _scatter(model: torch.nn.Module, std: float) -> None:
    """Weights so large that masks have edges and predictions differ."""
    torch.manual_seed(5)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=std)


def write_sam3_video(folder: Path) -> Path:
    """SAM 3 as it is published: detector and tracker in one file, half a million random weights, with a tokenizer."""
    detector = Sam3Config(**DETECTOR, text_config=_text("sam3"))
    config = Sam3VideoConfig(detector_config=detector, tracker_config=Sam3TrackerVideoConfig(**TRACKER))
    model = Sam3VideoModel(config)
    _scatter(model, 0.25)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Sam3VideoModel"]
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})  # save_pretrained says tracker_model. twice
    images = Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    images.save_pretrained(folder)
    _clip_tokenizer().save_pretrained(folder)
    return folder


def write_sam3(folder: Path, model_type: str = "sam3") -> Path:
    """SAM 3's detector alone, with CLIP's text encoder (``sam3``) or a lighter one (``sam3_lite_text``)."""
    if model_type == "sam3":
        model: Any = Sam3Model(Sam3Config(**DETECTOR, text_config=_text(model_type)))
    else:
        model = Sam3LiteTextModel(Sam3LiteTextConfig(**DETECTOR, text_config=_text(model_type)))
    _scatter(model, 0.25)
    model.save_pretrained(folder)
    Sam3Processor(Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}), _clip_tokenizer()).save_pretrained(folder)
    return folder


def write_grounding_dino(folder: Path, model_type: str = "grounding-dino") -> Path:
    """A detector of ``model_type`` with 10 queries."""
    swin = {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3, 4],
    }
    small: dict[str, Any] = {
        "backbone_config": swin,
        "text_config": {
            "model_type": "bert",
            "vocab_size": 1100,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "d_model": 32,
        "num_queries": 10,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_text_len": 64,
    }
    torch.manual_seed(5)
    if model_type == "grounding-dino":
        model: Any = GroundingDinoForObjectDetection(GroundingDinoConfig(**small))
    else:
        model = MMGroundingDinoForObjectDetection(MMGroundingDinoConfig(**small))
    _scatter(model, 0.2)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(images, _bert_tokenizer()).save_pretrained(folder)
    return folder
