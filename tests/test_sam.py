"""The segmenter against segment-anything's own predictor, and its weights against what is not theirs."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch import nn

from sam4mllm.errors import ModelError, PromptError
from sam4mllm.segmentation.attention import FusedAttention, fuse_attention
from sam4mllm.segmentation.former import SURE
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.sam import SamSegmenter
from sam4mllm.segmentation.small_sam import build_segmenter
from sam4mllm.values import Prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Sam:
    """segment-anything's own, with positions that count."""
    torch.manual_seed(3)
    official = build_segmenter().eval()
    for name, weight in official.image_encoder.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(weight)
    return official


def picture(seed: int, height: int = 150, width: int = 210) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prompt(box: list[float] | None, points: list[list[float]], labels: list[int]) -> Prompt:
    return Prompt(
        None if box is None else np.array(box, np.float32), np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.int64)
    )


PROMPTS = [
    prompt([10, 20, 100, 120], [], []),
    prompt([30, 5, 200, 140], [[50, 60], [120, 100]], [1, 0]),
    prompt(None, [[80, 70]], [1]),
    prompt([11, 21, 90, 110], [], []),
    prompt(None, [[80, 70], [20, 30], [150, 100]], [1, 0, 0]),
]


@pytest.mark.parametrize("size", [(150, 210), (300, 120), (64, 64)], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["as published", "fused"])
def test_masks_equal_the_official_predictor(model: Sam, size: tuple[int, int], fused: bool) -> None:
    """In every pixel; with fused attention where rounding cannot decide."""
    image = picture(1, *size)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    segmenter = SamSegmenter(fuse_attention(deepcopy(model)) if fused else model, "test")
    embedding = segmenter.encode(image)
    for masks, given in zip(segmenter.decode(embedding, PROMPTS), PROMPTS, strict=True):
        points = (given.points_px, given.labels) if len(given.labels) else (None, None)
        official, predicted, low = predictor.predict(*points, box=given.box_px, multimask_output=True, return_logits=True)
        decided = np.abs(official) > 1e-4 if fused else np.ones_like(official, np.bool_)
        np.testing.assert_array_equal(masks.masks[decided], official[decided] > model.mask_threshold)
        np.testing.assert_allclose(masks.predicted_iou, predicted, atol=1e-5)
        with torch.inference_mode():
            np.testing.assert_allclose(segmenter.logits(embedding, [given])[0][0].numpy(), low, atol=1e-4)
        assert masks.stability.shape == (3,)


@pytest.mark.parametrize("size", [(48, 48), (8, 8), (5, 11)], ids=str)
def test_fused_attention_equals_the_official_one(model: Sam, size: tuple[int, int]) -> None:
    """Also where the table of positions is resampled; and so do the gradients of all its weights."""
    for index in (0, 3):  # in windows, and over the whole image
        official = deepcopy(model.image_encoder.blocks[index].attn)
        fused = FusedAttention(deepcopy(official))
        assert list(fused.state_dict()) == list(official.state_dict())
        tokens = torch.randn(2, *size, 144)
        outputs = [layer(tokens) for layer in (official, fused)]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        with torch.no_grad():  # some queries of one head at a time
            torch.testing.assert_close(fused(tokens[:1]), outputs[0][:1].detach(), atol=1e-5, rtol=1e-5)
        for output in outputs:
            output.square().mean().backward()
        for (name, one), other in zip(official.named_parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_what_is_loaded_has_fused_attention() -> None:
    segmenter = load_segmenter("demo", CPU)
    assert isinstance(segmenter, SamSegmenter)
    assert {type(block.attn) for block in segmenter.model.image_encoder.blocks} == {FusedAttention}


def test_a_clear_prompt_has_the_official_single_mask_beside_others_with_three(model: Sam) -> None:
    image, given = picture(1), PROMPTS[1]
    predictor = SamPredictor(model)
    predictor.set_image(image)
    segmenter = SamSegmenter(model, "test")
    clear = replace(given, single=True)
    three, one = segmenter.decode(segmenter.encode(image), [given, clear])
    official, predicted, _ = predictor.predict(given.points_px, given.labels, box=given.box_px, multimask_output=False)
    assert len(three.masks) == 3
    np.testing.assert_array_equal(one.masks, official)
    np.testing.assert_allclose(one.predicted_iou, predicted, atol=1e-5)
    assert one.stability.shape == (1,)


def logits_like(side: int, seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 6, (1, side, side)).astype(np.float32)


@pytest.mark.parametrize("size", [(150, 210), (300, 120)], ids=str)
def test_a_former_mask_is_the_official_mask_input(model: Sam, size: tuple[int, int]) -> None:
    image, former = picture(1, *size), logits_like(model.prompt_encoder.mask_input_size[0])
    predictor = SamPredictor(model)
    predictor.set_image(image)
    segmenter = SamSegmenter(model, "test")
    embedding = segmenter.encode(image)
    asked = [replace(given, mask_logits=former) for given in PROMPTS]
    plain = segmenter.decode(embedding, PROMPTS)
    for masks, without, given in zip(segmenter.decode(embedding, asked), plain, asked, strict=True):
        points = (given.points_px, given.labels) if len(given.labels) else (None, None)
        official, predicted, _ = predictor.predict(*points, box=given.box_px, mask_input=former, multimask_output=True)
        np.testing.assert_array_equal(masks.masks, official)
        np.testing.assert_allclose(masks.predicted_iou, predicted, atol=1e-5)
        assert (masks.masks != without.masks).any()


def test_prompts_with_and_without_a_former_mask_are_answered_as_each_alone(model: Sam) -> None:
    segmenter = SamSegmenter(model, "test")
    embedding = segmenter.encode(picture(1))
    side = model.prompt_encoder.mask_input_size[0]
    asked = [PROMPTS[2], replace(PROMPTS[2], mask_logits=logits_like(side)), replace(PROMPTS[2], mask_logits=logits_like(side, 6))]
    for masks, given in zip(segmenter.decode(embedding, asked), asked, strict=True):
        [alone] = segmenter.decode(embedding, [given])
        np.testing.assert_array_equal(masks.masks, alone.masks)


@pytest.mark.parametrize("size", [(150, 210), (300, 120), (64, 64)], ids=str)
def test_a_mask_as_logits_is_drawn_back_as_itself(model: Sam, size: tuple[int, int]) -> None:
    segmenter, mask = SamSegmenter(model, "test"), np.zeros(size, np.bool_)
    mask[size[0] // 5 : size[0] // 2, size[1] // 3 :] = True
    embedding = segmenter.encode(picture(1, *size))
    logits = segmenter.as_logits(embedding, mask)
    assert (logits.dtype, logits.min(), logits.max()) == (np.float32, -SURE, SURE)
    full = model.postprocess_masks(torch.from_numpy(logits)[None], embedding.input_size, size)[0, 0].numpy() > 0
    assert (full & mask).sum() / (full | mask).sum() > 0.95


def test_another_segmenters_logits_are_refused(model: Sam) -> None:
    segmenter = SamSegmenter(model, "test")
    with pytest.raises(PromptError, match=r"are \(1, 192, 192\) here, not \(1, 256, 256\)"):
        segmenter.decode(segmenter.encode(picture(1)), [replace(PROMPTS[0], mask_logits=logits_like(256))])


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        pytest.param(np.zeros((8, 8), np.float32), r"\(1, h, w\), not \(8, 8\)", id="no channel"),
        pytest.param(np.zeros((2, 8, 8), np.float32), r"\(1, h, w\), not \(2, 8, 8\)", id="two masks"),
        pytest.param(np.full((1, 8, 8), np.nan, np.float32), "finite", id="not a number"),
    ],
)
def test_malformed_former_masks_are_refused(logits: NDArray[np.float32], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        replace(PROMPTS[0], mask_logits=logits)


def test_threads_and_images_do_not_mix(model: Sam) -> None:
    segmenter = SamSegmenter(model, "test")
    images = [picture(1), picture(2, 90, 160)]
    expected = [segmenter.decode(segmenter.encode(image), PROMPTS[:2]) for image in images]

    def work(index: int) -> bool:
        image = images[index % 2]
        found = segmenter.decode(segmenter.encode(image), PROMPTS[:2])
        return all(np.array_equal(one.masks, other.masks) for one, other in zip(found, expected[index % 2], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_no_prompts_give_no_masks(model: Sam) -> None:
    segmenter = SamSegmenter(model, "test")
    assert segmenter.decode(segmenter.encode(picture(1)), []) == []


@pytest.mark.parametrize(
    ("box", "points", "labels", "message"),
    [
        pytest.param(None, [], [], "needs a box or a point", id="nothing"),
        pytest.param([1, 2, 3], [], [], "four numbers", id="three numbers"),
        pytest.param([0, 0, np.nan, 3], [], [], "finite", id="not a number"),
        pytest.param(None, [[1, np.inf]], [1], "finite", id="infinite point"),
        pytest.param(None, [[1, 2]], [7], "label is 1", id="unknown label"),
        pytest.param(None, [[1, 2]], [1, 0], "labels", id="more labels than points"),
    ],
)
def test_malformed_prompts_are_refused(box: list[float] | None, points: list[list[float]], labels: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        prompt(box, points, labels)


class Payload:
    """Shows whether a pickle was executed."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def write_pickle(folder: Path) -> str:
    (folder / "sam.pth").write_bytes(pickle.dumps(Payload(), protocol=2))
    return f"vit_b:{folder / 'sam.pth'}"


def write_wrong_weights(folder: Path) -> str:
    save_file({"a": torch.zeros(2)}, folder / "sam.safetensors")
    return f"vit_b:{folder / 'sam.safetensors'}"


def write_truncated(folder: Path) -> str:
    save_file({"a": torch.zeros(2000)}, folder / "sam.safetensors")
    data = (folder / "sam.safetensors").read_bytes()
    (folder / "sam.safetensors").write_bytes(data[: len(data) // 2])
    return f"vit_b:{folder / 'sam.safetensors'}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda folder: "sam9", "is no segmenter", id="unknown name"),
        pytest.param(lambda folder: "vit_h", "is no segmenter", id="no path"),
        pytest.param(lambda folder: f"vit_h:{folder}/none.pth", "there is no file", id="no file"),
        pytest.param(write_pickle, "not the published vit_b file", id="a pickle that is not the official file"),
        pytest.param(write_wrong_weights, "does not hold vit_b weights: it lacks .* of them: among them image_encoder", id="other weights"),
        pytest.param(write_truncated, "does not hold vit_b weights", id="cut short"),
    ],
)
def test_weights_that_are_not_sam_are_refused(make: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_segmenter(make(tmp_path), CPU)  # type: ignore[operator]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["vit_b", "efficientvit-sam-l0"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask_decoder.iou_token.weight"), r"it lacks 1 of them: mask_decoder\.iou_token\.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "it holds 1 others: extra"),
        (
            lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(3)}),
            r"it holds 1 of them in other shapes: mask_decoder\.iou_token\.weight",
        ),
    ],
    ids=["missing", "another", "a shape"],
)
def test_weights_that_are_incomplete_are_named(
    name: str, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sam_model_registry, "vit_b", build_segmenter)  # a small one
    monkeypatch.setattr("sam4mllm.segmentation.efficientvit.build", lambda name: build_segmenter())
    monkeypatch.setattr("sam4mllm.segmentation.efficientvit.EfficientViTSegmenter", SamSegmenter)
    state = build_segmenter().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    load_segmenter(f"{name}:{tmp_path / 'whole.safetensors'}", CPU)
    change(state)
    save_file(state, tmp_path / "sam.safetensors")
    with pytest.raises(ModelError, match=rf"does not hold {name} weights: {message}"):
        load_segmenter(f"{name}:{tmp_path / 'sam.safetensors'}", CPU)


def test_a_vouched_for_pickle_is_still_read_as_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_pickle(tmp_path)
    digest = hashlib.sha256((tmp_path / "sam.pth").read_bytes()).hexdigest()
    with pytest.raises(ModelError):
        load_segmenter(f"{source}#sha256={digest}", CPU)
    assert not (tmp_path / "executed").exists()
