"""The glyph sheet: everyday things cut from the Noto Color Emoji font (OFL), shipped as one PNG so that scenes need no font."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ASSETS = Path(__file__).parent / "assets"

COLOURS = ("red", "yellow", "green", "blue", "purple")
# The hues, in degrees, that everybody would call by each of COLOURS; a hue in the gaps between them has no colour name.
HUE_RANGES = ((345.0, 375.0), (42.0, 66.0), (80.0, 160.0), (190.0, 250.0), (262.0, 318.0))
COLOUR_SHARE = 0.6
"""A thing has a colour if at least this share of its opaque pixels has one of that colour's hues and is saturated and bright enough."""


@dataclass(frozen=True, eq=False)
class Glyph:
    """One thing that a scene can show.

    ``index`` is the number of its cell in the sheet, counted row by row from 0. ``rgba`` is (S, S, 4) uint8, not premultiplied. ``kind`` is
    ``known`` (training shows it, and phrases name it), ``novel`` (kept out of training, for tests) or ``nameless`` (training shows it, but
    no phrase names it: ``noun`` is empty).
    """

    index: int
    kind: str
    noun: str
    rgba: NDArray[np.uint8]


@functools.cache
def load_glyphs() -> tuple[Glyph, ...]:
    """All glyphs of the sheet, in its order."""
    layout = json.loads((ASSETS / "glyphs.json").read_text(encoding="utf-8"))
    sheet = np.array(Image.open(ASSETS / "glyphs.png"))
    cell, columns = layout["cell"], layout["columns"]
    glyphs = []
    for index, entry in enumerate(layout["glyphs"]):
        top, left = index // columns * cell, index % columns * cell
        rgba = np.ascontiguousarray(sheet[top : top + cell, left : left + cell])
        glyphs.append(Glyph(index, entry["kind"], entry["noun"], rgba))
    return tuple(glyphs)


@functools.cache
def glyphs_of(kind: str) -> tuple[Glyph, ...]:
    """The glyphs of one kind: ``known``, ``novel`` or ``nameless``."""
    return tuple(glyph for glyph in load_glyphs() if glyph.kind == kind)


@functools.cache
def thumbnail(index: int) -> NDArray[np.uint8]:
    """A glyph at (24, 24, 4), enough to tell its colour by."""
    return np.asarray(cv2.resize(load_glyphs()[index].rgba, (24, 24), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def known_nouns() -> list[str]:
    """The nouns that the demo model was trained on."""
    return [glyph.noun for glyph in glyphs_of("known")]


def novel_nouns() -> list[str]:
    """The nouns that the demo model has never seen, nor their pictures."""
    return [glyph.noun for glyph in glyphs_of("novel")]


def rotate_hue(rgba: NDArray[np.uint8], degrees: float, brightness: float) -> NDArray[np.uint8]:
    """Turn the hue of (H, W, 4) uint8 by a rotation about the grey axis of RGB and scale its brightness; alpha stays."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    third, root = (1.0 - cos) / 3.0, np.sqrt(1.0 / 3.0) * sin
    matrix = np.array(
        [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ],
        dtype=np.float32,
    )
    turned = rgba.copy()
    turned[..., :3] = np.clip(rgba[..., :3].astype(np.float32) @ (matrix.T * brightness), 0, 255).astype(np.uint8)
    return turned


def colour_of(rgba: NDArray[np.uint8]) -> str:
    """The name of the colour of (H, W, 4) uint8, or an empty string if no single name fits."""
    opaque = rgba[..., 3] > 127
    if not opaque.any():
        return ""
    hsv = cv2.cvtColor((rgba[..., :3][opaque][None].astype(np.float32)) / 255.0, cv2.COLOR_RGB2HSV)[0]
    vivid = (hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.25)
    hue = hsv[:, 0]
    for name, (low, high) in zip(COLOURS, HUE_RANGES, strict=True):
        inside = ((hue >= low) & (hue <= high)) | ((hue + 360 >= low) & (hue + 360 <= high))
        if float((vivid & inside).mean()) >= COLOUR_SHARE:
            return name
    return ""
