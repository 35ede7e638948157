"""Whether a phrase means anything in the image: asked in words that offer "none", and read from what the model wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.confidence import score_empty
from sam4mllm.grounding.decoding import Written
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.verdicts import Verdicts
from sam4mllm.prompts.conversation import box_question, prompt_question
from sam4mllm.prompts.dialects import DIALECTS, Dialect
from sam4mllm.values import Grounding
from tests.family_models import KINDS, make_family
from tests.test_confidence import TYPICAL
from tests.test_mllm import picture

BOX = '[{"bbox_2d": [10, 20, 30, 40]}]'


@pytest.mark.parametrize("dialect", [one for name, one in DIALECTS.items() if name != "demo"], ids=lambda one: one.name)
def test_the_question_offers_that_there_is_none(dialect: Dialect) -> None:
    for question in (box_question(dialect, "the cup"), prompt_question(dialect, "the cup")):
        assert f'"{dialect.no_target}"' in question


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    folder = make_family(KINDS["Qwen2.5-VL"], tmp_path_factory.mktemp("family"))
    return MllmGrounder(load_checkpoint(str(folder), torch.device("cpu")), max_new_tokens=4)


@pytest.fixture(scope="module")
def demo(tiny_checkpoint: Path) -> MllmGrounder:
    return MllmGrounder(load_checkpoint(str(tiny_checkpoint), torch.device("cpu")), max_new_tokens=4)


def read(grounder: MllmGrounder, text: str, first: dict[str, float], each: float, monkeypatch: pytest.MonkeyPatch) -> Grounding:
    """What is made of an answer whose tokens have the probability ``each``; ``first`` are probabilities of words at its beginning."""
    ids = grounder.encode(text)
    logits = torch.full((len(grounder.checkpoint.tokenizer),), -30.0)
    for word, chance in first.items():
        logits[grounder.encode(word)[0]] = float(np.log(chance))
    logits[grounder.end] = float(np.log(max(1 - sum(first.values()), 1e-9)))
    written = Written(text, tuple(ids), (float(np.log(each)),) * (len(ids) + 1), logits, True)
    monkeypatch.setattr("sam4mllm.grounding.mllm.write", lambda *_: [written])
    [found] = grounder.ground(grounder.open(picture(1)), ["the cup"])
    return found


@pytest.mark.parametrize(
    ("text", "first", "each", "absent"),
    [
        pytest.param("none", {"none": 0.8, "[": 0.1}, 0.9, 0.9, id="the word"),
        pytest.param("There is no cup in the image.", {"There": 0.9, "[": 0.1}, 0.7, 0.7, id="words of its own"),
        pytest.param("[]", {"[": 0.99}, 0.6, 0.6, id="an empty list"),
        pytest.param(BOX, {"[": 0.7, "none": 0.3}, 0.9, 0.3, id="a box, and nearly none"),
        pytest.param(BOX, {"[": 1e-6, "none": 1e-4, "`": 0.99}, 0.9, 1e-4, id="a box that begins with something else"),
        pytest.param("I see many cups.", {"I": 0.9, "none": 1e-4}, 0.9, 1e-4, id="neither"),
    ],
)
def test_absence_is_read_from_the_answer(
    text: str, first: dict[str, float], each: float, absent: float, family: MllmGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(family, text, first, each, monkeypatch).no_target_probability == pytest.approx(absent, rel=1e-3)


def test_the_demo_was_taught_to_begin_with_one_of_two_words(demo: MllmGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(demo, "none", {"none": 0.6, "[": 0.2}, 0.9, monkeypatch).no_target_probability == pytest.approx(0.75)
    assert read(demo, "[100 200 300 400]", {"none": 0.2, "[": 0.6}, 0.9, monkeypatch).no_target_probability == pytest.approx(0.25)


def test_the_mass_is_that_of_every_spelling_of_yes_and_no() -> None:
    verdicts = Verdicts((0, 1), (2,), (0, 2))
    said = verdicts.inside(torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.01, 0.01, 0.06, 0.92], [0.5, 0.25, 0.25, 0.0]]).log())
    np.testing.assert_allclose(said.inside, [2 / 3, 0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(said.mass, [0.6, 0.08, 1.0], atol=1e-6)


def test_an_empty_answer_is_scored_on_the_scale_of_masks() -> None:
    """The average mask of the typical calibration is as likely to be accepted as not."""
    chances = np.linspace(0, 1, 20)
    for calibration in (None, TYPICAL):
        scores = [score_empty(float(chance), calibration) for chance in chances]
        assert scores == sorted(set(scores))
        assert scores[0] == 0
    assert score_empty(1.0, TYPICAL) == pytest.approx(1 / (1 + np.exp(-TYPICAL.bias)))
    assert 0.69 < score_empty(1.0) < 0.95  # of masks: the best of the demo's, and good ones of a model that is sure of its boxes
