"""The fast ways of asking against the slow ones, on every family."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from sam4mllm.errors import PhraseError
from sam4mllm.grounding.decoding import Written, write
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry, Replies, Scene
from sam4mllm.grounding.reference import ask_expanded, ask_one_by_one, ask_separately
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.points import spread
from sam4mllm.prompts.conversation import box_question
from sam4mllm.values import Grounding

PHRASES = ["the left cup", "all zebras", "the dog below the car"]


@pytest.fixture(scope="module")
def grounder(tiny_checkpoint: Path) -> MllmGrounder:
    return MllmGrounder(load_checkpoint(str(tiny_checkpoint), torch.device("cpu")), max_new_tokens=12)


def picture(seed: int, height: int = 120, width: int = 90) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def inquiry(phrase: str, boxes: list[list[float]], index: int, count: int) -> Inquiry:
    array = np.array(boxes, np.float32)
    return Inquiry(Grounding(phrase, array, np.ones(len(array)), 0.0), index, spread(array[index], count))


def assert_same(said: Replies, again: Replies, within: float) -> None:
    np.testing.assert_allclose(said.inside, again.inside, rtol=0, atol=within)
    np.testing.assert_allclose(said.mass, again.mass, rtol=0, atol=within)


def cache_sums(scene: MllmScene) -> list[float]:
    return [float(layer.keys.double().sum() + layer.values.double().sum()) for layer in scene.cache.layers]


def test_packed_points_equal_separate_prompts_and_the_expanded_cache(grounder: MllmGrounder) -> None:
    image = picture(1)
    question = inquiry("the left cup", [[5, 5, 60, 80], [20, 30, 85, 110]], 1, 30)
    scene = grounder.open(image)
    [packed] = grounder.ask(scene, [question])
    assert packed.inside.std() > 1e-4  # the answers differ between points, or the comparison would say nothing
    assert_same(packed, ask_separately(grounder, image, question), 1e-4)
    assert_same(packed, ask_expanded(grounder, scene, question), 1e-4)


def test_packed_points_do_not_depend_on_their_order_or_company(grounder: MllmGrounder) -> None:
    scene = grounder.open(picture(2))
    question = inquiry("the left cup", [[5, 5, 60, 80]], 0, 8)
    other = inquiry("all zebras", [[0, 0, 40, 40], [10, 10, 80, 100]], 1, 5)
    turned = Inquiry(question.grounding, 0, question.points_px[::-1].copy())
    [alone] = grounder.ask(scene, [question])
    [_, reversed_points, beside] = grounder.ask(scene, [other, turned, question])
    assert_same(Replies(reversed_points.inside[::-1], reversed_points.mass[::-1]), alone, 1e-5)
    assert_same(beside, alone, 1e-5)


def test_joint_answers_equal_greedy_decoding_one_by_one(grounder: MllmGrounder) -> None:
    scene = grounder.open(picture(3))
    questions = [inquiry("the left cup", [[5, 5, 60, 80]], 0, 15), inquiry("all zebras", [[0, 0, 40, 40], [10, 10, 80, 100]], 1, 9)]
    for fast, question in zip(grounder.ask(scene, questions, joint=True), questions, strict=True):
        assert_same(fast, ask_one_by_one(grounder, scene, question), 1e-4)


def test_phrases_answered_together_equal_phrases_answered_alone(grounder: MllmGrounder) -> None:
    scene = grounder.open(picture(4))
    for together, phrase in zip(grounder.ground(scene, PHRASES), PHRASES, strict=True):
        [alone] = grounder.ground(scene, [phrase])
        np.testing.assert_array_equal(together.boxes_px, alone.boxes_px)
        np.testing.assert_allclose(together.no_target_probability, alone.no_target_probability, atol=1e-5)


def test_a_box_answer_equals_generate_of_transformers(grounder: MllmGrounder) -> None:
    image = picture(5)
    scene = grounder.open(image)
    question = grounder.encode(box_question(grounder.dialect, PHRASES[0]) + grounder.markup.to_answer)
    [written] = write(grounder, scene, [question], frozenset({grounder.end}), 10)
    encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(image))
    inputs = dict(encoded.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([question])], 1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(question), dtype=torch.int)], 1)
    generated = grounder.checkpoint.model.generate(
        **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=10, do_sample=False
    )
    grounder.checkpoint.model.model.rope_deltas = None
    ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
    ids = ids[: ids.index(grounder.end)] if grounder.end in ids else ids
    assert written.text == grounder.checkpoint.tokenizer.decode(ids)


def test_a_scene_is_left_as_it_was_and_survives_another(grounder: MllmGrounder) -> None:
    question = inquiry("the left cup", [[5, 5, 60, 80]], 0, 6)
    first = grounder.open(picture(6))
    before, [answer] = cache_sums(first), grounder.ask(first, [question])
    grounder.ground(grounder.open(picture(7, 60, 150)), PHRASES)
    grounder.ground(first, PHRASES, "prompt")
    assert cache_sums(first) == before
    [again] = grounder.ask(first, [question])
    assert_same(again, answer, 0)


def test_nothing_to_ask_is_nothing_answered(grounder: MllmGrounder) -> None:
    scene = grounder.open(picture(8))
    assert grounder.ask(scene, []) == []
    assert grounder.ground(scene, []) == []
    [none] = grounder.ask(scene, [inquiry("the left cup", [[5, 5, 60, 80]], 0, 0)])
    assert none.inside.shape == none.mass.shape == (0,)
    [none] = grounder.ask(scene, [inquiry("the left cup", [[5, 5, 60, 80]], 0, 0)], joint=True)
    assert none.inside.shape == none.mass.shape == (0,)


def test_a_scene_of_another_grounder_is_refused(grounder: MllmGrounder) -> None:
    with pytest.raises(TypeError, match="another grounder"):
        grounder.ground(Scene(10, 10, 0), ["a cup"])


def test_long_rows_are_split_with_the_same_result(grounder: MllmGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = grounder.open(picture(9))
    questions = [inquiry("the left cup", [[5, 5, 60, 80], [20, 30, 85, 110]], index, 6) for index in (0, 1, 0)]
    whole = [grounder.ask(scene, questions, joint=joint) for joint in (False, True)]
    monkeypatch.setattr("sam4mllm.grounding.asking.MAX_ROW", 10)
    split = [grounder.ask(scene, questions, joint=joint) for joint in (False, True)]
    for one, other in zip([*whole[0], *whole[1]], [*split[0], *split[1]], strict=True):
        assert_same(one, other, 1e-5)


@pytest.mark.parametrize("word", ["<|end|>", "<|image_pad|>", "<|user|>"])
def test_control_words_in_a_phrase_are_refused(grounder: MllmGrounder, word: str) -> None:
    with pytest.raises(PhraseError, match="control word"):
        grounder.ground(grounder.open(picture(10)), [f"the cup{word}in the middle"])


def test_a_scene_that_was_read_keeps_no_model(tiny_checkpoint: Path) -> None:
    own = MllmGrounder(load_checkpoint(str(tiny_checkpoint), torch.device("cpu")), max_new_tokens=12)
    scene, gone = own.open(np.zeros((64, 64, 3), np.uint8)), weakref.ref(own)
    assert scene.prefix.unread is not None
    scene.read()
    assert scene.prefix.unread is None
    del own
    gc.collect()
    assert gone() is None


def test_the_identity_follows_the_weights(tiny_checkpoint: Path, grounder: MllmGrounder, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    other = MllmGrounder(load_checkpoint(str(tmp_path / "other"), torch.device("cpu")), max_new_tokens=12)
    assert other.identity != grounder.identity


def test_an_answer_that_cannot_be_read_says_so(grounder: MllmGrounder) -> None:
    """Random weights ramble until the limit and write no box."""
    [found] = grounder.ground(grounder.open(picture(11)), ["the left cup"])
    assert found.note


@pytest.mark.parametrize(
    ("text", "with_points", "finished", "note", "inside"),
    [
        pytest.param("{100,250,500,750}", False, True, "", 0, id="another spelling"),
        pytest.param("[10%, 25%, 50%, 75%]", False, True, "the model gave percent", 0, id="another frame"),
        pytest.param(
            "[10%, 25%, 50%, 75%] inside (20%, 50%) (30%, 50%)", True, True, "the model gave percent", 2, id="another frame, with points"
        ),
        pytest.param("[10%, 25%, 50%, 75%] and", False, False, "; the model's answer was cut off", 0, id="another frame, cut off"),
        pytest.param("[100,250,50", False, False, "could not be read", None, id="half a box"),
        pytest.param("Keine Tasse zu sehen.", True, True, "", None, id="none"),
    ],
)
def test_answers_in_other_words(
    grounder: MllmGrounder, text: str, with_points: bool, finished: bool, note: str, inside: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both questions are read by the same reader, and each box has the probability of the tokens that wrote it."""
    ids = grounder.encode(text)
    logs = tuple(-0.01 * (place + 1) for place in range(len(ids)))
    given = Written(text, tuple(ids), logs, torch.zeros(grounder.checkpoint.model.config.get_text_config().vocab_size), finished)
    monkeypatch.setattr("sam4mllm.grounding.mllm.write", lambda *_: [given])
    monkeypatch.setattr(
        type(grounder.checkpoint.tokenizer), "decode", lambda self, some, **_: text[: round(len(text) * len(some) / len(ids))]
    )
    [found] = grounder.ground(grounder.open(picture(3, 100, 200)), ["a cup"], "prompt" if with_points else "box")
    assert note in found.note
    assert bool(note) == bool(found.note)
    if inside is None:
        assert not len(found.boxes_px)
        return
    np.testing.assert_allclose(found.boxes_px, [[20, 25, 100, 75]], atol=0.2)
    assert np.exp(logs[-1]) <= found.box_probabilities[0] <= np.exp(logs[0])
    assert [len(points.inside_px) for points in found.points] == ([inside] if with_points else [])
