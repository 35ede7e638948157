"""Plans in files: those of the package are what they say, and a user's own is checked."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.errors import TrainingError
from sam4mllm.training.asking import Asking
from sam4mllm.training.config import FOLDER, NAMES, Config, read_config
from sam4mllm.training.plan import TrainingPlan, learning_rate


def test_the_default_is_the_code_s() -> None:
    assert read_config("default") == read_config(None) == Config(TrainingPlan(), Asking())
    values = tomllib.loads((FOLDER / "default.toml").read_text())
    assert values.pop("asking").keys() == asdict(Asking()).keys()
    assert values.keys() == {name for name, value in asdict(TrainingPlan()).items() if value is not None}


def test_every_plan_of_the_package_can_be_read() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)
    for name in NAMES:
        read_config(name)


@pytest.mark.parametrize(("name", "rank"), [("released", 128), ("paper", 256)])
def test_published_numbers(name: str, rank: int) -> None:
    """Section 3.7 of the notes on the method."""
    plan, asking = (config := read_config(name)).plan, config.asking
    assert (plan.rank, plan.alpha, plan.dropout, plan.rate, plan.weight_decay) == (rank, 128, 0.05, 1e-4, 0.001)
    assert (plan.epochs, plan.batch, plan.phrases, plan.strength, plan.replay_share) == (3, 80, 5, 1.0, 0.0)
    assert (asking.points, asking.points_deviation, asking.joint_share, asking.shake) == (10, 4.0, 1.0, 0.0)
    assert (asking.every_box, asking.spread, asking.order) == (True, "disks", "annotation")
    rates = [learning_rate(plan, step, 3200) for step in range(3200)]
    assert int(np.argmax(rates)) in (31, 32)  # a warm-up of one per cent
    assert rates[-1] == pytest.approx(plan.rate / (3200 - 32))
    counts = [asking.count(np.random.default_rng(seed)) for seed in range(2000)]
    assert (min(counts), max(counts)) == (1, 20)
    assert np.mean(counts) == pytest.approx(9.5, abs=0.3)
    assert Asking().count(np.random.default_rng(0)) == Asking().points


def test_what_is_given_wins() -> None:
    assert read_config("released", steps=7, seed=None).plan.steps == 7
    assert read_config("released", steps=7).plan.epochs is None
    assert read_config("server", steps=7).plan.least_epochs is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("steps = 3\nepochs = 2", "steps and epochs are both given", id="both"),
        pytest.param("epochs = 0", "epochs must be a number", id="no epoch"),
        pytest.param("phrases = 0", "phrases must be a whole number", id="no phrase"),
        pytest.param("conversation_share = 2", "conversation_share must be", id="share"),
        pytest.param("asking = 3", "asking must be a table", id="asking"),
        pytest.param("[asking]\nanswers = 3", "unknown 'answers' in asking; known are points", id="unknown"),
        pytest.param("[asking]\nprompt_groups = 0", "prompt_groups must be", id="no groups"),
        pytest.param("squash = 7", "squash must be a whole number from 28", id="squash"),
        pytest.param("[asking]\nevery_box = 1", "every_box must be true or false", id="every box"),
        pytest.param('[asking]\nspread = "grid"', "spread must be serving or disks", id="spread"),
        pytest.param("[asking]\norder = []", "order must be left or annotation", id="order"),
        pytest.param("[asking]\nshake = nan", "shake must be", id="not a number"),
    ],
)
def test_a_file_that_cannot_be_followed(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(TrainingError, match=message) as caught:
        read_config(tmp_path / "plan.toml")
    assert str(caught.value).startswith(str(tmp_path / "plan.toml"))


def test_a_name_that_is_none() -> None:
    with pytest.raises(TrainingError, match="give one of default, demo, server, paper, released, or a JSON or TOML file"):
        read_config("papers")
    assert math.isinf(read_config("paper").plan.budget_seconds)
