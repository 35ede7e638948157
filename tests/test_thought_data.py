"""Thoughts in data: written, read, merged, taken from ReasonSeg, and learned before the answer by a model that can think."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.data.examples import EXAMPLES, Example
from sam4mllm.data.merge import merge
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.data.readers import READERS
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.prompts.thinking import END
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import UNLEARNED, Collator
from sam4mllm.training.pool import Pool
from sam4mllm.training.recipe import Trainer
from tests.cups_dataset import CUPS, PICTURE
from tests.family_checks import PLAN
from tests.public_sets import reasonseg
from tests.test_pool import TOY, make_pool, write_pictures
from tests.test_readers import prepare
from tests.test_readers_reasonseg import SQUARE_POINTS
from tests.thinking_models import OPENED, PLAIN, thinking_grounder, without_tags

torch.set_num_threads(1)

THOUGHT = "Two cups stand there.\nThe left one is red, at [5,5,9,9]."
BOXES_ALONE = Asking(points=1, prompt_share=0)


# -- the format ----------------------------------------------------------------------------------------------------------------------------


def test_a_thought_is_written_read_copied_and_merged(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path / "data") as writer:
        record = writer.add_image(PICTURE)
        writer.add(record, "the cups", CUPS, "train", "", thought=THOUGHT)
        writer.add(record, "a cup", CUPS[:1], "train", "")
    merge([tmp_path / "data"], tmp_path / "merged")
    for folder in ("data", "merged"):
        assert [example.thought for example in read_examples(tmp_path / folder)] == [THOUGHT, ""]
        lines = [json.loads(line) for line in (tmp_path / folder / EXAMPLES).read_text().splitlines()]
        assert ["thought" in line for line in lines] == [True, False]


def test_a_thought_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer, pytest.raises(DatasetError, match="thought is text"):
        writer.add(writer.add_image(PICTURE), "the cups", CUPS, "train", "", thought="left</think>right")
    assert read_examples(tmp_path) == []


def test_what_is_drawn_hangs_on_the_thoughts(tmp_path: Path) -> None:
    examples = read_examples(write_pictures(tmp_path, TOY))
    thinking = [replace(examples[0], thought=THOUGHT), *examples[1:]]
    assert Pool([(tmp_path, examples)]).sha256 != Pool([(tmp_path, thinking)]).sha256


# -- ReasonSeg -----------------------------------------------------------------------------------------------------------------------------


def explained(root: Path, items: object) -> Path:
    for split in ("train", "val"):
        reasonseg(root, split, [("target", SQUARE_POINTS)], ["what is hot?", "the one to drink from"])
    (root / "explanatory").mkdir()
    (root / "explanatory" / "train.json").write_text(json.dumps(items))
    return root


@pytest.mark.parametrize(
    ("items", "thoughts"),
    [
        pytest.param([{"image": "a.jpg", "query": "what is hot?", "outputs": " Tea is hot. "}], ["Tea is hot."] * 2, id="explained"),
        pytest.param([{"image": "b.jpg", "query": "what is hot?", "outputs": "Tea is hot."}], ["", ""], id="another picture"),
        pytest.param([{"image": "a.jpg", "outputs": "x" * 5000}], ["", ""], id="too long"),
        pytest.param([{"image": "a.jpg", "outputs": "Tea</think>"}], ["", ""], id="with a tag"),
        pytest.param([], ["", ""], id="nothing"),
    ],
)
def test_explanations_are_thoughts_of_the_training_split(items: object, thoughts: list[str], tmp_path: Path) -> None:
    examples, _ = prepare("reasonseg", explained(tmp_path / "set", items), tmp_path / "out")
    assert [example.thought for example in examples if example.split == "train"] == thoughts
    assert [example.thought for example in examples if example.split == "val"] == [""]


@pytest.mark.parametrize(
    "items", [7, {"a.jpg": "Tea"}, [7], [{"image": "a.jpg"}], [{"image": [], "outputs": ""}], [{"image": "a", "outputs": 7}]]
)
def test_explanations_are_checked(items: object, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"explanatory/train\.json has not image and outputs as it should"):
        READERS["reasonseg"].read(explained(tmp_path, items))


# -- training ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[OPENED, PLAIN])
def grounder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return thinking_grounder(request.param, tmp_path_factory.mktemp("thinking"), 10)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    return read_examples(write_pictures(tmp_path / "data", TOY[:1]))


def said_and_learned(grounder: MllmGrounder, folder: Path, examples: list[Example]) -> tuple[list[int], list[int]]:
    scene = grounder.open(load_example_image(folder, examples[0]))
    row = Collator(grounder, BOXES_ALONE).row(scene, examples, np.random.default_rng(0))
    return row.row.ids.tolist(), [target for target in row.targets.tolist() if target != UNLEARNED]


def holds(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_example_with_a_thought_is_asked_in_both_ways(
    grounder: MllmGrounder, examples: list[Example], tmp_path: Path, which: int
) -> None:
    """Of one object, of two, and of none."""
    example = replace(examples[which], thought=THOUGHT)
    scene = grounder.open(load_example_image(tmp_path / "data", example))
    boxes_px = example.boxes_px[np.argsort(example.boxes_px[:, 0])]
    answer = grounder.box_answer(scene, example.phrase, boxes_px)
    thought = [*grounder.encode(THOUGHT), *grounder.encode(END), *answer]
    ids, learned = said_and_learned(grounder, tmp_path / "data", [example])
    assert holds(ids, [*grounder.question(example.phrase), *answer])
    assert holds(ids, [*grounder.question(example.phrase, "reason"), *thought[:-1]])
    assert holds(learned, thought)
    without, _ = said_and_learned(grounder, tmp_path / "data", [examples[which]])
    assert len(ids) == len(without) + len(grounder.question(example.phrase, "reason")) + len(thought) - 1


def test_a_model_without_words_for_a_thought_learns_the_answer_alone(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    folder = without_tags(tiny_checkpoint, tmp_path / "model")
    grounder = MllmGrounder(load_checkpoint(str(folder), torch.device("cpu")))
    thinking = [replace(example, thought=THOUGHT) for example in examples]
    assert said_and_learned(grounder, tmp_path / "data", thinking) == said_and_learned(grounder, tmp_path / "data", examples)


def test_a_thought_that_forges_a_turn_is_left_out(
    grounder: MllmGrounder, examples: list[Example], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forged = replace(examples[0], thought=f"left {grounder.checkpoint.tokenizer.eos_token} right")
    trainer = Trainer(grounder.checkpoint, make_pool(tmp_path / "data"), PLAN, tmp_path / "run", BOXES_ALONE)
    assert not trainer._gradients.may_be_asked(forged)
    assert trainer._gradients.may_be_asked(replace(examples[0], thought=THOUGHT))
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the thought contains" in line
