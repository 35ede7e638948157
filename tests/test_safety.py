"""What must not be anywhere in the tree: ways to run code that comes with data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "sam4mllm").rglob("*.py"), *(ROOT / "backend").rglob("*.py")])


def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))


def named(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_torch_is_new_enough() -> None:
    """CVE-2025-32434 and CVE-2026-24747: weights_only loading was not safe before 2.10."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert (major, minor) >= (2, 10)


def test_torch_load_is_called_in_two_places_and_for_weights_only() -> None:
    """SAM's official files, and published checkpoints that are converted."""
    found = [(str(path.relative_to(ROOT)), call) for path in SOURCES for call in calls(path) if named(call) == "torch.load"]
    assert [name for name, _ in found] == ["sam4mllm/conversion/tensors.py", "sam4mllm/segmentation/loading.py"]
    assert all(ast.unparse(call).endswith("weights_only=True)") for _, call in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_data(path: Path) -> None:
    for call in calls(path):
        assert named(call) not in {"eval", "exec", "pickle.load", "pickle.loads", "torch.hub.load", "os.system", "yaml.load"}
        assert not any(keyword.arg == "shell" for keyword in call.keywords)
        trust = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
        if named(call).endswith(".from_pretrained"):
            assert [ast.unparse(value) for value in trust] == ["False"]  # left out, a library may ask, and take y for an answer


def test_no_weights_but_safetensors_are_shipped() -> None:
    shipped = {path.suffix for path in (ROOT / "sam4mllm").rglob("*") if path.is_file()}
    assert not shipped & {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npy", ".npz"}
