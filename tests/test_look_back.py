"""The look back: the MLLM is shown each mask's outline, and what it says becomes a feature of the score or drops the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.errors import SettingsError
from backend.settings import read_settings
from sam4mllm.clicks import Clicks
from sam4mllm.confidence import Features, score
from sam4mllm.demo.pretrain.lessons import Teacher
from sam4mllm.demo.pretrain.look_back import outlined
from sam4mllm.demo.scenes import make_ambiguous
from sam4mllm.demo.tokenizer import build_tokenizer
from sam4mllm.errors import ModelError, PhraseError
from sam4mllm.evaluation.settings import Setting, plan
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.nobody import NoGrounder
from sam4mllm.grounding.protocol import Replies, Scene
from sam4mllm.options import LOOKS_BACK, LookBack, Options
from sam4mllm.outline import COLOUR
from sam4mllm.pipeline import Asked, Pipeline
from sam4mllm.points import UNSAID
from sam4mllm.prompts.dialects import DEMO, DIALECTS
from sam4mllm.prompts.look_back import look_back_question
from sam4mllm.values import Segmentation
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, grounding, said

IMAGE = np.zeros((100, 200, 3), np.uint8)
LEFT, RIGHT = (20, 10, 60, 50), (120, 10, 160, 50)
KNOWN = {"the cups": grounding("the cups", [LEFT, RIGHT]), "the cup": grounding("the cup", [LEFT])}


@dataclass
class LookingGrounder(FakeGrounder):
    """Is shown images, and says yes of an outline as sure as ``yes`` has it for the left and the right half of the image."""

    yes: tuple[float, float] = (0.9, 0.9)
    mass: float = 1.0
    scenes: list[tuple[Scene, NDArray[np.uint8]]] = field(default_factory=list)

    @property
    def shown(self) -> list[NDArray[np.uint8]]:
        return [image for _, image in self.scenes]

    def open(self, image: NDArray[np.uint8]) -> Scene:
        self.scenes.append((super().open(image), image))
        return self.scenes[-1][0]

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        [image] = [image for opened, image in self.scenes if opened is scene]
        columns = np.flatnonzero((image == COLOUR).all(-1).any(0))
        return said(np.full(len(phrases), self.yes[int(columns.mean() > scene.width / 2)]), self.mass)


def answer(look_back: LookBack, yes: tuple[float, float], phrase: str = "the cups", clicks: Clicks | None = None) -> Segmentation:
    pipeline = Pipeline(LookingGrounder(KNOWN, yes=yes), FakeSegmenter(), Options("box", look_back=look_back))
    [found] = pipeline.segment(IMAGE, [phrase], clicks=clicks)
    return found


def test_what_is_shown_is_the_image_with_one_outline() -> None:
    grounder = LookingGrounder(KNOWN)
    Pipeline(grounder, FakeSegmenter(), Options("box", look_back="score")).segment(IMAGE, ["the cups"])
    first, *looks = grounder.shown
    assert (first == IMAGE).all()
    assert not (IMAGE == COLOUR).all(-1).any()
    for look, (x1, y1, x2, y2) in zip(looks, (LEFT, RIGHT), strict=True):
        rows, columns = np.nonzero((look == COLOUR).all(-1))
        assert columns.min() == pytest.approx(x1, abs=2)
        assert columns.max() == pytest.approx(x2, abs=2)
        assert rows.min() == pytest.approx(y1, abs=2)
        assert rows.max() == pytest.approx(y2, abs=2)
        assert (look[30, (x1 + x2) // 2] == 0).all(), "the inside stays as it is"


def test_the_answer_is_a_feature_of_each_mask_and_orders_their_scores() -> None:
    off, on = answer("off", (0.9, 0.2)), answer("score", (0.9, 0.2))
    assert [one.features.looked for one in off.instances] == [1, 1]
    assert [one.features.looked for one in on.instances] == [0.9, 0.2]
    assert off.instances[0].score == off.instances[1].score
    assert on.instances[0].score > on.instances[1].score
    assert on.score == on.instances[1].score == score(on.instances[1].features)
    assert all((one.mask == other.mask).all() for one, other in zip(on.instances, off.instances, strict=True))


def test_other_work_may_go_on_between_two_looks() -> None:
    grounder, seen_so_far = LookingGrounder(KNOWN), []
    pipeline = Pipeline(grounder, FakeSegmenter(), Options("box", look_back="score"))
    pipeline.segment(IMAGE, ["the cups"], between=lambda: seen_so_far.append(len(grounder.shown)))
    assert {1, 2, 3} <= set(seen_so_far), "after the image, after the first outline, and after the second"


def test_several_images_are_looked_back_at_as_one_by_one() -> None:
    pipeline = Pipeline(LookingGrounder(KNOWN, yes=(0.9, 0.2)), FakeSegmenter(), Options("box", look_back="score"))
    asked = [Asked(pipeline.open(image), phrases) for image, phrases in ((IMAGE, ["the cups", "the cup"]), (IMAGE + 1, ["the cup"]))]
    for one, found in zip(asked, pipeline.segment_each(asked), strict=True):
        assert not isinstance(found, Exception)
        alone = pipeline.segment(one.opened, one.phrases)
        assert [[mask.score for mask in each.instances] for each in found] == [[mask.score for mask in each.instances] for each in alone]
        assert found[0].instances[0].features.looked == 0.9


def test_what_is_denied_is_dropped_where_that_is_asked_for() -> None:
    assert [one.box_px.tolist() for one in answer("drop", (0.9, 0.2)).instances] == [list(LEFT)]
    assert [one.box_px.tolist() for one in answer("drop", (0.4, 0.6)).instances] == [list(RIGHT)]
    assert len(answer("score", (0.1, 0.2)).instances) == 2


def test_where_all_is_denied_there_is_no_such_object() -> None:
    found = answer("drop", (0.3, 0.1))
    assert (found.instances, found.note) == ((), "")
    assert found.no_target_probability == pytest.approx(0.7)
    assert not found.mask.any()


def test_where_neither_yes_nor_no_is_said_nothing_is_dropped() -> None:
    grounder = LookingGrounder(KNOWN, yes=(0.0, 0.0), mass=0.4)
    [found] = Pipeline(grounder, FakeSegmenter(), Options("box", look_back="drop")).segment(IMAGE, ["the cups"])
    assert [one.features.looked for one in found.instances] == [UNSAID, UNSAID]


def test_where_there_was_nothing_nothing_changes() -> None:
    grounder = LookingGrounder({})
    pipeline = Pipeline(grounder, FakeSegmenter(), Options("box", look_back="drop"))
    [found] = pipeline.segment(IMAGE, ["the dog"])
    assert (found.instances, found.no_target_probability) == ((), 0.95)
    assert len(grounder.shown) == 1


def test_a_reviewers_clicks_are_not_looked_back_at() -> None:
    clicks = Clicks(np.array([[30, 20]], np.float32), np.ones(1, np.int64))
    [found] = answer("drop", (0.0, 0.0), "the cup", clicks).instances
    assert found.features.looked == 1


def test_it_takes_its_time_with_the_points() -> None:
    pipeline = Pipeline(LookingGrounder(KNOWN), FakeSegmenter(), Options("box", look_back="score"))
    opened = pipeline.open(IMAGE)
    assert pipeline.segment(opened, ["the cups"])[0].timings["points"] > 0
    assert pipeline.through(pipeline.grounder, Options("box")).segment(opened, ["the cups"])[0].timings["points"] == 0


def test_the_version_tells_it_and_off_renames_none() -> None:
    versions = [Pipeline(FakeGrounder({}), FakeSegmenter(), Options("box", look_back=one)).version for one in LOOKS_BACK]
    assert len(set(versions)) == 3
    assert "look_back" not in Options("box").shaping()


def test_ablate_compares_it_with_every_strategy() -> None:
    rows = plan(Setting(("base",), Options("box")), {"strategy": ("box", "pqpp"), "look_back": LOOKS_BACK}, grid=True)
    assert len([row for row in rows if not row.oracle]) == 6 + 1  # and the published one


def test_without_an_mllm_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="look back drop asks an MLLM, and the model is none"):
        Pipeline(NoGrounder(), FakeConceptSegmenter(), Options("concept", look_back="drop"), learned=False)
    monkeypatch.setenv("SAM4MLLM_MODEL", "none")
    monkeypatch.setenv("SAM4MLLM_LOOK_BACK", "score")
    with pytest.raises(SettingsError, match="SAM4MLLM_LOOK_BACK: look back score asks an MLLM"):
        read_settings()


def test_the_setting_is_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_LOOK_BACK", "drop")
    assert read_settings().options.look_back == "drop"
    monkeypatch.setenv("SAM4MLLM_LOOK_BACK", "sometimes")
    with pytest.raises(SettingsError, match="SAM4MLLM_LOOK_BACK"):
        read_settings()


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_the_question_is_in_the_words_of_the_dialect(name: str) -> None:
    dialect = DIALECTS[name]
    asked = look_back_question(dialect, "the {yes} cup")
    assert "the {yes} cup" in asked
    if dialect != DEMO:
        assert f"Answer {dialect.yes} or {dialect.no}." in asked


# -- the demo model ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> MllmGrounder:
    return MllmGrounder(load_checkpoint("demo", torch.device("cpu")))


def test_several_phrases_are_answered_as_each_alone(demo: MllmGrounder) -> None:
    scene = make_ambiguous((9, 1), told=True)
    phrases = [one.phrase for one in scene.expressions]
    assert len(phrases) > 1
    opened = demo.open(scene.image)
    together = demo.confirm(opened, phrases).inside
    np.testing.assert_allclose(together, [demo.confirm(opened, [one]).inside[0] for one in phrases], atol=1e-5)
    assert demo.confirm(opened, []).inside.shape == (0,)
    closer = CloserGrounder(demo)
    np.testing.assert_allclose(closer.confirm(closer.open(scene.image), phrases).inside, together, atol=1e-5)


def test_the_demo_is_taught_the_question_that_it_is_asked() -> None:
    scene = make_ambiguous((9, 1), told=True)
    tokenizer = build_tokenizer()
    teacher = Teacher(tokenizer)
    lesson = teacher.look_back(outlined(scene, scene.masks[0]), scene.masks[0], np.random.default_rng(0))
    taught = {tokenizer.decode(segment.ids) for segment in lesson.segments}
    questions = [look_back_question(DEMO, one.phrase) + teacher.markup.to_answer for one in scene.expressions]
    assert taught
    assert taught <= {tokenizer.decode(teacher.encode(question)) for question in questions}


def test_a_phrase_may_not_forge_turns(demo: MllmGrounder) -> None:
    opened = demo.open(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(PhraseError):
        demo.confirm(opened, [f"the cup {demo.checkpoint.tokenizer.all_special_tokens[0]}"])


def test_the_fixed_score_falls_with_doubt() -> None:
    sure = Features(0.9, 1, 1, 0.9, 0.9, 0.1, 0.9, 0.99)
    scores = [score(Features(0.9, 1, 1, 0.9, 0.9, 0.1, 0.9, 0.99, looked=looked)) for looked in (1.0, 0.6, 0.1)]
    assert scores[0] == score(sure)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
