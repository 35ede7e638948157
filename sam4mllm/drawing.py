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
"""Prompts of one decoding batch: of each a mask of the image's size is made, one after the other."""
CLEAR = 2
"""Points that, with a box, leave no doubt what is meant: SAM's authors take its single mask where there is more than one prompt."""

SMALL_BOX = 0.03
"""Longest side, in longer sides of the image, of a box that counts as a click where the segmenter draws nothing in it: six cells of the
demo segmenter's masks, eight of SAM's; our choice.
"""


@dataclass(frozen=True)
class Drawing:
    """A segmenter and how it is used. ``learned``: the model that was asked about points was trained to answer."""

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
        """Decode the prompts in batches; of each prompt's candidates keep the one that the options choose.

        ``present``: for each phrase, the probability that it has a target. ``compared``: a box with points is drawn without them too, to
        see how much hangs on them.
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
        """The mask of each target, as it would be drawn, to ask by."""
        for start in range(0, len(targets), PROMPTS_AT_ONCE):
            some = targets[start : start + PROMPTS_AT_ONCE]
            for target, (masks, _) in zip(some, self._decode(embedding, some, compared=False), strict=True):
                yield masks.mask(self._choose(target, masks))

    def _choose(self, target: PromptTarget, masks: Masks) -> int:
        """Which of the segmenter's candidates answers a target best."""
        if self.options.choice != "agreement":
            return masks.best
        counts = target.inside != UNSAID if self.learned else target.labels >= 0
        points_px, said = target.points_px[counts], (target.inside[counts] >= 0.5).astype(np.int64)
        return int((masks.predicted_iou * [agreement(mask, points_px, said) for mask in masks.masks]).argmax())

    def _decode(self, embedding: Embedding, targets: Sequence[PromptTarget], compared: bool) -> list[tuple[Masks, Masks | None]]:
        """For each target its masks, and those of its box alone if they are compared and there is a difference in the prompts."""
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
        """The masks; where a small box gave none, and no point says that it should, those of a click: on its points, else on its middle."""
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
