"""Proposals: their masks against the models' own processors, and which of them a prompt picks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoImageProcessor,
    EomtForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerForInstanceSegmentation,
)

from sam4mllm.masks import box_of, lies_on
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.proposals import Proposal, ProposalSegmenter, ProposalsEmbedding, agreement
from sam4mllm.values import Prompt
from tests.test_sam import picture, prompt
from tests.tiny_segmenters import make_segmenter

CPU = torch.device("cpu")


def masks_of(embedding: ProposalsEmbedding) -> NDArray[np.bool_]:
    return np.stack([proposal.mask(embedding.width, embedding.height) for proposal in embedding.proposals])


@pytest.mark.parametrize("size", [(150, 210), (200, 77)], ids=str)
def test_masks_equal_those_of_eomts_own_processor(size: tuple[int, int], tmp_path: Path) -> None:
    folder, image = make_segmenter("eomt", tmp_path), picture(1, *size)
    processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        answer = EomtForUniversalSegmentation.from_pretrained(folder).eval()(**processor(images=image, return_tensors="pt"))
    [own] = processor.post_process_instance_segmentation(answer, target_sizes=[size], threshold=0.0)
    embedding = load_segmenter(str(folder), CPU).encode(image)
    assert isinstance(embedding, ProposalsEmbedding)
    painted = np.full(size, -1.0)  # the processor paints its instances over each other in this order
    for index, mask in enumerate(masks_of(embedding)):
        painted[mask] = index
    np.testing.assert_array_equal(painted, own["segmentation"])
    np.testing.assert_allclose([one.score for one in embedding.proposals], [one["score"] for one in own["segments_info"]], atol=1e-5)


def test_masks_equal_those_of_mask2formers_own_processor(tmp_path: Path) -> None:
    """At 384 × 384 pixels, the one size at which that processor does not round to the nearest pixel of a coarser map."""
    size = (384, 384)
    folder, image = make_segmenter("mask2former", tmp_path), picture(2, *size)
    processor = Mask2FormerImageProcessor(size={"height": 384, "width": 384})
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.inference_mode():
        answer = model(**processor(images=image, return_tensors="pt"))
    [own] = processor.post_process_instance_segmentation(answer, threshold=0.0, target_sizes=[size], return_binary_maps=True)
    embedding = ProposalSegmenter(model, processor, "test").encode(image)
    expected = sorted(mask.tobytes() for mask in own["segmentation"].numpy().astype(np.bool_))
    assert len(expected) > 1
    assert sorted(mask.tobytes() for mask in masks_of(embedding)) == expected


@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
@pytest.mark.parametrize("size", [(150, 210), (200, 77)], ids=str)
def test_masks_are_the_logits_without_their_padding_at_the_images_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """All queries at once, as the models' authors finish them."""
    folder, image = make_segmenter(name, tmp_path), picture(3, *size)
    segmenter = load_segmenter(str(folder), CPU)
    classes: dict[str, Any] = {"mask2former": Mask2FormerForUniversalSegmentation, "maskformer": MaskFormerForInstanceSegmentation}
    processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    taken = processor(images=image, return_tensors="pt")
    with torch.inference_mode():
        answer = classes[name].from_pretrained(folder).eval()(pixel_values=taken["pixel_values"])
    seen = taken["pixel_mask"][0].nonzero().amax(0) + 1
    framed = interpolate(answer.masks_queries_logits, tuple(taken["pixel_values"].shape[-2:]), mode="bilinear")
    full: Tensor = interpolate(framed[..., : seen[0], : seen[1]], size, mode="bilinear")[0]
    expected = [mask for mask in (full > 0).numpy() if mask.any()]
    assert len(expected) > 1
    embedding = segmenter.encode(image)
    assert isinstance(embedding, ProposalsEmbedding)
    np.testing.assert_array_equal(masks_of(embedding), expected)
    assert all(0 < proposal.score <= 1 for proposal in embedding.proposals)


# -- picking -------------------------------------------------------------------------------------------------------------------------------


def proposal(mask: NDArray[np.bool_], score: float = 0.5) -> Proposal:
    box_px = box_of(mask)
    x1, y1, x2, y2 = box_px.astype(int)
    return Proposal(box_px, np.packbits(mask[y1:y2, x1:x2], axis=1), score, 0.9)


def rectangle(x1: int, y1: int, x2: int, y2: int, score: float = 0.5) -> Proposal:
    mask = np.zeros((40, 60), np.bool_)
    mask[y1:y2, x1:x2] = True
    return proposal(mask, score)


LEFT, RIGHT, BOTH = rectangle(0, 0, 20, 40), rectangle(30, 0, 60, 40), rectangle(0, 0, 60, 40, 0.4)


@given(
    arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any),
    arrays(np.float32, st.tuples(st.integers(0, 5), st.just(2)), elements=st.floats(-30, 50, width=32)),
)
def test_a_mask_comes_back_from_its_bits_and_is_asked_without_them(mask: NDArray[np.bool_], points_px: NDArray[np.float32]) -> None:
    height, width = mask.shape
    packed = proposal(mask)
    np.testing.assert_array_equal(packed.mask(width, height), mask)
    np.testing.assert_array_equal(packed.lies_on(points_px, width, height), lies_on(mask, points_px))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(prompt([0, 0, 20, 40], [], []), [1, 0, 1 / 3], id="a box alone: its IoU"),
        pytest.param(prompt(None, [[5, 5], [40, 5], [50, 5], [55, 5]], [1, 0, 0, 1]), [3 / 4, 1 / 4, 1 / 2], id="points: right sides"),
        pytest.param(prompt([0, 0, 20, 40], [[5, 5], [40, 5]], [1, 0]), [1, 0, (1 / 3 + 1 / 2) / 2], id="both: the mean"),
        pytest.param(prompt(None, [[-9, 90]], [1]), [1, 0, 1], id="a point outside is on the edge"),
        pytest.param(prompt([25, 0, 29, 40], [], []), [0, 0, 160 / 2400], id="a box in between"),
    ],
)
def test_agreement_by_hand(asked: Prompt, expected: list[float]) -> None:
    np.testing.assert_allclose(agreement([LEFT, RIGHT, BOTH], asked, 60, 40), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        pytest.param(prompt([28, 2, 58, 38], [], []), RIGHT, id="the box that fits"),
        pytest.param(prompt(None, [[5, 5], [40, 5]], [1, 1]), BOTH, id="all points on it"),
        pytest.param(prompt(None, [[5, 5]], [1]), LEFT, id="of equals the one that the model is surer of"),
        pytest.param(prompt([0, 0, 60, 40], [[25, 5], [40, 5]], [0, 1]), RIGHT, id="points against the box"),
    ],
)
def test_the_proposal_that_agrees_best_is_the_mask(asked: Prompt, chosen: Proposal, tmp_path: Path) -> None:
    segmenter = ProposalSegmenter(torch.nn.Linear(1, 1), None, "test")
    proposals = (BOTH, LEFT, RIGHT)
    [masks] = segmenter.decode(ProposalsEmbedding(60, 40, 0, proposals), [asked])
    np.testing.assert_array_equal(masks.masks, chosen.mask(60, 40)[None])
    assert masks.predicted_iou == agreement(proposals, asked, 60, 40).max()
    assert masks.stability == 0.9


def test_an_image_without_proposals_gives_an_empty_mask() -> None:
    segmenter = ProposalSegmenter(torch.nn.Linear(1, 1), None, "test")
    [masks] = segmenter.decode(ProposalsEmbedding(60, 40, 0, ()), [prompt(None, [[1, 1]], [1])])
    assert masks.masks.shape == (1, 40, 60)
    assert not masks.masks.any()
    assert masks.predicted_iou == masks.stability == 0


def test_another_segmenters_embedding_is_refused() -> None:
    segmenter = ProposalSegmenter(torch.nn.Linear(1, 1), None, "test")
    with pytest.raises(TypeError, match="another segmenter"):
        segmenter.decode(object(), [])  # type: ignore[arg-type]
