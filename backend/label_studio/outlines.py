"""Whether an outline (a polygon or a rectangle) was made from a given mask.

The region's id does not tell: a region that clicks refine in place keeps its id but shows the outline of another mask.
"""

from __future__ import annotations

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.read_regions import Mask, from_region
from backend.label_studio.write_regions import values_of
from sam4mllm.masks import mask_iou
from sam4mllm.run_lengths import Rle, from_rle

SAME_OUTLINE = 0.95
"""Filled outlines with at least this IoU count as the same: Label Studio rounds coordinates, which shows in small outlines."""


def is_outline_of(region: Rle, mask: Rle, config: LabelConfig) -> bool:
    """Whether a region's filled outline is one of those that the config's mask control would show for ``mask``."""
    height, width = mask["size"]
    if region["size"] != mask["size"]:
        return False
    drawn, whole = (from_rle(one, height, width, max_pixels=height * width) for one in (region, mask))
    return any(mask_iou(again, drawn) >= SAME_OUTLINE for again in _redrawn(whole, config))


def _redrawn(mask: Mask, config: LabelConfig) -> list[Mask]:
    height, width = mask.shape
    size = {"original_height": height, "original_width": width, "type": config.mask.type}
    return [from_region({**size, "value": value}, config, height * width)[0] for value in values_of(mask, config.mask.drawing)]
