"""A model that never learned about points: whatever it says of them, a good box stays good. The demo's weights, not known as the demo."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sam4mllm.adapters.loose import LooseAdapter
from sam4mllm.adapters.registry import Registry
from sam4mllm.demo.scenes import DemoScene, make_scene
from sam4mllm.grounding.families import DEMO_FOLDER
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.loading import Variants, load_variants
from sam4mllm.masks import lies_on, mask_iou, union
from sam4mllm.options import AskedStrategy, Options, Strategy, describe_strategy, resolve_strategy
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.points import UNSAID, are_alike
from sam4mllm.prompts.dialects import DEMO
from sam4mllm.values import Segmentation
from tests.adapter_files import PAPERS
from tests.fakes import FakeGrounder, FakeSegmenter, grounding, said
from tests.obedient import ObedientSegmenter, Say, SayingGrounder, all_but_one, all_no, all_yes, noise, right_at
from tests.test_lora_versions import add, make_adapter

SEED, SCENES = 990_061, 6
IMAGE = np.zeros((100, 200, 3), np.uint8)
CUP = grounding("the cup", [[20, 10, 60, 50]])


@pytest.mark.parametrize(
    ("asked", "adapter", "demo", "has_adapter", "strategy"),
    [
        pytest.param("auto", None, True, False, "pqpp", id="the demo has learned points"),
        pytest.param("auto", None, True, True, "pqpp", id="and so has it with an adapter"),
        pytest.param("auto", None, False, True, "pqpp", id="an adapter that does not say"),
        pytest.param("auto", "ppg", False, True, "ppg", id="an adapter that says"),
        pytest.param("auto", "box", True, True, "box", id="and that comes before the demo"),
        pytest.param("auto", None, False, False, "box", id="nobody taught it points"),
        pytest.param("pqpp", None, False, False, "pqpp", id="who names one gets it"),
        pytest.param("box", "pqpp", True, True, "box", id="whatever the adapter says"),
    ],
)
def test_the_strategy(asked: AskedStrategy, adapter: Strategy | None, demo: bool, has_adapter: bool, strategy: Strategy) -> None:
    given = replace(PAPERS, strategy=adapter).asked(Options(asked))
    assert resolve_strategy(given.strategy, demo=demo, has_adapter=has_adapter) == strategy


@pytest.mark.parametrize(
    ("strategy", "learned", "told"),
    [
        pytest.param("pqpp", True, "strategy pqpp", id="learned"),
        pytest.param("box", False, "strategy box: without an adapter", id="the box alone"),
        pytest.param("pqpp", False, "strategy pqpp, though without an adapter", id="points all the same"),
    ],
)
def test_the_strategy_in_words(strategy: Strategy, learned: bool, told: str) -> None:
    assert describe_strategy(strategy, learned).startswith(told)
    assert "\n" not in describe_strategy(strategy, learned)


# -- on the demo's weights -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A scene that was taken in, and what is true of its first phrase."""

    scene: DemoScene
    opened: Opened

    @property
    def phrase(self) -> str:
        return self.scene.expressions[0].phrase

    @property
    def truth(self) -> NDArray[np.bool_]:
        return union(self.scene.masks[list(self.scene.expressions[0].targets)])


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    folder = shutil.copytree(DEMO_FOLDER, tmp_path_factory.mktemp("models") / "copied")
    return load_variants(str(folder), "demo", "cpu", None)


@pytest.fixture(scope="module")
def plain(copied: Variants) -> Pipeline:
    """As it is loaded, but that the segmenter obeys points."""
    base = copied.base
    return Pipeline(RememberingGrounder(base.grounder), ObedientSegmenter(base.segmenter), base.options, base.slug, None, base.learned)


@pytest.fixture(scope="module")
def shown(plain: Pipeline) -> list[Shown]:
    scenes = [make_scene((SEED, index), kinds=("noun",)) for index in range(SCENES)]
    return [Shown(scene, plain.open(scene.image)) for scene in scenes]


@pytest.fixture(scope="module")
def boxed(plain: Pipeline, shown: list[Shown]) -> list[Segmentation]:
    """By the box alone."""
    return [plain.segment(one.opened, [one.phrase], "box")[0] for one in shown]


def mean_iou(answers: list[Segmentation], shown: list[Shown]) -> float:
    return float(np.mean([mask_iou(answer.mask, one.truth) for answer, one in zip(answers, shown, strict=True)]))


def answer(plain: Pipeline, shown: list[Shown], say: Say, options: Options) -> tuple[list[Segmentation], int]:
    """The answers where points are answered by ``say``, and of how many boxes they were asked."""
    grounder = SayingGrounder(plain.grounder, say)
    pipeline = plain.through(grounder, options)
    return [pipeline.segment(one.opened, [one.phrase])[0] for one in shown], grounder.asked


def sixty_percent(shown: list[Shown]) -> Say:
    truths = {one.phrase: one.truth for one in shown}
    return right_at(0.6, lambda inquiry: lies_on(truths[inquiry.grounding.phrase], inquiry.points_px))


ANSWERS: dict[str, Callable[[list[Shown]], Say]] = {
    "all yes": lambda _: all_yes,
    "all no": lambda _: all_no,
    "29 of 30 yes": lambda _: all_but_one,
    "noise": lambda _: noise,
    "right at 60 %": sixty_percent,
}
ALIKE = ("all yes", "all no", "29 of 30 yes")


@pytest.mark.parametrize("name", ANSWERS)
def test_without_an_adapter_the_mask_is_that_of_the_box(name: str, plain: Pipeline, shown: list[Shown], boxed: list[Segmentation]) -> None:
    answers, asked = answer(plain, shown, ANSWERS[name](shown), Options())
    assert asked == 0
    assert any(one.instances for one in boxed)
    for found, expected in zip(answers, boxed, strict=True):
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert (found.version, found.score) == (expected.version, expected.score)


@pytest.mark.parametrize("choice", ["predicted", "agreement"])
@pytest.mark.parametrize("name", ALIKE)
def test_points_that_are_all_alike_cost_nothing(
    name: str, choice: str, plain: Pipeline, shown: list[Shown], boxed: list[Segmentation]
) -> None:
    options = Options("pqpp", choice=choice)  # type: ignore[arg-type]
    answers, asked = answer(plain, shown, ANSWERS[name](shown), options)
    assert asked
    assert mean_iou(answers, shown) >= mean_iou(boxed, shown) - 0.002
    for found in answers:
        assert all((instance.labels == -1).all() and instance.features.varied == 0 for instance in found.instances)


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_answers_would_cost_much(
    name: str, plain: Pipeline, shown: list[Shown], boxed: list[Segmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam4mllm.pipeline.are_alike", lambda *_: False)
    answers, _ = answer(plain, shown, ANSWERS[name](shown), Options("pqpp"))
    assert mean_iou(answers, shown) <= mean_iou(boxed, shown) - 0.02


def test_points_that_say_something_still_count(plain: Pipeline, shown: list[Shown]) -> None:
    answers, _ = answer(plain, shown, sixty_percent(shown), Options("pqpp"))
    assert any((instance.labels >= 0).any() for one in answers for instance in one.instances)


def test_an_adapter_changes_the_strategy_and_the_version_follows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    variants = load_variants(str(tiny_checkpoint), "demo", "cpu", Options())
    assert (variants.base.strategy, variants.base.learned) == ("box", False)
    assert variants.base.version == variants.base.through(variants.base.grounder, Options("box")).version
    folder = make_adapter(tiny_checkpoint, tmp_path / "adapter", 1)
    home = Registry(tmp_path / "home")
    version = add(home, variants, folder)
    adapted = variants.load(home.path(version), home.verify(version))
    assert (adapted.strategy, adapted.learned) == ("pqpp", True)
    assert adapted.version == version
    named = load_variants(str(tiny_checkpoint), "demo", "cpu", Options("pqpp"))
    assert named.base.version != variants.base.version
    papers = home.show(version)
    assert named.identity_for(papers) == variants.identity_for(papers)
    loose = variants.load(folder, LooseAdapter("tiny-0-01234567"))
    assert loose.strategy == "pqpp"


def test_a_dialect_is_no_proof_that_points_were_learned(copied: Variants) -> None:
    assert copied.checkpoint.dialect == DEMO
    assert copied.base.strategy == "box"
    assert not copied.base.learned


# -- which answers count -------------------------------------------------------------------------------------------------------------------


def of(yes: int, no: int, unsaid: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    inside = np.repeat([0.99, 0.01, UNSAID], [yes, no, unsaid])
    return inside, np.repeat(np.array([1, 0, -1]), [yes, no, unsaid])


@pytest.mark.parametrize(
    ("answers", "alike"),
    [
        pytest.param(of(30, 0), True, id="all yes"),
        pytest.param(of(0, 30), True, id="all no"),
        pytest.param(of(29, 1), True, id="29 of 30"),
        pytest.param(of(27, 3), True, id="27 of 30"),
        pytest.param(of(26, 4), False, id="26 of 30"),
        pytest.param(of(4, 26), False, id="a line of a tenth of the box is more than four points"),
        pytest.param(of(14, 1), True, id="14 of 15"),
        pytest.param(of(13, 2), False, id="13 of 15"),
        pytest.param(of(5, 0, 25), True, id="what was said is alike"),
        pytest.param(of(5, 5, 20), False, id="few, and mixed"),
        pytest.param(of(0, 0), False, id="nothing asked"),
        pytest.param(of(0, 0, 30), False, id="nothing said"),
        pytest.param((np.repeat([0.6, 0.9, 0.01], [28, 1, 1]), np.repeat([-1, 1, 0], [28, 1, 1])), True, id="unsure and alike"),
        pytest.param((np.repeat([0.3, 0.9], [15, 15]), np.repeat([-1, 1], [15, 15])), True, id="the sure ones are alike"),
    ],
)
def test_answers_that_are_alike(answers: tuple[NDArray[np.float64], NDArray[np.int64]], alike: bool) -> None:
    assert are_alike(*answers) is alike


@pytest.mark.parametrize(
    ("mass", "counts"),
    [
        pytest.param(1.0, True, id="nothing else"),
        pytest.param(0.5, True, id="half"),
        pytest.param(0.49, False, id="less than half"),
        pytest.param(1e-9, False, id="hardly"),
    ],
)
@pytest.mark.parametrize("joint", [False, True], ids=["packed", "joint"])
def test_a_point_counts_where_yes_or_no_is_likely(mass: float, counts: bool, joint: bool) -> None:
    class Mumbling(FakeGrounder):
        def ask(self, scene, inquiries: list[Inquiry], joint=False):  # type: ignore[no-untyped-def, override]
            return [said(one.inside, mass) for one in super().ask(scene, inquiries, joint)]

    segmenter = FakeSegmenter()
    [found] = Pipeline(Mumbling({"the cup": CUP}), segmenter, Options(joint=joint)).segment(IMAGE, ["the cup"])
    assert bool((found.instances[0].labels >= 0).any()) is counts
    assert bool(len(segmenter.prompts[0].labels)) is counts
    assert set(found.instances[0].inside.tolist()) == ({0.99, 0.01} if counts else {UNSAID})


def test_with_an_adapter_points_that_are_alike_count_and_are_a_feature() -> None:
    class Yes(FakeGrounder):
        def ask(self, scene, inquiries, joint=False):  # type: ignore[no-untyped-def, override]
            return [said(np.full(len(one.points_px), 0.99)) for one in inquiries]

    [trained] = Pipeline(Yes({"the cup": CUP}), FakeSegmenter()).segment(IMAGE, ["the cup"])
    [mixed] = Pipeline(FakeGrounder({"the cup": CUP}), FakeSegmenter()).segment(IMAGE, ["the cup"])
    assert (trained.instances[0].labels == 1).all()
    assert (trained.instances[0].features.varied, mixed.instances[0].features.varied) == (0.0, 1.0)


def test_the_version_says_that_answers_are_doubted() -> None:
    def version(strategy: AskedStrategy, learned: bool) -> str:
        return Pipeline(FakeGrounder({}), FakeSegmenter(), Options(strategy), learned=learned).version

    assert version("pqpp", False) != version("pqpp", True)
    assert version("box", False) == version("box", True) == version("auto", False)
    assert version("auto", True) == version("pqpp", True)


def test_auto_as_an_argument_is_the_models_own_strategy() -> None:
    pipeline = Pipeline(FakeGrounder({"the cup": CUP}), FakeSegmenter(), learned=False)
    assert pipeline.segment(IMAGE, ["the cup"], "auto")[0].version == pipeline.version  # type: ignore[arg-type]
