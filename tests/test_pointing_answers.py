"""Answers that are points alone: read, spelled, put to the segmenter, and learned."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.errors import TemplateError
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.marks import as_boxes, said_boxes
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.grounding.reading import note_on, read_answer
from sam4mllm.masks import lies_on
from sam4mllm.memory import Stored
from sam4mllm.points import deepest
from sam4mllm.prompts.answer_text import fold
from sam4mllm.prompts.conversation import box_answer
from sam4mllm.prompts.dialects import INTERNVL, MOLMO2, Dialect
from sam4mllm.prompts.parse import MAX_INSTANCES
from sam4mllm.prompts.pointing import find_marks, pointed_answer
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import UNLEARNED, Collator
from sam4mllm.training.loss import row_loss
from sam4mllm.values import Grounding, SpokenPoints
from tests.family_checks import CPU, IMAGE, Subject
from tests.family_models import KINDS
from tests.test_pool import TOY, write_pictures

FRAME = Frame(1000, 500, (28, 28))
ONE, TWO = (105, 205), (300, 400)


@pytest.fixture(scope="module")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return Subject(KINDS["Molmo 2"], tmp_path_factory.mktemp("molmo2")).grounder


@pytest.mark.parametrize(
    ("text", "points"),
    [
        pytest.param('<points coords="1 1 105 205">the cup</points>', [ONE], id="one"),
        pytest.param('<points coords="1 1 105 205 2 300 400">cups</points>', [ONE, TWO], id="two"),
        pytest.param('<points coords="1 1 105 205 2 300 400"/>', [ONE, TWO], id="without words"),
        pytest.param('Counting the <points coords="1 1 105 205 2 300 400" alt="cups">cups</points> shows 2.', [ONE, TWO], id="count"),
        pytest.param("<points coords='1 1 105 205'>", [ONE], id="other quotes"),
        pytest.param("<POINTS COORDS = \"1 1 105 205\">", [ONE], id="capitals and spaces"),
        pytest.param('<points coords="１ １ １０５ ２０５">', [ONE], id="full width"),
        pytest.param('<points coords="1 1 105 205; 2 1 300 400">', [ONE, TWO], id="a second image that is not there"),
        pytest.param('<points coords="1 1 105 205"> <points coords="1 1 300 400">', [ONE, TWO], id="two tags"),
        pytest.param('<points coords="1 1 1000 000">', [(1000, 0)], id="the last thousandth"),
        pytest.param('<points coords="1 1 1001 000 2 300 400">', [TWO], id="beyond the image"),
        pytest.param('<points coords="1 99 105 205 100 300 400 101 105 206">', [ONE, TWO, (105, 206)], id="a hundred and more"),
        pytest.param('<points coords="1 1 105 205 2 300">', [ONE], id="half a point"),
        pytest.param('<points coords="1 1 105 205 2 300 40', [ONE], id="cut off in a number"),
        pytest.param('<points coords="', [], id="cut off before a number"),
        pytest.param('<points coords="1 1 10.5 20.5">', [], id="decimals are another format"),
        pytest.param("<think>coords=\"1 1 105 205\"</think>There are none.", [], id="a thought is no answer"),
        pytest.param("The cups are at 1 105 205.", [], id="numbers in prose"),
        pytest.param("There are none.", [], id="none"),
        pytest.param("", [], id="nothing"),
    ],
)  # fmt: skip
def test_points_of_an_answer(text: str, points: list[tuple[int, int]]) -> None:
    read = read_answer(MOLMO2, FRAME, text)
    expected = [[min(x, 999) + 0.5, (min(y, 999) + 0.5) / 2] for x, y in points]
    np.testing.assert_allclose(np.array([one.inside_px[0] for one in read.instances]).reshape(-1, 2), np.array(expected).reshape(-1, 2))
    assert read.absent == ("none" in text)
    for instance in read.instances:
        np.testing.assert_array_equal(instance.box_px, np.tile(instance.inside_px[0], 2))


def test_the_last_number_of_an_answer_that_was_cut_off_may_be_half_of_one() -> None:
    text = '<points coords="1 1 105 205 2 300 100'
    assert len(read_answer(MOLMO2, FRAME, text).instances) == 2
    read = read_answer(MOLMO2, FRAME, text, finished=False)
    assert len(read.instances) == 1
    assert note_on(read, finished=False) == "the model's answer was cut off; there may be more"


def test_an_answer_in_a_loop_is_read_so_far_and_each_point_once() -> None:
    points = [(index, 7) for index in range(3 * MAX_INSTANCES)]
    assert len(read_answer(MOLMO2, FRAME, pointed_answer(MOLMO2, "x", points)).instances) == MAX_INSTANCES
    assert len(read_answer(MOLMO2, FRAME, pointed_answer(MOLMO2, "x", [ONE] * 9)).instances) == 1


PIECES = st.sampled_from(["coords=", "coords", '"', " ", "1 1 105 205", "1 ", "999", "0", "<points ", ">", ";", "\t", ".", "٣٣٣", "²²²"])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join)), st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_a_model_writes_is_read_within_the_image(text: str, finished: bool) -> None:
    for dialect in (MOLMO2, replace(MOLMO2, no_target="nothing")):
        read = read_answer(dialect, FRAME, text, with_points=True, finished=finished)
        for instance in read.instances:
            assert np.all((instance.inside_px >= 0) & (instance.inside_px <= [1000, 500]))
            assert 0 <= instance.start < instance.end <= len(fold(text))
        assert not (read.absent and read.instances)


@pytest.mark.parametrize("piece", ["coords=", "1 ", " ", '"1 1 ', "1" * 50, 'coords = "1 105 205 ', "1\t105\n"])
def test_long_answers_take_no_time(piece: str) -> None:
    began = time.process_time()
    list(find_marks("coords=" + piece * (200_000 // len(piece))))
    assert time.process_time() - began < 2


def test_points_are_spelled_as_the_family_does() -> None:
    assert pointed_answer(MOLMO2, "the cups", [(5, 20), TWO]) == '<points coords="1 1 005 020 2 300 400">the cups</points>'
    assert pointed_answer(MOLMO2, "the cups", []) == "There are none."
    assert box_answer(MOLMO2, "the cup", [(10, 20, 30, 45)]) == '<points coords="1 1 020 032">the cup</points>'


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"frame": "unit"}, "thousandths of three digits", id="another frame"),
        pytest.param({"digits": 0}, "thousandths of three digits", id="other digits"),
        pytest.param({"answer": "<points>"}, "answer lacks {boxes}", id="neither boxes nor points"),
    ],
)
def test_dialects_that_cannot_be_read_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        replace(MOLMO2, **fields)  # type: ignore[arg-type]


def grounding(points: tuple[SpokenPoints, ...]) -> Grounding:
    return Grounding("the cup", np.array([[0, 0, 10, 20], [5, 5, 9, 9]], np.float32), np.ones(2), 0.0, points)


SPOKEN = SpokenPoints(np.array([[3, 4]], np.float32))


@pytest.mark.parametrize(
    ("dialect", "points", "boxes"),
    [
        pytest.param(MOLMO2, (SPOKEN, SPOKEN), [[3, 4, 3, 4]] * 2, id="said"),
        pytest.param(MOLMO2, (), [[0, 0, 10, 20], [5, 5, 9, 9]], id="not said"),
        pytest.param(MOLMO2, (SPOKEN,), [[0, 0, 10, 20], [5, 5, 9, 9]], id="a reviewer added one"),
        pytest.param(MOLMO2, (SPOKEN, SpokenPoints()), [[0, 0, 10, 20], [5, 5, 9, 9]], id="only of one"),
        pytest.param(INTERNVL, (SPOKEN, SPOKEN), [[0, 0, 10, 20], [5, 5, 9, 9]], id="a family with boxes"),
    ],
)
def test_what_an_answer_is_spelled_by(dialect: Dialect, points: tuple[SpokenPoints, ...], boxes: list[list[float]]) -> None:
    np.testing.assert_array_equal(said_boxes(dialect, grounding(points)), np.array(boxes, np.float32))


def test_a_question_about_points_repeats_the_points_that_were_said(grounder: MllmGrounder) -> None:
    scene = grounder.open(IMAGE)
    first, _ = grounder.history(scene, Inquiry(grounding((SPOKEN, SPOKEN)), 0, SPOKEN.inside_px))
    assert 'coords="1 1 033 033 2 033 033"' in grounder.checkpoint.tokenizer.decode(first)


@pytest.mark.parametrize(
    ("rows", "columns", "point"),
    [
        pytest.param(slice(2, 7), slice(3, 8), [5.5, 4.5], id="the middle of a square"),
        pytest.param(slice(0, 1), slice(0, 9), [0.5, 0.5], id="a line has a point on it"),
        pytest.param(slice(9, 10), slice(9, 10), [9.5, 9.5], id="one pixel"),
    ],
)
def test_the_deepest_point(rows: slice, columns: slice, point: list[float]) -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[rows, columns] = True
    np.testing.assert_array_equal(deepest(mask), point)


# -- learned -------------------------------------------------------------------------------------------------------------------------------


def test_an_answer_to_learn_has_a_point_on_each_object(grounder: MllmGrounder, tmp_path: Path) -> None:
    data = write_pictures(tmp_path, TOY[:1])
    examples = read_examples(data)
    image = load_example_image(data, examples[0])
    scene = grounder.open(image)
    row = Collator(grounder, Asking(points=2, prompt_share=1.0)).row(scene, examples, np.random.default_rng(0))
    text = grounder.checkpoint.tokenizer.decode(row.row.ids)
    assert text.count("Point to") == len(examples)  # and no other question for a prompt
    points = [(mark.x, mark.y) for mark in find_marks(fold(text))]
    masks = [mask for example in examples for mask in example.masks()[np.argsort(example.boxes_px[:, 0], kind="stable")]]
    assert len(points) == len(masks) > 1
    for point, mask in zip(points, masks, strict=True):
        px = (np.array([point], np.float32) + 0.5) / 1000 * [scene.width, scene.height]
        assert lies_on(mask, px.astype(np.float32)).all()


@torch.inference_mode()
@pytest.mark.parametrize("name", [pytest.param("Molmo 2", id="image tokens see each other"), pytest.param("Qwen3-VL", id="they do not")])
def test_the_loss_is_that_of_the_models_own_mask(name: str, tmp_path: Path) -> None:
    """Of a row that is one conversation, against a pass without any mask of ours."""
    subject = Subject(KINDS[name], tmp_path)
    grounder = subject.grounder
    data = write_pictures(tmp_path / "data", TOY[:1])
    examples = read_examples(data)[:1]
    image = load_example_image(data, examples[0])
    asking = Asking(points=3, joint_share=1.0, prompt_share=0.0)
    row = Collator(grounder, asking).row(grounder.open(image), examples, np.random.default_rng(0))
    assert np.tril(np.ones_like(row.row.mask)).tolist() == row.row.mask.tolist()
    checkpoint = grounder.checkpoint
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(image))
    ids = torch.from_numpy(row.row.ids)[None]
    inputs = {**encoded.inputs, "input_ids": torch.cat([encoded.inputs["input_ids"], ids], 1)}
    inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, ids.shape[1]))
    logits = checkpoint.model.to(CPU)(**inputs).logits[0, -ids.shape[1] :]
    expected = F.cross_entropy(logits, torch.from_numpy(row.targets), ignore_index=UNLEARNED)
    assert float(row_loss(checkpoint.model, encoded, row)) == pytest.approx(float(expected), abs=1e-5)


def test_boxes_without_sides() -> None:
    assert as_boxes(np.zeros((0, 2), np.float32)).shape == (0, 4)
    assert as_boxes(np.array([[1, 2], [3, 4]], np.float32)).tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        pytest.param("model.transformer.blocks.0.self_attn.att_proj.weight", True, id="as published"),
        pytest.param("model.language_model.layers.0.self_attn.q_proj.weight", True, id="as transformers writes it"),
        pytest.param("model.vision_backbone.image_vit.transformer.resblocks.0.attention.wq.weight", False, id="the vision tower"),
        pytest.param("model.vision_backbone.image_projector.w1.weight", False, id="the projector"),
    ],
)
def test_which_weights_of_molmo_2_are_quantised(name: str, quantised: bool) -> None:
    assert Stored(name, "F32", (8, 8)).is_quantised == quantised
