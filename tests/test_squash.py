"""Squashed pictures: the processor gets a square, and boxes are still those of the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sam4mllm.errors import TrainingError
from sam4mllm.grounding.checkpoint import Checkpoint, Encoded
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.prompts.dialects import LLAVA, QWEN2_5_VL, QWEN3_VL, Dialect
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.recipe import Trainer
from sam4mllm.training.squash import check_squash, squashed
from tests.test_pool import TOY, make_pool, write_pictures

PLAN = TrainingPlan(steps=1, batch=1, rank=4, alpha=8, replay_share=0.0)


@pytest.mark.parametrize(("side", "size"), [(None, (90, 40)), (56, (56, 56))])
def test_a_picture_is_squashed_to_the_side(side: int | None, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (90, 40))
    picture.paste((255, 0, 0), (0, 0, 45, 40))  # its left half
    shown = squashed(picture, side)
    assert shown.size == size
    assert [shown.getpixel((round(share * size[0]), size[1] // 2)) for share in (0.25, 0.75)] == [(255, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("side", [None, 56])
def test_a_run_shows_the_processor_squares(side: int | None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_checkpoint), torch.device("cpu"))
    shown: list[tuple[int, int]] = []

    def encode(of: Checkpoint, opening: str, image: Any) -> Encoded:
        shown.append(image.size)
        return checkpoint.encode(of, opening, image)

    folder = write_pictures(tmp_path / "data", TOY[:1])
    own = replace(checkpoint, encode=encode)
    trainer = Trainer(own, make_pool(folder), replace(PLAN, squash=side), tmp_path / "run", Asking(points=2, close_share=0))
    assert trainer.train(lambda progress: None)
    with Image.open(next((folder / "images").iterdir())) as picture:
        whole = picture.size
    assert whole != (56, 56)
    assert set(shown) == {(side, side) if side else whole}


@pytest.mark.parametrize(
    ("dialect", "side", "refused"), [(LLAVA, 672, True), (LLAVA, None, False), (QWEN2_5_VL, 672, False), (QWEN3_VL, 672, False)]
)
def test_shares_of_a_padded_square_cannot_be_seen_in_a_squashed_picture(dialect: Dialect, side: int | None, refused: bool) -> None:
    if refused:
        with pytest.raises(TrainingError, match=r"squash does not go with the dialect 'llava'.*put a dialect.json"):
            check_squash(side, dialect)
    else:
        check_squash(side, dialect)
