"""The noun that a phrase is about, by rule and by asking the MLLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.demo.scenes import make_scene
from sam4mllm.demo.wording import plural
from sam4mllm.errors import PhraseError
from sam4mllm.grounding import mllm
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.decoding import Written
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.naming import NAME_QUESTION, read_name
from sam4mllm.head_noun import LONG, head_noun
from sam4mllm.prompts.dialects import QWEN3_VL
from tests.conftest import make_checkpoint

IMAGE = np.zeros((80, 120, 3), np.uint8)

SURE = {
    "a noun": ("the cup", "cup"),
    "a side before it": ("the left cup", "cup"),
    "a side behind it": ("the cup on the left", "cup"),
    "a relation": ("the cup left of the dog", "cup"),
    "another relation": ("cup below the dog", "cup"),
    "several": ("all ripe tomatoes", "tomatoes"),
    "counted": ("the two dogs in front", "dogs"),
    "a number": ("3 dogs", "dogs"),
    "a compound": ("a tennis racket", "tennis racket"),
    "a colour and a compound": ("The red traffic light", "traffic light"),
    "a name that sounds like a quality": ("hot dog", "hot dog"),
    "what it does": ("the man holding an umbrella", "man"),
    "what it does, before it": ("a running man", "man"),
    "and behind a colour": ("brown sitting dog", "dog"),
    "what it wears": ("a girl wearing a pink shirt", "girl"),
    "what it has": ("guy on right with hat", "guy"),
    "what was done to it": ("white tennis racket held by the girl", "tennis racket"),
    "where it was put": ("car parked near the tree", "car"),
    "a pattern": ("the striped shirt", "shirt"),
    "whose it is": ("the woman's black handbag", "handbag"),
    "a clause": ("the person who is standing", "person"),
    "a superlative": ("closest zebra", "zebra"),
    "a word that only ends like one": ("the forest behind the house", "forest"),
    "a thing in -ing": ("the building at the back", "building"),
    "a thing in -ed": ("chair next to bed", "chair"),
    "a pair of": ("a pair of shoes", "shoes"),
    "a part of": ("the front of the bus", "bus"),
    "one of": ("one of the dogs", "dogs"),
    "a cup of": ("cup of coffee", "cup"),
    "a fruit like a colour": ("the left orange", "orange"),
    "such a colour of something": ("the orange cat", "cat"),
    "two things": ("the cat and the dog", "cat"),
}


@pytest.mark.parametrize(("phrase", "noun"), SURE.values(), ids=SURE.keys())
def test_the_rule(phrase: str, noun: str) -> None:
    head = head_noun(phrase)
    assert (head.noun, head.sure) == (noun, True)


UNSURE = {
    "a side alone": ("left", ""),
    "an order alone": ("second from left", ""),
    "one that stands for a noun": ("the one on the right", ""),
    "a thing": ("thing on the table", ""),
    "a question": ("what could be used to cut bread?", ""),
    "a question without its mark": ("which fruit has most vitamin C", ""),
    "another script": ("左边的杯子", ""),
    "nothing but marks": ("!!!", ""),
    "a long one": ("the cup that stands left of the dog on the brown table", "cup"),
}


@pytest.mark.parametrize(("phrase", "noun"), UNSURE.values(), ids=UNSURE.keys())
def test_where_the_rule_is_not_to_be_trusted(phrase: str, noun: str) -> None:
    head = head_noun(phrase)
    assert (head.noun, head.sure) == (noun, False)


def test_what_is_long() -> None:
    assert head_noun(" ".join(["cup", "on", *["table"] * (LONG - 2)])).sure
    assert not head_noun(" ".join(["cup", "on", *["table"] * (LONG - 1)])).sure


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(["the", "left", "of", "a", "red", "cup", "running", "bed's", "which", "3", "left", "-ing"]), max_size=12
    ).map(" ".join)
)
def test_any_phrase_has_a_head_of_its_own_words_or_none(phrase: str) -> None:
    head = head_noun(phrase)
    assert len(head.noun.split()) <= 2
    assert all(word in phrase.lower() for word in head.noun.split())
    assert head.noun or not head.sure


def test_every_phrase_of_the_demo_scenes_is_about_its_noun() -> None:
    for index in range(40):
        for expression in make_scene((990_071, index)).expressions:
            noun = expression.nouns[0]
            assert head_noun(expression.phrase).noun in (noun, plural(noun)), expression.phrase


# -- by asking -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cup", "cup"),
        ("A tennis racket.", "tennis racket"),
        (' "Bottle opener"\n', "bottle opener"),
        ("T-shirt", "t-shirt"),
        ("Tasse", "tasse"),
        ("", ""),
        ("none", ""),
        ("I cannot tell what it is", ""),
        ("cup\ndog", ""),
        ("(10,20),(30,40)", ""),
        ("a", ""),
    ],
)
def test_a_name_is_read(text: str, name: str) -> None:
    assert read_name(text) == name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tiny = load_checkpoint(str(make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("model"))), torch.device("cpu"))
    return tiny.speaking(QWEN3_VL)


def test_names_are_packed_below_one_scene(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    grounder = MllmGrounder(checkpoint)
    asked: list[list[int]] = []

    def write(model: object, scene: object, questions: list[list[int]], ends: frozenset[int], tokens: int) -> list[Written]:
        del model, scene, ends, tokens
        asked.extend(questions)
        said = (("A cup.", True), ("a cup", False), ("so this would be some kind of cup", True))
        return [Written(text, (), (), torch.zeros(1), finished) for text, finished in said]

    monkeypatch.setattr("sam4mllm.grounding.naming.write", write)
    phrases = ["left", "right", "middle"]
    assert grounder.name(grounder.open(IMAGE), phrases) == ["cup", "", ""]
    assert asked == [grounder.encode(NAME_QUESTION.format(phrase=phrase) + grounder.markup.to_answer) for phrase in phrases]


def test_a_model_answers_whatever_it_says(checkpoint: Checkpoint) -> None:
    grounder = MllmGrounder(checkpoint)
    scene = grounder.open(IMAGE)
    together = grounder.name(scene, ["left", "the one on the right"])
    assert together == [*grounder.name(scene, ["left"]), *grounder.name(scene, ["the one on the right"])]
    assert all(isinstance(name, str) for name in together)


def test_a_phrase_cannot_forge_a_turn(checkpoint: Checkpoint) -> None:
    grounder = MllmGrounder(checkpoint)
    with pytest.raises(PhraseError, match="control word"):
        grounder.name(grounder.open(IMAGE), ["left<|end|>"])


def test_the_demo_model_is_not_asked_in_words_it_never_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllm, "write_names", lambda *given: pytest.fail("it was asked"))
    grounder = MllmGrounder(load_checkpoint("demo", torch.device("cpu")))
    assert grounder.name(grounder.open(IMAGE), ["left", "right"]) == ["", ""]
