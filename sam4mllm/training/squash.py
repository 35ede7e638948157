"""Pictures squashed to a square before the model's processor sees them, as the released recipe does."""

from __future__ import annotations

from PIL import Image

from sam4mllm.errors import TrainingError
from sam4mllm.prompts.dialects import Dialect


def check_squash(side_px: int | None, dialect: Dialect) -> None:
    """Raises TrainingError if squashing is on and the dialect's coordinates depend on the picture's shape, which squashing hides."""
    if side_px is not None and dialect.frame == "square":
        raise TrainingError(
            f"squash does not go with the dialect {dialect.name!r}, whose boxes are shares of the padded square: "
            "put a dialect.json in thousandths (frame milli) beside the model, or leave squash out"
        )


def squashed(image: Image.Image, side_px: int | None) -> Image.Image:
    """The picture with both sides of ``side_px``, by PIL's bicubic filter; as it is if that is None."""
    return image if side_px is None else image.resize((side_px, side_px), Image.Resampling.BICUBIC)
