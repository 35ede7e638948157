"""Coordinate frames other than the dialect's, in which a model may have written the numbers of an answer; and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.frames import Framed
from sam4mllm.prompts.coordinates import FoundBox
from sam4mllm.prompts.dialects import Dialect

SLACK = 0.03
"""How far beyond the image, as a share of a side, a box may reach and still fit a frame; models overshoot a little (for example, they
write 1,000 where 999 is the highest number)."""
PADDING = 1 / 3
"""The largest share of a box that may lie in the padding of a padded square: a model that was shown the padding finds no objects there."""

_OWN_WORDS = {
    "milli": "thousandths of the image's sides",
    "resized": "pixels of the resized image",
    "unit": "shares of the image's sides",
    "square": "shares of the padded square",
}


@dataclass(frozen=True)
class Foreign:
    """A coordinate frame. ``sides`` returns the numbers that stand for the full width and height of an image, or, if ``square``, for the
    sides of the square to which the image is padded. ``words`` name the frame in a note.
    """

    words: str
    sides: Callable[[Framed], tuple[float, float]]
    square: bool = False

    def to_pixels(self, numbers: NDArray[np.float64], image: Framed) -> NDArray[np.float64]:
        """Convert numbers (2 or 4: x, y pairs) to pixels of the image. They may lie outside of it."""
        inner = np.array([image.width, image.height], np.float64)
        whole = np.full(2, inner.max()) if self.square else inner
        corner = (whole - inner) // 2
        scale, shift = (np.resize(pair, len(numbers)) for pair in (whole / np.array(self.sides(image), np.float64), corner))
        px: NDArray[np.float64] = numbers * scale - shift
        return px

    def note(self, dialect: Dialect) -> str:
        return f"the model gave {self.words} instead of {_OWN_WORDS[dialect.frame]}; they were rescaled"


class _Beyond(Foreign):
    """The dialect's own frame, where a box goes beyond it. Only its note is used, not its sides."""

    def note(self, dialect: Dialect) -> str:
        return f"the model gave a box that reaches beyond the image ({_OWN_WORDS[dialect.frame]}); it was cut at the edge"


BEYOND = _Beyond("", lambda image: (1, 1))
SHARES = Foreign("shares of the image's sides", lambda image: (1, 1))
SHARES_OF_SQUARE = Foreign("shares of the padded square", lambda image: (1, 1), square=True)
PERCENT = Foreign("percent of the image's sides", lambda image: (100, 100))
PERCENT_OF_SQUARE = Foreign("percent of the padded square", lambda image: (100, 100), square=True)
THOUSANDTHS = Foreign("thousandths of the image's sides", lambda image: (1000, 1000))
STEPS_1024 = Foreign("1,024ths of the image's sides", lambda image: (1024, 1024))
PIXELS = Foreign("pixels of the image", lambda image: (image.width, image.height))
RESIZED = Foreign("pixels of the resized image", lambda image: image.resized)

_OWN = {"milli": THOUSANDTHS, "resized": RESIZED, "unit": SHARES, "square": SHARES_OF_SQUARE}


def choose_frame(dialect: Dialect, image: Framed, boxes: Sequence[FoundBox]) -> Foreign | None:
    """Choose the frame of ``boxes``, which all have the same measure and are all shares or all not. None is the dialect's own frame.

    It is the first possible frame that all boxes fit. If they fit none, it is BEYOND where the dialect's own frame is possible (but pixels
    instead where the dialect's numbers are shares and pixels are possible), else pixels, else the first possible one.
    """
    own = _OWN[dialect.frame]
    measure = boxes[0].measure
    if measure:
        frames = _measured(dialect, image)[measure]
    elif boxes[0].as_shares:
        frames = [own, SHARES] if dialect.decimals else [SHARES]
    elif dialect.frame == "milli":
        frames = [own, RESIZED, PIXELS]
    elif dialect.frame == "resized":
        frames = [own, THOUSANDTHS, PIXELS]
    elif all(min(box.corners[2:]) > 1 for box in boxes):
        frames = [own, _percent(dialect), PIXELS, THOUSANDTHS, RESIZED]
    else:  # some numbers are shares, so the ones above 1 are taken for errors
        frames = [own]
    fitting = next((frame for frame in frames if all(_fits(frame, image, box) for box in boxes)), None)
    if fitting is None:
        return BEYOND if own in frames and not (dialect.decimals and PIXELS in frames) else PIXELS if PIXELS in frames else frames[0]
    return None if fitting is own else fitting


def _percent(dialect: Dialect) -> Foreign:
    return PERCENT_OF_SQUARE if dialect.frame == "square" else PERCENT


def _measured(dialect: Dialect, image: Framed) -> dict[str, list[Foreign]]:
    return {
        "%": [_percent(dialect)],
        "px": [RESIZED, PIXELS] if dialect.frame == "resized" else [PIXELS, RESIZED],
        "hundredths": [PERCENT],
        "milli": [THOUSANDTHS],
        "1024ths": [STEPS_1024],
    }


def _fits(frame: Foreign, image: Framed, box: FoundBox) -> bool:
    """Whether a box, read in a frame, lies in the image, give or take SLACK. In a padded square it must lie in the square and, but for the
    share PADDING, in the image.
    """
    sides = np.array([image.width, image.height], np.float64)
    if frame.square:
        shares = np.array(box.corners) / np.resize(np.array(frame.sides(image)), 4)
        px = frame.to_pixels(np.array(box.corners), image).reshape(2, 2)
        low, high = px.min(0), px.max(0)
        slack = SLACK * sides.max()
        inner = np.clip(np.minimum(high, sides + slack) - np.maximum(low, -slack), 0, None)
        return bool((shares >= -SLACK).all() and (shares <= 1 + SLACK).all() and inner.prod() >= (1 - PADDING) * (high - low).prod())
    px = frame.to_pixels(np.array(box.corners), image).reshape(2, 2)
    return bool((px >= -SLACK * sides).all() and (px <= (1 + SLACK) * sides).all())
