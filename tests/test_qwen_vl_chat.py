"""Qwen-VL-Chat against a slow double of its specification, from the same published tensors: each part, the whole, and its limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sam4mllm.adapters.fields import CONFIG
from sam4mllm.adapters.files import check_adapter
from sam4mllm.adapters.lora import attach
from sam4mllm.conversion.convert import convert_folder
from sam4mllm.errors import ModelError, PhraseError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.training.features import VisionMemory
from tests import qwen_vl_chat_double as double
from tests.family_checks import CPU, IMAGE, Subject
from tests.family_models import KINDS
from tests.published_models import PUBLISHED, SMALL, Picture, State, qwen_config, write_qwen_vl_chat
from tests.test_mllm import inquiry, picture
from tests.test_pool import TOY, write_pictures
from tests.test_train_cli import run

torch.set_num_threads(1)


@dataclass(frozen=True)
class Pair:
    """A published checkpoint, and what it was converted to, in float64."""

    picture: Picture
    state: State
    checkpoint: Checkpoint
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        return qwen_config(self.picture)

    @property
    def pixels(self) -> Tensor:
        return torch.randn(3, self.picture.side, self.picture.side, generator=torch.Generator().manual_seed(1)).double()

    @property
    def ids(self) -> list[int]:
        return [5, 6, *[self.checkpoint.model.config.image_token_id] * self.picture.queries, 7, 8, 9, 10]

    @property
    def places(self) -> range:
        return range(2, 2 + self.picture.queries)


@pytest.fixture(scope="module", params=[pytest.param(SMALL, id="small"), pytest.param(PUBLISHED, id="448 pixels and 256 queries")])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("published")
    state = write_qwen_vl_chat(folder / "old", request.param)
    convert_folder(folder / "old", folder / "new")
    checkpoint = load_checkpoint(str(folder / "new"), CPU)
    checkpoint.model.double()
    return Pair(request.param, state, checkpoint, folder / "new")


def in_double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.std(0).mean() > 0.05  # rows differ, or the comparison would say little
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


@torch.inference_mode()
def test_the_tower_is_the_doubles(pair: Pair) -> None:
    found = pair.checkpoint.model.model.visual(pair.pixels[None])[0]
    close(found, double.tower(in_double(pair.state), pair.config["visual"], pair.pixels))


@torch.inference_mode()
def test_the_resampler_is_the_doubles(pair: Pair) -> None:
    found = pair.checkpoint.model.model.embed_images(pair.pixels[None])[0]
    close(found, double.image_embeddings(in_double(pair.state), pair.config["visual"], pair.pixels))


@torch.inference_mode()
def test_the_whole_model_is_the_doubles(pair: Pair) -> None:
    found = pair.checkpoint.model(input_ids=torch.tensor([pair.ids]), pixel_values=pair.pixels[None]).logits[0]
    close(found, double.double_logits(pair.state, pair.config, pair.ids, pair.pixels, pair.places))


def test_positions_are_enlarged_bicubically(pair: Pair) -> None:
    side = pair.picture.side // 14
    state = in_double(pair.state)
    tables = {
        "visual.positions": state["transformer.visual.positional_embedding"],
        "resampler.key_positions": state["transformer.visual.attn_pool.pos_embed"],
    }
    for name, table in tables.items():
        close(pair.checkpoint.model.model.get_parameter(name).detach(), double.enlarge(table, side))


# -- what other readings of the specification would give -----------------------------------------------------------------------------------


def swap(one: str, other: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        return {name.replace(one, "?").replace(other, one).replace("?", other): tensor for name, tensor in state.items()}

    return change


def in_blocks(state: State) -> State:
    """The tower's rows as if all queries came first, then all keys, then all values."""
    changed = dict(state)
    for name, tensor in state.items():
        if ".attn.in_proj." in name:
            changed[name] = tensor.reshape(3, 2, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
    return changed


def change(name: str, how: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, name: how(state[name])}


@pytest.mark.parametrize(
    "misread",
    [
        pytest.param(swap(".w1.", ".w2."), id="w1 is the gate"),
        pytest.param(in_blocks, id="queries, keys and values of the tower in three blocks"),
        pytest.param(change("transformer.visual.proj", lambda weight: weight.T), id="the last projection is not transposed"),
        pytest.param(change("transformer.visual.attn_pool.pos_embed", lambda table: table.flip(1)), id="rows and columns of positions"),
        pytest.param(change("transformer.visual.positional_embedding", lambda table: table.flip(0)), id="positions from the last on"),
        pytest.param(swap(".ln_q.", ".ln_kv."), id="the resampler's norms"),
    ],
)
def test_another_reading_is_another_model(misread: Callable[[State], State], tmp_path: Path) -> None:
    """That the comparisons above would see it."""
    state = write_qwen_vl_chat(tmp_path / "model")
    config = qwen_config()
    pixels = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids, places = [5, *[0] * 9, 6, 7], range(1, 10)
    right = double.double_logits(state, config, ids, pixels, places)
    assert (double.double_logits(misread(state), config, ids, pixels, places) - right).abs().max() > 1e-2


# -- 2,048 positions -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "factor"), [(1, 1), (2047, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7)])
def test_the_rotary_base_grows_beyond_what_was_trained(length: int, factor: float) -> None:
    assert double.ntk_factor(length) == factor


@pytest.mark.parametrize(("position", "grows"), [(0, False), (2046, False), (2047, False), (2048, True)])
def test_queries_grow_beyond_what_was_trained(position: int, grows: bool) -> None:
    assert (double.logn_scale(position) > 1) == grows


UP_TO, BEYOND = [0, 1, 2, 2045, 2046, 2047], [0, 1, 2, 2046, 2047, 2048]


def hidden_states() -> Tensor:
    return torch.randn(6, 256, generator=torch.Generator().manual_seed(2)).double()


def read_at(pair: Pair, positions: list[int]) -> Tensor:
    model = pair.checkpoint.model.model
    found: Tensor = model(inputs_embeds=hidden_states()[None], position_ids=torch.tensor([positions])).last_hidden_state[0]
    return found


@torch.inference_mode()
def test_up_to_there_nothing_is_scaled_and_beyond_it_is_refused(pair: Pair) -> None:
    close(read_at(pair, UP_TO), double.decode(in_double(pair.state), pair.config, hidden_states(), UP_TO))
    with pytest.raises(PhraseError, match=r"come to 2,049 tokens, and Qwen-VL-Chat reads 2,048; use a shorter phrase or fewer points"):
        read_at(pair, BEYOND)


@torch.inference_mode()
def test_in_training_nothing_is_scaled_at_all(pair: Pair) -> None:
    plain = double.decode(in_double(pair.state), pair.config, hidden_states(), BEYOND, scaled=False)
    scaled = double.decode(in_double(pair.state), pair.config, hidden_states(), BEYOND)
    assert (plain - scaled).abs().max() > 1e-2
    pair.checkpoint.model.train()
    try:
        close(read_at(pair, BEYOND), plain)
    finally:
        pair.checkpoint.model.eval()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(KINDS["Qwen-VL-Chat"], tmp_path_factory.mktemp("family"))


def test_a_packed_row_may_be_longer(subject: Subject) -> None:
    """Its positions begin anew with every question."""
    grounder = subject.grounder
    scene = grounder.open(IMAGE)
    some = inquiry("the left cup", [[5, 5, 60, 80]], 0, 1)
    whole = Inquiry(some.grounding, 0, np.random.default_rng(0).uniform(5, 60, (300, 2)).astype(np.float32))
    assert len(whole.points_px) * len(grounder.joint_question([(5, 5)])) > 2048
    [together] = grounder.ask(scene, [whole])
    parts = [Inquiry(whole.grounding, 0, points) for points in np.array_split(whole.points_px, 8)]
    apart = np.concatenate([grounder.ask(scene, [part])[0].inside for part in parts])
    assert together.inside.std() > 1e-4
    np.testing.assert_allclose(together.inside, apart, atol=1e-5)


def test_a_phrase_that_goes_beyond_is_refused(subject: Subject) -> None:
    with pytest.raises(PhraseError, match="Qwen-VL-Chat reads 2,048"):
        subject.grounder.ground(subject.grounder.open(IMAGE), ["cup " * 2000])


def test_a_chat_template_that_fills_it_is_refused(tmp_path: Path) -> None:
    model = Subject(KINDS["Qwen-VL-Chat"], tmp_path)
    template = model.source / "chat_template.jinja"
    template.write_text("Behave. " * 700 + template.read_text())
    with pytest.raises(ModelError, match=r"its chat template and an image take [\d,]+ of 2,048 tokens; shorten the template"):
        MllmGrounder(model.load()).open(IMAGE)


# -- what it is given ----------------------------------------------------------------------------------------------------------------------


def test_an_image_is_squashed_to_a_square_as_pillow_does(pair: Pair) -> None:
    image = Image.fromarray(picture(3, 120, 310))
    side, queries = pair.picture.side, pair.picture.queries
    encoded = pair.checkpoint.encode(pair.checkpoint, pair.checkpoint.markup.opening, image)
    squashed = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = ((squashed - mean) / deviation).transpose(2, 0, 1)
    np.testing.assert_allclose(encoded.inputs["pixel_values"][0].numpy(), expected, atol=1e-5)
    assert encoded.resized == (side, side)
    assert int((encoded.inputs["input_ids"] == pair.checkpoint.model.config.image_token_id).sum()) == queries
    assert encoded.positions.shape == (1, 1, encoded.inputs["input_ids"].shape[1])


def test_placeholders_that_do_not_fit_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match=rf"an image needs {pair.picture.queries} placeholders"):
        pair.checkpoint.model(input_ids=torch.tensor([pair.ids[3:]]), pixel_values=pair.pixels[None])


def test_the_conversation_is_chatml_with_numbered_pictures(pair: Pair) -> None:
    markup = pair.checkpoint.markup
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert markup.opening == f"{system}<|im_start|>user\nPicture 1: <img><imgpad></img>\n"
    assert markup.to_answer == "<|im_end|>\n<|im_start|>assistant\n"
    assert markup.to_question == "<|im_end|>\n<|im_start|>user\n"


# -- training ------------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_features_of_the_frozen_tower_are_kept_in_training(subject: Subject) -> None:
    checkpoint = subject.load()
    attach(checkpoint, 4, 8, 0.0)
    memory, tower = VisionMemory(checkpoint.model, 1 << 20), checkpoint.model.model.visual
    first, other = torch.randn(2, 1, 3, 112, 112).unbind()
    with memory.of(IMAGE):
        worked_out = tower(first)
    with memory.of(IMAGE):
        assert torch.equal(tower(other), worked_out)  # what comes in is not looked at
    assert not torch.equal(tower(other), worked_out)


def test_the_papers_plan_trains_it(subject: Subject, tmp_path: Path) -> None:
    """Rank 256, alpha 128, dropout 0.05 (paper, section 4.1), on decoder and resampler."""
    data = write_pictures(tmp_path / "data", TOY)
    out = tmp_path / "adapter"
    told = json.loads(
        run("train", data, "--out", out, "--model", subject.source, "--device", "cpu", "--config", "paper", "--steps", 1, "--json")
    )
    assert told["step"] == 1
    config: Mapping[str, Any] = check_adapter(out)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (256, 128, 0.05)
    assert json.loads((out / CONFIG).read_text())["target_modules"] == load_checkpoint(str(subject.source), CPU).lora_targets
    image = min((data / "images").iterdir())
    answer = run("predict", image, "the left cup", "--model", subject.source, "--device", "cpu", "--adapter", out, "--json")
    assert json.loads(answer)[0]["phrase"] == "the left cup"
