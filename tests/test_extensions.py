"""What other packages bring: found by entry points, and what becomes of one that cannot be used. ``examples/`` itself is run in e2e."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.errors import ParametersError, SettingsError
from backend.label_studio.parameters import read_parameters
from backend.settings import read_settings
from sam4mllm import extensions
from sam4mllm.errors import ExtensionError, ModelError
from sam4mllm.evaluation.settings import Setting, plan
from sam4mllm.grounding.families import FAMILIES, find_family
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.lockstep import Walk
from sam4mllm.memory import segmenter_bytes
from sam4mllm.options import Options, known_strategies
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.loading import is_brought, load_segmenter
from sam4mllm.strategies import Given
from sam4mllm.values import Grounding, SpokenPoints
from tests.fakes import FakeGrounder, FakeSegmenter, grounding
from tests.installed import add_package

CPU = torch.device("cpu")
IMAGE = np.zeros((80, 120, 3), np.uint8)


class Centre:
    """The box with its centre, after one question about it."""

    identity = "centre-1"

    def find(self, given: Given) -> Walk[list[Grounding]]:
        groundings = yield from given.ground()
        inquiries = [Inquiry(one, 0, one.boxes_px[:1, :2]) for one in groundings if len(one.boxes_px)]
        yield from given.ask(inquiries)
        centres = [(one.boxes_px[:, :2] + one.boxes_px[:, 2:]) / 2 for one in groundings]
        return [
            Grounding(one.phrase, one.boxes_px, one.box_probabilities, 0.0, tuple(SpokenPoints(point[None]) for point in points))
            for one, points in zip(groundings, centres, strict=True)
        ]


class Forgetful(Centre):
    """Finds nothing, not even that there is nothing."""

    def find(self, given: Given) -> Walk[list[Grounding]]:
        yield from given.ground()
        return []


class Drawer(FakeSegmenter):
    """A segmenter that says what it was made with."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


def make_drawer(path: str, dtype: torch.dtype) -> Drawer:
    if path == "broken":
        raise RuntimeError("its file\nis not there")
    return Drawer(path)


class Wild(Centre):
    """Fails."""

    def find(self, given: Given) -> Walk[list[Grounding]]:
        yield from given.ground()
        raise ZeroDivisionError("by nothing")


def fail() -> None:
    raise KeyError("nothing")


centre, forgetful, wild = Centre(), Forgetful(), Wild()
family = FAMILIES["qwen2_vl"]


def grounder() -> FakeGrounder:
    return FakeGrounder({"the cup": grounding("the cup", [(10, 20, 50, 60)])})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages count as installed."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sam4mllm.strategies._FOUND", {})
    return tmp_path


def bring(place: Path, name: str, **groups: Mapping[str, str]) -> None:
    add_package(
        place, name, {f"sam4mllm.{group}": {key: f"{__name__}:{value}" for key, value in some.items()} for group, some in groups.items()}
    )


def test_a_strategy_prompts_the_segmenter_with_what_it_finds(place: Path) -> None:
    bring(place, "middle", strategies={"centre": "centre"})
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="centre"))
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    [instance] = answer.instances
    assert instance.points_px.tolist() == [((instance.box_px[:2] + instance.box_px[2:]) / 2).tolist()]
    assert instance.labels.tolist() == [1]
    assert "centre" in pipeline.strategies
    assert pipeline.manner == "strategy centre"


def test_what_a_strategy_says_of_itself_is_part_of_the_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(place, "middle", strategies={"centre": "centre"})
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="centre"))
    before = pipeline.version
    monkeypatch.setattr(Centre, "identity", "centre-2")
    assert pipeline.version != before


def test_a_strategy_that_leaves_phrases_out_is_named(place: Path) -> None:
    bring(place, "middle", strategies={"forgetful": "forgetful"})
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="forgetful"))
    with pytest.raises(ModelError, match="the strategy forgetful must find one grounding for each of 1 phrases"):
        pipeline.segment(IMAGE, ["the cup"])


def test_a_strategy_is_known_wherever_one_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParametersError, match="strategy must be one of box, ppg, pqpp, reason, concept, choose, not 'centre'"):
        read_parameters({"strategy": "centre"})
    monkeypatch.setenv("SAM4MLLM_STRATEGY", "centre")
    with pytest.raises(SettingsError, match="SAM4MLLM_STRATEGY: strategy must be one of auto, box"):
        read_settings()
    bring(place, "middle", strategies={"centre": "centre"})
    assert read_parameters({"strategy": "centre"}).strategy == "centre"
    assert read_settings().strategy == "centre"
    assert known_strategies()[-1] == "centre"


def test_a_segmenter_is_made_of_what_stands_behind_its_name(place: Path) -> None:
    bring(place, "pens", segmenters={"pen": "make_drawer"})
    plain, named = load_segmenter("pen", CPU), load_segmenter("pen:blue", CPU)
    assert isinstance(plain, Drawer)
    assert isinstance(named, Drawer)
    assert (plain.path, named.path) == ("", "blue")
    assert is_brought("pen:blue")
    assert not is_brought("vit_h:pen")


def test_a_name_of_nobody_is_not_looked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam4mllm.memory.read_headers", lambda source: pytest.fail(f"{source} was looked for"))
    assert segmenter_bytes("pen") == 0
    with pytest.raises(ModelError, match="'pen' is no segmenter: use demo"):
        load_segmenter("pen", CPU)


def test_a_family_is_found_by_the_type_of_its_checkpoints(place: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "owl"}')
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match="models of type 'owl' are not supported"):
        find_family(str(tmp_path), "owls")
    bring(place, "birds", families={"owl": "family"})
    assert find_family(str(tmp_path), "owls") is family


@pytest.mark.parametrize(
    ("group", "value", "said"),
    [
        pytest.param("strategies", "nowhere:x", "cannot be imported (ModuleNotFoundError", id="no module"),
        pytest.param("strategies", f"{__name__}:nothing", "cannot be imported (AttributeError", id="no object"),
        pytest.param("strategies", f"{__name__}:IMAGE", "is no object of the kind sam4mllm.strategies.OtherStrategy", id="another thing"),
        pytest.param("strategies", f"{__name__}:Centre", "is no object of the kind sam4mllm.strategies.OtherStrategy", id="a class"),
        pytest.param("strategies", "sys:exit_", "cannot be imported (AttributeError", id="no such object"),
        pytest.param("segmenters", f"{__name__}:IMAGE", "is no function that makes a segmenter", id="no function"),
        pytest.param("segmenters", f"{__name__}:bring", "cannot be loaded (TypeError:", id="another function"),
        pytest.param("segmenters:broken", f"{__name__}:make_drawer", "cannot be loaded (RuntimeError: its file)", id="fails"),
        pytest.param("segmenters", "builtins:print", "makes no segmenter: it lacks identity", id="makes another thing"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_package(group: str, value: str, said: str, place: Path) -> None:
    group, _, path = group.partition(":")
    add_package(place, "broken", {f"sam4mllm.{group}": {"thing": value}})
    use: dict[str, Any] = {
        "strategies": lambda: Pipeline(grounder(), FakeSegmenter(), Options(strategy="thing")).version,
        "segmenters": lambda: load_segmenter(f"thing:{path}", CPU),
    }
    with pytest.raises(ExtensionError) as caught:
        use[group]()
    line = str(caught.value)
    assert f"sam4mllm.{group} thing of the package broken 1.2 {said}" in line
    assert "\n" not in line
    assert Pipeline(grounder(), FakeSegmenter(), Options(strategy="box")).segment(IMAGE, ["the cup"])


@pytest.mark.parametrize(
    ("group", "name", "ours"),
    [("strategies", "box", known_strategies()), ("segmenters", "demo", ("demo",)), ("families", "qwen2_vl", tuple(FAMILIES))],
)
def test_who_claims_a_name_of_ours_is_left_out_with_a_line(
    group: extensions.Group, name: str, ours: tuple[str, ...], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_package(place, "usurper", {f"sam4mllm.{group}": {name: "nowhere:x"}})
    with caplog.at_level(logging.WARNING):
        assert extensions.find(group, name, ours) is None
    [line] = caplog.messages
    assert line == f"the entry point sam4mllm.{group} {name} of the package usurper 1.2 is left out: this is one of sam4mllm's own"
    assert name not in extensions.names(group, ours)


def test_of_two_packages_with_one_name_the_first_counts(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    bring(place, "anne", strategies={"centre": "centre"})
    bring(place, "bert", strategies={"centre": "forgetful"})
    with caplog.at_level(logging.WARNING):
        found = extensions.find("strategies", "centre", ())
    assert found is not None
    assert found.load() is centre
    assert "bert 1.2 is left out: the package anne 1.2 brings one of that name" in caplog.text


def test_reading_a_data_set_names_who_reads_it() -> None:
    from sam4mllm.cli.plugins import find_reader  # noqa: PLC0415

    assert find_reader("refcoco").sentences["val"] == 10_834


def test_a_reader_that_fails_is_one_line(place: Path) -> None:
    from sam4mllm.cli.plugins import find_reader  # noqa: PLC0415

    bring(place, "torn", readers={"torn": "fail"})
    with pytest.raises(ExtensionError, match=r"sam4mllm.readers torn of the package torn 1.2 cannot be used \(KeyError: 'nothing'\)"):
        find_reader("torn")


def test_a_strategy_that_fails_is_named(place: Path) -> None:
    bring(place, "wild", strategies={"wild": "wild"})
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="wild"))
    with pytest.raises(ModelError, match=r"the strategy wild failed \(ZeroDivisionError: .*\); update its package"):
        pipeline.segment(IMAGE, ["the cup"])


def test_an_ablation_runs_another_packages_strategy_and_passes_over_a_broken_one(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    bring(place, "middle", strategies={"centre": "centre", "torn": "nothing"})
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="pqpp"))
    assert "centre" in pipeline.strategies
    assert "torn" not in pipeline.strategies
    assert "sam4mllm.strategies torn of the package middle 1.2 cannot be imported" in caplog.text
    rows = plan(Setting((), Options(strategy="pqpp"), "demo"), {"strategy": ("box", "centre", "pqpp")})
    assert {row.options.strategy for row in rows} == {"box", "centre", "pqpp"}


def test_our_own_strategies_are_asked_without_a_look_at_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(grounder(), FakeSegmenter(), Options(strategy="pqpp"))
    monkeypatch.setattr(extensions, "entry_points", lambda **_: pytest.fail("the packages were looked at"))
    assert pipeline.segment(IMAGE, ["the cup"])[0].version == pipeline.version


def test_a_malformed_file_of_any_package_is_one_line(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_package(place, "odd", {})
    (place / "odd-1.2.dist-info" / "entry_points.txt").write_text("[console_scripts]\nno equals sign\n")
    extensions._tell.cache_clear()
    assert extensions.names("strategies", ()) == ()
    assert extensions.find("families", "qwen2_vl", FAMILIES) is None
    assert [line.split(",")[0] for line in caplog.messages] == ["an installed package has a malformed entry_points.txt"] * 2
    assert Pipeline(grounder(), FakeSegmenter(), Options(strategy="box")).segment(IMAGE, ["the cup"])
