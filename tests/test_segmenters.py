"""The segmenters of transformers and EfficientViT-SAM, each against its own processor or predictor on the same random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskGeneration, Sam2Processor, Sam3TrackerProcessor, SamHQProcessor, SamProcessor

from sam4mllm.errors import ModelError
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation import module, pretrained
from sam4mllm.segmentation.former import mask_logits_of
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.module import decode_alike
from sam4mllm.segmentation.transformers_sam import TransformersSegmenter
from sam4mllm.values import Masks, Prompt
from tests.fakes import FakeGrounder, grounding
from tests.test_sam import PROMPTS, picture, prompt
from tests.tiny_segmenters import PROMPTABLE, PROPOSING, make_segmenter

CPU = torch.device("cpu")
SIZES = [(150, 210), (300, 77)]
PROCESSORS = {
    "sam": SamProcessor,
    "sam_hq": SamHQProcessor,
    "sam2": Sam2Processor,
    "sam2_video": Sam2Processor,
    "sam3_tracker": Sam3TrackerProcessor,
    "sam3_video": Sam3TrackerProcessor,
    "edgetam": Sam2Processor,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each tiny checkpoint by its name, made once."""
    return cache(lambda name: make_segmenter(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def load(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: load_segmenter(str(folders(name)), CPU))


@pytest.fixture(scope="session")
def own(folders: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
    """The model and its own processor, loaded by transformers alone."""

    def read(name: str) -> tuple[Any, Any]:
        model = AutoModelForMaskGeneration.from_pretrained(folders(name)).eval()
        return model, PROCESSORS[name].from_pretrained(folders(name))  # type: ignore[attr-defined]

    return cache(read)


@torch.inference_mode()
def as_documented(
    model: Any, processor: Any, image: NDArray[np.uint8], given: Prompt, several: bool = True, **more: Any
) -> tuple[Any, NDArray[np.float32]]:
    """The model's answer and its masks' logits at the image's size, by the steps of its page in transformers' documentation."""
    asked: dict[str, Any] = {}
    if len(given.labels):
        asked["input_points"], asked["input_labels"] = [[given.points_px.tolist()]], [[given.labels.tolist()]]
    if given.box_px is not None:
        asked["input_boxes"] = [[given.box_px.tolist()]]
    inputs = processor(images=image, **asked, return_tensors="pt")
    answer = model(**inputs, multimask_output=several, **more)
    sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    return answer, processor.post_process_masks(answer.pred_masks, *sizes, binarize=False)[0][0].numpy()


def assert_masks_equal(masks: NDArray[np.bool_], logits: NDArray[np.float32]) -> None:
    """Every pixel is as the logits say; one whose logit lies within their rounding (1e-4) of the threshold may fall either way."""
    decided = np.abs(logits) > 1e-4
    assert decided.mean() > 0.999  # nearly all of them
    np.testing.assert_array_equal(masks[decided], logits[decided] > 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROMPTABLE)
def test_masks_equal_those_of_the_model_and_its_own_processor(
    name: str, size: tuple[int, int], own: Callable[[str], tuple[Any, Any]], load: Callable[[str], TransformersSegmenter]
) -> None:
    image, segmenter = picture(1, *size), load(name)
    embedding = segmenter.encode(image)
    decoded = segmenter.decode(embedding, PROMPTS)
    for given, masks in zip(PROMPTS[:3], decoded[:3], strict=True):  # a box, a box with points, points
        answer, expected = as_documented(*own(name), image, given)
        with torch.inference_mode():
            logits, _ = segmenter.logits(embedding, [given])
        assert float(answer.pred_masks.std()) > 0.1  # not a comparison of nothing
        np.testing.assert_allclose(logits[0], answer.pred_masks[0, 0], atol=1e-4)
        np.testing.assert_allclose(masks.predicted_iou, answer.iou_scores[0, 0], atol=1e-4)
        assert_masks_equal(masks.masks, expected)


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_a_clear_prompt_has_the_single_mask_of_the_model(
    name: str, own: Callable[[str], tuple[Any, Any]], load: Callable[[str], TransformersSegmenter]
) -> None:
    image, segmenter, given = picture(1), load(name), PROMPTS[1]
    several, single = segmenter.decode(segmenter.encode(image), [given, replace(given, single=True)])
    answer, expected = as_documented(*own(name), image, given, several=False)
    assert (len(several.masks), len(single.masks)) == (3, 1)
    np.testing.assert_allclose(single.predicted_iou, answer.iou_scores[0, 0], atol=1e-4)
    assert_masks_equal(single.masks, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROMPTABLE)
def test_a_former_mask_is_the_models_input_mask(
    name: str, size: tuple[int, int], own: Callable[[str], tuple[Any, Any]], load: Callable[[str], TransformersSegmenter]
) -> None:
    image, segmenter = picture(1, *size), load(name)
    embedding, mask = segmenter.encode(image), np.zeros(size, np.bool_)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 :] = True
    former = [segmenter.as_logits(embedding, mask), -segmenter.as_logits(embedding, mask)]
    asked = [replace(given, mask_logits=logits) for given in PROMPTS[:3] for logits in former]
    for given, masks in zip(asked, segmenter.decode(embedding, asked), strict=True):
        assert given.mask_logits is not None
        input_masks = torch.from_numpy(given.mask_logits)[None]
        answer, expected = as_documented(*own(name), image, given, input_masks=input_masks)
        plain, _ = as_documented(*own(name), image, given)
        assert not torch.equal(answer.pred_masks, plain.pred_masks)
        np.testing.assert_allclose(masks.predicted_iou, answer.iou_scores[0, 0], atol=1e-4)
        assert_masks_equal(masks.masks, expected)


@pytest.mark.parametrize("name", PROPOSING)
def test_who_takes_no_former_mask_draws_as_if_there_were_none(name: str, load: Callable[[str], Any]) -> None:
    segmenter, image = load(name), picture(1)
    embedding = segmenter.encode(image)
    assert mask_logits_of(segmenter, embedding, np.ones((150, 210), np.bool_)) is None
    [plain], [given] = (
        segmenter.decode(embedding, [one]) for one in (PROMPTS[0], replace(PROMPTS[0], mask_logits=np.ones((1, 8, 8), np.float32)))
    )
    np.testing.assert_array_equal(plain.masks, given.masks)


@pytest.mark.parametrize("name", [*PROMPTABLE, *PROPOSING])
def test_prompts_of_one_call_are_answered_as_each_alone(name: str, load: Callable[[str], Any]) -> None:
    segmenter, image = load(name), picture(2, 120, 90)
    embedding = segmenter.encode(image)
    together = segmenter.decode(embedding, PROMPTS)
    for given, masks in zip(PROMPTS, together, strict=True):
        [alone] = segmenter.decode(embedding, [given])
        assert masks.masks.shape == (len(masks.predicted_iou), 120, 90)
        assert masks.masks.dtype == np.bool_
        assert np.mean(masks.masks != alone.masks) < 1e-4  # rounding differs with the batch: a pixel on the edge may fall the other way
        np.testing.assert_allclose(masks.predicted_iou, alone.predicted_iou, atol=1e-4)
        assert ((masks.stability >= 0) & (masks.stability <= 1)).all()
    assert segmenter.decode(embedding, []) == []
    assert embedding.nbytes > 0


@pytest.mark.parametrize("name", ["sam", "sam2", "mask2former"])
def test_threads_and_images_do_not_mix(name: str, load: Callable[[str], Any]) -> None:
    segmenter = load(name)
    images = [picture(1), picture(2, 90, 160)]
    expected = [segmenter.decode(segmenter.encode(image), PROMPTS[:3]) for image in images]

    def work(index: int) -> bool:
        found = segmenter.decode(segmenter.encode(images[index % 2]), PROMPTS[:3])
        return all(np.array_equal(one.masks, other.masks) for one, other in zip(found, expected[index % 2], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


@pytest.mark.parametrize("name", [*PROMPTABLE, *PROPOSING])
def test_a_pipeline_draws_with_it(name: str, load: Callable[[str], Any]) -> None:
    grounder = FakeGrounder({"the cup": grounding("the cup", [[20, 30, 150, 120]])})
    [answer] = Pipeline(grounder, load(name)).segment(picture(3), ["the cup"])
    for instance in answer.instances:
        assert instance.mask.shape == (150, 210)
        assert 0 <= instance.score <= 1
    assert answer.timings["segmenter"] > 0


def test_a_crowd_is_decoded_in_batches() -> None:
    crowd = [prompt([0, 0, 9 + index, 9], [], []) for index in range(2 * module.AT_ONCE + 3)]
    sizes = []

    def decode(batch: Any) -> list[Masks]:
        sizes.append(len(batch))
        return [Masks(np.zeros((1, 2, 2), np.bool_), np.array([one.box_px[2]]), np.zeros(1)) for one in batch]

    found = decode_alike([*crowd, PROMPTS[1]], decode)
    assert sizes == [module.AT_ONCE, module.AT_ONCE, 3, 1]
    assert [masks.predicted_iou[0] for masks in found[:-1]] == [one.box_px[2] for one in crowd]  # type: ignore[index]


# -- loading -------------------------------------------------------------------------------------------------------------------------------


def test_identity_is_the_weights(folders: Callable[[str], Path], load: Callable[[str], Any], tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for file in folders("sam").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert load_segmenter(str(copied), CPU).identity == load("sam").identity
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert load_segmenter(str(copied), CPU).identity != load("sam").identity
    assert len({load(name).identity for name in (*PROMPTABLE, *PROPOSING)}) == len(PROMPTABLE) + len(PROPOSING)


def test_half_precision_is_of_the_image_only(folders: Callable[[str], Path]) -> None:
    for name in PROMPTABLE:
        found = pretrained.load_transformers(str(folders(name)), torch.bfloat16)
        whole = pretrained.load_transformers(str(folders(name)), torch.float32)
        image = picture(4)
        half, full = found.encode(image), whole.encode(image)
        assert half.nbytes == full.nbytes // 2
        assert found.identity != whole.identity
        [masks], [expected] = found.decode(half, PROMPTS[1:2]), whole.decode(full, PROMPTS[1:2])
        assert 0 < np.mean(masks.masks != expected.masks) < 0.2, name


def test_a_cpu_works_in_full_precision(folders: Callable[[str], Path], load: Callable[[str], Any]) -> None:
    assert load_segmenter(str(folders("sam")), CPU, torch.bfloat16).identity == load("sam").identity


def rewritten(folder: Path, copy: Path, file: str, **changes: Any) -> str:
    """A copy of a checkpoint with other values in a JSON file; None takes the file away."""
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    if changes:
        values = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**values, **changes}))
    else:
        (copy / file).unlink()
    return str(copy)


def pickled(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "model.safetensors")
    torch.save({"a": torch.zeros(2)}, copy / "pytorch_model.bin")
    return str(copy)


def not_json(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "config.json")
    (copy / "config.json").write_text("{")
    return str(copy)


def cut_short(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "model.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return str(copy)


def with_another_shape(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "model.safetensors")
    state = load_file(folder / "model.safetensors")
    state["vision_encoder.pos_embed"] = torch.zeros(3)
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    return str(copy)


def shards_without_an_index(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "model.safetensors")
    (copy / "model-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return str(copy)


def deep_config(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "config.json")
    (copy / "config.json").write_text("[" * 100_000)
    return str(copy)


def bert_alone(folder: Path, copy: Path) -> str:
    (copy / "config.json").write_text('{"model_type": "bert"}')
    return str(copy)


def without_a_weight(folder: Path, copy: Path) -> str:
    rewritten(folder, copy, "model.safetensors")
    state = load_file(folder / "model.safetensors")
    del state["vision_encoder.pos_embed"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    return str(copy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda folder, copy: "nosuchthing", "'nosuchthing' is no segmenter: use demo, vit_b:PATH", id="an unknown name"),
        pytest.param(lambda folder, copy: "vit_x:weights.pth", "'vit_x:weights.pth' is no segmenter", id="an unknown kind"),
        pytest.param(lambda folder, copy: f"{copy}/none", "there is no such folder", id="no folder"),
        pytest.param(lambda folder, copy: str(folder / "config.json"), "is a file; give the model's folder", id="a file"),
        pytest.param(lambda folder, copy: str(copy), "not a complete model folder: config.json, prep.* is missing", id="an empty folder"),
        pytest.param(
            lambda folder, copy: rewritten(folder, copy, "processor_config.json"), "preprocessor_config.json is missing", id="no p"
        ),
        pytest.param(bert_alone, "type 'bert' are no segmenters", id="a type says more than what its folder lacks"),
        pytest.param(
            lambda f, copy: rewritten(f, copy, "config.json", vision_config=5), "could not be loaded as a segmenter: ", id="a bad config"
        ),
        pytest.param(lambda folder, copy: rewritten(folder, copy, "model.safetensors"), r"no \.safetensors weights", id="no weights"),
        pytest.param(pickled, r"no \.safetensors weights; convert them", id="pickled weights"),
        pytest.param(not_json, "config.json is not valid JSON", id="a config that is not JSON"),
        pytest.param(cut_short, "could not be loaded as a segmenter", id="weights cut short"),
        pytest.param(without_a_weight, "lacks 1 of the weights of its sam: vision_encoder.pos_embed; fetch", id="a weight is missing"),
        pytest.param(with_another_shape, r"holds 1 weights of other shapes .*: vision_encoder\.pos_embed", id="another shape"),
        pytest.param(shards_without_an_index, r"model\.safetensors\.index\.json, .* is missing", id="a shard without an index"),
        pytest.param(deep_config, r"config\.json is nested too deeply", id="deep config"),
        pytest.param(lambda f, copy: rewritten(f, copy, "config.json", model_type="bert"), "type 'bert' are no segmenters", id="a bert"),
        pytest.param(lambda f, copy: rewritten(f, copy, "config.json", model_type="sam9"), "sam9", id="an unknown model type"),
        pytest.param(lambda f, copy: rewritten(f, copy, "config.json", model_type="sam_hq"), "weights", id="another model's config"),
        pytest.param(lambda folder, copy: "nobody/nothing", "neither a folder nor a model that can be had from the hub", id="no hub id"),
        pytest.param(lambda folder, copy: "no body/nothing", "neither a folder nor a model that can be had", id="not even a hub id"),
        pytest.param(lambda folder, copy: "efficientvit-sam-l0", "use efficientvit-sam-l0:PATH", id="no path"),
        pytest.param(lambda folder, copy: f"{copy}+demo", "not a complete model folder: config.json, prep", id="an empty detector"),
        pytest.param(lambda folder, copy: f"{folder}+demo", "what stands before the . finds boxes by text; use a gr", id="no detector"),
        pytest.param(lambda folder, copy: "a/dino+vit_x:sam.pth", "'vit_x:sam.pth' is no segmenter: use demo", id="no segmenter behind +"),
        pytest.param(lambda folder, copy: "a/dino+", "'a/dino.' names no segmenter after the .", id="nothing behind +"),
        pytest.param(lambda folder, copy: "a/dino+b/dino+demo", "names two detectors", id="two detectors"),
        pytest.param(lambda folder, copy: "/no/dino+demo", r"there is no such folder \(/no/dino\)", id="no folder before +"),
        pytest.param(
            lambda folder, copy: rewritten(folder, copy, "config.json", model_type="grounding-dino"),
            "finds boxes and draws no masks: put a segmenter behind it, as .*.vit_h:PATH",
            id="a detector alone",
        ),
        pytest.param(
            lambda folder, copy: rewritten(folder, copy, "config.json", model_type="sam3"), "tokenizer.json is missing", id="no tokenizer"
        ),
        pytest.param(lambda folder, copy: f"efficientvit-sam-l0:{copy}/x.pt", "there is no file", id="no file"),
    ],
)
def test_what_is_no_segmenter_is_refused_in_one_line(
    make: Callable[[Path, Path], str],
    message: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message) as refusal:
        load_segmenter(make(folders("sam"), tmp_path), CPU)
    assert str(refusal.value).startswith("SAM4MLLM_SEGMENTER or --segmenter: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("edgetam", "timm", "segmenters"), ("mask2former", "scipy", "segmenters"), ("efficientvit-sam-l0", "efficientsam", "efficientvit")],
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, package: str, extra: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda asked: None if asked == package else True)
    monkeypatch.setitem(sys.modules, "efficientsam.sam_model_zoo", None)  # as if it could not be imported
    if name in PROMPTABLE or name in PROPOSING:
        source = str(folders(name))
    else:
        save_file({"a": torch.zeros(1)}, tmp_path / "l0.safetensors")
        source = f"{name}:{tmp_path / 'l0.safetensors'}"
    with pytest.raises(ModelError, match=rf"needs .*{package}: pip install 'sam4mllm\[{extra}\]'"):
        load_segmenter(source, CPU)
