"""SAM 3 and Grounding DINO by phrases, each against its own model and processor on the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoProcessor,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3Processor,
)
from transformers.models.sam3.modeling_sam3 import Sam3ViTModel
from transformers.models.swin.modeling_swin import SwinBackbone

from sam4mllm.errors import ModelError, PromptError
from sam4mllm.geometry import box_iou
from sam4mllm.segmentation import pretrained, sam3
from sam4mllm.segmentation.concept import Candidates, ConceptSegmenter
from sam4mllm.segmentation.detection import Detections
from sam4mllm.segmentation.grounding_dino import as_text
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.module import PHRASES_AT_ONCE
from sam4mllm.segmentation.sam3 import Sam3TrackerSegmenter
from tests.test_sam import PROMPTS, picture, prompt
from tests.tiny_concepts import write_grounding_dino, write_sam3, write_sam3_video

CPU = torch.device("cpu")
PHRASES = ["cup", "a red car on the road", "x", "Die größte Tasse", "cup", "the spoon, left of it"]
SIZES = [(150, 210), (300, 77)]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "sam3_video": write_sam3_video,
    "sam3": write_sam3,
    "sam3_lite_text": lambda folder: write_sam3(folder, "sam3_lite_text"),
    "grounding-dino": write_grounding_dino,
    "mm-grounding-dino": lambda folder: write_grounding_dino(folder, "mm-grounding-dino"),
}
SAM3 = ("sam3_video", "sam3", "sam3_lite_text")
DETECTORS = ("grounding-dino", "mm-grounding-dino")
LOW = 0.01
"""A score that random weights reach."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each tiny checkpoint by its type, made once."""
    return cache(lambda name: WRITERS[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def fresh(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    """A model that has seen nothing yet; a detector is read as ``load_segmenter`` reads what stands before the +."""
    return lambda name: (
        pretrained.load_detector(str(folders(name)), torch.float32) if name in DETECTORS else load_segmenter(str(folders(name)), CPU)
    )


@pytest.fixture(scope="session")
def load(fresh: Callable[[str], Any]) -> Callable[[str], Any]:
    return cache(fresh)


def found(model: Any, image: NDArray[np.uint8], phrases: list[str], threshold: float = LOW) -> list[Any]:
    embedding = model.encode(image)
    return list((model.find if hasattr(model, "find") else model.find_boxes)(embedding, phrases, threshold))


def by_score(result: dict[str, Any]) -> dict[str, NDArray[Any]]:
    order = result["scores"].argsort(descending=True, stable=True)
    return {key: result[key][order].numpy() for key in ("scores", "boxes", "masks") if key in result}


def assert_same(one: Any, other: Any, size: tuple[int, int]) -> None:
    """Scores, presence and boxes, as shares of the image's sides, to 1e-5; every pixel of the masks."""
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.presence, other.presence, atol=1e-5)
    sides = np.array([*size[::-1]] * 2)
    np.testing.assert_allclose(one.boxes_px / sides, other.boxes_px / sides, atol=1e-5)
    if isinstance(one, Candidates):
        np.testing.assert_array_equal(one.masks, other.masks)


# -- SAM 3 ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def own_sam3(folders: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
    """The model and its own processor, by transformers alone."""

    def read(name: str) -> tuple[Any, Any]:
        folder = folders(name)
        auto = Sam3LiteTextModel if name == "sam3_lite_text" else Sam3Model
        model = auto.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)).eval()
        return model, Sam3Processor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))  # type: ignore[no-untyped-call]

    return cache(read)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SAM3)
@torch.inference_mode()
def test_instances_equal_those_of_the_model_and_its_own_processor(
    name: str, size: tuple[int, int], own_sam3: Callable[[str], tuple[Any, Any]], load: Callable[[str], Any]
) -> None:
    image, (model, processor) = picture(1, *size), own_sam3(name)
    inputs = processor(images=image, text=PHRASES[1], return_tensors="pt")
    answer = model(**inputs)
    threshold = float(np.median((answer.pred_logits.sigmoid() * answer.presence_logits.sigmoid()).numpy())) - 1e-4
    [result] = processor.post_process_instance_segmentation(answer, threshold=threshold, target_sizes=[size])
    expected = by_score(result)
    assert 3 <= len(expected["scores"]) < answer.pred_logits.shape[1]  # the threshold parts them
    assert 0.001 < expected["masks"].mean() < 0.999
    [candidates] = found(load(name), image, [PHRASES[1]], threshold)
    presence = float(answer.presence_logits.sigmoid())
    assert_same(candidates, Candidates(expected["boxes"], expected["scores"], expected["masks"].astype(bool), presence), size)
    assert (candidates.boxes_px.dtype, candidates.scores.dtype, candidates.masks.dtype) == (np.float32, np.float64, np.bool_)


@pytest.mark.parametrize("name", [*SAM3, *DETECTORS])
def test_phrases_of_one_call_are_answered_as_each_alone(name: str, fresh: Callable[[str], Any]) -> None:
    size = (60, 45)
    # of this picture no mask's probability comes nearer to one half than 7e-6: in others, one processor's rounding turned a pixel
    model, image = fresh(name), picture(22, *size)
    together = found(model, image, PHRASES, 0.0)
    assert len(together) == len(PHRASES) > PHRASES_AT_ONCE
    for phrase, one in zip(PHRASES, together, strict=True):
        if name in SAM3:
            model._finder._phrases._kept.clear()  # else the text would not be encoded again
        [alone] = found(model, image, [phrase], 0.0)
        assert len(one.scores) >= 10
        assert_same(one, alone, size)
    assert not np.allclose(together[0].boxes_px, together[1].boxes_px, atol=0.1)  # phrases matter
    assert found(model, image, []) == []


def test_several_phrases_are_one_pass(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = Sam3Model.forward
    monkeypatch.setattr(Sam3Model, "forward", lambda self, **asked: sizes.append(len(asked["attention_mask"])) or forward(self, **asked))
    found(load("sam3_video"), picture(1), PHRASES)
    assert sizes == [PHRASES_AT_ONCE, len(PHRASES) - PHRASES_AT_ONCE]


@pytest.mark.parametrize(("name", "backbone"), [*((name, Sam3ViTModel) for name in SAM3), *((name, SwinBackbone) for name in DETECTORS)])
def test_an_image_passes_the_backbone_once(name: str, backbone: Any, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda *args, **options: passes.append(1) or forward(*args, **options))
    model = load(name)
    embedding = model.encode(picture(1))
    for phrases in (PHRASES, ["cup"]):
        (model.find if name in SAM3 else model.find_boxes)(embedding, phrases, LOW)
    if name in SAM3:
        model.decode(embedding, PROMPTS[:2])
    assert len(passes) == 1


@pytest.mark.parametrize("name", [*SAM3, *DETECTORS])
def test_images_and_threads_do_not_mix(name: str, load: Callable[[str], Any]) -> None:
    model, images = load(name), [picture(1), picture(2, 90, 160)]
    embeddings = [model.encode(image) for image in images]
    find = model.find if name in SAM3 else model.find_boxes
    expected = [find(embedding, PHRASES[:2], LOW) for embedding in embeddings]

    def work(index: int) -> None:
        for one, other in zip(find(embeddings[index % 2], PHRASES[:2], LOW), expected[index % 2], strict=True):
            assert_same(one, other, images[index % 2].shape[:2])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))


def test_what_is_kept_of_an_image_is_counted(load: Callable[[str], Any]) -> None:
    embedding = load("sam3_video").encode(picture(1))
    assert embedding.nbytes == embedding.shared.nbytes + sum(one.nbytes for one in embedding.features["image_embeddings"])
    alone = load("sam3").encode(picture(1))
    assert alone.nbytes == alone.features.nbytes == embedding.shared.nbytes
    boxes = load("grounding-dino").encode(picture(1))
    assert boxes.nbytes == boxes.mask.nbytes + sum(one.nbytes for one in boxes.maps)


def test_weights_of_detector_and_tracker_are_counted_once(load: Callable[[str], Any], folders: Callable[[str], Path]) -> None:
    segmenter = load("sam3_video")
    backbones = [one for module in (segmenter.model, segmenter._finder.model) for one in module.modules() if isinstance(one, Sam3ViTModel)]
    assert len(backbones) == 1
    assert load("sam3").nbytes < segmenter.nbytes < (folders("sam3_video") / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", [*SAM3, *DETECTORS])
def test_half_precision_is_of_the_image_only(name: str, folders: Callable[[str], Path], load: Callable[[str], Any]) -> None:
    read = pretrained.load_detector if name in DETECTORS else pretrained.load_transformers
    half: Any = read(str(folders(name)), torch.bfloat16)
    image = picture(4)
    assert half.encode(image).nbytes < load(name).encode(image).nbytes
    assert half.identity != load(name).identity
    [one], [other] = found(half, image, ["cup"], 0.0), found(load(name), image, ["cup"], 0.0)
    assert not np.array_equal(one.scores, other.scores)
    if name in SAM3:  # half a precision may send a detector's queries to other places
        np.testing.assert_allclose(one.scores, other.scores, atol=0.1)


def test_text_features_are_kept_within_bounds(fresh: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = fresh("sam3_video")
    asked: list[int] = []
    encode = segmenter._finder.model.get_text_features
    monkeypatch.setattr(sam3, "KEPT_PHRASES", 3)
    monkeypatch.setattr(segmenter._finder.model, "get_text_features", lambda ids, **rest: asked.append(len(ids)) or encode(ids, **rest))
    embedding = segmenter.encode(picture(1))
    for phrases in (["a", "b", "a"], ["b"], ["c", "d"], ["a"], ["d"]):
        segmenter.find(embedding, phrases, LOW)
    assert asked == [2, 2, 1]  # a and b; c and d; a again, which was asked longest ago
    assert len(segmenter._finder._phrases._kept) == 3


def test_a_long_phrase_ends_where_the_model_does(load: Callable[[str], Any]) -> None:
    long, cut, shorter = found(load("sam3_video"), picture(1), ["a " * 99, "a " * (sam3.TOKENS - 2), "a " * 9])
    assert_same(long, cut, (150, 210))
    assert not np.allclose(cut.scores[:3], shorter.scores[:3], atol=1e-4)


def test_a_threshold_above_all_leaves_the_presence(load: Callable[[str], Any]) -> None:
    [nothing], [all_of_it] = (found(load("sam3"), picture(1), ["cup"], threshold) for threshold in (1.0, 0.0))
    assert (nothing.boxes_px.shape, nothing.masks.shape, len(all_of_it.scores)) == ((0, 4), (0, 150, 210), 12)
    assert 0 < nothing.presence == all_of_it.presence < 1


@torch.inference_mode()
def test_a_box_is_an_example_where_there_is_no_tracker(own_sam3: Callable[[str], tuple[Any, Any]], load: Callable[[str], Any]) -> None:
    image, (model, processor), box = picture(1), own_sam3("sam3"), [20.0, 30.0, 150.0, 120.0]
    answer = model(**processor(images=image, text="visual", input_boxes=[[box]], input_boxes_labels=[[1]], return_tensors="pt"))
    [expected] = processor.post_process_instance_segmentation(answer, threshold=0.0, target_sizes=[image.shape[:2]])
    overlaps = box_iou(expected["boxes"].numpy(), np.array([box], np.float32))[:, 0]
    segmenter = load("sam3")
    embedding = segmenter.encode(image)
    given = [prompt(box, [], []), *(prompt([5 + index, 5, 60, 90], [], []) for index in range(PHRASES_AT_ONCE))]
    decoded = segmenter.decode(embedding, given)
    assert len(decoded) == len(given)
    np.testing.assert_allclose(decoded[0].predicted_iou, [overlaps.max()], atol=1e-5)
    np.testing.assert_array_equal(decoded[0].masks[0], expected["masks"][overlaps.argmax()].bool())
    logits = answer.pred_masks[0].numpy()
    elsewhere = np.where(logits[overlaps.argmax()] > 0, -np.inf, logits.max(0))  # off the best by the box, on another
    row, column = np.unravel_index(elsewhere.argmax(), elsewhere.shape)
    shares = (column + 0.5) / logits.shape[2], (row + 0.5) / logits.shape[1]
    [clicked] = segmenter.decode(embedding, [prompt(box, [[shares[0] * 210, shares[1] * 150]], [1])])
    agreed = (overlaps + (logits[:, row, column] > 0)) / 2
    assert agreed.argmax() != overlaps.argmax()
    np.testing.assert_allclose(clicked.predicted_iou, [agreed.max()], atol=1e-5)
    np.testing.assert_array_equal(clicked.masks[0], expected["masks"][agreed.argmax()].bool())


def test_a_point_alone_is_refused_where_there_is_no_tracker(load: Callable[[str], Any]) -> None:
    segmenter = load("sam3_lite_text")
    with pytest.raises(PromptError, match="takes no point without a box; draw a box, or take a sam3_video folder"):
        segmenter.decode(segmenter.encode(picture(1)), [PROMPTS[0], prompt(None, [[4, 4]], [1])])


def test_a_folder_with_both_takes_phrases_and_keeps_the_name_of_its_tracker(
    load: Callable[[str], Any], folders: Callable[[str], Path]
) -> None:
    segmenter = load("sam3_video")
    assert isinstance(segmenter, ConceptSegmenter)
    former = pretrained._promptable(str(folders("sam3_video")), AutoConfig.from_pretrained(folders("sam3_video")), torch.float32)
    assert former(vars(segmenter)["_source"]).identity == segmenter.identity
    assert type(segmenter) is Sam3TrackerSegmenter


def copied(folder: Path, copy: Path, without: str = "") -> Path:
    for path in folder.iterdir():
        if path.name != without:
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_without_its_tokenizer_a_folder_takes_clicks_and_says_so(
    folders: Callable[[str], Path], load: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = load_segmenter(str(copied(folders("sam3_video"), tmp_path, "tokenizer.json")), CPU)
    assert "lacks tokenizer.json, so it takes box and points and no phrase; fetch that file, too" in caplog.text
    assert not isinstance(segmenter, ConceptSegmenter)
    image, whole = picture(1), load("sam3_video")
    expected, decoded = (one.decode(one.encode(image), PROMPTS[:3]) for one in (whole, segmenter))
    for one, other in zip(decoded, expected, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param("detector_model.presence_token.weight", id="of the detector"),
        pytest.param("detector_model.vision_encoder.backbone.layer_norm.weight", id="of the backbone"),
        pytest.param("tracker_model.no_memory_embedding", id="of the tracker"),
        pytest.param("tracker_neck.fpn_layers.0.proj1.weight", id="of the tracker's neck"),
    ],
)
def test_a_missing_weight_is_named(weight: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(folders("sam3_video"), tmp_path)
    state = load_file(folder / "model.safetensors")
    [lost] = [name for name in state if name.endswith(weight.removeprefix("detector_model."))]
    del state[lost]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of its sam3_video: .*; fetch its weights again"):
        load_segmenter(str(folder), CPU)


def test_a_broken_tokenizer_is_refused_in_one_line(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(folders("sam3_video"), tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="could not be loaded as a segmenter: ") as refusal:
        load_segmenter(str(folder), CPU)
    assert "\n" not in str(refusal.value)


# -- Grounding DINO ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", DETECTORS)
@torch.inference_mode()
def test_boxes_equal_those_of_the_model_and_its_own_processor(
    name: str, size: tuple[int, int], folders: Callable[[str], Path], load: Callable[[str], Any]
) -> None:
    image = picture(1, *size)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders(name)).eval()
    processor = GroundingDinoProcessor(AutoImageProcessor.from_pretrained(folders(name)), AutoTokenizer.from_pretrained(folders(name)))  # type: ignore[no-untyped-call]
    answer = model(**processor(images=image, text=[["The red Cup"]], return_tensors="pt"))
    scores = answer.logits.sigmoid().amax(-1)
    threshold = float(scores.median()) - 1e-5
    [result] = processor.post_process_grounded_object_detection(answer, threshold=threshold, target_sizes=[size])
    expected = by_score(result)
    assert 3 <= len(expected["scores"]) < scores.shape[1]
    [detections] = found(load(name), image, ["The red Cup"], threshold)
    assert_same(detections, Detections(expected["boxes"], expected["scores"], float(scores.max())), size)
    assert (detections.boxes_px.dtype, detections.scores.dtype) == (np.float32, np.float64)
    [nothing] = found(load(name), image, ["The red Cup"], 1.0 + 1e-6)
    assert (len(nothing.scores), nothing.presence) == (0, pytest.approx(float(scores.max()), abs=1e-5))


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        pytest.param("cup", "cup.", id="a word"),
        pytest.param("The Red Cup", "the red cup.", id="capitals"),
        pytest.param("a cup.", "a cup.", id="closed already"),
        pytest.param(" a \n cup ", "a cup.", id="spaces"),
        pytest.param("St. Bernard dog", "st bernard dog.", id="a full stop within"),
        pytest.param("which cup? the left one", "which cup the left one.", id="a question mark"),
        pytest.param("?..", ".", id="nothing else"),
    ],
)
def test_a_phrase_is_one_text(phrase: str, text: str) -> None:
    assert as_text(phrase) == text


def test_any_phrase_can_be_asked(load: Callable[[str], Any]) -> None:
    for name in (*SAM3, *DETECTORS):
        for one in found(load(name), picture(1), ["", "?", "word " * 500, "\u200b\U0001f9a9"], 0.0):
            assert np.isfinite(one.scores).all()
            assert 0 <= one.presence <= 1


@pytest.mark.parametrize("name", [*SAM3, *DETECTORS])
def test_an_embedding_of_another_is_refused(name: str, load: Callable[[str], Any]) -> None:
    model, other = load(name), load("grounding-dino" if name in SAM3 else "sam3").encode(picture(1))
    with pytest.raises(TypeError, match="made by another"):
        (model.find if name in SAM3 else model.find_boxes)(other, ["cup"], LOW)
