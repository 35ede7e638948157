"""From prompts to instances: the segmenter draws each target, the options choose among its masks, and each is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm.clicks import PromptTarget
from sam4mllm.confidence import Features, agreement, entropy
from sam4mllm.masks import box_of, clean, mask_iou
from sam4mllm.options import Options
from sam4mllm.points import UNSAID, are_alike
from sam4mllm.segmentation.former import mask_logits_of
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Candidate, Instance, Masks, Prompt

PROMPTS_AT_ONCE = 16
"""Most prompts that are decoded in one batch. Their masks are enlarged to the image's size one after the other."""
CLEAR = 2
"""Least number of points with which the prompt of a box is unambiguous. With the choice ``single`` the segmenter then gives one mask:
SAM's authors take its single mask where there is more than one prompt."""

SMALL_BOX = 0.03
"""Longest side, as a share of the image's longer side, of a box that is drawn again as a click if the segmenter draws nothing in it. It is
six cells of the demo segmenter's masks and eight of SAM's; our choice.
"""


@dataclass(frozen=True)
class Drawing:
    """A segmenter and the options with which it is used.

    ``learned``: whether the MLLM that judged the points was trained to judge points.
    """

    segmenter: Segmenter
    options: Options
    learned: bool

    def draw(
        self,
        embedding: Embedding,
        targets: list[list[PromptTarget]],
        present: Sequence[float],
        judge: Callable[[Features], float],
        compared: bool,
    ) -> list[list[Instance]]:
        """Return the instances of each phrase. The prompts are decoded in batches; the options choose among the masks of each, and
        instances with an empty mask are left out. A target with a ``standing`` mask, which the segmenter found by itself, keeps that mask
        and is not decoded. Every mask is tidied by :func:`~sam4mllm.masks.clean`. Errors of the segmenter pass through.

        Args:
            embedding: the image, as the segmenter took it in.
            targets: for each phrase, its targets.
            present: for each phrase, the probability that the image shows what it means.
            judge: gives the score for an instance's features.
            compared: whether a box with points is also drawn without them, for the feature ``box_agreement``.
        """
        flat = [(target, chance) for found, chance in zip(targets, present, strict=True) for target in found]
        at_once = PROMPTS_AT_ONCE // 2 if compared else PROMPTS_AT_ONCE
        instances: list[Instance] = []
        for start in range(0, len(flat), at_once):
            some = flat[start : start + at_once]
            drawn = iter(self._decode(embedding, [target for target, _ in some if target.standing is None], compared))
            for target, chance in some:
                masks, of_box = next(drawn) if target.standing is None else (_as_masks(target.standing), None)
                instances.append(_instance(target, chance, masks, self._choose(target, masks), of_box, judge))
        following = iter(instances)
        by_phrase = [[next(following) for _ in found] for found in targets]
        return [[instance for instance in found if instance.mask.any()] for found in by_phrase]

    def masks(self, embedding: Embedding, targets: Sequence[PromptTarget]) -> Iterator[NDArray[np.bool_]]:
        """Yield the mask (H, W) drawn from each target's box and points so far; by it the pipeline chooses the next points to ask about."""
        for start in range(0, len(targets), PROMPTS_AT_ONCE):
            some = targets[start : start + PROMPTS_AT_ONCE]
            for target, (masks, _) in zip(some, self._decode(embedding, some, compared=False), strict=True):
                yield masks.mask(self._choose(target, masks))

    def _choose(self, target: PromptTarget, masks: Masks) -> int:
        """Return the index of the mask that is taken for a target: the one with the highest predicted IoU.

        With the choice ``agreement`` the predicted IoU is multiplied by the share of the judged points that the mask agrees with. If the
        MLLM was not trained to judge points, only those points count that became prompts.
        """
        if self.options.choice != "agreement":
            return masks.best
        counts = target.inside != UNSAID if self.learned else target.labels >= 0
        points_px, said = target.points_px[counts], (target.inside[counts] >= 0.5).astype(np.int64)
        return int((masks.predicted_iou * [agreement(mask, points_px, said) for mask in masks.masks]).argmax())

    def _decode(self, embedding: Embedding, targets: Sequence[PromptTarget], compared: bool) -> list[tuple[Masks, Masks | None]]:
        """Return for each target its masks, and the masks of its box alone, or None if ``compared`` is false or the prompt is not a box
        with points.
        """
        if not targets:
            return []
        prompts = [self._prompt(embedding, target) for target in targets]
        compared_to = [index for index, prompt in enumerate(prompts) if compared and prompt.box_px is not None and len(prompt.labels)]
        bare = [Prompt(prompts[index].box_px, np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) for index in compared_to]
        decoded = self.segmenter.decode(embedding, [*prompts, *bare])
        of_box = dict(zip(compared_to, decoded[len(prompts) :], strict=True))
        drawn = self._with_clicks(embedding, prompts, decoded[: len(prompts)])
        return [(masks, of_box.get(index)) for index, masks in enumerate(drawn)]

    def _with_clicks(self, embedding: Embedding, prompts: Sequence[Prompt], drawn: Sequence[Masks]) -> list[Masks]:
        """Return the masks, but draw a small box again as a click if its mask is empty and no point of it is labelled as off the object.

        The click is on the prompt's points, or on the middle of the box if it has none.
        """
        small = SMALL_BOX * max(embedding.width, embedding.height)
        clicks = {
            index: _as_click(prompt.box_px, prompt.points_px)
            for index, (prompt, masks) in enumerate(zip(prompts, drawn, strict=True))
            if prompt.box_px is not None and (prompt.box_px[2:] - prompt.box_px[:2]).max() <= small
            if prompt.labels.all() and not masks.mask(masks.best).any()
        }
        clicked = dict(zip(clicks, self.segmenter.decode(embedding, list(clicks.values())) if clicks else (), strict=True))
        return [clicked.get(index, masks) for index, masks in enumerate(drawn)]

    def _prompt(self, embedding: Embedding, target: PromptTarget) -> Prompt:
        used = target.labels >= 0
        single = self.options.choice == "single" and target.box_px is not None and int(used.sum()) >= CLEAR
        former = target.former if self.options.former_mask else None
        logits = None if former is None else mask_logits_of(self.segmenter, embedding, former)
        return Prompt(target.box_px, target.points_px[used], target.labels[used], single, logits)


def _as_masks(found: Candidate) -> Masks:
    return Masks(found.mask[None], np.array([found.score]), np.array([found.stability]))


def _as_click(box_px: NDArray[np.float32], points_px: NDArray[np.float32]) -> Prompt:
    points_px = points_px if len(points_px) else box_px.reshape(2, 2).mean(0, keepdims=True)
    return Prompt(None, points_px, np.ones(len(points_px), np.int64))


def _instance(
    target: PromptTarget, present: float, masks: Masks, best: int, of_box: Masks | None, judge: Callable[[Features], float]
) -> Instance:
    mask = clean(masks.mask(best))
    used = target.labels >= 0
    features = Features(
        box_probability=target.probability,
        sure=float(used.mean()) if len(used) else 1.0,
        agreement=agreement(mask, target.points_px[used], target.labels[used]),
        predicted_iou=float(np.clip(masks.predicted_iou[best], 0, 1)),
        stability=float(np.clip(masks.stability[best], 0, 1)),
        entropy=entropy(target.inside),
        box_agreement=mask_iou(masks.coarse[best], of_box.coarse[of_box.best]) if of_box is not None else 1.0,
        target_probability=present,
        varied=0.0 if not target.pointed and are_alike(target.inside, target.labels) else 1.0,
        support=target.support,
    )
    box = target.box_px if target.box_px is not None else box_of(mask)
    return Instance(box, target.points_px, target.inside, target.labels, mask, judge(features), features, target.pointed, target.shown)
