"""Stage one of the demo MLLM: the vision tower learns, token by token, what is under it and where that thing's box lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from sam4mllm.demo.architecture import HIDDEN, MERGE, PATCH, POSITIONS_PER_SIDE, build_mllm, mllm_config
from sam4mllm.demo.pretrain.dense import DenseHeads, batch_size_px, dense_targets, fourier_coordinates, patchify
from sam4mllm.demo.pretrain.loop import CPU, PretrainPlan, run
from sam4mllm.demo.scenes import make_crowd
from sam4mllm.demo.tokenizer import COORDINATES, END, IMAGE, PAD, VISION_END, VISION_START, vocabulary
from sam4mllm.training.state import has_state

SHARPENING = 4000
"""Steps over which the coordinate targets narrow from WIDE to NARROW (in thousandths of a side)."""
WIDE, NARROW = 25.0, 6.0


class DemoTrainee(nn.Module):
    """The demo MLLM together with the dense heads that teach its tower. The heads are used in training only."""

    def __init__(self) -> None:
        super().__init__()
        ids = {token: index for index, token in enumerate(vocabulary())}
        self.mllm: Qwen3VLForConditionalGeneration = build_mllm(
            mllm_config(len(ids), ids[IMAGE], ids[VISION_START], ids[VISION_END], ids[END], ids[PAD])
        )
        self.heads = DenseHeads()
        self.first_coordinate = ids[COORDINATES[0]]
        with torch.no_grad():
            self.coordinate_embeddings().copy_(fourier_coordinates())
            for name, parameter in self.mllm.model.visual.named_parameters():
                if parameter.ndim == 2 and "pos_embed" not in name:
                    parameter.normal_(0, 0.7 * parameter.shape[1] ** -0.5)
            self.mllm.model.visual.pos_embed.weight.copy_(grid_positions())

    def coordinate_embeddings(self) -> Tensor:
        """(1000, HIDDEN) view of the coordinate tokens' rows."""
        return self.words()[self.first_coordinate : self.first_coordinate + len(COORDINATES)]

    def words(self) -> Tensor:
        """(vocabulary, HIDDEN) embeddings, shared with the output layer."""
        return cast("Tensor", self.mllm.get_input_embeddings().weight)

    def see(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Return the visual tokens (B, T, HIDDEN) of images (B, H, W, 3) uint8, in reading order, and the images' grids (B, 3).

        A grid is 1, and the numbers of rows and columns of patches.
        """
        grid = torch.tensor([[1, images.shape[1] // PATCH, images.shape[2] // PATCH]]).expand(len(images), -1)
        visual = self.mllm.model.visual(patchify(images), grid_thw=grid).pooler_output
        return visual.reshape(len(images), int(grid[0].prod()) // MERGE**2, -1), grid


def grid_positions() -> Tensor:
    """(POSITIONS_PER_SIDE², HIDDEN) starting values of the tower's position embeddings: sines and cosines of row and column."""
    side = torch.arange(POSITIONS_PER_SIDE) / (POSITIONS_PER_SIDE - 1)
    angles = side[:, None] * torch.linspace(0.5, 18.0, HIDDEN // 4) * torch.pi
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(-1, POSITIONS_PER_SIDE, -1)
    return 0.5 * torch.cat([rows, rows.transpose(0, 1)], 2).reshape(POSITIONS_PER_SIDE**2, HIDDEN)


def sharpness(step: int) -> float:
    """Return the standard deviation of the coordinate targets at a step, in thousandths of a side."""
    return float(WIDE * (NARROW / WIDE) ** min(1.0, step / SHARPENING))


def train(
    folder: Path,
    steps: int,
    batch: int = 8,
    threads: int = 1,
    seed: int = 11,
    begin: Callable[[DemoTrainee], None] | None = None,
    minutes: float | None = None,
    device: torch.device = CPU,
) -> DemoTrainee:
    """Run or continue the stage and return the model with its heads; ``begin`` gives a new run other first weights than random ones.

    Raises what :func:`~sam4mllm.demo.pretrain.loop.run` raises.
    """
    torch.manual_seed(seed)
    model = DemoTrainee()
    if begin is not None and not has_state(folder):
        begin(model)
    source = "random" if begin is None else "given"
    plan = PretrainPlan(folder, steps, batch, rate=1e-3, threads=threads, seed=seed, minutes=minutes, source=source, device=device)
    run(plan, model, lambda step: crowd_losses(model, seed, step, batch, sharpness(step)))
    return model


def crowd_losses(model: DemoTrainee, seed: int, step: int, batch: int, sigma: float) -> dict[str, Tensor]:
    """Return the dense terms of a batch of crowded scenes. ``sigma`` (thousandths) is the standard deviation of the coordinate targets."""
    size = batch_size_px(np.random.default_rng([seed, step, 5]))
    scenes = [make_crowd((seed, step * batch + index), size) for index in range(batch)]
    visual, _ = model.see(np.stack([scene.image for scene in scenes]))
    targets = [dense_targets(scene) for scene in scenes]
    return model.heads.losses(visual.flatten(0, 1), targets, model.coordinate_embeddings(), sigma)
