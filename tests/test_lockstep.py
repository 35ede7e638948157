"""Several images at once: the same answers as one by one, in fewer passes, and none fails for another's sake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import sam4mllm
from sam4mllm.demo.scenes import make_scene
from sam4mllm.errors import PhraseError
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Question, Scene
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.lockstep import AskPoints, Locate, Walk, locate, walk_together
from sam4mllm.pipeline import Asked, Opened, Pipeline
from sam4mllm.values import Grounding, Segmentation
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

KNOWN = {"cup": grounding("cup", [[10, 10, 60, 60]]), "plate": grounding("plate", [[20, 20, 90, 70], [5, 5, 40, 40]])}


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    return sam4mllm.load()


@pytest.fixture(scope="module")
def opened(demo: Pipeline) -> list[tuple[Opened, list[str]]]:
    """Images of different sizes with one to three phrases each."""
    scenes = [make_scene((990_101, index)) for index in range(5)]
    return [(demo.open(one.image), [found.phrase for found in one.expressions][: 1 + place % 3]) for place, one in enumerate(scenes)]


def assert_same(one: Segmentation, other: Segmentation) -> None:
    assert (one.phrase, one.note, one.version) == (other.phrase, other.note, other.version)
    assert one.score == pytest.approx(other.score, abs=1e-5)
    assert len(one.instances) == len(other.instances)
    for found, alone in zip(one.instances, other.instances, strict=True):
        np.testing.assert_array_equal(found.mask, alone.mask)
        np.testing.assert_allclose(found.score, alone.score, rtol=0, atol=1e-5)


def counting(model: MllmGrounder) -> tuple[Any, list[int]]:
    """A patch under which the model's passes are counted."""
    passes, forward = [0], model.forward

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return forward(*given)

    return patch.object(model, "forward", counted), passes


@pytest.mark.parametrize("wrap", [lambda grounder: grounder, RememberingGrounder], ids=["as loaded", "remembering"])
@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp"])
def test_the_demo_answers_as_one_by_one(
    demo: Pipeline, opened: list[tuple[Opened, list[str]]], wrap: Callable[[Any], Any], strategy: Any
) -> None:
    pipeline = demo.through(wrap(demo.grounder))
    assert isinstance(demo.grounder, CloserGrounder)
    model = demo.grounder.whole
    assert isinstance(model, MllmGrounder)
    if wrap is RememberingGrounder:
        opened = [(pipeline.open(one.image, one.embedding), phrases) for one, phrases in opened]
    patched, passes = counting(model)
    with patched:
        together = pipeline.segment_each([Asked(one, phrases, strategy) for one, phrases in opened])
    shared = passes[0]
    patched, passes = counting(model)
    with patched:
        alone = [demo.segment(one.image, phrases, strategy) for one, phrases in opened]
    assert shared < 0.6 * passes[0]
    for several, ones in zip(together, alone, strict=True):
        assert not isinstance(several, Exception)
        for found, one in zip(several, ones, strict=True):
            assert_same(found, one)


def test_a_phrase_that_is_refused_is_refused_alone(demo: Pipeline, opened: list[tuple[Opened, list[str]]]) -> None:
    assert isinstance(demo.grounder, CloserGrounder)
    assert isinstance(demo.grounder.whole, MllmGrounder)
    control = demo.grounder.whole.checkpoint.tokenizer.all_special_tokens[0]
    asked = [Asked(*opened[0]), Asked(opened[0][0], [f"the {control} cup"]), Asked(opened[1][0], [""])]
    first, refused, empty = demo.segment_each(asked)
    assert isinstance(refused, PhraseError)
    assert "control word" in str(refused)
    assert isinstance(empty, PhraseError)
    assert not isinstance(first, Exception)
    assert_same(first[0], demo.segment(*opened[0])[0])


class Failing(FakeGrounder):
    """Fails for a phrase, and counts the calls."""

    calls = 0

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        self.calls += 1
        if "bad" in phrases:
            raise RuntimeError("bad")
        return super().ground(scene, phrases, question)


def test_a_grounder_that_knows_one_image_at_a_time_is_asked_one_by_one() -> None:
    pipeline = Pipeline(Failing(KNOWN), FakeSegmenter(), slug="fake")
    image = np.zeros((100, 120, 3), np.uint8)
    asked = [Asked(pipeline.open(image), phrases) for phrases in (["cup"], ["plate", "cup"], ["bad"])]
    *good, bad = pipeline.segment_each(asked)
    assert isinstance(bad, RuntimeError)
    for found, one in zip(good, asked, strict=False):
        assert not isinstance(found, Exception)
        for several, alone in zip(found, pipeline.segment(image, one.phrases), strict=True):
            assert_same(several, alone)


def test_walks_of_different_lengths_and_kinds_go_their_own_ways() -> None:
    fake = Failing(KNOWN)
    scene = fake.open(np.zeros((100, 120, 3), np.uint8))
    spent: list[dict[str, float]] = [{} for _ in range(4)]

    def walk(place: int, questions: Sequence[Question]) -> Walk[list[str]]:
        heard = []
        for question in questions:
            found = yield from locate(Locate(scene, ["cup"], question, spent[place]))
            heard.append(f"{question} {found[0].phrase}")
        if place == 3:
            raise ValueError("of its own")
        return heard

    outcomes = walk_together(fake, [walk(0, ()), walk(1, ("box",)), walk(2, ("box", "prompt", "box")), walk(3, ("prompt",))])
    assert outcomes[:3] == [[], ["box cup"], ["box cup", "prompt cup", "box cup"]]
    assert isinstance(outcomes[3], ValueError)
    assert [set(seconds) for seconds in spent] == [set(), {"box"}, {"box"}, {"box"}]


def test_the_time_of_a_shared_pass_is_shared() -> None:
    class Slow(FakeGrounder):
        def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Any]]], joint: bool = False) -> list[list[Any]]:
            return [[] for _ in asked]

        def ground_each(self, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
            raise AssertionError

    spent: list[dict[str, float]] = [{}, {}]

    def walk(seconds: dict[str, float]) -> Walk[None]:
        yield AskPoints(Scene(1, 1, 0), [], False, seconds)

    with patch("sam4mllm.lockstep.time.perf_counter", side_effect=[10.0, 13.0]):
        assert walk_together(Slow({}), [walk(seconds) for seconds in spent]) == [None, None]
    assert spent == [{"points": 1.5}, {"points": 1.5}]
