"""An image with the text before it, as each family's model takes it: tokens, pixels and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint, Encoded

TALK = 1024
"""Tokens that are kept free after the image for the longest conversation about one phrase, where a model's context or window is short."""
_PIXELS = ("pixel_values", "image_sizes", "batch_num_images", "image_token_pooling", "image_grids", "image_num_crops", "mm_token_type_ids")
MAX_SQUASH = 4096
"""Longest side, in pixels, to which an image may be stretched; the tiles of no known model cover as much."""


def position_ids(positions: Tensor) -> Tensor:
    """Positions (rows, batch, T) in the shape that the model takes: (batch, T) where there is one row."""
    return positions[0] if len(positions) == 1 else positions


def alike(encoded: Sequence[Encoded]) -> list[list[int]]:
    """Group images that can go through the model in one batch, unpadded, because their inputs have the same shapes.

    Each group is a list of indices.
    """
    groups: dict[object, list[int]] = {}
    for index, one in enumerate(encoded):
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in one.inputs.items())
        groups.setdefault(shapes, []).append(index)
    return list(groups.values())


def with_text(encoded: Encoded, ids: Tensor, offsets: Tensor) -> dict[str, Tensor]:
    """Return the model's inputs for an encoded image and the text ``ids`` (T,) after it. ``offsets`` (T,) are the positions of the text,
    counted from the first position after the image.
    """
    inputs = {**encoded.inputs, "input_ids": torch.cat([encoded.inputs["input_ids"], ids[None]], 1)}
    if "mm_token_type_ids" in inputs:  # 0 is text; not every family has it
        inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, len(ids)))
    after = (offsets + int(encoded.positions.max()) + 1).expand(*encoded.positions.shape[:2], -1)
    return {**inputs, "position_ids": position_ids(torch.cat([encoded.positions, after], 2))}


def encode_qwen_vl(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for Qwen-VL from version 2 on, and for GLM-V: the placeholder is repeated for each merged patch, and positions have three rows
    (time, height, width). Raises ModelError as ``_repeat_placeholder`` does, and ValueError if the image processor refuses the image's
    shape.
    """
    config = checkpoint.model.config
    vision = checkpoint.image_processor(images=[image], return_tensors="pt")
    grid = vision["image_grid_thw"]
    merge, patch = config.vision_config.spatial_merge_size, config.vision_config.patch_size
    tokens = _repeat_placeholder(checkpoint, opening, int(grid[0].prod()) // merge**2)
    kinds = (tokens == config.image_token_id).int()
    positions, _ = checkpoint.model.model.get_rope_index(tokens, image_grid_thw=grid, mm_token_type_ids=kinds)
    inputs = {
        "input_ids": tokens,
        "pixel_values": vision["pixel_values"],
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }
    return Encoded(inputs, positions, (int(grid[0, 2]) * patch, int(grid[0, 1]) * patch))


def encode_qwen_vl_chat(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for Qwen-VL-Chat: the image is stretched to a square, and the placeholder repeated for each of the resampler's embeddings.

    Raises ModelError if the chat template and an image leave too little of the context for a conversation, and as ``_repeat_placeholder``
    does.
    """
    config = checkpoint.model.config
    vision = config.vision_config
    pixels = checkpoint.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    tokens = _repeat_placeholder(checkpoint, opening, vision.queries)
    length, most = tokens.shape[1], config.get_text_config().max_position_embeddings
    if length + TALK > most:
        raise ModelError(f"{checkpoint.source}: its chat template and an image take {length:,} of {most:,} tokens; shorten the template")
    return Encoded({"input_ids": tokens, "pixel_values": pixels}, torch.arange(length)[None, None], (vision.image_size, vision.image_size))


def encode_llava(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for LLaVA-NeXT and LLaVA-OneVision: the whole image, and tiles of an enlarged one whose padding the model cuts off again. The
    family's own processor counts the tokens of both. Raises ModelError as ``_squash`` does, and ModelError and ValueError as
    ``_encode_tiles`` does.
    """
    # imported here because it imports torchvision, which takes seconds
    from transformers.image_processing_utils import select_best_resolution  # noqa: PLC0415

    image = _squash(checkpoint, image)
    resolutions = checkpoint.image_processor.image_processor.image_grid_pinpoints
    height, width = select_best_resolution((image.height, image.width), resolutions)
    scale = min(width / image.width, height / image.height)
    resized = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return _encode_tiles(checkpoint, opening, image, resized)


def encode_internvl(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for InternVL: the image is stretched to the grid of tiles that is nearest to its shape, and a small whole image follows the
    tiles. Raises ModelError and ValueError as ``_encode_tiles`` does.
    """
    # imported here because it imports torchvision, which takes seconds
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas  # noqa: PLC0415

    tiles = checkpoint.image_processor.image_processor
    side = (tiles.size["height"], tiles.size["width"])
    columns, rows = get_optimal_tiled_canvas((image.height, image.width), side, tiles.min_patches, tiles.max_patches)
    return _encode_tiles(checkpoint, opening, image, (columns * side[1], rows * side[0]))


def encode_molmo2(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for Molmo 2: a small whole image, then overlapping crops of a larger one.

    The tokens of both see each other in both directions. Raises ModelError and ValueError as ``_encode_tiles`` does.
    """
    # imported here because it imports torchvision, which takes seconds
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry  # noqa: PLC0415

    crops = checkpoint.image_processor.image_processor
    side, patch = crops.size["height"], crops.patch_size
    *_, height, width = compute_crop_geometry(image.height, image.width, crops.max_crops, crops.overlap_margins, side, patch)
    encoded = _encode_tiles(checkpoint, opening, image, (width, height))
    return replace(encoded, mutual=encoded.inputs["mm_token_type_ids"][0] == 1)


def encode_gemma_4(checkpoint: Checkpoint, opening: str, image: Any) -> Encoded:
    """Encode for Gemma 4: the placeholder is repeated for each token into which neighbouring patches are pooled, between the tokens for an
    image's beginning and end. In some model sizes, image tokens also see those after them, in sliding-window layers. Raises ModelError as
    ``_repeat_placeholder`` does.
    """
    config = checkpoint.model.config
    vision = checkpoint.image_processor(images=[image], return_tensors="pt")
    count, positions = int(vision["num_soft_tokens_per_image"][0]), vision["image_position_ids"]
    tokens = _repeat_placeholder(checkpoint, opening, count, (config.boi_token_id,), (config.eoi_token_id,))
    kinds = (tokens == config.image_token_id).int()
    inputs = {
        "input_ids": tokens,
        "pixel_values": vision["pixel_values"],
        "image_position_ids": positions,
        "mm_token_type_ids": kinds,
    }
    width, height = ((positions[0].amax(0) + 1) * config.vision_config.patch_size).tolist()
    mutual = kinds[0] == 1 if config.get_text_config().use_bidirectional_attention == "vision" else None
    return Encoded(inputs, torch.arange(tokens.shape[1])[None, None], (width, height), mutual)


def _squash(checkpoint: Checkpoint, image: Any) -> Any:
    """Stretch the image to ``squash`` (width, height) pixels, if the image processor's configuration has that key; else leave it as it is.

    The adapters that the paper's authors published were trained on images stretched to 672 x 672. Raises ModelError if ``squash`` is not a
    size, or if the dialect's numbers are shares of a padded square.
    """
    sides = getattr(checkpoint.image_processor.image_processor, "squash", None)
    if sides is None:
        return image
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SQUASH for side in sides):
        raise ModelError(f"{checkpoint.source}: squash must be a width and a height of up to {MAX_SQUASH:,} pixels, not {sides!r:.80}")
    if checkpoint.dialect.frame == "square":
        raise ModelError(f"{checkpoint.source}: a squashed image is not padded; give a dialect.json whose frame is milli or unit")
    return image.resize(sides, Image.Resampling.BICUBIC)


def _repeat_placeholder(checkpoint: Checkpoint, opening: str, count: int, before: Sequence[int] = (), after: Sequence[int] = ()) -> Tensor:
    """Return the opening's tokens (1, T) with the image's placeholder repeated ``count`` times between the tokens ``before`` and ``after``.

    Raises ModelError unless the opening has exactly one placeholder.
    """
    placeholder: int = checkpoint.model.config.image_token_id
    ids: list[int] = checkpoint.tokenizer(opening, add_special_tokens=False)["input_ids"]
    if ids.count(placeholder) != 1:
        raise ModelError(f"{checkpoint.source}: the chat template must write the image token exactly once")
    at = ids.index(placeholder)
    return torch.tensor([[*ids[:at], *before, *[placeholder] * count, *after, *ids[at + 1 :]]])


def _encode_tiles(checkpoint: Checkpoint, opening: str, image: Any, resized: tuple[int, int]) -> Encoded:
    """Encode with the family's own processor, which cuts the image into tiles and repeats the placeholder for each of their tokens.

    Raises ModelError unless the opening has exactly one placeholder, and ValueError if the image takes too many tokens for the window.
    """
    processor, tokenizer = checkpoint.image_processor, checkpoint.tokenizer
    if opening.count(processor.image_token) != 1:
        raise ModelError(f"{checkpoint.source}: the chat template must write the image token {processor.image_token!r} exactly once")
    batch = processor(images=[image], text=[opening], add_special_tokens=False, return_tensors="pt")
    tokens = torch.cat([torch.tensor([first_ids(tokenizer, opening)], dtype=torch.int64), batch["input_ids"]], 1)
    length = tokens.shape[1]
    if checkpoint.window is not None and length + TALK > checkpoint.window:
        raise ValueError(f"it takes {length} tokens, and the model sees {checkpoint.window} at a time; use a smaller image")
    pixels = {name: batch[name] for name in _PIXELS if name in batch}
    return Encoded({"input_ids": tokens, **pixels}, torch.arange(length)[None, None], resized)


def first_ids(tokenizer: Any, opening: str) -> list[int]:
    """Return the beginning-of-text token, in a list, if the tokenizer adds it by itself and the opening lacks it; else an empty list."""
    first = tokenizer.bos_token_id
    written = tokenizer("")["input_ids"][:1] == [first] and not opening.startswith(tokenizer.bos_token)
    return [first] if first is not None and written else []
