"""Offers of an edge: where a label's reviewers draw it, if that is not where the masks end. Nothing is adopted without a press."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.corrections.decisions import union_of
from backend.corrections.reviews import Review, in_order
from backend.learning.paired_tests import BOOTSTRAP_PAIRS, LEVEL, sign_flip_p
from backend.serving.edges import Edges
from sam4mllm.edges import AS_DRAWN, MAX_OFFSET_PX, Edge, EdgeFit, draw_edge, fit_edge, try_edges

LEAST_PICTURES = 8
"""Edited pictures of a label; of 8 the smallest p is 2⁻⁸, and at three pixels an offset is found in all trials with ten."""
MOST_PICTURES = BOOTSTRAP_PAIRS - 1
"""The last ones, of which the exact test is quick."""
MARGIN = MAX_OFFSET_PX + 2
SHOWN = 3
SIDE = 220
"""Pixels of a picture on the page, at most."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EdgeOffer:
    """Reviewers of a project's label draw it with another ``edge`` than the ``present`` one, on masks by the decoder that has the adapter
    ``decoder`` (empty for none).

    ``gain``: the mean IoU with their masks that it brings, on pictures that it was not fitted on, by so many ``pictures``; ``p``: how
    often chance would do as much. ``examples``: PNG files in ``data:`` addresses: the served mask in grey, the reviewer's outline in
    blue, the offered one in orange.
    """

    project: int
    label: str
    edge: Edge
    present: Edge
    gain: float
    p: float
    pictures: int
    examples: tuple[str, ...] = ()
    decoder: str = ""

    @property
    def name(self) -> str:
        """What tells it from any other, a later one of the same label too."""
        return f"{self.project}:{self.label}: {self.edge}"


def groups(reviews: Iterable[Review], edges: Edges) -> dict[tuple[int, str], list[Review]]:
    """The edited reviews by project and label, of each picture one, in order; labels with too few are left out.

    What was served under another label, or under none, was drawn with the edge of that; and by another mask decoder than serves now, with
    that one's edges.
    """
    found: defaultdict[tuple[int, str], dict[str, Review]] = defaultdict(dict)
    for review in sorted(reviews, key=in_order):
        comparable = review.label is not None and review.label == review.served_label and edges.drew(review.version)
        if review.outcome == "edited" and review.iou and comparable:
            found[review.project, review.label or ""][review.image] = review
    return {key: list(some.values()) for key, some in found.items() if len(some) >= LEAST_PICTURES}


def find_offer(reviews: Sequence[Review], edges: Edges) -> EdgeOffer | None:
    """The offer to one group by its last MOST_PICTURES reviews, which are with their masks; None if its edge is well where it is."""
    reviews = reviews[-MOST_PICTURES:]
    if len(reviews) < LEAST_PICTURES:
        return None
    project, label, decoder = reviews[0].project, reviews[0].label or "", edges.decoder
    present = edges.of(project, label, decoder)
    known = [edges.at(review.version, project, label) for review in reviews]
    found = fit_guarded([try_edges(*_masks(review), at) for review, at in zip(reviews, known, strict=True)], present)
    if found is None:
        return None
    fitted, p = found
    examples = tuple(_picture(*_masks(review), fitted.edge, at) for review, at in list(zip(reviews, known, strict=True))[-SHOWN:])
    return EdgeOffer(project, label, fitted.edge, present, float(fitted.gains.mean()), p, len(reviews), examples, decoder)


def fit_guarded(ious: Sequence[NDArray[np.float64]], present: Edge = AS_DRAWN) -> tuple[EdgeFit, float] | None:
    """The best edge of pictures, from 2 to MOST_PICTURES, by their tables of :func:`sam4mllm.edges.try_edges`, and the p of its gain on
    pictures that it was not fitted on, by the exact sign-flip test; None if it is the present one, or p is above LEVEL.
    """
    fitted = fit_edge(ious, present)
    if fitted.edge == present or fitted.gains.mean() <= 0:
        return None
    p = sign_flip_p(fitted.gains)
    return (fitted, p) if p <= LEVEL else None


def _masks(review: Review) -> tuple[Mask, Mask]:
    """What was served for the phrase, and what the reviewer made of it, cut to where an edge of either may lie: (h, w) each."""
    size = (review.height, review.width)
    served, final = (union_of(some, size) for some in (review.served, review.instances))
    rows, columns = (np.flatnonzero((served | final).any(axis)) for axis in (1, 0))
    crop = tuple(slice(max(0, some[0] - MARGIN), some[-1] + 1 + MARGIN) if len(some) else slice(0, 1) for some in (rows, columns))
    return served[crop].copy(), final[crop].copy()


def _picture(served: Mask, final: Mask, edge: Edge, known: Edge) -> str:
    offset = max(-MAX_OFFSET_PX, min(MAX_OFFSET_PX, edge.offset_px - known.offset_px))
    offered = draw_edge(served, Edge(offset, edge.filled))
    rows, columns = (np.flatnonzero((served | final | offered).any(axis)) for axis in (1, 0))
    crop = tuple(slice(max(0, some[0] - 4), some[-1] + 5) for some in (rows, columns))
    scale = max(1, round(SIDE / max(served[crop].shape)))
    height, width = (scale * side for side in served[crop].shape)
    canvas = np.full((*served[crop].shape, 3), 255, np.uint8)
    canvas[served[crop]] = 205
    canvas = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    thin = 1 if max(canvas.shape) < SIDE else 2
    # where both are at one place the offered one lies in the middle of the other
    for mask, colour, thickness in ((final, (196, 99, 36), 3 * thin), (offered, (0, 120, 240), thin)):
        large = cv2.resize(mask[crop].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, lines, -1, colour, thickness)
    shrink = min(1.0, SIDE / max(height, width))
    small = cv2.resize(canvas, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA)
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
