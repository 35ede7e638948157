"""A row of answers: every token of them is learned and nothing else, as serving asks for them, with the loss of plain conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from transformers import LlamaConfig

from sam4mllm.closeup import window_around
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.frames import to_pixels
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import Segment, pack
from sam4mllm.grounding.protocol import Inquiry, Question
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import spread
from sam4mllm.prompts.parse import parse_boxes, parse_prompt
from sam4mllm.run_lengths import to_rle
from sam4mllm.training import collate
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import UNLEARNED, CloseUp, Collator, TrainingRow, draw_points
from sam4mllm.training.loss import row_loss
from sam4mllm.values import Grounding, check_phrase
from tests.collate_turns import Toy, Turn, make_row, text, turns
from tests.test_pool import TOY, write_pictures

torch.set_num_threads(1)

PACKED = Asking(points=3, joint_share=0, prompt_share=0, shake=0)
JOINT = Asking(points=4, joint_share=1, prompt_share=0, shake=0)
PPG = Asking(points=1, joint_share=0, prompt_share=1, shake=0)
ALL = Asking(points=3, joint_share=0.5, prompt_share=0.5)


@pytest.fixture(scope="module")
def grounder(tiny_checkpoint: Path) -> MllmGrounder:
    checkpoint = load_checkpoint(str(tiny_checkpoint), torch.device("cpu"))
    return MllmGrounder(replace(checkpoint, dialect=replace(checkpoint.dialect, points_view="image")))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = write_pictures(tmp_path_factory.mktemp("toy") / "data", TOY[:1])
    examples = read_examples(folder)
    return Toy(load_example_image(folder, examples[0]), examples)


@pytest.fixture
def scene(grounder: MllmGrounder, toy: Toy) -> MllmScene:
    return grounder.open(toy.image)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Segment]:
    """What the collator packed last."""
    last: list[Segment] = []

    def recording(segments: list[Segment]) -> object:
        last[:] = segments
        return pack(segments)

    monkeypatch.setattr(collate, "pack", recording)
    return last


# -- targets -------------------------------------------------------------------------------------------------------------------------------


def test_every_token_of_an_answer_is_learned_and_nothing_else(
    grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]
) -> None:
    found = turns(make_row(grounder, scene, toy.examples, PACKED), packed)
    learned = [turn.answer for turn in found]
    assert len(found) == (2 + 3) + (2 + 3) + 1
    for index, example in zip((0, 5, 10), toy.examples, strict=True):
        boxes = example.boxes_px[np.argsort(example.boxes_px[:, 0])]
        assert learned[index] == grounder.box_answer(scene, example.phrase, boxes)
        assert learned[index][-1] == grounder.end
    assert learned[10] == [*grounder.encode(grounder.dialect.no_target), grounder.end]
    for head in (1, 6):
        assert learned[head] == []
        assert all(answer in ([grounder.verdicts.yes[0]], [grounder.verdicts.no[0]]) for answer in learned[head + 1 : head + 4])
    for turn in found:  # what is learned is what follows
        for here, target in enumerate(turn.targets[:-1]):
            assert target in (UNLEARNED, turn.ids[here + 1])


def test_a_point_is_inside_where_the_mask_is(grounder: MllmGrounder, toy: Toy, scene: MllmScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points beyond the box, which lie on no object of the toy."""
    points = np.array([[20, 30], [80, 115], [38, 12], [60, 5]], np.float32)
    monkeypatch.setattr(collate, "draw_points", lambda *_: points)
    for asking in (PACKED, JOINT):
        row = make_row(grounder, scene, toy.examples[:1], asking)
        yes, no = set(grounder.verdicts.yes), set(grounder.verdicts.no)
        spoken = {grounder.verdicts.spoken[0]: True, grounder.verdicts.spoken[1]: False}
        answers = [spoken.get(target, target in yes) for target in row.targets.tolist() if target in yes | no | set(spoken)]
        assert answers == [True, False, True, False]


def test_every_box_is_asked_about_in_random_order(grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]) -> None:
    example = cut_corners(toy.examples[1])
    heads = [tuple(grounder.points_head(scene, box)) for box in example.boxes_px]
    orders = set()
    for seed in range(8):
        found = turns(make_row(grounder, scene, [example], replace(JOINT, every_box=True, spread="disks"), seed), packed)
        asked = [turn for turn in found if turn.segment.ids in heads]
        orders.add(tuple(heads.index(turn.segment.ids) for turn in asked))
        assert len([turn for turn in found if turn.answer]) == 3  # the boxes, and the points of each
        assert len(found) == 5
    assert orders == {(0, 1), (1, 0)}


@pytest.mark.parametrize("order", ["left", "annotation"])
def test_boxes_are_said_in_the_order_that_is_asked_for(
    grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment], order: Literal["left", "annotation"]
) -> None:
    example = toy.examples[1]
    from_right = np.argsort(-example.boxes_px[:, 0])
    example = replace(example, instances=tuple(example.instances[index] for index in from_right))
    first, *_ = turns(make_row(grounder, scene, [example], replace(PACKED, order=order)), packed)
    boxes = example.boxes_px if order == "annotation" else example.boxes_px[::-1]
    assert first.answer == grounder.box_answer(scene, example.phrase, boxes)


def test_points_are_spread_as_is_asked_for(
    grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.array([[20, 30], [80, 115], [38, 12]], np.float32)
    monkeypatch.setattr(collate, "draw_disks", lambda *_: points)
    found = turns(make_row(grounder, scene, toy.examples[:1], replace(PACKED, spread="disks")), packed)
    asked = [turn.segment.ids for turn in found[2:]]
    assert asked == [tuple(grounder.joint_question([number])) for number in grounder.point_numbers(scene, points)]


def test_points_of_ppg_are_on_and_off_each_object(grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]) -> None:
    example = cut_corners(toy.examples[1])
    turn = turns(make_row(grounder, scene, [example], PPG), packed)[-1]
    assert turn.answer[-1] == grounder.end
    assert turn.ids == [*grounder.question(example.phrase, "prompt"), *turn.answer[:-1]]
    spoken = parse_prompt(grounder.dialect, text(grounder, turn.answer[:-1]), 999)
    order = np.argsort(example.boxes_px[:, 0])
    assert [instance.box for instance in spoken] == grounder.box_numbers(scene, example.boxes_px[order])
    for instance, mask in zip(spoken, example.masks()[order], strict=True):
        for points, inside, count in ((instance.inside, True, 3), (instance.outside, False, 2)):
            px = to_pixels(grounder.dialect, scene, np.array(points))
            assert (lies_on(mask, px) == inside).all()
            assert len(points) == count


def test_ppg_of_nothing_is_none(grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]) -> None:
    *_, turn = turns(make_row(grounder, scene, toy.examples[2:], PPG), packed)
    assert turn.ids == [*grounder.question("the zebra", "prompt"), *grounder.encode(grounder.dialect.no_target)]
    assert turn.answer == [*grounder.encode(grounder.dialect.no_target), grounder.end]


def cut_corners(example: Example) -> Example:
    """Its objects without the part right of a diagonal."""
    cut = []
    for instance, mask in zip(example.instances, example.masks(), strict=True):
        x1, y1, x2, y2 = instance.box_px
        rows, columns = np.mgrid[: example.height, : example.width]
        cut.append(replace(instance, rle=to_rle(mask & ((columns - x1) / (x2 - x1) + (rows - y1) / (y2 - y1) < 1))))
    return replace(example, instances=tuple(cut))


# -- serving -------------------------------------------------------------------------------------------------------------------------------


def test_white_space_in_a_phrase_is_tidied_as_in_serving(
    grounder: MllmGrounder, toy: Toy, scene: MllmScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = grounder.question, []

    def recording(phrase: str, question: Question = "box") -> list[int]:
        asked.append(phrase)
        return real(phrase, question)

    monkeypatch.setattr(grounder, "question", recording)
    phrase = " the  left\tcup "
    make_row(grounder, scene, [replace(toy.examples[0], phrase=phrase)], PPG)
    assert asked == [check_phrase(phrase)] * 2


def test_training_asks_token_for_token_what_serving_asks(
    grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = toy.examples[1]
    points = spread(example.boxes_px[0], 4)
    monkeypatch.setattr(collate, "draw_points", lambda *_: points)
    boxes_px = example.boxes_px[np.argsort(example.boxes_px[:, 0])]
    known = Grounding(example.phrase, boxes_px, np.ones(2), 0.0)
    heads = []
    for seed in range(6):
        asked = turns(make_row(grounder, scene, [example], PACKED, seed), packed)
        [whole] = turns(make_row(grounder, scene, [example], JOINT, seed), packed)[2:]
        index = int(np.flatnonzero([asked[1].segment.ids == tuple(grounder.points_head(scene, box)) for box in boxes_px])[0])
        first, head = grounder.history(scene, Inquiry(known, index, points))
        assert asked[0].ids == first
        assert asked[1].ids == [*first, *head]
        numbers = grounder.point_numbers(scene, points)
        for turn, number in zip(asked[2:], numbers, strict=True):
            assert turn.ids == [*first, *head, *grounder.joint_question([number])]
        inside = lies_on(example.masks()[np.argsort(example.boxes_px[:, 0])][index], points)
        assert whole.ids == [*first, *head, *grounder.joint_question(numbers), *grounder.verdicts.spell(inside[:-1])]
        assert whole.answer == grounder.verdicts.spell(inside)
        heads.append(index)
    assert set(heads) == {0, 1}  # each of several objects is asked about at times


def test_a_shaken_box_stays_near_and_inside_the_image(grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]) -> None:
    example = toy.examples[0]
    exact = np.array(grounder.box_numbers(scene, example.boxes_px)[0])
    off = []
    for seed in range(20):
        head = turns(make_row(grounder, scene, [example], ALL, seed), packed)[1].segment.ids
        [box] = parse_boxes(grounder.dialect, text(grounder, list(head)), 999)
        off.append(np.abs(np.array(box) - exact).max())
    assert 0 < np.mean(off) < 60
    assert max(off) < 200


def test_points_are_of_the_pattern_and_of_anywhere() -> None:
    box = np.array([10, 20, 50, 100], np.float32)
    points = draw_points(box, 9, np.random.default_rng(0))
    assert points.shape == (9, 2)
    assert points.dtype == np.float32
    pattern = spread(box, PATTERN_SIZE)
    assert [bool((np.abs(pattern - point).max(1) < 1e-5).any()) for point in points] == [True] * 4 + [False] * 5
    assert ((points >= box[:2]) & (points <= box[2:])).all()
    assert draw_points(np.array([0, 0, 1, 1], np.float32), 8, np.random.default_rng(0)).shape == (8, 2)  # a pattern of one point


# -- close-ups -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closer(grounder: MllmGrounder) -> MllmGrounder:
    """The same model, asked about points in close-ups."""
    return MllmGrounder(replace(grounder.checkpoint, dialect=replace(grounder.dialect, points_view="close-up")))


def see_closer(grounder: MllmGrounder, image: NDArray[np.uint8], examples: list[Example], seed: int = 0, **asking: float) -> CloseUp | None:
    collator = Collator(grounder, replace(PACKED, close_share=1, **asking))
    return collator.close_up(image, examples, np.random.default_rng(seed))


def test_the_row_of_an_image_leaves_out_the_points_of_close_ups(
    closer: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [turn.answer for turn in turns(make_row(closer, scene, toy.examples, PACKED), packed)]
    order = [np.argsort(example.boxes_px[:, 0]) for example in toy.examples]
    boxes = [
        closer.box_answer(scene, example.phrase, example.boxes_px[places]) for example, places in zip(toy.examples, order, strict=True)
    ]
    assert answers == boxes
    monkeypatch.setattr(collate, "window_around", lambda *_: None)  # as if they were too large for one
    assert len(turns(make_row(closer, scene, toy.examples, PACKED), packed)) == 3 + 2 * (1 + PACKED.points)


def test_a_close_up_asks_what_serving_asks(closer: MllmGrounder, toy: Toy, packed: list[Segment]) -> None:
    example = toy.examples[0]
    seen = see_closer(closer, toy.image, [example])
    assert seen is not None
    window = window_around(example.boxes_px[0], toy.image.shape[1], toy.image.shape[0])
    assert window is not None
    np.testing.assert_array_equal(seen.image, window.cut(toy.image))
    scene = closer.open(seen.image)
    found = turns(Collator(closer, PACKED).close_row(scene, seen, np.random.default_rng(0)), packed)
    known = Grounding(example.phrase, window.inner(example.boxes_px), np.ones(1), 0.0)
    first, head = closer.history(scene, Inquiry(known, 0, seen.points_px))
    assert [turn.ids for turn in found[:2]] == [first, [*first, *head]]
    numbers = closer.point_numbers(scene, seen.points_px)
    assert [turn.ids for turn in found[2:]] == [[*first, *head, *closer.joint_question([number])] for number in numbers]
    assert [turn.answer for turn in found] == [[], [], *(closer.verdicts.spell([flag]) for flag in seen.inside)]


def test_a_close_ups_points_are_judged_by_the_whole_mask(closer: MllmGrounder, toy: Toy) -> None:
    """The picture's things have one colour each: what is bright in the close-up is the thing."""
    seen = [see_closer(closer, toy.image, toy.examples[1:2], seed, shake=0.15, close_points=40) for seed in range(20)]
    views = [view for view in seen if view is not None]
    assert len(views) > 10
    bright, inside = [], []
    for view in views:
        columns, rows = np.clip(view.points_px, 0, view.image.shape[0] - 1).astype(int).T
        bright += (view.image[rows, columns].max(1) > 100).tolist()
        inside += view.inside.tolist()
    assert 0.5 < np.mean(inside) < 0.98
    assert np.mean(np.equal(bright, inside)) > 0.95


def test_when_there_is_no_close_up(grounder: MllmGrounder, closer: MllmGrounder, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert see_closer(grounder, toy.image, toy.examples) is None  # the dialect has none
    assert see_closer(closer, toy.image, toy.examples[2:]) is None  # nothing there
    rng = np.random.default_rng(0)
    due = [Collator(closer, replace(PACKED, close_share=0.3)).close_up(toy.image, toy.examples, rng) is not None for _ in range(300)]
    assert np.mean(due) == pytest.approx(0.3, abs=0.1)
    monkeypatch.setattr(collate, "window_around", lambda *_: None)
    assert see_closer(closer, toy.image, toy.examples) is None  # too large


# -- loss ----------------------------------------------------------------------------------------------------------------------------------


def encode(grounder: MllmGrounder, image: NDArray[np.uint8]) -> Encoded:
    return grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(image))


def slow_loss(grounder: MllmGrounder, encoded: Encoded, found: list[Turn]) -> float:
    """Each conversation as a plain causal sequence of its own, image and all, with positions as the model counts them."""
    losses = []
    for turn in found:
        ids = torch.cat([encoded.inputs["input_ids"], torch.tensor([turn.ids])], 1)
        kinds = F.pad(encoded.inputs["mm_token_type_ids"], (0, len(turn.ids)))
        grounder.checkpoint.model.model.rope_deltas = None
        output = grounder.checkpoint.model(**{**encoded.inputs, "input_ids": ids, "mm_token_type_ids": kinds})
        losses.append(F.cross_entropy(output.logits[0, -len(turn.ids) :], torch.tensor(turn.targets), reduction="none", ignore_index=-100))
    learned = [loss[torch.tensor(turn.targets) != UNLEARNED] for loss, turn in zip(losses, found, strict=True)]
    return float(torch.cat(learned).mean())


CASES = [
    pytest.param(PACKED, slice(0, 1), id="packed"),
    pytest.param(JOINT, slice(0, 1), id="joint"),
    pytest.param(PPG, slice(0, 1), id="PPG"),
    pytest.param(PACKED, slice(1, 2), id="several instances"),
    pytest.param(PPG, slice(1, 2), id="several instances, PPG"),
    pytest.param(PPG, slice(2, 3), id="no target"),
    pytest.param(ALL, slice(None), id="all of it"),
]


@torch.inference_mode()
@pytest.mark.parametrize(("asking", "which"), CASES)
def test_the_loss_of_a_row_is_that_of_plain_conversations(
    asking: Asking, which: slice, grounder: MllmGrounder, toy: Toy, scene: MllmScene, packed: list[Segment]
) -> None:
    row = make_row(grounder, scene, toy.examples[which], asking)
    encoded = encode(grounder, toy.image)
    fast = float(row_loss(grounder.checkpoint.model, encoded, row))
    assert fast == pytest.approx(slow_loss(grounder, encoded, turns(row, packed)), abs=1e-5)
    assert fast > 1


def test_a_family_without_token_types() -> None:
    """Its inputs are passed on as they are."""
    given = {}

    class Plain(torch.nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.lm_head = torch.nn.Linear(4, 9)
            self.config = LlamaConfig()

        def model(self, **inputs: torch.Tensor) -> object:
            given.update(inputs)
            return SimpleNamespace(last_hidden_state=torch.ones(1, inputs["input_ids"].shape[1], 4))

    encoded = Encoded({"input_ids": torch.tensor([[1, 2, 3]]), "pixels": torch.ones(1)}, torch.arange(3).expand(3, 1, 3), (28, 28))
    row = TrainingRow(pack([Segment((4, 5))]), np.array([5, UNLEARNED]))
    assert torch.isfinite(row_loss(Plain(), encoded, row))
    assert set(given) == {"input_ids", "pixels", "position_ids", "attention_mask", "use_cache", "return_dict"}
    assert given["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert given["position_ids"].tolist() == [[[0, 1, 2, 3, 4]]] * 3
