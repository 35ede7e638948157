"""Tiny random checkpoints of real architectures, made once a run; logs and services that several files open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from backend.corrections.log import CorrectionLog
from sam4mllm.demo.tokenizer import END, IMAGE, PAD, VISION_END, VISION_START, save_tokenizer, vocabulary
from sam4mllm.prompts.dialects import DEMO, dump_dialect
from tests.backend_fakes import House, house
from tests.learning_fakes import FAKE_TRAINER, School, school

torch.set_num_threads(2)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}


def _qwen2(shared: dict[str, Any], text: dict[str, Any]) -> torch.nn.Module:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **shared))


def _qwen2_5(shared: dict[str, Any], text: dict[str, Any]) -> torch.nn.Module:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared))


def _qwen3(shared: dict[str, Any], text: dict[str, Any]) -> torch.nn.Module:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=vision, **shared))


FAMILIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], torch.nn.Module]] = {
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2_5,
    "qwen3_vl": _qwen3,
}


def make_checkpoint(family: str, folder: Path) -> Path:
    """A random checkpoint of a few thousand parameters, with the demo's tokenizer and dialect."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    torch.manual_seed(7)
    text = {**TEXT, "vocab_size": len(ids), "eos_token_id": ids[END], "pad_token_id": ids[PAD], "bos_token_id": None}
    shared = {
        "image_token_id": ids[IMAGE],
        "video_token_id": ids[PAD],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
        "tie_word_embeddings": False,
    }
    model = FAMILIES[family](shared, text)
    model.save_pretrained(folder)  # type: ignore[operator]
    save_tokenizer(folder)
    patch = 16 if family == "qwen3_vl" else 14
    Qwen2VLImageProcessor(
        patch_size=patch, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    ).save_pretrained(folder)
    (folder / "dialect.json").write_text(dump_dialect(DEMO))
    return folder


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def tiny_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each family in turn."""
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[CorrectionLog]:
    """An empty log of corrections."""
    opened = CorrectionLog(tmp_path / "corrections.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Makes services on fakes; they are closed at the end."""
    opened: list[House] = []

    def make(**given: Any) -> House:
        opened.append(house(tmp_path, **given))
        return opened[-1]

    yield make
    for one in opened:
        one.service.close(5.0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., School]]:
    """Makes services with a training process that takes no time; they are closed at the end."""
    started: list[School] = []

    def make(**given: Any) -> School:
        started.append(school(tmp_path, FAKE_TRAINER, **given))
        return started[-1]

    yield make
    for place in started:
        place.service.close(5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets to train on: ``corrections`` and ``replay``."""
    from tests.test_pool import TOY, write_pictures  # noqa: PLC0415 – before pytest has rewritten its asserts otherwise

    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "corrections", TOY)
    write_pictures(folder / "replay", TOY[:1])
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one family, where it makes no difference which."""
    return make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("single"))
