"""The training of the demo segmenter. Prompts are drawn from the true masks; then come rounds of corrective clicks, as in SAM's own
training (Kirillov et al. 2023, appendix A): each round gets one more click where the former round's mask is wrong, and, most of the
time, that mask.

The targets are the true mask and the IoU of the drawn one with it. The segmenter learns at SMALL pixels first, where an image costs less
than half as much, and is then grown to its full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from sam4mllm.demo.pretrain.ahead import Ahead
from sam4mllm.demo.pretrain.loop import CPU, PretrainPlan, check_recipe, run
from sam4mllm.demo.pretrain.segmenter_examples import PAD_LABEL, WHOLE_EVERY, PromptedImage, click_on, draw_example
from sam4mllm.segmentation.attention import fuse_attention
from sam4mllm.segmentation.small_sam import SEGMENTER_PATCH, SEGMENTER_SIZE, build_segmenter
from sam4mllm.training.state import has_state

SMALL = 256
RATE, RATE_GROWN = 1e-3, 3e-4
"""Peak learning rates: of a run from random weights (AdamW), and of one from trained weights (Muon). The second is low because at 5e-4 with
AdamW a trained model soon obeyed points, but unlearned everything else."""
WARMUP, SEED = 60, 41
MASK_INPUT_SHARE = 0.7
"""Share of the rounds after the first that get the former round's mask as input; the others get clicks alone, as the segmenter must work
with and without a mask.
"""
NEAR = np.ones((13, 13), np.uint8)
CELL = SEGMENTER_PATCH // 4
"""Side, in pixels of the frame, of a cell of the mask grid."""
AVERAGE_WEIGHT, IOU_WEIGHT = 0.1, 1.0
FAR_WEIGHT = 0.05
"""Weight in the cross-entropy of cells that are beyond the surroundings of the thing (its mask dilated by NEAR); all other cells weigh 1
more.
"""


def train(
    folder: Path,
    steps: int,
    *,
    batch: int = 4,
    threads: int = 1,
    seed: int = SEED,
    size: int = SEGMENTER_SIZE,
    begin: Callable[[Sam], object] | None = None,
    source: str = "random",
    minutes: float | None = None,
    workers: int = 0,
    device: torch.device = CPU,
) -> Sam:
    """Run or continue the stage and return the model, in evaluation mode.

    ``begin`` gives a new run trained weights, which ``source`` names, to start from; the run then uses RATE_GROWN and Muon. Without it the
    weights are random, and the run uses RATE and AdamW. A run that goes on does not call ``begin``, but must be given it as at first, as
    the recipe depends on it. ``size`` is the side of the model's square frame in pixels. Raises what
    :func:`~sam4mllm.demo.pretrain.loop.run` raises.
    """
    torch.manual_seed(seed)
    model = fuse_attention(build_segmenter(size))
    if begin is not None and not has_state(folder):
        begin(model)
    plan = PretrainPlan(
        folder,
        steps,
        batch,
        RATE if begin is None else RATE_GROWN,
        warmup=WARMUP,
        threads=threads,
        seed=seed,
        minutes=minutes,
        source=f"{source}, {size} pixels",
        optimizer="adamw" if begin is None else "muon",
        device=device,
    )
    check_recipe(plan)
    examples = Ahead(partial(_draw, seed, size, batch), steps, batch, workers)
    run(plan, model, lambda step: batch_losses(model, examples(step), np.random.default_rng([seed, step, 9])))
    return model.eval()


def _draw(seed: int, size: int, batch: int, index: int) -> PromptedImage:
    return draw_example(seed, index, size, whole=(index // batch) % WHOLE_EVERY == WHOLE_EVERY - 1)


def grow(model: Sam, small: Path) -> None:
    """Load the weights of a model of any size from the folder ``small``. Position embeddings are resampled; the rest is copied."""
    weights = load_file(small / "model.safetensors")
    for name, own in model.state_dict().items():
        if name.endswith("image_encoder.pos_embed"):
            moved = F.interpolate(weights[name].float().permute(0, 3, 1, 2), own.shape[1:3], mode="bicubic", align_corners=False)
            weights[name] = moved.permute(0, 2, 3, 1).contiguous()
        elif "rel_pos" in name and weights[name].shape != own.shape:
            weights[name] = F.interpolate(weights[name].float().T[None], len(own), mode="linear", align_corners=False)[0].T.contiguous()
    model.load_state_dict(weights)


def batch_losses(model: Sam, examples: Sequence[PromptedImage], rng: np.random.Generator) -> dict[str, Tensor]:
    """The mean of the examples' losses, over all rounds of clicks."""
    images = torch.as_tensor(np.stack([example.image for example in examples])).permute(0, 3, 1, 2).float()
    embeddings = encode(model, images / 127.5 - 1.0, [example.corner for example in examples])
    terms = [_image_losses(model, embeddings[index : index + 1], example, rng) for index, example in enumerate(examples)]
    return {name: torch.stack([term[name] for term in terms if name in term]).mean() for name in sorted(set().union(*terms))}


def encode(model: Sam, pixels: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
    """Return the image features (B, C, w, w) of windows (B, 3, W, W) of the frame, whose top left corners are ``corners`` (x, y). The
    encoder uses the position embeddings that belong to each window's place in the frame.
    """
    encoder = model.image_encoder
    grid, whole = pixels.shape[-1] // SEGMENTER_PATCH, encoder.img_size // SEGMENTER_PATCH
    if grid == whole:
        return encoder(pixels)  # type: ignore[no-any-return]
    own = dict(encoder.named_parameters())
    places = [own["pos_embed"][:, slice(*rows), slice(*columns)] for rows, columns in (_cells(corner, grid) for corner in corners)]
    own["pos_embed"] = torch.cat(places)
    for name, weight in own.items():
        if "rel_pos" in name and len(weight) == 2 * whole - 1:
            own[name] = weight[whole - grid : whole + grid - 1]
    features: Tensor = torch.func.functional_call(encoder, own, (pixels,))
    return features


def _cells(corner: tuple[int, int], grid: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns (from, to) of a window in the grid of patches."""
    left, top = (place // SEGMENTER_PATCH for place in corner)
    return (top, top + grid), (left, left + grid)


def _image_losses(model: Sam, embedding: Tensor, example: PromptedImage, rng: np.random.Generator) -> dict[str, Tensor]:
    """Decode the prompts ``example.rounds`` times, each time but the first with one more click where the masks of the round before are
    wrong. Return the means of the loss terms over the rounds.
    """
    target = torch.as_tensor(example.masks)
    near = torch.as_tensor(np.stack([cv2.dilate((mask > 0).astype(np.uint8), NEAR) for mask in example.masks])).float()
    points, labels = example.points, example.labels
    former: Tensor | None = None
    rounds: list[dict[str, Tensor]] = []
    for turn in range(example.rounds):
        doubtful = torch.as_tensor(example.doubtful & (turn == 0))
        logits, iou = decode(model, embedding, example.corner, points, labels, former)
        terms, drawn = _round_losses(logits, iou, target, near, doubtful)
        rounds.append(terms)
        if turn + 1 < example.rounds:
            clicks, marks = corrective_clicks(rng, drawn.cpu().numpy() > 0, example.masks > 0.5)
            clicks += np.array(example.corner, np.float32)
            points, labels = np.concatenate([clicks, points], 1), np.concatenate([marks, labels], 1)
            former = drawn[:, None] if rng.random() < MASK_INPUT_SHARE else None
    means = {name: torch.stack([terms[name] for terms in rounds]).mean() for name in rounds[0]}
    return {**means, f"_iou_after_{min(example.rounds, 3)}": rounds[-1]["_true_iou"]}


def decode(
    model: Sam,
    embedding: Tensor,
    corner: tuple[int, int],
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    former: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the mask logits (K, 4, h, w) and the predicted IoU (K, 4) for K prompts with the same number of points.

    ``former`` (K, 1, h, w) are the logits of the masks of the round before, or None. The first of the four masks is for unambiguous
    prompts, the other three are alternatives.
    """
    encoder = model.prompt_encoder
    sparse = _embed_points(model, torch.as_tensor(points), torch.as_tensor(labels))
    if former is None:
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(points), -1, *embedding.shape[-2:])
    else:
        dense = encoder.mask_downscaling(former)
    rows, columns = _cells(corner, embedding.shape[-1])
    places = encoder.get_dense_pe()[:, :, slice(*rows), slice(*columns)]
    logits, iou = model.mask_decoder.predict_masks(embedding, places, sparse, dense)
    return logits.float(), iou.float()


def _round_losses(logits: Tensor, iou: Tensor, target: Tensor, near: Tensor, doubtful: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of one decoding, and the mask logits (K, h, w) that serving would draw: of the three alternative masks the one with
    the highest predicted IoU.

    Where a prompt is doubtful, only the best of the three alternatives learns, as a mean would draw all three together; the mask for
    unambiguous prompts then counts less.
    """
    each = _mask_loss(logits, target[:, None].expand_as(logits), near[:, None] + FAR_WEIGHT)
    sure = (~doubtful).float()
    with torch.no_grad():
        guess, truth = logits > 0, target[:, None] > 0.5
        true_iou = (guess & truth).sum((2, 3)) / (guess | truth).sum((2, 3)).clamp(min=1)
        best = iou[:, 1:].argmax(1, keepdim=True)
        drawn = logits[:, 1:].gather(1, best[..., None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
    terms = {
        "single": (each[:, 0] * (0.3 + 0.7 * sure)).mean(),
        "multi": (each[:, 1:].min(1).values + AVERAGE_WEIGHT * sure * each[:, 1:].mean(1)).mean(),
        "iou": IOU_WEIGHT * F.mse_loss(iou, true_iou),
        "_true_iou": true_iou[:, 1:].gather(1, best).mean(),
    }
    return terms, drawn


def corrective_clicks(
    rng: np.random.Generator, drawn: NDArray[np.bool_], masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return one click for each mask, (K, 1, 2) in pixels of the window, with its label (K, 1).

    The click lies where the drawn mask (K, h, w) is wrong, or on the thing where it is right everywhere. Where there is neither, the label
    is PAD_LABEL.
    """
    clicks = np.zeros((len(masks), 1, 2), np.float32)
    labels = np.full((len(masks), 1), PAD_LABEL, np.int64)
    for index, (guess, truth) in enumerate(zip(drawn, masks, strict=True)):
        wrong = guess ^ truth
        region = wrong if wrong.any() else truth
        if region.any():
            place = click_on(rng, region)
            clicks[index, 0] = place * CELL
            labels[index, 0] = int(truth[int(place[1]), int(place[0])])
    return clicks, labels


def _embed_points(model: Sam, points: Tensor, labels: Tensor) -> Tensor:
    """Return the embeddings (K, P, D) of labelled points and box corners. They are those of SAM's prompt encoder, which cannot take prompts
    of different kinds in one call.
    """
    encoder = model.prompt_encoder
    embedded = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
    kinds = torch.stack([encoder.not_a_point_embed.weight[0], *(layer.weight[0] for layer in encoder.point_embeddings)])
    embedded = torch.where((labels == PAD_LABEL)[..., None], torch.zeros_like(embedded), embedded)
    return embedded + kinds[labels + 1]


def _mask_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return (K, M) twice the cross-entropy, averaged with ``weight`` (K, 1, H, W), plus the dice loss of logits (K, M, H, W)."""
    entropy = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum((2, 3)) / weight.sum((2, 3))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * target).sum((2, 3)) + 1) / ((share**2).sum((2, 3)) + (target**2).sum((2, 3)) + 1)
    return 2 * entropy + dice
