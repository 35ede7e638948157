"""Where a team draws edges: a constant offset from the segmenter's masks, and whether holes are filled, fitted on few corrections.

Like a trained mask decoder, such a rule learns a convention and not to recognise objects; with one number and one flag it does so from
fewer pictures (for a constant offset of three pixels, ten pictures gain 0.08 of mean IoU). A rule may also fit noise, so it has to hold on
pictures that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.masks import mask_iou

MAX_OFFSET_PX = 8
OFFSETS_PX = tuple(sorted(range(-MAX_OFFSET_PX, MAX_OFFSET_PX + 1), key=abs))
"""All offsets, those nearest to 0 first, so that of edges that fit equally well the one that is moved least is taken."""

TIE = 1e-9
"""IoU that :func:`fit_edge` adds to the edges that fill holes, or leave them, as the known edge does, to break ties: far below what one
pixel changes.
"""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Edge:
    """An edge in relation to the segmenter's: moved outward by ``offset_px`` pixels of the image, or inward if that is negative.
    ``filled``: whether holes are filled. Raises ValueError if the offset is more than MAX_OFFSET_PX either way.
    """

    offset_px: int = 0
    filled: bool = False

    def __post_init__(self) -> None:
        if abs(self.offset_px) > MAX_OFFSET_PX:
            raise ValueError(f"an edge is moved by at most {MAX_OFFSET_PX} pixels, not {self.offset_px}")

    def __str__(self) -> str:
        side = f"{abs(self.offset_px)} px {'wider' if self.offset_px > 0 else 'narrower'}" if self.offset_px else ""
        return " and ".join(filter(None, (side, "without holes" if self.filled else ""))) or "as they are"


AS_DRAWN = Edge()
EDGES = tuple(Edge(offset, filled) for filled in (False, True) for offset in OFFSETS_PX)


class Outline:
    """A mask with its pixels' signed distances from its edge, from which it can be drawn at any number of edges."""

    def __init__(self, mask: Mask) -> None:
        """``mask`` is (H, W)."""
        self.mask = mask
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        empty = not len(rows)
        # no edge changes a pixel farther away than this
        pad = MAX_OFFSET_PX + 1
        self._crop = (slice(0, 0),) * 2 if empty else tuple(slice(max(0, some[0] - pad), some[-1] + 1 + pad) for some in (rows, columns))

    @cached_property
    def _plain(self) -> NDArray[np.float32]:
        return _signed_distance(self.mask[self._crop])

    @cached_property
    def _filled(self) -> NDArray[np.float32]:
        return _signed_distance(_fill(self.mask[self._crop]))

    def at(self, edge: Edge) -> Mask:
        """Return the mask (H, W) with its edge moved, and its holes filled, as ``edge`` says; unchanged if nothing would be left of it."""
        if edge == AS_DRAWN or not self.mask.any():
            return self.mask
        distance, offset = self._filled if edge.filled else self._plain, edge.offset_px
        moved = distance <= offset if offset >= 0 else distance < offset
        if not moved.any():
            return self.mask
        whole = np.zeros_like(self.mask)
        whole[self._crop] = moved
        return whole


def draw_edge(mask: Mask, edge: Edge) -> Mask:
    """Return a mask (H, W) with its edge moved, and its holes filled, as ``edge`` says; unchanged if nothing would be left of it."""
    return Outline(mask).at(edge)


def try_edges(drawn: Mask, corrected: Mask, known: Edge = AS_DRAWN) -> NDArray[np.float64]:
    """Return (len(EDGES),) the IoU of a reviewer's mask, ``corrected``, with the mask that would have been drawn at each edge.

    ``drawn`` is the mask that was drawn at the edge ``known``. To try an edge, ``drawn`` is moved by the difference of the two offsets, but
    never by more than MAX_OFFSET_PX. Holes that were filled in ``drawn`` stay filled at every edge.
    """
    outline = Outline(drawn)

    def moved(edge: Edge) -> Mask:
        offset = max(-MAX_OFFSET_PX, min(MAX_OFFSET_PX, edge.offset_px - known.offset_px))
        return outline.at(Edge(offset, edge.filled))

    return np.array([mask_iou(moved(edge), corrected) for edge in EDGES])


@dataclass(frozen=True)
class EdgeFit:
    """The ``edge`` with the greatest mean IoU over all N pictures, and ``gains`` (N,): by how much each picture's IoU is greater at the
    edge that fits the other pictures best than at the edge ``known`` of :func:`fit_edge`.
    """

    edge: Edge
    gains: NDArray[np.float64]


def fit_edge(ious: Sequence[NDArray[np.float64]] | NDArray[np.float64], known: Edge = AS_DRAWN) -> EdgeFit:
    """Fit an edge on at least two pictures, given for each what :func:`try_edges` returns for it.

    ``known`` is the edge from which the gains are counted, such as the one in use now. The masks of single pictures may have been drawn at
    other edges, which only :func:`try_edges` has to know.
    """
    table = np.asarray(ious, np.float64)
    # masks that were served filled say nothing of holes: of equally good edges, one that is filled as the known one is taken
    table = table + TIE * np.array([edge.filled == known.filled for edge in EDGES])
    total = table.sum(0)
    rest = (total[None] - table).argmax(1)
    own = np.arange(len(table))
    return EdgeFit(EDGES[int(total.argmax())], table[own, rest] - table[:, EDGES.index(known)])


def _signed_distance(mask: Mask) -> NDArray[np.float32]:
    """Return each pixel's distance from the mask (H, W) in pixels: positive outside of it, and negative inside."""
    inside = mask.astype(np.uint8)
    outward, inward = (cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (1 - inside, inside))
    return np.asarray(outward - inward, dtype=np.float32)


def _fill(mask: Mask) -> Mask:
    filled = np.zeros(mask.shape, np.uint8)
    outer, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, outer, -1, 1, cv2.FILLED)
    return np.asarray((filled > 0) | mask)
