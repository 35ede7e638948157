"""A model, an adapter that was trained on it, and an empty registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.adapters.registry import Registry
from tests.conftest import make_checkpoint
from tests.test_pool import TOY, write_pictures
from tests.test_train_cli import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "toy", TOY)


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train`` makes of a model, with a config whose points are all joint."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "plan.toml").write_text("batch = 2\nrank = 3\nalpha = 6\nrate = 0.01\n[asking]\njoint_share = 1.0\nprompt_share = 0.5\n")
    run("train", data, "--model", model, "--out", folder / "a", "--config", folder / "plan.toml", "--steps", 2, "--segmenter", "demo")
    return folder / "a"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path / "home"))
    return Registry(tmp_path / "home")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAM4MLLM_MODEL", "SAM4MLLM_SEGMENTER"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
