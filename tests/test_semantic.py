"""Semantic models: the class of every pixel against the model's own processor, and the parts of classes that are proposed."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.proposals import ProposalsEmbedding
from sam4mllm.segmentation.semantic import ClassPart, SemanticSegmenter, classify, connected_parts
from tests.test_sam import picture, prompt
from tests.tiny_segmenters import make_segmenter

CPU = torch.device("cpu")


def painted(parts: list[ClassPart], size: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W): which part each pixel is in, counted from 1; 0 where it is in none. No two may share a pixel."""
    canvas = np.zeros(size, np.int64)
    for number, part in enumerate(parts, 1):
        height, width = part.mask.shape
        place = canvas[part.top : part.top + height, part.left : part.left + width]
        assert not place[part.mask].any()
        place[part.mask] = number
    return canvas


def flooded(classes: NDArray[np.int64], left_out: Collection[int] = ()) -> list[frozenset[tuple[int, int]]]:
    """The parts by the book: from every pixel to its eight neighbours of the same class."""
    height, width = classes.shape
    free = {(y, x) for y in range(height) for x in range(width) if classes[y, x] not in left_out}
    parts = []
    while free:
        part, front = set(), [free.pop()]
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & free
            alike = {place for place in near if classes[place] == classes[y, x]}
            free -= alike
            front += alike
        parts.append(frozenset(part))
    return parts


def pixels_of(part: ClassPart) -> frozenset[tuple[int, int]]:
    return frozenset((int(y) + part.top, int(x) + part.left) for y, x in np.argwhere(part.mask))


@pytest.mark.parametrize("size", [(150, 210), (200, 77)], ids=str)
def test_proposals_are_the_parts_of_the_classes_that_its_own_processor_finds(size: tuple[int, int], tmp_path: Path) -> None:
    folder, image = make_segmenter("segformer", tmp_path), picture(1, *size)
    processor = SegformerImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        answer = SegformerForSemanticSegmentation.from_pretrained(folder).eval()(**processor(images=image, return_tensors="pt"))
    [own] = processor.post_process_semantic_segmentation(answer, target_sizes=[size])
    embedding = load_segmenter(str(folder), CPU).encode(image)
    assert isinstance(embedding, ProposalsEmbedding)
    found = {frozenset(map(tuple, np.argwhere(one.mask(size[1], size[0])).tolist())) for one in embedding.proposals}
    expected = flooded(own.numpy(), {0})
    assert 1 < len(expected) < 256
    assert 0 in own
    assert found == set(expected)


def test_a_classes_probability_and_lead_are_those_of_all_classes_at_once() -> None:
    logits = torch.randn(7, 9, 5, generator=torch.Generator().manual_seed(1)) * 4
    full = interpolate(logits[None], (31, 40), mode="bilinear")[0]
    shown = classify(logits, (31, 40))
    first, second = full.topk(2, 0).values
    np.testing.assert_array_equal(shown.classes, full.argmax(0))
    np.testing.assert_allclose(shown.sure, full.softmax(0).amax(0), atol=1e-6)
    np.testing.assert_allclose(shown.leads, first - second, atol=1e-5)


@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)), st.sets(st.integers(0, 3)))
def test_parts_are_what_hangs_together(classes: NDArray[np.int64], left_out: set[int]) -> None:
    parts = connected_parts(classes, left_out)
    assert sorted(map(pixels_of, parts), key=sorted) == sorted(flooded(classes, left_out), key=sorted)
    assert [part.area for part in parts] == sorted((int(part.mask.sum()) for part in parts), reverse=True)
    np.testing.assert_array_equal(painted(parts, classes.shape) > 0, ~np.isin(classes, list(left_out)))


@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)), st.integers(1, 5))
def test_the_largest_are_kept(classes: NDArray[np.int64], most: int) -> None:
    every = sorted((len(part) for part in flooded(classes)), reverse=True)
    assert [part.area for part in connected_parts(classes, most=most)] == every[:most]


def logits_of(*classes: NDArray[np.float64]) -> torch.Tensor:
    return torch.tensor(np.stack(classes), dtype=torch.float32)[None]


class FixedLogits(torch.nn.Module):
    """Answers with the same logits whatever it is shown."""

    def __init__(self, logits: torch.Tensor, names: list[str]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = logits
        self.config = type("Config", (), {"id2label": dict(enumerate(names))})

    def forward(self, pixel_values: torch.Tensor) -> FixedLogits:
        return self


def proposed(logits: torch.Tensor, names: list[str]) -> ProposalsEmbedding:
    segmenter = SemanticSegmenter(FixedLogits(logits, names), SegformerImageProcessor(), "test")
    return segmenter.encode(np.zeros((*logits.shape[-2:], 3), np.uint8))


LEFT = np.repeat([[1.0, 1.0, 0.0, 0.0]], 3, axis=0)


def test_score_and_stability_by_hand() -> None:
    lead = np.array([[2.0, 0.5, 0, 0], [2.0, 0.5, 0, 0], [2.0, 2.0, 0, 0]])
    embedding = proposed(logits_of(lead, 1 - LEFT), ["cup", "background"])
    [cup] = embedding.proposals
    np.testing.assert_array_equal(cup.mask(4, 3), LEFT > 0)
    assert cup.score == pytest.approx((4 / (1 + np.exp(-2)) + 2 / (1 + np.exp(-0.5))) / 6)
    assert cup.stability == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        pytest.param(["cup", "bowl"], 2, id="no background: every class"),
        pytest.param(["cup", " Background "], 1, id="any spelling of it"),
        pytest.param(["unlabeled", "cup"], 1, id="another name of it"),
        pytest.param(["cup", "background music"], 2, id="a longer name is a class"),
    ],
)
def test_the_background_is_no_proposal(names: list[str], count: int) -> None:
    assert len(proposed(logits_of(LEFT, 1 - LEFT), names).proposals) == count


def test_a_model_of_one_class_says_yes_or_no() -> None:
    [only] = proposed(logits_of(4 * LEFT - 2), ["cup"]).proposals
    np.testing.assert_array_equal(only.mask(4, 3), LEFT > 0)
    assert only.score == pytest.approx(1 / (1 + np.exp(-2)))


def test_an_image_of_background_alone_gives_an_empty_mask() -> None:
    segmenter = SemanticSegmenter(FixedLogits(logits_of(LEFT - 9, 1 - LEFT), ["cup", "background"]), SegformerImageProcessor(), "test")
    [masks] = segmenter.decode(segmenter.encode(np.zeros((3, 4, 3), np.uint8)), [prompt(None, [[1, 1]], [1])])
    assert masks.masks.shape == (1, 3, 4)
    assert not masks.masks.any()


def test_no_package_beyond_the_cores_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam4mllm.segmentation.pretrained.find_spec", lambda name: None)
    folder = make_segmenter("segformer", tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "segformer"
    load_segmenter(str(folder), CPU)
