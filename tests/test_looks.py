"""What a look back is learned from: masks as a segmenter draws them, outlined, and what is asked about each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.outline import COLOUR, draw_outline
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import UNLEARNED, Collator
from sam4mllm.training.looks import FLAW_SHARE, OutlinedImage, as_drawn, balanced, draw_look, is_meant
from tests.test_pool import TOY, write_pictures

torch.set_num_threads(1)


def square(left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((60, 100), np.bool_)
    mask[10:50, left:right] = True
    return mask


THING, OTHER = square(10, 40), square(60, 90)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("toy") / "data", TOY[:1])


@pytest.fixture(scope="module")
def examples(data: Path) -> list[Example]:
    return read_examples(data)


@pytest.mark.parametrize(
    ("mask", "meant", "expected"),
    [
        pytest.param(THING, [OTHER, THING], True, id="one of those that are meant"),
        pytest.param(square(10, 33), [THING], True, id="off at its edge"),
        pytest.param(THING, [OTHER], False, id="another thing"),
        pytest.param(square(10, 28), [THING], None, id="a little more than half of it"),
        pytest.param(square(10, 24), [THING], False, id="less than half of it"),
        pytest.param(THING, [], False, id="a phrase that means nothing"),
    ],
)
def test_what_counts_as_meant(mask: NDArray[np.bool_], meant: list[NDArray[np.bool_]], expected: bool | None) -> None:
    assert is_meant(mask, meant) is expected


def test_some_masks_are_spoiled_and_most_are_not() -> None:
    drawn = [as_drawn(np.random.default_rng(seed), THING, lambda: OTHER) for seed in range(400)]
    assert all(mask.any() for mask in drawn)
    answers = [is_meant(mask, [THING]) for mask in drawn]
    assert 1 - FLAW_SHARE - 0.05 < answers.count(True) / 400 < 1 - FLAW_SHARE / 2
    assert answers.count(False) > 400 * FLAW_SHARE / 4
    assert any(mask[OTHER].all() and mask[THING].mean() > 0.5 for mask in drawn)
    assert len({mask.tobytes() for mask in drawn}) > 50


def test_an_edge_is_shaken_on_what_is_small_too() -> None:
    dot = np.zeros((60, 100), np.bool_)
    dot[30, 30] = True
    assert all(as_drawn(np.random.default_rng(seed), dot, lambda: OTHER).any() for seed in range(50))


def test_hardly_more_is_denied_than_confirmed() -> None:
    answers = [("a", True), ("b", False), ("c", None), ("d", False), ("e", False)]
    asked = balanced(np.random.default_rng(0), answers)
    assert asked[0] == ("a", True)
    assert len(asked) == 3
    assert {phrase for phrase, _ in asked[1:]} <= {"b", "d", "e"}
    assert balanced(np.random.default_rng(0), [("c", None)]) == []


def test_a_look_shows_one_outline_and_tells_the_truth_of_it(data: Path, examples: list[Example]) -> None:
    image = load_example_image(data, examples[0])
    answers = set()
    for seed in range(60):
        look = draw_look(image, examples, np.random.default_rng(seed))
        if look is None:
            continue
        assert (look.image == COLOUR).all(-1).any()
        answers |= set(look.asked)
    meant = {example.phrase for example in examples if example.has_target}
    assert {phrase for phrase, right in answers if right} == meant
    assert {phrase for phrase, right in answers if not right} == {example.phrase for example in examples}


def test_where_nothing_is_there_is_nothing_to_look_at(data: Path, examples: list[Example]) -> None:
    empty = [replace(example, instances=()) for example in examples]
    assert draw_look(load_example_image(data, examples[0]), empty, np.random.default_rng(0)) is None


def test_training_asks_what_serving_asks(tiny_checkpoint: Path) -> None:
    grounder = MllmGrounder(load_checkpoint(str(tiny_checkpoint), torch.device("cpu")))
    asked = (("the  left cup ", True), ("the dog", False))
    row = Collator(grounder).look_row(OutlinedImage(draw_outline(np.zeros((60, 100, 3), np.uint8), THING), asked))
    questions = [grounder.look_back_question("the left cup"), grounder.look_back_question("the dog")]
    assert row.row.ids.tolist() == [*questions[0], *questions[1]]
    learned = row.targets[row.targets != UNLEARNED].tolist()
    assert learned == [grounder.verdicts.yes[0], grounder.verdicts.no[0]]
    assert np.flatnonzero(row.targets != UNLEARNED).tolist() == row.row.lasts.tolist()


def test_no_look_is_due_unless_it_is_asked_for(tiny_checkpoint: Path, data: Path, examples: list[Example]) -> None:
    grounder = MllmGrounder(load_checkpoint(str(tiny_checkpoint), torch.device("cpu")))
    image, rng = load_example_image(data, examples[0]), np.random.default_rng(0)
    assert Collator(grounder).look(image, examples, rng) is None
    assert rng.random() == np.random.default_rng(0).random(), "and nothing else of a run changes"
    due = [Collator(grounder, Asking(look_share=0.5)).look(image, examples, np.random.default_rng(seed)) for seed in range(40)]
    assert 8 < sum(one is not None for one in due) < 32
    with pytest.raises(TrainingError, match="look_share"):
        Asking(look_share=2)
