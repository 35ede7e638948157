"""The values that pass between the parts: groundings, prompts for the segmenter, masks and results.

Nothing here uses a model or imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sam4mllm.confidence import Features
from sam4mllm.errors import PhraseError, PromptError
from sam4mllm.masks import union

MAX_PHRASE = 500
"""Most characters of a phrase. The longest expression in refCOCOg has under 300."""
Pointed = Literal["", "refined", "alone"]


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


@dataclass(frozen=True, eq=False)
class SpokenPoints:
    """Points that the model wrote itself (PPG): ``inside_px`` (P, 2) and ``outside_px`` (Q, 2) float32."""

    inside_px: NDArray[np.float32] = field(default_factory=_no_points)
    outside_px: NDArray[np.float32] = field(default_factory=_no_points)


@dataclass(frozen=True, eq=False)
class Candidate:
    """An object that the segmenter found by a phrase itself: its ``mask`` (H, W) bool and its ``score`` in 0–1.

    ``support`` in 0–1: the IoU of the MLLM's box with the object's; 1 if the MLLM was not asked for one. ``stability``: as in
    :class:`Masks`; 1 if it is not known.
    """

    mask: NDArray[np.bool_]
    score: float
    support: float = 1.0
    stability: float = 1.0


@dataclass(frozen=True, eq=False)
class Grounding:
    """Where a phrase is in a scene.

    ``boxes_px`` (N, 4) float32 x1, y1, x2, y2; ``box_probabilities`` (N,) float64, the geometric mean probability of each box's
    tokens, or the segmenter's score where it found the boxes; ``no_target_probability``: probability of the answer that there is no such
    object; ``points``: N entries if they were asked for, else none. No box means that the model found no such object, or wrote nothing that
    could be read as a box. ``candidates``: N entries if the segmenter took the phrase, too, else none; each is what it found in that box,
    or None. ``boxless``: whether the model answered with points. Each box is then a point without width and height, which
    :mod:`sam4mllm.first_masks` replaces by a box.
    """

    phrase: str
    boxes_px: NDArray[np.float32]
    box_probabilities: NDArray[np.float64]
    no_target_probability: float
    points: tuple[SpokenPoints, ...] = ()
    note: str = ""
    """What a user should know of the answer: that it was cut off or could not be read. Empty if all is well."""
    candidates: tuple[Candidate | None, ...] = ()
    thought: str = ""
    """What the model thought before it answered, in its own words; empty if it did not think."""
    boxless: bool = False


@dataclass(frozen=True, eq=False)
class Prompt:
    """A box, points, or both, in pixels of the original image.

    ``box_px`` (4,) float32 x1, y1, x2, y2 or None; ``points_px`` (K, 2) float32; ``labels`` (K,) int64, 1 on the object, 0 off it;
    ``single``: the prompt leaves no doubt, so one candidate is enough (a segmenter that always has several may give them all).
    ``mask_logits`` (1, h, w) float32 or None: of an earlier mask of the same object, on the grid of the segmenter's own masks; a segmenter
    that was not made to look at them draws as if there were none.
    Raises PromptError if there is neither a box nor a point, the shapes do not match, a number is not finite, or a label is not 0 or 1.
    """

    box_px: NDArray[np.float32] | None
    points_px: NDArray[np.float32]
    labels: NDArray[np.int64]
    single: bool = False
    mask_logits: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.points_px.ndim != 2 or self.points_px.shape[1] != 2 or self.labels.shape != (len(self.points_px),):
            raise PromptError(f"points must be (K, 2) with (K,) labels, not {self.points_px.shape} with {self.labels.shape}")
        if self.box_px is not None and self.box_px.shape != (4,):
            raise PromptError(f"a box has four numbers, not {self.box_px.shape}")
        if self.box_px is None and not len(self.points_px):
            raise PromptError("a prompt needs a box or a point")
        if not np.isfinite(self.points_px).all() or (self.box_px is not None and not np.isfinite(self.box_px).all()):
            raise PromptError("a prompt's coordinates must be finite numbers")
        if self.mask_logits is not None and (self.mask_logits.ndim != 3 or len(self.mask_logits) != 1):
            raise PromptError(f"logits of a former mask are (1, h, w), not {self.mask_logits.shape}")
        if self.mask_logits is not None and not np.isfinite(self.mask_logits).all():
            raise PromptError("logits of a former mask must be finite numbers")
        if not np.isin(self.labels, (0, 1)).all():
            raise PromptError("a point's label is 1 (on the object) or 0 (off it)")


@dataclass(frozen=True, eq=False)
class Masks:
    """The candidate masks for one prompt, on the grid on which the segmenter draws; each is enlarged to the image only on request.

    ``coarse`` (N, h, w) bool, or (N, H, W) if the segmenter draws at the image's size; ``predicted_iou`` (N,) float64; ``stability`` (N,)
    float64, the overlap of the mask at a raised and at a lowered threshold. N is at least 1. ``enlarge`` takes a candidate's index and
    returns its mask (H, W) bool; it is None if ``coarse`` has the image's size.
    """

    coarse: NDArray[np.bool_]
    predicted_iou: NDArray[np.float64]
    stability: NDArray[np.float64]
    enlarge: Callable[[int], NDArray[np.bool_]] | None = None

    def mask(self, index: int) -> NDArray[np.bool_]:
        """(H, W) bool of one candidate."""
        return self.coarse[index] if self.enlarge is None else self.enlarge(index)

    @property
    def best(self) -> int:
        """Index of the candidate that the segmenter predicts to be best."""
        return int(self.predicted_iou.argmax())

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W) bool, all candidates. Where one is needed, take :meth:`mask`: of the usual three, this enlarges and holds all."""
        return self.coarse if self.enlarge is None else np.stack([self.mask(index) for index in range(len(self.coarse))])


@dataclass(frozen=True, eq=False)
class Instance:
    """One object found.

    ``box_px`` (4,) float32; ``points_px`` (K, 2) float32 all points asked or given; ``inside`` (K,) P(on the object); ``labels``
    (K,) int64, 1 and 0 for those that prompted the segmenter, -1 for those dropped; ``mask`` (H, W) bool; ``score`` in 0–1 with the
    ``features`` it comes from. ``pointed``: "refined" if a reviewer's click or box had a part in it, "alone" if it is made of clicks or a
    box only and is no part of the phrase, else empty. ``shown``: the index of the instance in :attr:`sam4mllm.clicks.Clicks.shown`, None if
    the reviewer was not shown it.
    """

    box_px: NDArray[np.float32]
    points_px: NDArray[np.float32]
    inside: NDArray[np.float64]
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    score: float
    features: Features
    pointed: Pointed = ""
    shown: int | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a phrase means in an image. No instances is the answer "no such object", unless a ``note`` says why it may not be.

    ``score`` is the least of its instances'; without instances it is that of :func:`sam4mllm.confidence.score_empty`, or 0 if there is a
    ``note``.

    ``version``: the version that answered. ``size``: (height, width) of the image. ``timings``: seconds for ``image``, ``box``, ``points``
    and ``segmenter``, of all phrases of the call together. Where the MLLM reads a new image with its first question, that is in ``box``.
    """

    phrase: str
    instances: tuple[Instance, ...]
    score: float
    no_target_probability: float
    version: str
    size: tuple[int, int]
    timings: dict[str, float]
    calibrated: bool = False
    """Whether the scores are probabilities that a reviewer accepts the masks; else they order, and are no probability."""
    note: str = ""
    """Why the answer may not be what it seems: unreadable, cut off, nothing drawn. Empty if all is well."""
    thought: str = ""
    """What the model thought before it answered."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, all instances together."""
        return union(np.array([instance.mask for instance in self.instances], np.bool_).reshape(-1, *self.size))


def check_phrase(phrase: str) -> str:
    """Return the phrase with each run of white space made one space, and none at its ends.

    Raises PhraseError if it is then empty or longer than MAX_PHRASE, or holds lone surrogates.
    """
    tidy = " ".join(phrase.split())
    try:
        tidy.encode()
    except UnicodeEncodeError as error:
        raise PhraseError("the phrase is not valid text; it holds half of a character") from error
    if not tidy:
        raise PhraseError("the phrase is empty; say what to find, for example: the left cup")
    if len(tidy) > MAX_PHRASE:
        raise PhraseError(f"the phrase has {len(tidy)} characters; at most {MAX_PHRASE} are allowed")
    return tidy
