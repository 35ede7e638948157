"""How a run trains, as the environment says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend.errors import SettingsError
from backend.settings import BUDGET_SECONDS, GONE, Settings, read_settings
from sam4mllm.training.plan import TrainingPlan


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))


def test_the_demo_trains_by_its_own_plan() -> None:
    assert Settings().training.plan == TrainingPlan(
        steps=500, rate=1e-3, replay_share=0.5, budget_seconds=60 * 120.0, least_epochs=2, augment_share=0.7, paste_share=0.9, strength=0.6
    )


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B-Instruct", "/models/demo"])
def test_any_other_model_has_a_rate_for_billions_of_parameters(model: str) -> None:
    plan = Settings(model=model).training.plan
    assert (plan.steps, plan.least_epochs, plan.rate, plan.budget_seconds) == (400, 2, 1e-4, 60 * 120.0)


def test_a_file_is_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("steps = 7\nbudget_seconds = 90\n[asking]\npoints = 3")
    monkeypatch.setenv("SAM4MLLM_TRAIN_CONFIG", str(path))
    settings = read_settings()
    path.unlink()  # it was read at the start
    assert settings.training.plan == TrainingPlan(steps=7, budget_seconds=90)
    assert settings.training.asking.points == 3


def test_a_plan_without_a_budget_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_TRAIN_CONFIG", "default")
    assert read_settings().training.plan == TrainingPlan(budget_seconds=BUDGET_SECONDS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "cannot be read", id="no file"),
        pytest.param("steps = ", "neither JSON nor", id="no TOML"),
        pytest.param("steps = 0", "steps must be", id="a wrong number"),
        pytest.param("minutes = 3", "unknown 'minutes'", id="an unknown field"),
        pytest.param("asking = 3", "asking must be a table", id="no table"),
    ],
)
def test_a_wrong_plan_is_one_line(text: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.toml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("SAM4MLLM_TRAIN_CONFIG", str(path))
    with pytest.raises(SettingsError, match="SAM4MLLM_TRAIN_CONFIG: ") as caught:
        read_settings()
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("variable", GONE)
def test_a_variable_that_is_gone_names_the_new_one(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")
    with pytest.raises(SettingsError, match=f"^{variable} is gone: .*{re.escape(GONE[variable])}") as caught:
        read_settings()
    assert len(str(caught.value).splitlines()) == 1


def test_whom_to_leave_out_and_what_was_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_LEAVE_OUT", "project:3, reviewer:7")
    monkeypatch.setenv("SAM4MLLM_RENAMED", '{"3": {"Cup": "Mug"}}')
    settings = read_settings()
    assert settings.leave_out == ("project:3", "reviewer:7")
    assert settings.renamed == {3: {"Cup": "Mug"}}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAM4MLLM_LEAVE_OUT", "ann@example.com"),
        ("SAM4MLLM_LEAVE_OUT", "reviewer:"),
        ("SAM4MLLM_RENAMED", "Cup=Mug"),
        ("SAM4MLLM_RENAMED", '{"Cup": "Mug"}'),
        ("SAM4MLLM_RENAMED", '{"3": "Mug"}'),
    ],
)
def test_a_wrong_one_is_one_line(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{variable}")
    assert "\n" not in str(caught.value)
