"""The segmenter's adapter: fitted on masks, merged at load, kept in versions beside that of the MLLM, and compared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sam4mllm
from backend.cli.adapter_option import follow_adapter
from backend.serving.edges import Edges
from sam4mllm.adapters.fields import FILES, SEGMENTER_CONFIG, SEGMENTER_FILES, SEGMENTER_WEIGHTS, WEIGHTS
from sam4mllm.adapters.files import hash_files, parts_of
from sam4mllm.adapters.follow import choose_segmenter
from sam4mllm.adapters.loose import describe_adapter
from sam4mllm.adapters.registry import Registry
from sam4mllm.adapters.segmenter import attach_to_decoder, named_with, promptable, save_of_decoder, with_adapter
from sam4mllm.cli.main import make_app
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.demo.scenes import DemoScene, make_scene
from sam4mllm.edges import AS_DRAWN, Edge, draw_edge
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.evaluation.settings import Setting, plan
from sam4mllm.loading import load_variants
from sam4mllm.options import Options
from sam4mllm.segmentation.detection import DetectingSegmenter
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.training.decoder_fit import fit_decoder, make_lessons
from sam4mllm.values import Prompt
from tests.fakes import FakeConceptSegmenter, FakeSegmenter
from tests.tiny_segmenters import make_segmenter

CPU = torch.device("cpu")
PROMPT = Prompt(np.array([10, 10, 50, 40], np.float32), np.array([[30, 25]], np.float32), np.ones(1, np.int64))
PROMPTABLE = ("sam", "sam_hq", "sam2", "sam3_tracker", "edgetam")
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(make_app(), [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def write_random(segmenter: Any, folder: Path, name: str = "demo", seed: int = 0) -> Any:
    """An adapter that changes masks, of a segmenter that draws with it, unmerged, from then on."""
    model = attach_to_decoder(segmenter, 4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    folder.mkdir()
    save_of_decoder(model, segmenter, name, folder)
    return segmenter


def refused(*arguments: object) -> str:
    """The one line that a user sees."""
    result = CliRunner().invoke(make_app(), [str(argument) for argument in arguments])
    assert isinstance(result.exception, Sam4mllmError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the demo segmenter."""
    folder = tmp_path_factory.mktemp("segmenter") / "adapter"
    write_random(load_segmenter("demo", CPU), folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path / "home"))
    return Registry(tmp_path / "home")


# -- on the model --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", *PROMPTABLE])
def test_merged_it_draws_as_unmerged_on_the_same_embedding(name: str, tmp_path: Path) -> None:
    source = name if name == "demo" else str(make_segmenter(name, tmp_path / "model"))
    plain = promptable(load_segmenter(source, CPU))
    reference = write_random(promptable(load_segmenter(source, CPU)), tmp_path / "adapter", source)
    merged = promptable(with_adapter(plain, tmp_path / "adapter"))
    embedding: Any = plain.encode(IMAGE)
    with torch.inference_mode():
        before, drawn, expected = (one.logits(embedding, [PROMPT])[0] for one in (plain, merged, reference))
        again, _ = promptable(load_segmenter(source, CPU)).logits(embedding, [PROMPT])
    assert torch.allclose(drawn, expected, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(drawn, before, atol=1e-2 * float(expected.abs().max())), "it changes something"
    assert torch.equal(before, again), "the plain one is as it was"
    assert merged.identity != plain.identity
    assert merged.identity == named_with(plain, hash_files(tmp_path / "adapter")).identity


def test_behind_a_detector_it_is_that_of_what_draws(trained: Path) -> None:
    finder: Any = FakeConceptSegmenter()
    both = DetectingSegmenter(finder, load_segmenter("demo", CPU))
    adapted = with_adapter(both, trained)
    assert isinstance(adapted, DetectingSegmenter)
    assert adapted.detector is both.detector
    assert adapted.adapter != both.adapter == ""
    assert adapted.identity != both.identity


def of_another(folder: Path) -> None:
    config = json.loads((folder / SEGMENTER_CONFIG).read_text())
    (folder / SEGMENTER_CONFIG).write_text(json.dumps({**config, "revision": "ab" * 32, "base_model_name_or_path": "vit_h:/sam.pth"}))


def of_other_shapes(folder: Path) -> None:
    tensors = {name: tensor.repeat(1, 2) for name, tensor in load_file(folder / SEGMENTER_WEIGHTS).items()}
    save_file(tensors, folder / SEGMENTER_WEIGHTS)


def not_a_number(folder: Path) -> None:
    tensors = {name: tensor * torch.nan for name, tensor in load_file(folder / SEGMENTER_WEIGHTS).items()}
    save_file(tensors, folder / SEGMENTER_WEIGHTS)


def of_the_base(folder: Path) -> None:
    save_file({**load_file(folder / SEGMENTER_WEIGHTS), "iou_token.weight": torch.zeros(1, 128)}, folder / SEGMENTER_WEIGHTS)


def overflowing(folder: Path) -> None:
    config = json.loads((folder / SEGMENTER_CONFIG).read_text())
    (folder / SEGMENTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": 1e40}))


def of_a_convolution(folder: Path) -> None:
    config = json.loads((folder / SEGMENTER_CONFIG).read_text())
    (folder / SEGMENTER_CONFIG).write_text(json.dumps({**config, "target_modules": ["output_upscaling.0"]}))


def without_weights(folder: Path) -> None:
    (folder / SEGMENTER_WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another, "is of another segmenter, vit_h:/sam.pth; start with that one"),
        (of_other_shapes, "does not fit its mask decoder"),
        (not_a_number, "segmenter_model.safetensors: .* holds NaN"),
        (of_the_base, "segmenter_model.safetensors: 'iou_token.weight' is no LoRA factor"),
        (overflowing, "does not fit its mask decoder: its factors are so large"),
        (of_a_convolution, "does not fit its mask decoder: target_modules in segmenter_config.json names output_upscaling.0"),
        (without_weights, "segmenter_model.safetensors is missing"),
    ],
)
def test_what_cannot_be_used_is_one_line(spoil: Any, said: str, trained: Path, home: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    spoil(folder)
    with pytest.raises((ModelError, RegistryError), match=said) as raised:
        with_adapter(load_segmenter("demo", CPU), folder)
    assert "\n" not in str(raised.value)
    refused("adapters", "add", folder)
    assert home.versions() == []


def test_a_segmenter_without_a_mask_decoder_takes_none(trained: Path) -> None:
    with pytest.raises(ModelError, match="changes SAM's mask decoder, and this segmenter has none"):
        with_adapter(FakeSegmenter(), trained)


# -- training ------------------------------------------------------------------------------------------------------------------------------


def lessons_of(segmenter: Any, scenes: list[DemoScene], habit: Any) -> list[Any]:
    lessons = []
    for scene in scenes:
        masks = np.stack([habit(mask) for mask in scene.masks[:2]])
        lessons += make_lessons(segmenter, scene.image, masks, scene.boxes_px[:2])
    return lessons


def wider(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return draw_edge(mask, Edge(6))


def area(segmenter: Any, scene: DemoScene) -> int:
    prompts = [Prompt(box, np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) for box in scene.boxes_px]
    drawn = segmenter.decode(segmenter.encode(scene.image), prompts)
    return sum(int(masks.masks[masks.predicted_iou.argmax()].sum()) for masks in drawn)


def test_it_learns_where_masks_end_and_the_encoder_stays() -> None:
    scenes, unseen = [make_scene((7, index)) for index in range(3)], make_scene((7, 100))
    plain = promptable(load_segmenter("demo", CPU))
    before, weights = area(plain, unseen), {name: weight.clone() for name, weight in plain.model.image_encoder.state_dict().items()}
    areas = {}
    for name, habit in {"wider": wider, "as it draws": lambda mask: mask}.items():
        segmenter = promptable(load_segmenter("demo", CPU))
        fit_decoder(segmenter, lessons_of(segmenter, scenes, habit), steps=12)
        areas[name] = area(segmenter, unseen)
    assert areas["wider"] > 1.02 * before
    assert abs(areas["as it draws"] - before) < 0.5 * (areas["wider"] - before), "the control: these reviewers draw no wider"
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.model.image_encoder.state_dict().items())


def test_the_command_writes_an_adapter_and_the_next_step(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 2, 5, split="train")
    made = run("train", tmp_path / "data", "--out", tmp_path / "a", "--segmenter-adapter", "--steps", 2, "--seed", 3)
    assert f"next: sam4mllm adapters add {tmp_path / 'a'} --promote" in made
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(SEGMENTER_FILES)
    run("train", tmp_path / "data", "--out", tmp_path / "b", "--segmenter-adapter", "--steps", 2, "--seed", 3)
    assert hash_files(tmp_path / "a")[SEGMENTER_WEIGHTS] == hash_files(tmp_path / "b")[SEGMENTER_WEIGHTS]
    taken = refused("train", tmp_path / "data", "--out", tmp_path / "a", "--segmenter-adapter")
    assert "is not an empty folder" in taken


@pytest.mark.parametrize("option", ["--replay", "--config", "--adapter", "--model", "--dialect"])
def test_what_is_of_the_mllm_is_refused(option: str, tmp_path: Path) -> None:
    said = refused("train", tmp_path, "--out", tmp_path / "a", "--segmenter-adapter", option, "demo")
    assert f"--segmenter-adapter trains the segmenter alone, and {option} is of the MLLM's training; leave it out" in said


def test_a_dataset_without_a_mask_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 1, 5, split="train")
    lines = (tmp_path / "data" / "examples.jsonl").read_text().splitlines()
    (tmp_path / "data" / "examples.jsonl").write_text("".join(json.dumps({**json.loads(line), "instances": []}) + "\n" for line in lines))
    assert "has no mask in its split train" in refused("train", tmp_path / "data", "--out", tmp_path / "a", "--segmenter-adapter")


# -- versions ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the demo MLLM after one step."""
    folder = tmp_path_factory.mktemp("mllm")
    write_scenes(folder / "data", 1, 5, split="train")
    run("train", folder / "data", "--out", folder / "adapter", "--steps", 1)
    return folder / "adapter"


def masks_of(adapter: str | None) -> tuple[str, int]:
    pipeline = sam4mllm.load(adapter=adapter, device="cpu")
    scene = make_scene((7, 3))
    [answer] = pipeline.segment(scene.image, [scene.expressions[0].phrase], strategy="box")
    return pipeline.version, int(answer.mask.sum())


def test_alone_it_is_a_version_that_a_server_names_alike(trained: Path, home: Registry) -> None:
    added = json.loads(run("adapters", "add", trained, "--promote", "--json"))
    assert added["files"].keys() == set(SEGMENTER_FILES)
    version, area_adapted = masks_of(added["version"])
    assert version == added["version"]
    assert area_adapted != masks_of(None)[1]
    home.export(version, home.root.parent / "out")
    assert masks_of(str(home.root.parent / "out"))[1] == area_adapted


def test_each_part_keeps_the_champions_other_one(trained: Path, of_mllm: Path, home: Registry, tmp_path: Path) -> None:
    first = json.loads(run("adapters", "add", of_mllm, "--promote", "--json"))
    both = json.loads(run("adapters", "add", trained, "--promote", "--json"))
    assert both["files"] == {**first["files"], **hash_files(trained)}
    assert both["parent"] == first["version"]
    again = json.loads(run("adapters", "add", of_mllm, "--json"))
    assert again["files"] == both["files"]
    assert masks_of(both["version"])[0] == both["version"]
    write_scenes(tmp_path / "data", 1, 5, split="train")
    run("train", tmp_path / "data", "--adapter", both["version"], "--out", tmp_path / "next", "--steps", 1)
    assert parts_of(tmp_path / "next") == (FILES, SEGMENTER_FILES), "what learns on keeps it"
    assert hash_files(tmp_path / "next")[SEGMENTER_WEIGHTS] == hash_files(trained)[SEGMENTER_WEIGHTS]


def test_the_champions_papers_stay_where_its_part_stays(trained: Path, of_mllm: Path, home: Registry, tmp_path: Path) -> None:
    alone = json.loads(run("adapters", "add", trained, "--json"))["version"]
    home.export(alone, tmp_path / "exported")
    champion = json.loads(run("adapters", "add", of_mllm, "--strategy", "ppg", "--points", "joint", "--promote", "--json"))
    assert champion["metrics"]
    both = json.loads(run("adapters", "add", tmp_path / "exported", "--json"))
    assert (both["strategy"], both["points"], both["parent"]) == ("ppg", "joint", champion["version"])
    assert both["metrics"] == {}, "they were measured on other masks"
    home.export(both["version"], tmp_path / "whole")
    assert json.loads(run("adapters", "add", tmp_path / "whole", "--json"))["parent"] is None, "nothing of the champion's was kept"


def test_a_damaged_champion_is_not_copied(trained: Path, of_mllm: Path, home: Registry) -> None:
    champion = json.loads(run("adapters", "add", of_mllm, "--promote", "--json"))["version"]
    tensors = load_file(home.path(champion) / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, home.path(champion) / WEIGHTS)
    assert "is not the file that its manifest names" in refused("adapters", "add", trained)


def test_a_part_for_another_segmenter_is_left_out_and_said(
    trained: Path, of_mllm: Path, home: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("adapters", "add", trained, "--promote")
    other = make_segmenter("sam", tmp_path / "other")
    added = json.loads(run("adapters", "add", of_mllm, "--segmenter", other, "--json"))
    assert (added["files"].keys(), added["parent"]) == (set(FILES), None)
    [line] = [record.getMessage() for record in caplog.records if "no part for the segmenter" in record.getMessage()]
    assert "is of another segmenter, demo" in line


def test_without_an_mllm_none_is_added(trained: Path, home: Registry) -> None:
    assert "serves with an MLLM, and the model is none" in refused("adapters", "add", trained, "--model", "none")
    assert home.versions() == []


def test_its_segmenter_is_found_where_none_is_named(home: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAM4MLLM_MODEL", "SAM4MLLM_SEGMENTER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    source = str(make_segmenter("sam", tmp_path / "sam"))
    write_random(promptable(load_segmenter(source, CPU)), tmp_path / "adapter", source)
    version = json.loads(run("adapters", "add", tmp_path / "adapter", "--promote", "--json"))["version"]
    assert masks_of(version)[0] == version
    follow_adapter(home.root.parent)
    assert os.environ["SAM4MLLM_SEGMENTER"] == source
    config = json.loads((tmp_path / "adapter" / SEGMENTER_CONFIG).read_text())
    vouched = {**config, "base_model_name_or_path": f"vit_h:{tmp_path}/sam.pth#sha256={'ab' * 32}"}
    (tmp_path / "adapter" / SEGMENTER_CONFIG).write_text(json.dumps(vouched))
    assert choose_segmenter(None, None, tmp_path / "adapter") == "demo", "only a user vouches for a file"


def test_a_dropped_version_leaves_nothing_and_moves_are_of_all(trained: Path) -> None:
    variants = load_variants("demo", "demo", "cpu", None)
    pipeline = variants.load(trained, describe_adapter(trained, "demo", None))
    scene = make_scene((7, 3))
    opened = variants.base.open(scene.image)
    [by_base], [by_it] = (one.segment(opened, [scene.expressions[0].phrase], "box") for one in (variants.base, pipeline))
    assert (by_base.mask != by_it.mask).any(), "one image taken in serves both"
    decoder = pipeline.segmenter.model.mask_decoder  # type: ignore[attr-defined]
    variants._move(torch.device("meta"))
    assert next(decoder.parameters()).device.type == "meta"
    [version] = variants._adapted
    variants.drop(version)
    assert variants._adapted == {}


def test_a_version_that_lost_it_does_not_serve(trained: Path, of_mllm: Path, home: Registry) -> None:
    run("adapters", "add", of_mllm, "--promote")
    both = json.loads(run("adapters", "add", trained, "--json"))["version"]
    for name in SEGMENTER_FILES:
        (home.path(both) / name).unlink()
    with pytest.raises(RegistryError, match=f"{both}: .*segmenter_(config|model).* missing"):
        home.promote(both)
    assert home.serving() != both


# -- edges and comparisons -----------------------------------------------------------------------------------------------------------------


def test_an_edge_holds_for_the_decoder_that_it_was_adopted_under(tmp_path: Path) -> None:
    edges = Edges(tmp_path)
    edges.note("demo-1-00000000")
    edges.adopt(3, "Cup", Edge(3))
    edges.note("demo-2-00000000", "abc")
    assert (edges.of(3, "Cup"), edges.adopted) == (AS_DRAWN, []), "the adapter draws edges of its own"
    assert (edges.drew("demo-1-00000000"), edges.drew("demo-2-00000000")) == (False, True)
    edges.adopt(3, "Cup", Edge(-1))
    again = Edges(tmp_path)
    assert again.of(3, "Cup") == Edge(3)
    again.note("demo-2-00000000", "abc")
    assert again.of(3, "Cup") == Edge(-1)
    assert again.digest_of("") != again.digest_of("abc")


def test_it_is_an_axis_of_ablate(trained: Path, tmp_path: Path) -> None:
    rows = plan(Setting(("base",), Options("box")), {"segmenter-adapter": ("none", str(trained))})
    assert [row.label for row in rows if row.oracle] == [
        "oracle",
        "oracle segmenter-adapter=none",
        f"oracle segmenter-adapter={trained}",
    ]
    write_scenes(tmp_path / "data", 1, 5)
    arguments = ("--over", "segmenter-adapter", "--strategy", "box", "--values", f"segmenter-adapter=none,{trained}", "--json")
    printed = json.loads(run("ablate", tmp_path / "data", *arguments, "--out", tmp_path / "out"))
    figures = {row["setting"]: row["figures"]["gIoU"] for row in printed["rows"]}
    assert figures["segmenter-adapter=none"] == figures["base"] != figures[f"segmenter-adapter={trained}"]
    assert "--values segmenter-adapter=none,FOLDER" in refused(
        "ablate", tmp_path / "data", "--over", "segmenter-adapter", "--out", tmp_path / "o"
    )
