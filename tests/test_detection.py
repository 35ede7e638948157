"""A detector and a segmenter as one: who is asked what, how often, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam4mllm.segmentation.concept import ConceptSegmenter
from sam4mllm.segmentation.detection import DetectingSegmenter, Detections
from sam4mllm.segmentation.module import AT_ONCE
from sam4mllm.segmentation.names import split_name
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt
from tests.fakes import FakeSegmenter

IMAGE = np.zeros((40, 60, 3), np.uint8)
CUP, SPOON, PLATE = [5, 5, 20, 30], [30, 10, 50, 12], [2, 20, 58, 39]


def detections(*boxes: Sequence[float], presence: float = 0.9) -> Detections:
    """Boxes with scores that fall from 0.9."""
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.9, 0.5, len(boxes)), presence)


@dataclass
class FakeDetector:
    """Finds what is ``known``; whether it is at least ``threshold`` is not its concern."""

    known: Mapping[str, Detections]
    identity: str = "detector"
    nbytes: int = 7
    encoded: int = 0
    asked: list[tuple[list[str], float]] = field(default_factory=list)
    devices: list[torch.device] = field(default_factory=list)

    def to(self, device: torch.device) -> None:
        self.devices.append(device)

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        self.encoded += 1
        return Embedding(image.shape[1], image.shape[0], 11)

    def find_boxes(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Detections]:
        assert embedding.nbytes == 11
        self.asked.append((list(phrases), threshold))
        return [self.known.get(phrase, detections(presence=0.05)) for phrase in phrases]


@dataclass
class CountingSegmenter(FakeSegmenter):
    sizes: list[int] = field(default_factory=list)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        self.sizes.append(len(prompts))
        return super().decode(embedding, prompts)


def box_mask(box: Sequence[int]) -> NDArray[np.bool_]:
    mask = np.zeros(IMAGE.shape[:2], np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_the_detector_finds_and_the_segmenter_draws() -> None:
    detector, segmenter = FakeDetector({"cup": detections(CUP, PLATE), "spoon": detections(SPOON)}), FakeSegmenter()
    both: ConceptSegmenter = DetectingSegmenter(detector, segmenter)
    assert isinstance(both, ConceptSegmenter)
    embedding = both.encode(IMAGE)
    assert (embedding.width, embedding.height, embedding.nbytes) == (60, 40, 11 + IMAGE.nbytes)
    cups, nothing, spoons = both.find(embedding, ["cup", "fork", "spoon"], 0.4)
    assert detector.asked == [(["cup", "fork", "spoon"], 0.4)]
    assert detector.encoded == 1
    np.testing.assert_array_equal(cups.boxes_px, [CUP, PLATE])
    np.testing.assert_array_equal(cups.scores, [0.9, 0.5])
    np.testing.assert_array_equal(cups.masks, [box_mask(CUP), box_mask(PLATE)])  # the candidate that is predicted best, not the first
    np.testing.assert_array_equal(spoons.masks, [box_mask(SPOON)])
    assert (nothing.masks.shape, nothing.masks.dtype, nothing.boxes_px.shape) == ((0, 40, 60), np.bool_, (0, 4))
    assert (cups.presence, nothing.presence) == (0.9, 0.05)
    assert [len(prompt.labels) for prompt in segmenter.prompts] == [0, 0, 0]


def test_prompts_are_the_segmenters_own() -> None:
    segmenter = FakeSegmenter()
    both, given = DetectingSegmenter(FakeDetector({}), segmenter), Prompt(np.array(CUP, np.float32), np.zeros((0, 2)), np.zeros(0))
    [masks] = both.decode(both.encode(IMAGE), [given])
    assert len(masks.masks) == 3
    assert segmenter.prompts == [given]


def test_a_crowd_is_drawn_in_batches() -> None:
    crowd = [[index % 50, 3, index % 50 + 4, 9] for index in range(2 * AT_ONCE + 5)]
    segmenter = CountingSegmenter()
    both = DetectingSegmenter(FakeDetector({"person": detections(*crowd), "cup": detections(CUP)}), segmenter)
    people, cups = both.find(both.encode(IMAGE), ["person", "cup"], 0.3)
    assert segmenter.sizes == [AT_ONCE, AT_ONCE, 6]
    np.testing.assert_array_equal(people.masks, [box_mask(box) for box in crowd])
    np.testing.assert_array_equal(cups.masks, [box_mask(CUP)])


def test_what_both_have_is_of_both() -> None:
    detector, segmenter = FakeDetector({}), FakeSegmenter(nbytes=5)
    both = DetectingSegmenter(detector, segmenter)
    both.to(torch.device("cpu"))
    assert both.nbytes == 12
    assert detector.devices == segmenter.devices == [torch.device("cpu")]
    others = [
        DetectingSegmenter(FakeDetector({}, "other"), segmenter),
        DetectingSegmenter(detector, FakeSegmenter("other")),
        DetectingSegmenter(FakeDetector({}, segmenter.identity), FakeSegmenter(detector.identity)),
    ]
    assert len({both.identity, *(other.identity for other in others)}) == 4
    assert len(both.identity) == 8


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        pytest.param("demo", (None, "demo"), id="no plus sign"),
        pytest.param("some/detector+demo", ("some/detector", "demo"), id="a hub id"),
        pytest.param("some/detector+vit_h:a+b.pth", ("some/detector", "vit_h:a+b.pth"), id="a plus sign in the file"),
        pytest.param("vit_h:a/b+c.pth", (None, "vit_h:a/b+c.pth"), id="only in the file"),
        pytest.param("c++/dino+some/sam", ("c++/dino", "some/sam"), id="in the detector's folder"),
        pytest.param("c++/sam", (None, "c++/sam"), id="a segmenter's folder"),
        pytest.param("/gone/dino+vit_h:sam.pth", ("/gone/dino", "vit_h:sam.pth"), id="a folder that has moved"),
        pytest.param("some/detector+", ("some/detector", ""), id="nothing behind it"),
        pytest.param("+demo", ("", "demo"), id="nothing before it"),
    ],
)
def test_a_name_is_parted(source: str, parts: tuple[str | None, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("c++/dino", "c++/sam"):
        (tmp_path / folder).mkdir(parents=True)
    assert split_name(source) == parts


def test_an_embedding_of_the_segmenter_alone_is_refused() -> None:
    segmenter = FakeSegmenter()
    both = DetectingSegmenter(FakeDetector({}), segmenter)
    alone = segmenter.encode(IMAGE)
    with pytest.raises(TypeError, match="made by another segmenter"):
        both.find(alone, ["cup"], 0.5)
    with pytest.raises(TypeError, match="made by another segmenter"):
        both.decode(alone, [])
