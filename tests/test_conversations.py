"""Conversations of the LLaVA format: what is read, what is refused, and how they are learned."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sam4mllm.data.conversations import Conversation, Turn, read_conversations
from sam4mllm.errors import DatasetError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.training.collate import UNLEARNED, Collator
from sam4mllm.training.loss import row_loss
from tests.conftest import make_checkpoint

torch.set_num_threads(1)

BUS = {
    "id": "1",
    "image": "coco/bus.png",
    "conversations": [
        {"from": "human", "value": "<image>\nfind the bus"},
        {"from": "gpt", "value": "left "},
        {"from": "human", "value": "mark it"},
        {"from": "gpt", "value": "below the car"},
    ],
}
TURNS = (Turn("find the bus", "left"), Turn("mark it", "below the car"))


def write_talks(folder: Path, records: object) -> Path:
    """A LLaVA file with its picture."""
    (folder / "coco").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 90, 3), 90, np.uint8)).save(folder / "coco" / "bus.png")
    (folder / "talks.json").write_text(json.dumps(records))
    return folder / "talks.json"


def test_what_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    after = {**BUS, "conversations": [{"from": "human", "value": "what is it?\n<image>"}, {"from": "gpt", "value": "a bus"}]}
    text = {"id": "3", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"}]}
    path = write_talks(tmp_path, [BUS, text, after])
    with caplog.at_level(logging.WARNING):
        found = read_conversations(path)
    image = tmp_path / "coco" / "bus.png"
    assert found == [Conversation(image, TURNS), Conversation(image, (Turn("what is it?", "a bus"),))]
    assert "1 conversations without an image are passed over" in caplog.text
    elsewhere = write_talks(tmp_path / "other", [BUS]).rename(tmp_path / "moved.json")
    assert read_conversations(elsewhere, tmp_path / "other")[0].image == tmp_path / "other" / "coco" / "bus.png"


def change(**fields: Any) -> list[Any]:
    return [BUS, {**BUS, **fields}]


def said(*values: Any) -> list[Any]:
    return change(conversations=[{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param({"a": 1}, "not a list", id="no list"),
        pytest.param([BUS, 3], "record 2: it is not an object", id="no object"),
        pytest.param(change(conversations=[]), "record 2: conversations is a list", id="nothing said"),
        pytest.param(said("<image> a"), "in pairs", id="no answer"),
        pytest.param(change(conversations=[*BUS["conversations"][1:], {}]), "turn 1 must be from 'human'", id="who begins"),  # type: ignore[misc]
        pytest.param(said("<image> a", 3), "turn 2 says nothing", id="no text"),
        pytest.param(said("<image> a", " "), "turn 2 says nothing", id="blank"),
        pytest.param(said("<image> a", "\ud800"), "turn 2 says nothing", id="half a character"),
        pytest.param(said("a", "b"), "must hold <image> once", id="no placeholder"),
        pytest.param(said("<image>", "b"), "before or after", id="only a placeholder"),
        pytest.param(said("a <image> b", "b"), "before or after", id="within"),
        pytest.param(said("<image> a", "b <image>"), "more than once", id="two images"),
        pytest.param(change(image="coco/none.png"), "none.png is missing", id="no picture"),
        pytest.param(change(image="x" * 300), "is missing", id="a name that no file can have"),
        pytest.param(change(image="../x.png"), "not a path below", id="out of the folder"),
        pytest.param(change(image=3), "not a path", id="no path"),
        pytest.param([], "no conversation about an image", id="empty"),
    ],
)
def test_what_is_refused(records: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_conversations(write_talks(tmp_path, records))
    assert "talks.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_conversations(tmp_path / "none.json")
    (tmp_path / "none.json").write_text("[")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_conversations(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["human", "gpt", "<image>\na", "coco/bus.png"]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image", "conversations", "from", "value"]), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(JSON, max_size=3))
def test_anything_else_is_read_or_refused(records: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_text(json.dumps(records))
    with suppress(DatasetError):
        assert read_conversations(path)


# -- learning ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return MllmGrounder(load_checkpoint(str(make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("model"))), torch.device("cpu")))


def test_only_answers_are_learned(grounder: MllmGrounder) -> None:
    row = Collator(grounder).talk_row(TURNS)
    answers = [[*grounder.encode(turn.answer), grounder.end] for turn in TURNS]
    assert [target for target in row.targets.tolist() if target != UNLEARNED] == answers[0] + answers[1]
    markup = grounder.markup
    whole = f"{TURNS[0].question}{markup.to_answer}left{markup.to_question}{TURNS[1].question}{markup.to_answer}below the car"
    assert grounder.checkpoint.tokenizer.decode(row.row.ids) == grounder.checkpoint.tokenizer.decode(grounder.encode(whole))


def test_a_turn_ends_as_in_serving_where_the_template_writes_an_ordinary_word_first(grounder: MllmGrounder) -> None:
    markup = replace(grounder.markup, to_question=f" and {grounder.markup.to_question}")
    worded = MllmGrounder(replace(grounder.checkpoint, markup=markup))
    ids = Collator(worded).talk_row(TURNS).row.ids.tolist()
    asked, said = worded.encode(TURNS[0].question + markup.to_answer), worded.encode(TURNS[0].answer)
    after = [*asked, *said, worded.end, *worded.next_turn]
    assert ids[: len(after)] == after
    assert after.count(worded.end) == grounder.encode(TURNS[0].question + markup.to_answer).count(worded.end) + 1


@torch.inference_mode()
def test_the_loss_is_that_of_a_plain_conversation(grounder: MllmGrounder) -> None:
    row = Collator(grounder).talk_row(TURNS)
    encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.new("RGB", (90, 60)))
    ids = torch.cat([encoded.inputs["input_ids"], torch.from_numpy(row.row.ids)[None]], 1)
    kinds = F.pad(encoded.inputs["mm_token_type_ids"], (0, len(row.row.ids)))
    grounder.checkpoint.model.model.rope_deltas = None
    logits = grounder.checkpoint.model(**{**encoded.inputs, "input_ids": ids, "mm_token_type_ids": kinds}).logits[0, -len(row.row.ids) :]
    plain = F.cross_entropy(logits, torch.from_numpy(row.targets), ignore_index=UNLEARNED)
    assert float(row_loss(grounder.checkpoint.model, encoded, row)) == pytest.approx(float(plain), abs=1e-5)
