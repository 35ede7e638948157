"""Train small Mask2Former and SegFormer models on the demo's scenes, from random weights, for ``benchmarks/segmenters.py``.

    python -m benchmarks.small_segmenters FOLDER [--only mask2former|segformer] [--steps 2400] [--threads 1]

Writes FOLDER/mask2former and FOLDER/segformer, which ``--segmenter`` accepts. Mask2Former learns all things as a single class. SegFormer
learns one class for each known noun, one for things without a name, and the background. FOLDER/training/*/log.jsonl shows the IoU of
Mask2Former's best query and the share of pixels that SegFormer classifies right. An interrupted run goes on from its last saved state.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from sam4mllm.demo.glyphs import known_nouns
from sam4mllm.demo.layout import draw_size
from sam4mllm.demo.pretrain.loop import PretrainPlan, run
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_crowd, make_scene

SIDES, SMALL_SHARE = (96, 160), 2 / 3
"""Sides in pixels of the squares to which images are squashed, and the share of the steps at the smaller one, where an image costs less
than half. The last third of the steps is at 160, the size at which the models serve."""
BATCH, STEPS, WARMUP, RATE = 8, 2_400, 50, 1.5e-3
SEED = 51
POOL = 1_200
"""Number of scenes to train on. Each is drawn once and then used again, every other time mirrored, because drawing one takes as long as a
step of training."""
CROWDED, AMBIGUOUS = (1, 5), (7,)
"""The numbers, modulo BATCH, of scenes that are crowded, so that more is learned from an image, and of scenes in which two things share
nearly one box."""
BACKGROUND_WEIGHT = 0.25
"""Weight of background pixels in SegFormer's loss. Three pixels in four are background, and with full weight a model would learn little
else in few steps."""
BACKGROUND, NAMELESS = "background", "thing without a name"
MEAN, STD = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)
"""Mean and standard deviation of ImageNet's pixels by colour, which both models' image processors use."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A scene as a model sees it: ``image`` (S, S, 3) uint8, ``masks`` (N, S, S) bool, ``classes`` (N,) int64.

    ``classes`` has the number of each thing's noun in :func:`class_names`.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    classes: NDArray[np.int64]

    def seen(self, side: int, mirrored: bool) -> Drawn:
        """Return the scene at another size and, if ``mirrored``, with left and right exchanged."""
        turn = slice(None, None, -1 if mirrored else 1)
        image = cv2.resize(self.image, (side, side), interpolation=cv2.INTER_AREA)[:, turn]
        return Drawn(np.asarray(image, np.uint8), _resize_masks(self.masks, side)[..., turn], self.classes)


def class_names() -> list[str]:
    """Return the names of SegFormer's classes, in the order of their numbers."""
    return [BACKGROUND, *known_nouns(), NAMELESS]


@functools.cache
def draw(index: int) -> Drawn:
    """A scene of the pool, squashed to the largest of SIDES."""
    rng = np.random.default_rng([SEED, index, 11])
    height, width = draw_size(rng)
    side = SIDES[-1]
    scale = side / max(height, width)
    scene = _scene((SEED, index), (round(height * scale), round(width * scale)))
    image = cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_LINEAR)
    numbers = {name: number for number, name in enumerate(class_names())}
    classes = [numbers.get(thing.noun, len(numbers) - 1) for thing in scene.things]
    return Drawn(np.asarray(image, np.uint8), _resize_masks(scene.masks, side), np.array(classes))


def batch(step: int, side: int) -> list[Drawn]:
    """Return the scenes of a step at this size. In every other pass through the pool they are mirrored."""
    places = range(step * BATCH, (step + 1) * BATCH)
    return [draw(place % POOL).seen(side, mirrored=place // POOL % 2 == 1) for place in places]


def _resize_masks(masks: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    return np.stack([cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) > 0 for mask in masks])


def _scene(seed: Sequence[int], size: tuple[int, int]) -> DemoScene:
    place = seed[-1] % BATCH
    if place in AMBIGUOUS:
        return make_ambiguous(seed, size=size)
    return make_crowd(seed, size) if place in CROWDED else make_scene(seed, kinds=(), size=size)


def build_mask2former() -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former of random weights: a small ResNet, one class, and a few more queries than a crowded scene has things."""
    backbone = ResNetConfig(  # type: ignore[call-arg]
        embedding_size=24,
        hidden_sizes=[24, 48, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=128,
        num_queries=20,
        dropout=0.0,
        train_num_points=256,
        oversample_ratio=2.0,
        id2label={0: "thing"},
        label2id={"thing": 0},
    )
    return Mask2FormerForUniversalSegmentation(config)


def build_segformer() -> SegformerForSemanticSegmentation:
    """Return a SegFormer with random weights, of a sixth of the size of the smallest published one (B0)."""
    names = class_names()
    config = SegformerConfig(
        hidden_sizes=[16, 32, 80, 128],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[2, 2, 4, 4],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    return SegformerForSemanticSegmentation(config)


def mask2former_losses(model: Any, scenes: Sequence[Drawn]) -> dict[str, Tensor]:
    """Return the losses of Mask2Former on scenes, and the mean IoU of the best queries as ``_iou``.

    ``queries`` is the model's own loss: cross-entropy and dice at sampled points of matched queries, and their classes, after each decoder
    layer. ``features`` is an additional loss that needs no matching, because it takes a thing's mean feature as its query: queries can tell
    things apart only once the features do.
    """
    masks = [torch.from_numpy(scene.masks.copy()).float() for scene in scenes]
    classes = [torch.zeros(len(scene.masks), dtype=torch.long) for scene in scenes]
    answer = model(pixel_values=_pixels(scenes), mask_labels=masks, class_labels=classes)
    features = answer.pixel_decoder_last_hidden_state
    small = [F.interpolate(mask[None], tuple(features.shape[-2:]), mode="area")[0] for mask in masks]
    own = torch.stack([_feature_loss(one, target) for one, target in zip(features, small, strict=True)]).mean()
    found = {"queries": answer.loss / len(model.criterion.weight_dict), "features": own}
    return {**found, "_iou": _best_iou(answer.masks_queries_logits.detach() > 0, [target > 0.5 for target in small])}


def _feature_loss(features: Tensor, masks: Tensor) -> Tensor:
    """Return the sum of cross-entropy and dice loss for masks (N, h, w); each thing's logits are the products of its mean feature with all
    features (C, h, w).
    """
    means = torch.einsum("chw,nhw->nc", features, masks) / masks.sum((1, 2)).clamp(min=1)[:, None]
    logits = torch.einsum("nc,chw->nhw", means, features)
    share = logits.sigmoid()
    dice = 1 - (2 * (share * masks).sum((1, 2)) + 1) / (share.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + dice.mean()


def _best_iou(drawn: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return the mean, over all things, of the best IoU of a query's mask with the true one. ``drawn`` is (B, Q, h, w); ``masks`` has the
    true masks (N, h, w) of each scene.
    """
    found = []
    for guesses, truths in zip(drawn.float(), masks, strict=True):
        common = torch.einsum("qhw,nhw->nq", guesses, truths.float())
        either = guesses.sum((1, 2))[None] + truths.sum((1, 2))[:, None] - common
        found.append((common / either.clamp(min=1)).amax(1))
    return torch.cat(found).mean()


def segformer_losses(model: Any, scenes: Sequence[Drawn]) -> dict[str, Tensor]:
    """Return SegFormer's loss on scenes, cross-entropy at every other pixel of every other row with less weight on the background, and the
    shares of pixels classified right.
    """
    target = torch.from_numpy(np.stack([class_map(scene) for scene in scenes]))[:, ::2, ::2]
    logits = F.interpolate(model(pixel_values=_pixels(scenes)).logits, tuple(target.shape[-2:]), mode="bilinear", align_corners=False)
    weight = torch.ones(logits.shape[1])
    weight[0] = BACKGROUND_WEIGHT
    right = logits.detach().argmax(1) == target
    shown = {"_right": right.float().mean(), "_right_on_things": right[target > 0].float().mean()}
    return {"loss": F.cross_entropy(logits, target, weight), **shown}


def class_map(scene: Drawn) -> NDArray[np.int64]:
    """Return (S, S) the class number of each pixel, 0 where there is no thing."""
    found = np.zeros(scene.masks.shape[1:], np.int64)
    for mask, number in zip(scene.masks, scene.classes, strict=True):
        found[mask] = number
    return found


def _pixels(scenes: Sequence[Drawn]) -> Tensor:
    images = np.stack([scene.image for scene in scenes]).astype(np.float32)
    return torch.from_numpy((images - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


SQUARE = {"height": SIDES[-1], "width": SIDES[-1]}
RECIPES: dict[str, tuple[Any, Any, Any]] = {
    "mask2former": (build_mask2former, mask2former_losses, Mask2FormerImageProcessor(size=SQUARE)),
    "segformer": (build_segformer, segformer_losses, SegformerImageProcessor(size=SQUARE)),
}
"""For each model by name: the functions that build it and compute its losses, and its image processor."""


def train(name: str, folder: Path, steps: int = STEPS, threads: int = 1) -> Path:
    """Train one of RECIPES and return the folder of its checkpoint."""
    build, losses, image_processor = RECIPES[name]
    torch.manual_seed(SEED)
    model = build().train()
    plan = PretrainPlan(folder / "training" / name, steps, BATCH, RATE, warmup=WARMUP, threads=threads, seed=SEED)
    run(plan, model, lambda step: losses(model, batch(step, SIDES[step >= SMALL_SHARE * steps])))
    made = folder / name
    model.eval().save_pretrained(made)
    image_processor.save_pretrained(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=tuple(RECIPES))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, for each model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else RECIPES:
        print(train(name, arguments.folder, arguments.steps, arguments.threads))


if __name__ == "__main__":
    main()
