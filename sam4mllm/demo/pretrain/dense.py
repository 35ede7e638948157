"""Dense targets for the vision tower: what lies under each visual token. Used in the base model's own pre-training only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam4mllm.demo.architecture import HIDDEN, MAX_PIXELS, MERGE, PATCH
from sam4mllm.demo.glyphs import COLOURS, known_nouns, load_glyphs
from sam4mllm.demo.layout import draw_size
from sam4mllm.demo.scenes import DemoScene

CELL = PATCH * MERGE
FINE = 8
"""Each visual token predicts FINE × FINE squares under it: how much of each square is covered by things."""
DISTANCE_WEIGHT = 20.0
OFFSET_PLACES, OFFSET_SIZE = 8, 2.0
"""A point's two offsets are written into `OFFSET_PLACES` dimensions of the hidden state each, scaled by `OFFSET_SIZE`: if they are too
small, later layers cannot tell eighths of a visual token apart.
"""
COVERED = 0.35
"""A visual token has targets about a thing if a thing covers at least this share of its cell."""


def model_size(height: int, width: int) -> tuple[int, int]:
    """The size to which the demo's image processor brings an image of (height, width): multiples of CELL, at most MAX_PIXELS in all.

    Only the processor also enlarges images of less than its least number of pixels; drawn scenes are never that small.
    """
    rows, columns = round(height / CELL) * CELL, round(width / CELL) * CELL
    if rows * columns > MAX_PIXELS:
        shrink = (height * width / MAX_PIXELS) ** 0.5
        rows, columns = int(height / shrink / CELL) * CELL, int(width / shrink / CELL) * CELL
    return rows, columns


def batch_size_px(rng: np.random.Generator) -> tuple[int, int]:
    """(height, width) in model pixels for a batch: all its images share one grid."""
    return model_size(*draw_size(rng))


def patchify(images: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 to the (B · patches, 3 · PATCH²) rows of the Qwen-VL image processor, normalised to -1…1."""
    count, height, width, _ = images.shape
    pixels = torch.as_tensor(images).float() / 127.5 - 1.0
    blocks = pixels.reshape(count, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    return blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * PATCH * PATCH)


@dataclass(frozen=True, eq=False)
class DenseTargets:
    """Targets of the T visual tokens of an image, in reading order; coordinates are in thousandths of the image's sides.

    ``owner`` (T,): the index of the thing that owns the token, which is the thing with the largest visible share of the token's cell; a
    part hides the whole below it. It is -1 if no thing's mask covers at least COVERED of the cell; here the mask of a whole includes its
    part.

    ``thing`` (T,): the owner's class, that is its glyph's index + 1; 0 for background. ``box_milli`` (T, 4): the owner's box, x1, y1, x2,
    y2. ``colour`` (T,): the index of the owner's colour in COLOURS + 1; 0 for none. ``owned`` (T, FINE²): the share of each small square
    that the owner covers.

    ``fine`` (T, FINE²): the share of each small square that any thing covers. ``centre_milli`` (T, 2): the middle of the token's own cell.
    ``cover`` (N, T): the share of each token's cell that each thing covers.
    """

    owner: NDArray[np.int64]
    thing: NDArray[np.int64]
    box_milli: NDArray[np.float32]
    centre_milli: NDArray[np.float32]
    fine: NDArray[np.float32]
    colour: NDArray[np.int64]
    cover: NDArray[np.float32]
    owned: NDArray[np.float32]


def dense_targets(scene: DemoScene) -> DenseTargets:
    """The targets for a scene whose image has the model's size."""
    height, width = scene.image.shape[:2]
    rows, columns = height // CELL, width // CELL
    cover = shares_of_cells(scene.masks)
    tops = _on_top(scene.masks)
    alone = cover if tops is scene.masks else shares_of_cells(tops)
    owner = np.where(cover.max(0) >= COVERED, alone.argmax(0), -1)
    classes = np.array([0, *(thing.glyph.index + 1 for thing in scene.things)])
    colours = np.array([0, *(COLOURS.index(thing.colour) + 1 if thing.colour else 0 for thing in scene.things)])
    boxes_milli = np.concatenate([np.zeros((1, 4)), scene.boxes_px * (1000.0 / np.array([width, height, width, height]))])
    down, across = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return DenseTargets(
        owner=owner,
        thing=classes[owner + 1],
        box_milli=boxes_milli[owner + 1].astype(np.float32),
        centre_milli=np.stack([across, down], -1).reshape(-1, 2).astype(np.float32) * 1000,
        fine=pictures(np.asarray(scene.masks.any(0))),
        colour=colours[owner + 1],
        cover=cover.astype(np.float32),
        owned=_owned(tops, owner),
    )


def pictures(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (T, FINE²), which share of each of the FINE × FINE squares under each visual token a mask (H, W) covers. The mask has a size
    as :func:`model_size` gives it.
    """
    rows, columns = mask.shape[0] // CELL, mask.shape[1] // CELL
    fine = cv2.resize(mask.astype(np.float32), (columns * FINE, rows * FINE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(fine.reshape(rows, FINE, columns, FINE).transpose(0, 2, 1, 3).reshape(-1, FINE * FINE), np.float32)


def shares_of_cells(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (N, T), which share of each visual token's cell each mask (N, H, W) covers. The masks have a size as :func:`model_size` gives
    it.
    """
    rows, columns = masks.shape[1] // CELL, masks.shape[2] // CELL
    cover = np.stack([cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA) for mask in masks])
    return np.asarray(cover.reshape(len(masks), -1), np.float32)


def _on_top(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return masks (N, H, W) of which no two share a pixel: from each, the masks that come after it are cut out, as a part is from its
    whole.
    """
    if not (masks.sum(0) > 1).any():
        return masks
    return np.stack([mask & ~masks[index + 1 :].any(0) for index, mask in enumerate(masks)])


def _owned(masks: NDArray[np.bool_], owner: NDArray[np.int64]) -> NDArray[np.float32]:
    owned = np.zeros((len(owner), FINE * FINE), np.float32)
    for index in np.unique(owner[owner >= 0]):
        own = owner == index
        owned[own] = pictures(masks[index])[own]
    return owned


def fourier_coordinates() -> Tensor:
    """(1000, HIDDEN) starting values of the coordinate tokens' embeddings: neighbours alike, so that a near miss is nearly right."""
    wavelengths = torch.logspace(np.log10(2000.0), np.log10(12.0), HIDDEN // 2)
    phase = (torch.arange(1000)[:, None] + 0.5) * (2 * torch.pi / wavelengths)
    waves: Tensor = torch.cat([phase.cos(), phase.sin()], 1) / (HIDDEN // 2) ** 0.5
    return waves


def soft_coordinates(values_milli: Tensor, sigma: float) -> Tensor:
    """Return target distributions (..., 1000) over the coordinate tokens: a bell of standard deviation ``sigma`` around each value.

    Both are in thousandths of a side; the token of number n stands for n + 0.5.
    """
    grid = torch.arange(1000) + 0.5
    return torch.softmax(-0.5 * ((grid - values_milli[..., None]) / sigma) ** 2, -1)


def coordinate_loss(log_probabilities: Tensor, values_milli: Tensor, sigma: float) -> Tensor:
    """Mean loss of (..., 1000) log-probabilities against true values (...): cross-entropy to a bell around the value, and the distance
    of the expected value, which tells a far miss from a near one.
    """
    entropy = -(soft_coordinates(values_milli, sigma) * log_probabilities).sum(-1).mean()
    expected = log_probabilities.exp() @ (torch.arange(1000) + 0.5)
    return entropy + DISTANCE_WEIGHT * (expected - values_milli).abs().mean() / 1000


class DenseHeads(nn.Module):
    """Linear heads on the visual tokens and, for points, on hidden states of the language model. Coordinates are predicted by way of the
    coordinate tokens' own embeddings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thing = nn.Linear(HIDDEN, len(load_glyphs()) + 1)
        self.coordinates = nn.Linear(HIDDEN, 6 * HIDDEN)
        self.fine = nn.Linear(HIDDEN, FINE * FINE)
        self.owned = nn.Linear(HIDDEN, FINE * FINE)
        self.colour = nn.Linear(HIDDEN, len(COLOURS) + 1)
        self.point = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.beneath = nn.Linear(HIDDEN, FINE * FINE)
        self.column = nn.Linear(HIDDEN, FINE)

    def noun_rows(self) -> tuple[list[str], Tensor]:
        """The known nouns and (N, HIDDEN) weights by which their things are recognised: good first embeddings for the words."""
        return known_nouns(), self.thing.weight[1 : len(known_nouns()) + 1].detach()

    def losses(self, visual: Tensor, targets: list[DenseTargets], embeddings: Tensor, sigma: float) -> dict[str, Tensor]:
        """Return the weighted loss terms for ``visual`` (B · T, HIDDEN), the visual tokens in reading order, and two figures for the log.

        ``embeddings`` (1000, HIDDEN) are those of the coordinate tokens. ``sigma`` is the standard deviation of the soft targets of
        coordinates, in thousandths. The figures are the share of the tokens with an owner whose owner is recognised, and the mean error of
        their boxes' numbers in thousandths.
        """
        visual = F.rms_norm(visual, (HIDDEN,))  # as the language model's first layer will
        thing = torch.as_tensor(np.concatenate([t.thing for t in targets]))
        covered = thing > 0
        weight = torch.where(covered, 1.0, 0.3)
        logits = self.thing(visual).float()
        recognised = (F.cross_entropy(logits, thing, reduction="none") * weight).sum() / weight.sum()
        box = torch.as_tensor(np.concatenate([t.box_milli for t in targets]))
        centre = torch.as_tensor(np.concatenate([t.centre_milli for t in targets]))
        read = self.coordinates(visual).reshape(-1, 6, HIDDEN)
        spots = F.log_softmax((read @ embeddings.T).float(), -1)
        located = coordinate_loss(spots[covered, :4], box[covered], sigma)
        placed = -(soft_coordinates(centre, sigma) * spots[:, 4:]).sum(-1).mean()
        fine = F.binary_cross_entropy_with_logits(self.fine(visual).float(), torch.as_tensor(np.concatenate([t.fine for t in targets])))
        owned = F.binary_cross_entropy_with_logits(
            self.owned(visual).float()[covered], torch.as_tensor(np.concatenate([t.owned for t in targets]))[covered]
        )
        colour = F.cross_entropy(
            self.colour(visual).float()[covered], torch.as_tensor(np.concatenate([t.colour for t in targets]))[covered]
        )
        with torch.no_grad():
            hit = (logits[covered].argmax(-1) == thing[covered]).float().mean()
            error = (spots[covered, :4].argmax(-1) + 0.5 - box[covered]).abs().mean()
        return {
            "thing": recognised,
            "box": 0.5 * located,
            "centre": 0.1 * placed,
            "fine": fine,
            "owned": 0.5 * owned,
            "colour": 0.3 * colour,
            "_accuracy": hit,
            "_box_error": error,
        }

    def point_losses(self, hidden: Tensor, points: Tensor, embeddings: Tensor, sigma: float) -> dict[str, Tensor]:
        """Return the weighted loss of reading each point's two numbers, and their mean error in thousandths, for the log.

        The true numbers are ``points`` (P, 2). They are read from the language model's ``hidden`` (P, HIDDEN) by way of ``embeddings``
        (1000, HIDDEN), those of the coordinate tokens.
        """
        read = self.point(F.rms_norm(hidden, (HIDDEN,))).reshape(-1, 2, HIDDEN)
        logs = F.log_softmax((read @ embeddings.T).float(), -1)
        error = (logs.argmax(-1) + 0.5 - points).detach().abs().mean()
        return {"read": 0.2 * coordinate_loss(logs, points, sigma), "_read_error": error}

    def spot_losses(self, early: Tensor, late: Tensor, offsets: Tensor, beneath: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Return weighted loss terms that teach the language model, where it judges a point, to look up the point in its visual token.

        This takes three steps, each of which is asked for at a layer where it can be ready. ``early`` (P, HIDDEN) is the hidden state after
        the layer that looks at the token. It must hold the squares ``beneath`` (P, FINE²), as all things cover them, and, written with a
        large scale into fixed dimensions, the point's ``offsets`` (P, 2) from the token's middle, -1 to 1. ``late`` is the hidden state one
        layer later. Of the squares as the thing asked about covers them, ``own`` (P, FINE²), it must hold the column in which the point
        lies.
        """
        early, late = F.rms_norm(early, (HIDDEN,)).float(), F.rms_norm(late, (HIDDEN,))
        written = early[:, : 2 * OFFSET_PLACES].reshape(-1, 2, OFFSET_PLACES).mean(-1) / OFFSET_SIZE
        across = ((offsets[:, 0] + 1) / 2 * FINE).long().clamp(0, FINE - 1)
        column = own.reshape(-1, FINE, FINE)[torch.arange(len(across)), :, across]
        return {
            "offset": F.smooth_l1_loss(written, offsets),
            "beneath": F.binary_cross_entropy_with_logits(self.beneath(early.to(late.dtype)).float(), beneath),
            "column": F.binary_cross_entropy_with_logits(self.column(late).float(), column),
            "_offset_error": (written - offsets).detach().abs().mean(),
        }
