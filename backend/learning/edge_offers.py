"""Offers of an edge for a label whose reviewers draw its outline elsewhere than the masks do. It applies once a user accepts it.

An edge (:class:`sam4mllm.edges.Edge`) says how far a mask's outline is moved, and whether holes are filled.
"""

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
"""Fewest edited pictures of a label for an offer. The smallest p that the sign-flip test of 8 can give is 2⁻⁸. In our trials, ten pictures
always sufficed to find a constant offset of three pixels.
"""
MOST_PICTURES = BOOTSTRAP_PAIRS - 1
"""Most pictures that an edge is fitted on, the last ones: for so many the exact sign-flip test is quick."""
MARGIN = MAX_OFFSET_PX + 2
SHOWN = 3
SIDE = 220
"""Most pixels of the longer side of an offer's example picture on the page."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EdgeOffer:
    """An offer to draw a project's label with ``edge`` instead of the ``present`` one, for the masks of one mask decoder.

    ``decoder`` is the hash of that decoder's adapter, empty if it has none. ``gain`` is the mean IoU with the reviewers' masks that the
    edge adds, cross-validated over ``pictures`` pictures; ``p`` is the probability of such a gain by chance. ``examples`` are PNG files as
    ``data:`` addresses: the served mask in grey, the reviewer's outline in blue, the offered one in orange.
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
        """A name that no other offer for the same decoder has, not even a later one for the same label with another edge."""
        return f"{self.project}:{self.label}: {self.edge}"


def groups(reviews: Iterable[Review], edges: Edges) -> dict[tuple[int, str], list[Review]]:
    """Return the edited reviews by project and label, the last one of each picture, in order; labels with too few are left out.

    A label with fewer than LEAST_PICTURES has too few. Only masks that were served under the reviewer's label by the mask decoder that
    serves now are compared: others were drawn with other edges. Masks that share no pixel with what was served (IoU 0) are left out, too.
    """
    found: defaultdict[tuple[int, str], dict[str, Review]] = defaultdict(dict)
    for review in sorted(reviews, key=in_order):
        comparable = review.label is not None and review.label == review.served_label and edges.drew(review.version)
        if review.outcome == "edited" and review.iou and comparable:
            found[review.project, review.label or ""][review.image] = review
    return {key: list(some.values()) for key, some in found.items() if len(some) >= LEAST_PICTURES}


def find_offer(reviews: Sequence[Review], edges: Edges) -> EdgeOffer | None:
    """Return the offer for one group of :func:`groups`, by its last MOST_PICTURES reviews; None if no other edge is surely better.

    The reviews must have their masks loaded.
    """
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
    """Return the edge that fits best, and the p of its cross-validated gain by the exact sign-flip test.

    ``ious`` are the tables of :func:`sam4mllm.edges.try_edges` for 2 to MOST_PICTURES pictures. None if the best edge is the present one,
    if it gains nothing on pictures that it was not fitted on, or if p is above LEVEL.
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
    # the reviewer's line is thicker, so that it stays visible on both sides where the offered one covers it
    for mask, colour, thickness in ((final, (196, 99, 36), 3 * thin), (offered, (0, 120, 240), thin)):
        large = cv2.resize(mask[crop].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, lines, -1, colour, thickness)
    shrink = min(1.0, SIDE / max(height, width))
    small = cv2.resize(canvas, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA)
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
