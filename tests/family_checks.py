"""What every family must do, as checks that its tests run and that the table in the docs is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sam4mllm.adapters.lora import Adapters, attach
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.grounding.bundle import can_bundle
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.copying import cache_bytes, keeps_states
from sam4mllm.grounding.decoding import write
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.frames import highest, to_numbers, to_pixels
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Grounder
from sam4mllm.grounding.reading import read_answer
from sam4mllm.grounding.reference import ask_at_once, ask_expanded, ask_one_by_one, ask_separately
from sam4mllm.prompts.answer_text import fold
from sam4mllm.prompts.conversation import BoxNumbers, PointNumbers, box_answer, points_body
from sam4mllm.prompts.dialects import Dialect
from sam4mllm.prompts.parse import parse_boxes, parse_points, says_no_target
from sam4mllm.prompts.pointing import find_marks, pointed_answer
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import Collator
from sam4mllm.training.loss import row_loss
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.recipe import Trainer
from sam4mllm.training.unpacking import shares_of
from tests.family_models import PHRASES, Kind, make_family
from tests.test_mllm import assert_same, inquiry, picture
from tests.test_pool import TOY, make_pool, write_pictures

CPU = torch.device("cpu")
IMAGE = picture(1)
QUESTION = inquiry(PHRASES[0], [[5, 5, 60, 80], [20, 30, 85, 110]], 1, 6)
PLAN = TrainingPlan(steps=20, batch=1, rate=5e-3, rank=4, alpha=8, dropout=0.0, strength=1.0, replay_share=0.0)
ASKING = Asking(points=3)

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYER = "model.language_model.layers.{}.{}".format
LANGUAGE = {LAYER(layer, name) for layer in range(2) for name in LINEAR}
ATTENTION = {name for name in LANGUAGE if ".self_attn." in name}
_RECURRENT = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj")
_HYBRID_ATTENTION = {LAYER(0, name) for name in _RECURRENT} | {LAYER(1, name) for name in LINEAR[:4]}
_GLM = ATTENTION | {LAYER(layer, f"mlp.{name}") for layer in range(2) for name in ("gate_up_proj", "down_proj")}
_KEYS_AS_VALUES = LAYER(1, "self_attn.v_proj")
LANGUAGES = {
    "qwen3_vl_moe": ATTENTION,
    "qwen3_5": _HYBRID_ATTENTION | {name for name in LANGUAGE if ".mlp." in name},
    "qwen3_5_moe": _HYBRID_ATTENTION | {name.replace(".mlp.", ".mlp.shared_expert.") for name in LANGUAGE if ".mlp." in name},
    "glm4v": _GLM,
    "glm46v": _GLM,
    "glm4v_moe": ATTENTION,
    "qwen3_moe": ATTENTION,
    "gemma4": LANGUAGE - {_KEYS_AS_VALUES},
    "gemma4, shared": LANGUAGE | {LAYER(layer, name) for layer in (2, 3) for name in LINEAR if name[10:] not in ("k_proj", "v_proj")},
}
"""The language model's layers that learn, by the type of the model or of its text model, where they are not LANGUAGE."""
_PROJECTOR = {"model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"}
_MERGERS = ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
_MERGER_GLM = {f"model.visual.merger.{name}" for name in ("proj", "gate_proj", "up_proj", "down_proj")}
PROJECTORS = {
    "qwen2_vl": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
    "qwen2_5_vl": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
    "qwen3_vl": {f"model.visual.{merger}.linear_fc{layer}" for merger in _MERGERS for layer in (1, 2)},
    "qwen3_vl_moe": {f"model.visual.{merger}.linear_fc{layer}" for merger in _MERGERS for layer in (1, 2)},
    "qwen3_5": {"model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"},
    "qwen3_5_moe": {"model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"},
    "glm4v": _MERGER_GLM,
    "glm46v": _MERGER_GLM,
    "glm4v_moe": set(),
    "llava_next": _PROJECTOR,
    "llava_onevision": _PROJECTOR,
    "internvl": _PROJECTOR,
    "molmo2": {f"model.multi_modal_projector.image_projector.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    "gemma4": {"model.embed_vision.embedding_projection"},
    "qwen_vl_chat": {"model.resampler.kv_proj", "model.resampler.proj"},
}
"""The exact layers that learn beside the language model's, by the type of the model."""


def language_of(kind: Kind) -> set[str]:
    """The language model's layers that learn."""
    return LANGUAGES.get(kind.text_type or kind.model_type, LANGUAGE)


@dataclass(frozen=True)
class Trained:
    """An adapter in a folder after a run, the loss of one row before and after it, and the answers that it gave then."""

    folder: Path
    before: float
    after: float
    answers: NDArray[np.float64]


class Subject:
    """One family's tiny checkpoint, and what several checks share."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.source = make_family(kind, folder / "model")

    def load(self) -> Checkpoint:
        return load_checkpoint(str(self.source), CPU)

    @cached_property
    def grounder(self) -> MllmGrounder:
        return MllmGrounder(self.load(), max_new_tokens=12)

    @cached_property
    def trained(self) -> Trained:
        """Twenty steps of one image."""
        data = write_pictures(self.folder / "data", TOY[:1])
        checkpoint = self.load()
        trainer = Trainer(checkpoint, make_pool(data), PLAN, self.folder / "run", ASKING)
        before = mean_loss(checkpoint, data)
        assert trainer.train(lambda progress: None)
        checkpoint.model.eval()
        trainer.save_adapter(self.folder / "adapter", "tiny")
        return Trained(self.folder / "adapter", before, mean_loss(checkpoint, data), ask(MllmGrounder(checkpoint)))

    @cached_property
    def other_adapter(self) -> Path:
        """One with random weights and another rank."""
        model = attach(self.load(), 3, 8, 0.0)
        torch.manual_seed(2)
        for weight in model.parameters():
            if weight.requires_grad:
                nn.init.normal_(weight, std=0.2)
        model.save_pretrained(str(self.folder / "other"), save_embedding_layers=False)
        (self.folder / "other" / "README.md").unlink()
        return self.folder / "other"


def ask(grounder: Grounder) -> NDArray[np.float64]:
    """A few probabilities, which every layer has a part in."""
    [answer] = grounder.ask(grounder.open(IMAGE), [QUESTION])
    return answer.inside


@torch.no_grad()
def mean_loss(checkpoint: Checkpoint, data: Path) -> float:
    """Of the row of the toy's image."""
    grounder = MllmGrounder(checkpoint)
    examples: list[Example] = read_examples(data)
    image = load_example_image(data, examples[0])
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(image))
    row = Collator(grounder, ASKING).row(grounder.open(image), examples, np.random.default_rng(0))
    return sum(share * float(row_loss(checkpoint.model, encoded, part)) for part, share in shares_of(checkpoint.model, row))


# -- the checks ----------------------------------------------------------------------------------------------------------------------------


def packed_equals_separate(subject: Subject) -> None:
    grounder = subject.grounder
    scene = grounder.open(IMAGE)
    [packed] = grounder.ask(scene, [QUESTION])
    assert packed.inside.std() > 1e-4  # the answers differ between points, or the comparison would say nothing
    assert_same(packed, ask_separately(grounder, IMAGE, QUESTION), 1e-5)
    assert_same(packed, ask_at_once(grounder, IMAGE, QUESTION), 1e-5)
    if not keeps_states(grounder.checkpoint.model.config):
        assert_same(packed, ask_expanded(grounder, scene, QUESTION), 1e-5)


def read_with_the_image_equals_read_after_it(subject: Subject) -> None:
    """The slow way is the reference: the prefix is read in a pass of its own. A second question finds the same cache, too."""
    grounder = subject.grounder
    waiting, read = grounder.open(IMAGE), grounder.open(IMAGE)
    assert (waiting.prefix.unread is not None) == can_bundle(read)
    assert waiting.nbytes == read.nbytes == cache_bytes(read.cache)
    for _ in range(2):
        assert_same(grounder.ask(waiting, [QUESTION])[0], grounder.ask(read, [QUESTION])[0], 1e-5)
        assert waiting.prefix.unread is None
    assert cache_bytes(waiting.cache) == cache_bytes(read.cache)
    if can_bundle(waiting):  # nothing of the questions is kept alive with the prefix
        assert all(keys.untyped_storage().nbytes() == keys.nbytes for keys in (layer.keys for layer in waiting.cache.layers))
    [said], [expected] = grounder.ground(grounder.open(IMAGE), PHRASES[:1]), grounder.ground(read, PHRASES[:1])
    np.testing.assert_array_equal(said.boxes_px, expected.boxes_px)
    assert (said.note, said.no_target_probability) == (expected.note, pytest.approx(expected.no_target_probability, abs=1e-5))


def joint_equals_one_by_one(subject: Subject) -> None:
    scene = subject.grounder.open(IMAGE)
    [joint] = subject.grounder.ask(scene, [QUESTION], joint=True)
    assert_same(joint, ask_one_by_one(subject.grounder, scene, QUESTION), 1e-4)


def several_images_equal_one(subject: Subject) -> None:
    """Questions about images of different sizes in shared passes, as far as the model can share any."""
    grounder, several = subject.grounder, [picture(seed, *size) for seed, size in enumerate([(120, 90), (90, 150), (64, 64)])]
    scenes = [grounder.open(image) for image in several]
    same = [picture(seed, 120, 90) for seed in (7, 8)]
    for image, scene in zip([*same, several[1]], grounder.open_each([*same, several[1]]), strict=True):
        [said], [alone] = grounder.ask(scene, [QUESTION]), grounder.ask(grounder.open(image), [QUESTION])
        assert_same(said, alone, 1e-5)
    asked = [(scene, [inquiry(phrase, [[5, 5, 50, 60]], 0, 4)]) for scene, phrase in zip(scenes, PHRASES, strict=False)]
    passes, forward = [0], grounder.forward

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return forward(*given)

    with patch.object(grounder, "forward", counted):
        together = grounder.ask_each(asked)
        assert passes == [1 if all(map(can_bundle, scenes)) else len(asked)]
        joint = grounder.ask_each(asked, joint=True)
    for (scene, inquiries), [said], [said_jointly] in zip(asked, together, joint, strict=True):
        assert_same(said, grounder.ask(scene, inquiries)[0], 1e-5)
        assert_same(said_jointly, grounder.ask(scene, inquiries, joint=True)[0], 1e-4)
    told = [(scene, list(PHRASES[: 1 + place])) for place, scene in enumerate(scenes)]
    for (scene, phrases), found in zip(told, grounder.ground_each(told), strict=True):
        for one, single in zip(found, grounder.ground(scene, phrases), strict=True):
            np.testing.assert_array_equal(one.boxes_px, single.boxes_px)
            np.testing.assert_allclose(one.no_target_probability, single.no_target_probability, rtol=0, atol=1e-5)
            assert (one.phrase, one.note) == (single.phrase, single.note)


def answers_equal_generate(subject: Subject) -> None:
    """Our own decoding, prefix and positions against transformers' on the whole conversation."""
    grounder, model = subject.grounder, subject.grounder.checkpoint.model
    question = grounder.question(PHRASES[0])
    [written] = write(grounder, grounder.open(IMAGE), [question], frozenset({grounder.end}), 8)
    encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(IMAGE))
    inputs = {**encoded.inputs, "input_ids": torch.cat([encoded.inputs["input_ids"], torch.tensor([question])], 1)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(question)))
    generated = model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=8, do_sample=False)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(written.ids) == list(itertools.takewhile(lambda token: token != grounder.end, ids))


def lora_is_exact(subject: Subject) -> None:
    checkpoint = subject.load()
    model = attach(checkpoint, 4, 8, 0.05)
    expected = language_of(subject.kind) | PROJECTORS[subject.kind.model_type]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {f"base_model.model.{name}.lora_{side}.default.weight" for name in expected for side in "AB"}


def loss_falls(subject: Subject) -> None:
    assert subject.trained.after < 0.8 * subject.trained.before


def saved_is_loaded(subject: Subject) -> None:
    checkpoint = subject.load()
    adapters = Adapters(checkpoint)
    grounder = MllmGrounder(checkpoint)
    base = ask(grounder)
    adapters.load("trained", subject.trained.folder)
    adapters.use("trained")
    found = ask(grounder)
    assert np.abs(found - base).max() > 1e-4
    np.testing.assert_allclose(found, subject.trained.answers, atol=1e-6)


def swapped_is_alone(subject: Subject) -> None:
    folders = {"trained": subject.trained.folder, "other": subject.other_adapter}
    alone = {}
    for name, folder in folders.items():
        checkpoint = subject.load()
        adapters = Adapters(checkpoint)
        adapters.load(name, folder)
        adapters.use(name)
        alone[name] = ask(MllmGrounder(checkpoint))
    assert np.abs(alone["trained"] - alone["other"]).max() > 1e-3
    checkpoint = subject.load()
    adapters = Adapters(checkpoint)
    for name, folder in folders.items():
        adapters.load(name, folder)
    for name in ("trained", "other", "other", "trained"):
        adapters.use(name)
        np.testing.assert_array_equal(ask(MllmGrounder(checkpoint)), alone[name])


@dataclass(frozen=True)
class Frame:
    width: int
    height: int
    resized: tuple[int, int]


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """An image, and what the processor made of it."""
    side = st.integers(1, 4000)
    return Frame(draw(side), draw(side), (28 * draw(st.integers(1, 120)), 28 * draw(st.integers(1, 120))))


def boxes_read_back(dialect: Dialect, through: Callable[[str], str] = str) -> None:
    """Boxes anywhere, none to five, spelled as an answer and read again: the same numbers, and the same place to half a step or one.

    ``through`` is what happens to the text on its way, by a tokenizer for instance.
    """
    share = st.floats(0, 1, allow_nan=False)

    @given(frame=frames(), shares=st.lists(st.tuples(share, share, share, share), max_size=5), phrase=st.sampled_from(PHRASES))
    @settings(max_examples=80, deadline=None, database=None)
    def check(frame: Frame, shares: list[tuple[float, float, float, float]], phrase: str) -> None:
        corners = np.sort(np.array(shares, np.float64).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        boxes_px = corners * np.tile([frame.width, frame.height], 2)
        numbers: list[BoxNumbers] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in to_numbers(dialect, frame, boxes_px).tolist()]
        text = through(box_answer(dialect, phrase, numbers))
        found = parse_boxes(dialect, text, highest(dialect, frame))
        assert found == list(dict.fromkeys(numbers))
        assert says_no_target(dialect, text) == (not numbers)
        if numbers:
            back = to_pixels(dialect, frame, numbers)
            steps = frame.resized if dialect.frame == "resized" else (100, 100) if dialect.decimals else (1000, 1000)
            longest = max(frame.width, frame.height)
            sides = (longest, longest) if dialect.frame == "square" else (frame.width, frame.height)
            assert np.all(np.abs(back - boxes_px) <= np.tile(np.divide(sides, steps), 2) * 0.51 + 1e-3)
        points = [(x1, y1) for x1, y1, *_ in numbers]
        assert parse_points(dialect, through(points_body(dialect, points)), highest(dialect, frame)) == points

    check()


def points_read_back(dialect: Dialect, through: Callable[[str], str] = str) -> None:
    """As :func:`boxes_read_back`, of points as an answer."""
    share = st.floats(0, 1, allow_nan=False)

    @given(frame=frames(), shares=st.lists(st.tuples(share, share), max_size=12), phrase=st.sampled_from(PHRASES))
    @settings(max_examples=80, deadline=None, database=None)
    def check(frame: Frame, shares: list[tuple[float, float]], phrase: str) -> None:
        points_px = np.array(shares, np.float64).reshape(-1, 2) * [frame.width, frame.height]
        numbers: list[PointNumbers] = [(x, y) for x, y in to_numbers(dialect, frame, points_px).tolist()]
        text = through(pointed_answer(dialect, phrase, numbers))
        assert [(mark.x, mark.y) for mark in find_marks(fold(text))] == numbers
        read = read_answer(dialect, frame, text)
        assert (len(read.instances), read.absent, read.note) == (len(set(numbers)), not numbers, "")
        back = np.array([instance.inside_px[0] for instance in read.instances]).reshape(-1, 2)
        first = [numbers.index(number) for number in dict.fromkeys(numbers)]
        assert np.all(np.abs(back - points_px[first]) <= np.array([frame.width, frame.height]) / 1000 * 0.51 + 1e-3)

    check()


def boxes_read_back_as_tokens(subject: Subject) -> None:
    """As :func:`boxes_read_back`, through the family's tokens; of a family that answers with points these."""
    grounder = subject.grounder
    read_back = points_read_back if subject.kind.dialect.answers_with_points else boxes_read_back
    read_back(subject.kind.dialect, lambda text: str(grounder.checkpoint.tokenizer.decode(grounder.encode(text))))


PACKED, READ_BACK, SEVERAL = "packed = separate", "boxes read back", "several images = one"
CHECKS: dict[str, Callable[[Subject], None]] = {
    PACKED: packed_equals_separate,
    "joint = one by one": joint_equals_one_by_one,
    SEVERAL: several_images_equal_one,
    "as `generate`": answers_equal_generate,
    READ_BACK: boxes_read_back_as_tokens,
    "LoRA exact": lora_is_exact,
    "loss falls": loss_falls,
    "save, load": saved_is_loaded,
    "swap": swapped_is_alone,
}
