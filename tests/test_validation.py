"""The validation loss: which pictures are set aside, when it ends a run, and that a resumed run is an unbroken one with it, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sam4mllm.data.read_dataset import read_examples
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.training import validation
from sam4mllm.training.pool import Pool
from sam4mllm.training.processes import Processes
from sam4mllm.training.recipe import Progress, Trainer
from sam4mllm.training.validation import LEAST, MOST, PATIENCE, TIMES, ValidationCurve, Validator, is_measured, set_aside
from tests.test_pool import Box, write_pictures
from tests.test_recipe import ASKING, PLAN, assert_same, weights

torch.set_num_threads(1)

CPU = torch.device("cpu")
PICTURES = 12
SHARE = 0.5


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of PICTURES pictures, each of one cup somewhere else."""
    pictures: list[dict[str, list[Box]]] = [{"the left cup": [(5, 10, 40 + 4 * index, 60)]} for index in range(PICTURES)]
    return write_pictures(tmp_path_factory.mktemp("many") / "data", pictures)


def pool_of(folder: Path, share: float = SHARE) -> Pool:
    return Pool([(folder, read_examples(folder))], validation_share=share)


# -- what is set aside ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=60), st.floats(0, 0.5))
def test_as_many_as_asked_for_and_a_common_label_keeps_some(labels: list[set[int]], share: float) -> None:
    chosen = set_aside(range(len(labels)), labels.__getitem__, share)
    wanted = min(MOST, int(share * len(labels)))
    assert len(chosen) == (wanted if wanted >= LEAST else 0)
    left = set().union(*(labels[picture] for picture in range(len(labels)) if picture not in chosen))
    common = {label for label in range(6) if sum(label in own for own in labels) > wanted}
    assert common <= left


def test_a_rare_label_is_kept_for_learning() -> None:
    chosen = set_aside(range(50), lambda picture: ["rare" if picture < 3 else "cup"] if picture else ["rarest"], 0.1)
    assert chosen == {1, 3, 4, 5, 6}, "one of two with the rare label may be taken, the only one with the rarest not"


def test_what_is_set_aside_is_never_learned_from(many: Path) -> None:
    found = pool_of(many)
    aside = {found.validation_picture(place).name for place in range(found.set_aside)}
    learned = {example.image for examples in found.asked_of_corrections() for example in examples}
    assert len(aside) == int(SHARE * PICTURES)
    assert len(learned) == PICTURES - len(aside)
    assert not aside & learned
    assert {shown.name for shown in found.deal(0, range(40), 0.0)} == learned


def test_a_pool_without_it_is_as_before(many: Path) -> None:
    assert pool_of(many, 0.0).sha256 == Pool([(many, read_examples(many))]).sha256 == pool_of(many, 0.1).sha256
    assert pool_of(many).sha256 != pool_of(many, 0.0).sha256


# -- when a run ends -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 20, 500])
def test_it_is_measured_some_twenty_times(steps: int) -> None:
    measured = [step for step in range(1, steps + 1) if is_measured(step, steps)]
    assert min(steps, TIMES) <= len(measured) < 2 * TIMES
    assert measured[-1] > steps - max(1, steps // TIMES)


@pytest.mark.parametrize(
    ("losses", "turned"),
    [
        pytest.param([], False, id="none yet"),
        pytest.param([3.0] + [4.0] * (PATIENCE - 1), False, id="not long enough"),
        pytest.param([3.0] + [4.0] * PATIENCE, True, id="long enough"),
        pytest.param([3.0] + [3.0] * PATIENCE, True, id="no lower"),
        pytest.param([3.0] + [4.0] * (PATIENCE - 1) + [2.9], False, id="lower at last"),
    ],
)
def test_a_curve_turns_after_its_lowest_point(losses: list[float], turned: bool) -> None:
    curve = ValidationCurve()
    for step, loss in enumerate(losses):
        curve.add(step, loss)
    assert curve.has_turned == turned


def test_the_weights_of_the_lowest_loss_come_back(tmp_path: Path) -> None:
    weight, losses = nn.Parameter(torch.zeros(2)), iter([2.0, 1.0, 1.5])
    validator = Validator(1, lambda _: next(losses), [weight], tmp_path / "states", Processes(CPU))
    for step in (1, 2, 3):
        weight.data.fill_(step)
        assert validator.look(step, 3) is not None
    validator.restore()
    assert weight.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_does_not_count(odd: float, tmp_path: Path) -> None:
    """As of memory that ran out, or of float16: the run goes on, and keeps the weights of the lowest loss that is a number."""
    weight, losses = nn.Parameter(torch.zeros(2)), iter([odd, 2.0, odd, 1.0, 3.0])
    validator = Validator(1, lambda _: next(losses), [weight], tmp_path, Processes(CPU))
    told = []
    for step in range(1, 6):
        weight.data.fill_(step)
        told.append(validator.look(step, 5))
    assert told == [None, 2.0, None, 1.0, 3.0]
    validator.restore()
    assert weight.tolist() == [4.0, 4.0]


class Two(Processes):
    """Another process whose picture has a loss of 5."""

    def places(self, count: int) -> range:
        return range(0, count, 2)

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        return [numbers[0] + 5.0, numbers[1] + 1.0]


def test_two_processes_measure_one_loss(tmp_path: Path) -> None:
    measured = list[int]()

    def measure(place: int) -> float:
        measured.append(place)
        return 1.0

    validator = Validator(2, measure, [nn.Parameter(torch.zeros(1))], tmp_path, Two(CPU))
    assert validator.look(1, 1) == 3.0
    assert measured == [0]


def test_pictures_that_cannot_be_used_do_not_count(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(2))
    assert Validator(3, [None, 2.0, 4.0].__getitem__, [weight], tmp_path, Processes(CPU)).look(1, 1) == 3.0
    assert Validator(1, lambda _: None, [weight], tmp_path, Processes(CPU)).look(1, 1) is None
    assert Validator(0, lambda _: 1.0, [weight], tmp_path, Processes(CPU)).look(1, 1) is None


# -- runs ----------------------------------------------------------------------------------------------------------------------------------


def trainer_of(single: Path, many: Path, folder: Path, steps: int = 12) -> Trainer:
    plan = replace(PLAN, steps=steps, replay_share=0.0, validation_share=SHARE)
    return Trainer(load_checkpoint(str(single), CPU), pool_of(many), plan, folder, ASKING)


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Validation losses that are lowest after the second step, whatever the model does."""
    real, looks = Validator.look, []

    def look(self: Validator, step: int, steps: int) -> float | None:
        looks.append(step)
        self._measure = lambda place: 1.0 + abs(step - 2)
        return real(self, step, steps)

    monkeypatch.setattr(Validator, "look", look)
    yield
    assert looks


def test_the_loss_is_told_and_changes_nothing_of_what_is_learned(
    single: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, told = trainer_of(single, many, tmp_path / "a", steps=4), list[Progress]()
    assert trainer.train(told.append)
    assert all(progress.validation is not None and progress.validation > 0 for progress in told)
    monkeypatch.setattr(validation, "is_measured", lambda step, steps: False)
    unmeasured, silent = trainer_of(single, many, tmp_path / "b", steps=4), list[Progress]()
    assert unmeasured.train(silent.append)
    assert [progress.validation for progress in silent] == [None] * 4
    assert [one.loss for one in told] == [other.loss for other in silent]
    assert_same(weights(trainer), weights(unmeasured))


def test_the_vision_tower_sees_a_measured_picture_once(single: Path, many: Path, tmp_path: Path) -> None:
    trainer, seen = trainer_of(single, many, tmp_path / "a"), []
    trainer._checkpoint.model.model.visual.blocks[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    assert trainer._measure(0) == pytest.approx(trainer._measure(0))
    assert len(seen) == 1


@pytest.mark.usefixtures("rising")
@pytest.mark.parametrize("stop_at", [1, 2, 5, 2 + PATIENCE])
def test_a_run_that_learns_by_heart_ends_with_its_best_weights_also_if_it_is_resumed(
    stop_at: int, single: Path, many: Path, tmp_path: Path
) -> None:
    unbroken, best, steps = trainer_of(single, many, tmp_path / "unbroken"), [], []

    def note(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            best.extend(weights(unbroken))

    assert unbroken.train(note)
    assert steps == list(range(1, 2 + PATIENCE + 1))
    assert_same(weights(unbroken), best)

    broken = trainer_of(single, many, tmp_path / "broken")
    assert broken.train(lambda progress: broken.stop() if progress.step == stop_at else None) == (stop_at == 2 + PATIENCE)
    resumed = trainer_of(single, many, tmp_path / "broken")
    assert resumed.train()
    assert_same(weights(resumed), best)
