"""The demo segmenter's training: boxes and points drawn from the true masks, the mask and its own IoU as targets.

It learns at SMALL pixels first, where an image costs less than half, and is then grown to its full size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from sam4mllm.demo.architecture import SEGMENTER_SIZE, build_segmenter
from sam4mllm.demo.layout import draw_size
from sam4mllm.demo.pretrain.loop import Plan, run
from sam4mllm.demo.scenes import make_scene
from sam4mllm.training.checkpoint import has_checkpoint

SMALL = 256
PROMPTS_PER_IMAGE = 5
FEW_POINTS, MAX_POINTS = 8, 30
BOX_SHARE = 0.9
BOX_NOISE = 0.06
LABEL_NOISE = 0.04
PAD_LABEL, BOX_LABELS = -1, (2, 3)


def train(
    folder: Path,
    steps: int,
    batch: int = 4,
    threads: int = 1,
    seed: int = 31,
    size: int = SEGMENTER_SIZE,
    begin: Callable[[Sam], object] | None = None,
) -> Sam:
    """Run or continue the stage and return the model; ``begin`` gives a new run other first weights than random ones."""
    torch.manual_seed(seed)
    model = build_segmenter(size)
    if begin is not None and not has_checkpoint(folder):
        begin(model)
    plan = Plan(folder, steps, batch, rate=1e-3 if begin is None else 6e-4, threads=threads, seed=seed)

    def losses(step: int) -> dict[str, Tensor]:
        scenes = [_example(seed, step * batch + index, size) for index in range(batch)]
        images = torch.from_numpy(np.stack([scene[0] for scene in scenes])).permute(0, 3, 1, 2).float()
        embeddings = model.image_encoder(images / 127.5 - 1.0)
        terms = [_image_losses(model, embeddings[index : index + 1], scenes[index]) for index in range(batch)]
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}

    run(plan, model, losses)
    return model.eval()


Example = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def grow(model: Sam, small: Path) -> None:
    """Load the weights of a model of another size: its grids of positions are resampled, everything else is the same."""
    weights = load_file(small / "model.safetensors")
    for name, own in model.state_dict().items():
        if name.endswith("image_encoder.pos_embed"):
            moved = F.interpolate(weights[name].float().permute(0, 3, 1, 2), own.shape[1:3], mode="bicubic", align_corners=False)
            weights[name] = moved.permute(0, 2, 3, 1).contiguous()
        elif "rel_pos" in name and weights[name].shape != own.shape:
            weights[name] = F.interpolate(weights[name].float().T[None], len(own), mode="linear", align_corners=False)[0].T.contiguous()
    model.load_state_dict(weights)


def _example(seed: int, index: int, side: int) -> Example:
    """A scene in the model's square frame: image, soft masks (K, side / 2, side / 2), prompt points (K, P, 2) in pixels of the frame and
    their labels (K, P).
    """
    rng = np.random.default_rng([seed, index, 7])
    height, width = draw_size(rng)
    scale = side / max(height, width)
    zoom = 1.0 if rng.random() < 0.7 else float(rng.uniform(1.3, 2.0))
    size = (max(16, round(height * scale * zoom)), max(16, round(width * scale * zoom)))
    scene = make_scene((seed, index), kinds=(), size=size)
    image = scene.image
    if zoom > 1:
        image = _resize(image, (round(height * scale), round(width * scale)))
    masks, points, labels = [], [], []
    with_box = rng.random() < BOX_SHARE
    count = int(rng.integers(0, (MAX_POINTS if rng.random() < 0.5 else FEW_POINTS) + 1)) if with_box else int(rng.integers(1, 4))
    for pick in rng.permutation(len(scene.masks))[:PROMPTS_PER_IMAGE]:
        masks.append(_soft_mask(scene.masks[pick], side // 2))
        coordinates, marks = _prompt(rng, scene.masks[pick], scene.boxes_px[pick], side / max(size), with_box, count)
        points.append(coordinates)
        labels.append(marks)
    return _square(image, side), np.stack(masks), np.stack(points), np.stack(labels)


def _prompt(
    rng: np.random.Generator, mask: NDArray[np.bool_], box_px: NDArray[np.float32], scale: float, with_box: bool, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labelled points in the box, and the box itself, shaken as the MLLM's answers will be; without a box, the first point is on
    the thing.
    """
    width, height = box_px[2] - box_px[0], box_px[3] - box_px[1]
    points = np.zeros((count + (2 if with_box else 1), 2), np.float32)
    labels = np.full(len(points), PAD_LABEL, np.int64)
    for index in range(count):
        if not with_box and index == 0:
            rows, columns = np.nonzero(mask)
            pick = rng.integers(len(rows))
            x, y = columns[pick] + 0.5, rows[pick] + 0.5
        else:
            x, y = rng.uniform(box_px[0], box_px[2]), rng.uniform(box_px[1], box_px[3])
        inside = mask[min(int(y), mask.shape[0] - 1), min(int(x), mask.shape[1] - 1)]
        points[index] = (x, y)
        labels[index] = int(inside) ^ int(with_box and rng.random() < LABEL_NOISE)
    if with_box:
        noise = np.clip(rng.normal(0, BOX_NOISE * (rng.random() < 0.75), 4), -0.15, 0.15)
        points[-2:] = (box_px + noise * np.array([width, height, width, height])).reshape(2, 2)
        labels[-2:] = BOX_LABELS
    return points * scale, labels


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    square = np.full((side, side, 3), 127, np.uint8)
    square[: image.shape[0], : image.shape[1]] = image[:side, :side]
    return square


def _soft_mask(mask: NDArray[np.bool_], cells: int) -> NDArray[np.float32]:
    """The covered share of each cell of the mask grid, for (H, W) padded to a square."""
    side = max(mask.shape)
    square = np.zeros((side, side), np.float32)
    square[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _image_losses(model: Sam, embedding: Tensor, example: Example) -> dict[str, Tensor]:
    _, masks, points, labels = example
    target = torch.from_numpy(masks)
    sparse = _embed_prompts(model, torch.from_numpy(points), torch.from_numpy(labels))
    dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(target), -1, *embedding.shape[-2:])
    logits, iou = model.mask_decoder.predict_masks(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense)
    logits, iou = logits.float(), iou.float()
    near = torch.from_numpy(np.stack([cv2.dilate((mask > 0).astype(np.uint8), np.ones((13, 13), np.uint8)) for mask in masks]))
    each = _mask_loss(logits, target[:, None].expand_as(logits), near[:, None].float() + 0.05)
    with torch.no_grad():
        guess, truth = logits > 0, target[:, None] > 0.5
        true_iou = (guess & truth).sum((2, 3)) / (guess | truth).sum((2, 3)).clamp(min=1)
    return {
        "single": each[:, 0].mean(),
        "multi": (each[:, 1:].min(1).values + 0.1 * each[:, 1:].mean(1)).mean(),
        "iou": F.mse_loss(iou, true_iou),
        "_true_iou": true_iou[:, 1:].gather(1, iou[:, 1:].argmax(1, keepdim=True)).mean(),
    }


def _embed_prompts(model: Sam, points: Tensor, labels: Tensor) -> Tensor:
    """(K, P, D) embeddings of labelled points and box corners; the encoder's own, but for many prompts of different kinds in one call."""
    encoder = model.prompt_encoder
    embedded = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
    kinds = torch.stack([encoder.not_a_point_embed.weight[0], *(layer.weight[0] for layer in encoder.point_embeddings)])
    embedded = torch.where((labels == PAD_LABEL)[..., None], torch.zeros_like(embedded), embedded)
    return embedded + kinds[labels + 1]


def _mask_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy, weighted towards the thing's surroundings, plus dice: (K, M) from logits (K, M, H, W) and weight (K, 1, H, W)."""
    entropy = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum((2, 3)) / weight.sum((2, 3))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * target).sum((2, 3)) + 1) / ((share**2).sum((2, 3)) + (target**2).sum((2, 3)) + 1)
    return 2 * entropy + dice
