"""The demo's recipe: what it teaches is what serving asks, and a resumed run is an unbroken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from sam4mllm.demo.pretrain import segmenter
from sam4mllm.demo.pretrain.dense import FINE, dense_targets, model_size, patchify, pictures, shares_of_cells
from sam4mllm.demo.pretrain.examples import (
    BOXES_ONLY,
    CLOSE_PER_SCENE,
    CLOSE_SIDE,
    CYCLE,
    Sitting,
    draw_close_ups,
    draw_sitting,
    session_of,
)
from sam4mllm.demo.pretrain.export import EMBEDDINGS, HEADS, average, export_heads, export_mllm, load_shipped, read_trainee
from sam4mllm.demo.pretrain.language import WIDE, batch_losses, forward, prefix_positions, softness
from sam4mllm.demo.pretrain.lessons import POINTS_BOTH, POINTS_CLOSE, THOUGHT_SHARE, Lesson, Teacher
from sam4mllm.demo.pretrain.look_back import outlined, suggest, verdict
from sam4mllm.demo.pretrain.loop import PretrainPlan, learning_rate, run
from sam4mllm.demo.pretrain.tower import NARROW, DemoTrainee
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_relational, make_scene
from sam4mllm.demo.tokenizer import LATER_WORDS, THOUGHT, THOUGHT_END, UNKNOWN, Speller, build_tokenizer, vocabulary
from sam4mllm.grounding.families import DEMO_FOLDER, load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import pack
from sam4mllm.prompts.answer_text import without_thoughts
from sam4mllm.prompts.thinking import WORDS, can_think
from sam4mllm.segmentation.small_sam import build_segmenter
from sam4mllm.training.looks import RIGHT
from sam4mllm.training.state import save_state

SIZE = (224, 288)
OLD_VOCABULARY = 1309
"""Tokens of the first weights."""


@pytest.fixture(scope="module")
def trainee() -> DemoTrainee:
    torch.manual_seed(1)
    return DemoTrainee()


@pytest.fixture(scope="module")
def exported(trainee: DemoTrainee, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    folder = tmp_path_factory.mktemp("demo")
    save_state(folder / "runs", 1, trainee, torch.optim.AdamW(trainee.parameters()), {})
    export_mllm(read_trainee(folder / "runs" / "step-00000001"), folder / "model")
    return MllmGrounder(load_checkpoint(str(folder / "model"), torch.device("cpu")))


@pytest.mark.parametrize("size", [(640, 480), (320, 320), (1024, 512), (333, 667)], ids=str)
def test_training_sees_images_as_the_image_processor_makes_them(exported: MllmGrounder, size: tuple[int, int]) -> None:
    height, width = model_size(*size)
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    vision = exported.checkpoint.image_processor(images=[Image.fromarray(image)], return_tensors="pt")
    torch.testing.assert_close(vision["pixel_values"], patchify(image[None]), atol=1e-5, rtol=0)
    original = np.zeros((*size, 3), np.uint8)
    grid = exported.checkpoint.image_processor(images=[Image.fromarray(original)], return_tensors="pt")["image_grid_thw"]
    assert (grid[0, 1:] * 16).tolist() == [height, width]


def test_training_and_serving_give_the_same_logits(trainee: DemoTrainee, exported: MllmGrounder) -> None:
    """A lesson's packed row through the training forward, and the same row continued from a served scene."""
    scene = make_scene((5, 1), size=SIZE)
    teacher = Teacher(build_tokenizer())
    lesson = teacher.lesson(scene, np.random.default_rng(0), with_points=True)
    trainee.mllm.float()
    trainee.mllm.load_state_dict(exported.checkpoint.model.state_dict())  # as rounded by the export
    trainee.mllm.model.language_model.config._attn_implementation = "eager"
    with torch.no_grad():
        visual, grid = trainee.see(scene.image[None])
        read = forward(trainee, [lesson], visual, grid)
        trained = trainee.mllm.lm_head(read.hidden[0, read.prefix :])
    row = pack(lesson.segments)
    served, _ = exported.forward(exported.open(scene.image), row.ids, row.offsets, row.mask, np.arange(len(row.ids)))
    torch.testing.assert_close(served, trained, atol=2e-2, rtol=0)  # training's mask is in half precision
    positions = exported.checkpoint.encode(exported.checkpoint, exported.markup.opening, Image.fromarray(scene.image)).positions
    torch.testing.assert_close(positions[:, 0], prefix_positions(visual.shape[1], grid[0]))


def test_lessons_speak_as_serving_does(exported: MllmGrounder) -> None:
    scene = make_scene((5, 2), size=SIZE, kinds=("noun",))
    teacher = Teacher(build_tokenizer())
    lesson = teacher.lesson(scene, np.random.default_rng(3), with_points=False)
    text = exported.checkpoint.tokenizer.decode(lesson.segments[0].ids)
    assert text.startswith(f"find {scene.expressions[0].phrase}") or "##" in text
    assert text.endswith("<|end|>")
    assert len(lesson.coordinates) == 4


def test_close_ups_show_what_the_phrase_means() -> None:
    scenes = draw_close_ups(np.random.default_rng(0), seed=1, step=3, batch=8)
    assert len(scenes) == 8 * CLOSE_PER_SCENE
    for scene in scenes:
        assert scene.image.shape == (CLOSE_SIDE, CLOSE_SIDE, 3)
        assert scene.masks.shape == (len(scene.things), CLOSE_SIDE, CLOSE_SIDE)
        assert scene.masks.any((1, 2)).all()
        for expression in scene.expressions:
            [index] = expression.targets
            x1, y1, x2, y2 = scene.boxes_px[index] / CLOSE_SIDE
            assert max(x2 - x1, y2 - y1) > 0.45
        asked_both = len(scene.expressions) == 2
        assert asked_both == (scene.pair is not None and {one.targets[0] for one in scene.expressions} == set(scene.pair))
    assert {len(scene.expressions) for scene in scenes} == {1, 2}
    assert {len(scene.things) for scene in scenes} != {1}


def test_close_ups_are_spoken_of_as_in_serving(exported: MllmGrounder) -> None:
    scene = next(one for one in draw_close_ups(np.random.default_rng(0), seed=1, step=3, batch=8) if len(one.expressions) == 1)
    teacher = Teacher(build_tokenizer())
    lesson = teacher.close_up(scene, np.random.default_rng(0))
    first, head, *points = (exported.checkpoint.tokenizer.decode(segment.ids) for segment in lesson.segments)
    index = scene.expressions[0].targets[0]
    answer = exported.box_answer(exported.open(scene.image), "a thing", scene.boxes_px[[index]])
    told = exported.checkpoint.tokenizer.decode(answer)
    assert first.startswith("find ")
    assert first.endswith(told)
    assert head.rstrip().startswith("in [") or " in [" in head
    assert len(points) in (POINTS_CLOSE, POINTS_CLOSE + 1)  # now and then all at once too
    assert len(lesson.verdicts) >= POINTS_CLOSE
    assert not lesson.coordinates
    assert not lesson.choices


STEPS = {"boxes only": 1, "with points": 6001, "close-ups": 6002, "a look back": 6005}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_every_loss_is_finite_and_reaches_the_weights(step: int) -> None:
    torch.manual_seed(2)
    model = DemoTrainee()
    model.mllm.model.language_model.config._attn_implementation = "eager"
    terms = batch_losses(model, Teacher(build_tokenizer()), lambda at: draw_sitting(1, 3, BOXES_ONLY, at), session_of)(step)
    assert all(torch.isfinite(term) for term in terms.values())
    assert ("verdict" in terms) == (step > BOXES_ONLY)
    torch.stack([term for name, term in terms.items() if not name.startswith("_")]).sum().backward()  # type: ignore[no-untyped-call]
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    of_points = {f"heads.{head}.{kind}" for head in ("point", "beneath", "column") for kind in ("weight", "bias")}
    assert silent == (set() if session_of(step) in ("whole", "close") and step > BOXES_ONLY else of_points)


@pytest.mark.parametrize(
    ("step", "sharpening", "expected"),
    [
        pytest.param(0, 100, WIDE, id="begins soft"),
        pytest.param(50, 100, (WIDE * NARROW) ** 0.5, id="half way"),
        pytest.param(100, 100, NARROW, id="as sharp as it will be"),
        pytest.param(101, 100, NARROW, id="stays sharp"),
        pytest.param(0, 0, NARROW, id="a trained model is taught sharp at once"),
    ],
)
def test_targets_of_coordinates_become_sharp(step: int, sharpening: int, expected: float) -> None:
    assert softness(step, sharpening) == pytest.approx(expected)


def test_the_weighted_mean_of_two_trainees() -> None:
    torch.manual_seed(3)
    one, other = DemoTrainee(), DemoTrainee()
    expected = {name: 0.65 * weight + 0.35 * other.state_dict()[name] for name, weight in one.state_dict().items()}
    average(one, other, 0.65)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, expected[name])


def test_spelling_uses_pieces_that_exist_and_make_up_the_word() -> None:
    tokens = vocabulary()
    speller = Speller(build_tokenizer())
    for seed in range(20):
        pieces = [tokens[index] for index in speller.spell("butterfly", np.random.default_rng(seed))]
        assert "".join(piece.removeprefix("##") for piece in pieces) == "butterfly"


def test_the_rate_warms_up_and_falls() -> None:
    plan = PretrainPlan(Path("unused"), steps=1000, batch=1, rate=1.0, warmup=100)
    assert learning_rate(plan, 0) == pytest.approx(0.01)
    assert learning_rate(plan, 100) == pytest.approx(1.0)
    assert learning_rate(plan, 999) == pytest.approx(plan.floor, abs=1e-3)


def test_a_resumed_run_is_an_unbroken_run(tmp_path: Path) -> None:
    def train(folder: Path, *stops: int) -> torch.Tensor:
        for steps in stops:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 4)
            plan = PretrainPlan(folder, steps, batch=1, rate=0.1, warmup=1, floor=1.0)
            run(plan, model, lambda step, model=model: {"loss": model(torch.full((1, 4), float(step))).pow(2).mean()})  # type: ignore[misc]
        return model.weight.detach()

    torch.testing.assert_close(train(tmp_path / "broken", 3, 7), train(tmp_path / "whole", 7), atol=1e-6, rtol=0)


def test_the_segmenter_stage_runs(tmp_path: Path) -> None:
    model = segmenter.train(tmp_path, steps=1, batch=1, size=segmenter.SMALL)
    segmenter.grow(build_segmenter(), tmp_path / "step-00000001")
    assert not model.training
    assert (tmp_path / "step-00000001" / "model.safetensors").is_file()


# -- pairs, thoughts, looks back -----------------------------------------------------------------------------------------------------------


def spelled_rows(lesson: Lesson, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(tokenizer.decode(segment.ids)) for segment in lesson.segments]


@pytest.mark.parametrize("index", range(4))
def test_half_of_the_points_lie_on_the_other_of_a_pair(index: int) -> None:
    scene = next(
        one for at in range(index * 10, index * 10 + 10) if (one := make_ambiguous((71, at), size=SIZE, told=True)).pair_kind != "part"
    )
    assert scene.pair is not None
    teacher, rng = Teacher(build_tokenizer()), np.random.default_rng(index)
    told = [one for one in scene.expressions if one.targets and one.targets[0] in scene.pair]
    points: dict[str, list[float]] = {"target": [], "other": []}
    for _ in range(12):
        lesson = teacher.close_up(replace(scene, expressions=(told[0],)), rng)
        answers = dict(lesson.verdicts)
        for position, _, _, (x, y), _ in lesson.spots:
            column, row = int(x * SIZE[1] / 1000), int(y * SIZE[0] / 1000)
            masks = scene.masks[:, min(row, SIZE[0] - 1), min(column, SIZE[1] - 1)]
            points["target"].append(float(masks[told[0].targets[0]]))
            points["other"].append(float(masks[sum(scene.pair) - told[0].targets[0]]))
            assert answers[position] == (teacher.yes if points["target"][-1] else teacher.no)
    assert np.mean(points["other"]) > 0.45
    assert np.mean(points["target"]) > 0.25


def test_both_of_a_pair_are_asked_about_in_one_close_up() -> None:
    scenes = draw_close_ups(np.random.default_rng(0), seed=1, step=3, batch=8)
    scene = next(one for one in scenes if len(one.expressions) == 2)
    lesson = Teacher(build_tokenizer()).close_up(scene, np.random.default_rng(0))
    heads = [row for row in spelled_rows(lesson, build_tokenizer()) if row.startswith("find ")]
    assert len(heads) == 2
    assert len(lesson.spots) >= 2 * POINTS_BOTH


def test_a_thought_gives_the_steps_with_their_boxes() -> None:
    scenes = [make_relational((72, at), size=SIZE) for at in range(20)]
    told = [(one, said) for one in scenes for said in one.expressions if len(said.steps) == 2 and said.targets]
    scene, expression = told[0]
    tokenizer, teacher = build_tokenizer(), Teacher(build_tokenizer())
    rows = [
        row
        for seed in range(round(10 / THOUGHT_SHARE))
        for row in spelled_rows(teacher.lesson(replace(scene, expressions=(expression,)), np.random.default_rng(seed), True), tokenizer)
        if "<think>" in row
    ]
    assert rows
    assert "first think step by step about which object is meant , then answer . <|assistant|>" in rows[0]
    thought = rows[0].split("<think>")[1].split("</think>")
    assert all(phrase in thought[0] for phrase, _ in expression.steps)
    assert thought[0].count("[") == 2
    assert thought[1].count("[") == 1
    assert without_thoughts(rows[0].split("<|assistant|>")[1]).strip().startswith("[")


def test_words_that_came_later_are_known_and_stand_last() -> None:
    tokens = vocabulary()
    assert UNKNOWN not in build_tokenizer().tokenize("the hollow ring across the whole part between this and the closest thing")
    assert tokens[OLD_VOCABULARY - 1] == "##zz"
    assert set(LATER_WORDS) - set(tokens[:OLD_VOCABULARY]) == set(tokens[OLD_VOCABULARY:]) - {THOUGHT, THOUGHT_END}


def test_the_words_that_ask_for_a_thought_are_known() -> None:
    tokenizer = build_tokenizer()
    assert UNKNOWN not in tokenizer.tokenize("".join(WORDS))
    assert can_think(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], lambda ids: str(tokenizer.decode(ids)))


def test_the_shipped_words_are_the_first_of_all() -> None:
    """A vocabulary grows at its end: ids of weights that know fewer words stay what they are."""
    shipped = load_checkpoint(str(DEMO_FOLDER), torch.device("cpu")).tokenizer.get_vocab()
    assert len(shipped) >= OLD_VOCABULARY
    assert {token: index for index, token in enumerate(vocabulary()) if index < len(shipped)} == shipped


def without_later_words(folder: Path) -> Path:
    """The shipped weights as an earlier recipe left them: fewer words, and no head for what one of a pair owns."""
    folder.mkdir()
    weights = load_file(DEMO_FOLDER / "model.safetensors")
    save_file({**weights, EMBEDDINGS: weights[EMBEDDINGS][:OLD_VOCABULARY].contiguous()}, folder / "model.safetensors")
    heads = load_file(DEMO_FOLDER.parent / HEADS)
    save_file({name: tensor for name, tensor in heads.items() if not name.startswith("owned")}, folder / HEADS)
    return folder


def test_training_goes_on_from_weights_with_fewer_words(trainee: DemoTrainee, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = DemoTrainee()
    older = without_later_words(tmp_path / "older")
    load_shipped(model, older, older)
    known = load_file(older / "model.safetensors")[EMBEDDINGS].float()
    torch.testing.assert_close(model.words()[: len(known)], known)
    later = model.words()[len(known) :].norm(dim=1)
    assert (later - known.norm(dim=1).median()).abs().max() < 1e-3
    torch.testing.assert_close(model.heads.owned.weight, model.heads.fine.weight)
    export_mllm(model, tmp_path / "model")
    export_heads(model, tmp_path)
    load_shipped(trainee, tmp_path / "model", tmp_path)
    torch.testing.assert_close(trainee.words(), model.words().float(), atol=1e-3, rtol=0)


def test_an_owner_has_its_own_picture() -> None:
    scene = make_ambiguous((73, 0), size=SIZE, told=True)
    targets = dense_targets(scene)
    for index in np.unique(targets.owner[targets.owner >= 0]):
        own = targets.owner == index
        alone = scene.masks[index] & ~scene.masks[index + 1 :].any(0)
        np.testing.assert_allclose(targets.owned[own], pictures(alone)[own])
    assert targets.owned.shape == (len(targets.owner), FINE * FINE)
    assert (targets.owned <= targets.fine + 1e-6).all()


def test_a_part_owns_what_it_covers() -> None:
    owned = 0
    for scene in [one for at in range(30) if (one := make_ambiguous((74, at), size=SIZE, told=True)).pair_kind == "part"]:
        assert scene.pair is not None
        mostly = shares_of_cells(scene.masks)[scene.pair[1]] > 0.5
        assert set(dense_targets(scene).owner[mostly].tolist()) <= {scene.pair[1]}
        owned += int(mostly.sum())
    assert owned


def looked_at(index: int) -> tuple[DemoScene, NDArray[np.bool_]]:
    scene = make_ambiguous((75, index), size=SIZE, told=True)
    return scene, suggest(np.random.default_rng(index), scene)


@pytest.mark.parametrize("index", range(8))
def test_a_look_back_answers_for_the_outlined_mask(index: int) -> None:
    scene, mask = looked_at(index)
    assert mask.any()
    teacher = Teacher(build_tokenizer())
    shown = outlined(scene, mask)
    lesson = teacher.look_back(shown, mask, np.random.default_rng(0))
    assert (shown.image != scene.image).any()
    answers = [token for _, token in lesson.verdicts]
    right = [one for one in scene.expressions if verdict(scene, mask, one.targets)]
    assert answers.count(teacher.yes) == len(right)
    assert 0 < answers.count(teacher.no) <= len(right) + 1
    assert all(row.startswith("is this ") for row in spelled_rows(lesson, build_tokenizer()))
    assert not lesson.spots
    assert not lesson.choices


def test_masks_to_look_at_are_right_and_wrong_and_never_in_between() -> None:
    found = []
    for index in range(40):
        scene, mask = looked_at(index)
        for expression in scene.expressions:
            best = max([(scene.masks[at] & mask).sum() / (scene.masks[at] | mask).sum() for at in expression.targets], default=0.0)
            answer = verdict(scene, mask, expression.targets)
            assert answer is (True if best >= RIGHT else False if best < 0.5 else None)
            found.append(answer)
    assert {True, False, None} == set(found)


def test_sessions_take_turns_and_points_come_late() -> None:
    assert [session_of(step, 0) for step in range(len(CYCLE))] == list(CYCLE)
    assert {session_of(step) for step in range(BOXES_ONLY)} == {"crowd", "whole"}


def test_a_sitting_follows_from_its_step_alone() -> None:
    one, again = draw_sitting(1, 2, 0, 1), draw_sitting(1, 2, 0, 1)
    assert isinstance(one, Sitting)
    np.testing.assert_array_equal(one.images, again.images)
    assert [lesson.segments for lesson in one.lessons] == [lesson.segments for lesson in again.lessons]
    assert not np.array_equal(one.images[0], draw_sitting(1, 2, 0, 3).images[0])
