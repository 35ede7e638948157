"""PPG's points by the segmenter: on and off the object, the best groups kept, made once, and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.errors import DatasetError
from sam4mllm.masks import lies_on
from sam4mllm.run_lengths import to_rle
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.training.asking import Asking
from sam4mllm.training.processes import Processes
from sam4mllm.training.targets import NO_TARGETS, Targets, key_of, make_targets
from sam4mllm.values import Masks, Prompt
from tests.fakes import FakeSegmenter
from tests.test_pool import TOY, write_pictures

ALONE = Processes(torch.device("cpu"))
ASKING = Asking(prompt_groups=6, prompt_kept=2)


class Leftmost(FakeSegmenter):
    """Its mask is the box up to the rightmost point inside: the further right that one is, the better for a box-shaped object."""

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        self.prompts.extend(prompts)
        return [Masks(_cut(embedding, prompt), np.array([0.2, 0.9]), np.ones(2)) for prompt in prompts]


def _cut(embedding: Embedding, prompt: Prompt) -> NDArray[np.bool_]:
    assert prompt.box_px is not None
    x1, y1, _, y2 = prompt.box_px.astype(int)
    masks = np.zeros((2, embedding.height, embedding.width), np.bool_)
    masks[1, y1:y2, x1 : int(prompt.points_px[prompt.labels == 1, 0].max()) + 1] = True
    return masks


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", TOY)


def make(data: Path, segmenter: FakeSegmenter, asking: Asking = ASKING, examples: list[Example] | None = None) -> Targets:
    return make_targets([(data, examples or read_examples(data))], segmenter, asking, ALONE)


def objects(data: Path) -> list[tuple[Example, int]]:
    return [(example, index) for example in read_examples(data) for index in range(len(example.instances))]


def test_the_best_groups_are_kept(data: Path) -> None:
    segmenter = Leftmost()
    targets = make(data, segmenter)
    first, index = objects(data)[0]
    rights = sorted((prompt.points_px[prompt.labels == 1, 0].max() for prompt in segmenter.prompts[:6]), reverse=True)
    groups = targets.groups[key_of(first, index)]
    assert groups.inside_px[..., 0].max(1).tolist() == rights[:2]
    assert groups.iou[0] >= groups.iou[1] > 0.3
    drawn = {float(found[0].max()) for seed in range(20) if (found := targets.draw(first, index, np.random.default_rng(seed)))}
    assert len(drawn) == 2  # each of the two is said at times


def test_points_lie_on_and_off_their_object(data: Path) -> None:
    """The second object of a phrase counts as off the first; a corner is cut off each, for else nothing in a box were off it."""
    examples = [cut_corner(example) for example in read_examples(data)]
    targets = make(data, FakeSegmenter(), examples=examples)
    for example in examples:
        for index, mask in enumerate(example.masks()):
            groups = targets.groups[key_of(example, index)]
            assert groups.inside_px.shape == (2, ASKING.prompt_inside, 2)
            assert groups.outside_px.shape == (2, ASKING.prompt_outside, 2)
            x1, y1, x2, y2 = example.boxes_px[index]
            for points, inside in ((groups.inside_px, True), (groups.outside_px, False)):
                flat = points.reshape(-1, 2)
                assert (lies_on(mask, flat) == inside).all()
                assert ((flat > [x1, y1]) & (flat < [x2, y2])).all()


def cut_corner(example: Example) -> Example:
    instances = []
    for instance, mask in zip(example.instances, example.masks(), strict=True):
        x1, y1, x2, y2 = instance.box_px.astype(int)
        mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = False
        instances.append(replace(instance, rle=to_rle(mask)))
    return replace(example, instances=tuple(instances))


def test_an_object_of_one_pixel_that_fills_its_box(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", [{"the left cup": [(5, 10, 6, 11)]}])
    [(example, index)] = objects(data)
    found = make(data, FakeSegmenter()).draw(example, index, np.random.default_rng(0))
    assert found is not None
    assert found[0].tolist() == [[5.5, 10.5]]
    assert found[1].shape == (0, 2)


def test_what_is_made_is_not_made_again(data: Path) -> None:
    first = make(data, FakeSegmenter())
    again = FakeSegmenter()
    second = make(data, again)
    assert not again.prompts
    assert second.identity == first.identity
    for key, groups in first.groups.items():
        np.testing.assert_array_equal(second.groups[key].inside_px, groups.inside_px)
    for other in (FakeSegmenter(identity="other"), again):
        asking = ASKING if other is not again else replace(ASKING, prompt_kept=1)
        assert make(data, other, asking).identity != first.identity
        assert other.prompts


def test_a_kill_loses_half_a_line_and_what_follows_it(data: Path) -> None:
    whole = make(data, FakeSegmenter())
    [path] = data.glob(".prompts-*")
    lines = path.read_bytes()
    path.write_bytes(lines[: lines.rindex(b"\n{", 0, len(lines) // 2) + 20])  # in the midst of a line
    segmenter = FakeSegmenter()
    resumed = make(data, segmenter)
    assert 0 < len(segmenter.prompts) < ASKING.prompt_groups * len(objects(data))
    assert resumed.groups.keys() == whole.groups.keys()
    for key, groups in whole.groups.items():
        np.testing.assert_array_equal(resumed.groups[key].inside_px, groups.inside_px)
    assert [len(path.read_bytes().split(b"\n{")) - 1 for path in data.glob(".prompts-*")] == [len(whole.groups) + 1]  # and the half


def test_where_there_are_none(data: Path) -> None:
    [(example, index), *_] = objects(data)
    rng = np.random.default_rng(0)
    assert NO_TARGETS.draw(example, index, rng) is None
    assert rng.random() == np.random.default_rng(0).random()  # a run without them draws as ever


def test_a_folder_that_cannot_be_written(data: Path) -> None:
    """The name of the file is taken by a folder: unlike permissions, that stops every user."""
    identity = make(data, FakeSegmenter()).identity
    [path] = data.glob(".prompts-*")
    path.unlink()
    path.with_name(f".prompts-{identity}.0.jsonl").mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        make(data, FakeSegmenter())
