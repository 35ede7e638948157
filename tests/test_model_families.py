"""Every family as a tiny checkpoint of its real classes: asked, trained, saved and swapped, and spoken to in its own words."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GptOssConfig, LlamaConfig, MistralConfig, Qwen2Config

from sam4mllm.errors import ImageError, ModelError
from sam4mllm.grounding import mllm
from sam4mllm.grounding.decoding import Written
from sam4mllm.grounding.families import load_checkpoint, see_everything
from sam4mllm.grounding.frames import to_pixels
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.reading import read_answer
from sam4mllm.loading import load_variants
from sam4mllm.originals import refuse_original
from sam4mllm.prompts.dialects import GEMMA_4, GLM_V, INTERNVL, LLAVA, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN_VL_CHAT, Dialect, dump_dialect
from sam4mllm.prompts.parse import parse_boxes
from tests import family_table
from tests.family_checks import CHECKS, CPU, IMAGE, Frame, Subject, read_with_the_image_equals_read_after_it
from tests.family_models import KINDS

torch.set_num_threads(1)


@cache
def subject_of(name: str, folder: Path) -> Subject:
    return Subject(KINDS[name], folder / str(list(KINDS).index(name)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", KINDS)
def test_a_family(name: str, check: str, home: Path) -> None:
    CHECKS[check](subject_of(name, home))


@pytest.mark.parametrize("name", KINDS)
def test_a_question_is_read_with_its_image(name: str, home: Path) -> None:
    read_with_the_image_equals_read_after_it(subject_of(name, home))


def test_the_table_in_the_docs(home: Path) -> None:
    """``python -m tests.family_table`` writes it anew. Each check that it lists is a test of its own, above."""
    subjects = {name: subject_of(name, home) for name in KINDS}
    assert family_table.between(family_table.PAGE.read_text(encoding="utf-8")) == family_table.render(subjects)


# -- in a family's own words ---------------------------------------------------------------------------------------------------------------

FRAME = Frame(800, 400, (1120, 560))


@pytest.mark.parametrize(
    ("dialect", "text", "box_px"),
    [
        pytest.param(
            QWEN2_VL,
            "<|object_ref_start|>the cup<|object_ref_end|><|box_start|>(250,500),(750,900)<|box_end|>",
            [200, 200, 600, 360],
            id="Qwen2-VL",
        ),
        pytest.param(
            QWEN2_5_VL,
            '```json\n[\n\t{"bbox_2d": [280, 280, 840, 504], "label": "the cup"}\n]\n```',
            [200, 200, 600, 360],
            id="Qwen2.5-VL, fenced and labelled",
        ),
        pytest.param(QWEN3_VL, '[{"bbox_2d": [250, 500, 750, 900], "label": "the cup"}]', [200, 200, 600, 360], id="Qwen3-VL, labelled"),
        pytest.param(LLAVA, "[0.25, 0.5, 0.75, 0.70]", [200, 200, 600, 360], id="LLaVA, 200 rows of padding above"),
        pytest.param(INTERNVL, "<ref>the cup</ref><box>[[250, 500, 750, 900]]</box>", [200, 200, 600, 360], id="InternVL"),
        pytest.param(INTERNVL, "the cup[[250, 500, 750, 900]]", [200, 200, 600, 360], id="InternVL without its tags"),
        pytest.param(GLM_V, "<|begin_of_box|>[[250,500,750,900]]<|end_of_box|>", [200, 200, 600, 360], id="GLM-4.xV"),
        pytest.param(
            GEMMA_4, '```json\n[\n  {"box_2d": [500, 250, 900, 750], "label": "cup"}\n]\n```', [200, 200, 600, 360], id="Gemma 4, y first"
        ),
        pytest.param(QWEN_VL_CHAT, "<ref>击掌</ref><box>(250,500),(750,900)</box>", [200, 200, 600, 360], id="Qwen-VL-Chat"),
    ],
)
def test_native_answers_are_read(dialect: Dialect, text: str, box_px: list[float]) -> None:
    [box] = parse_boxes(dialect, text, 2000)
    np.testing.assert_allclose(to_pixels(dialect, FRAME, box), box_px, atol=0.5)


@pytest.mark.parametrize("brackets", ["[]", "()", "<>", "{}"])
def test_glm_v_may_write_other_brackets(brackets: str) -> None:
    """As its README says."""
    text = f"<|begin_of_box|>{brackets[0]}250, 500, 750, 900{brackets[1]}<|end_of_box|>"
    read = read_answer(GLM_V, FRAME, text, with_points=False, finished=True)
    np.testing.assert_allclose([instance.box_px for instance in read.instances], [[200, 200, 600, 360]], atol=0.5)
    assert read.note == ""


@pytest.mark.parametrize("name", KINDS)
def test_without_an_adapter_an_answer_in_native_words_is_a_box(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grounder = subject_of(name, home).grounder
    scene = grounder.open(IMAGE)
    box_px = np.array([[20, 30, 70, 90]], np.float32)
    ids = grounder.box_answer(scene, "the cup", box_px)[:-1]
    told = Written(grounder.checkpoint.tokenizer.decode(ids), tuple(ids), (-0.1,) * len(ids), torch.zeros(2000), True)
    monkeypatch.setattr(mllm, "write", lambda *_: [told])
    [grounding] = grounder.ground(scene, ["the cup"])
    expected = np.tile([[45, 60]], 2) if grounder.dialect.answers_with_points else box_px
    np.testing.assert_allclose(grounding.boxes_px, expected, atol=1.5)
    assert grounding.boxless == grounder.dialect.answers_with_points
    assert grounding.note == ""


def test_a_dialect_in_the_folder_wins(tmp_path: Path) -> None:
    subject = Subject(KINDS["InternVL"], tmp_path)
    first = MllmGrounder(subject.load())
    (subject.source / "dialect.json").write_text(dump_dialect(LLAVA))
    second = MllmGrounder(subject.load())
    assert (first.dialect, second.dialect) == (INTERNVL, LLAVA)
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("name", "to_answer"),
    [
        pytest.param("Qwen3.5", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", id="stored answers have no thought"),
        pytest.param("GLM-4.5V", "/nothink<|assistant|>\n<think></think>", id="stored answers have an empty one"),
        pytest.param("Gemma 4, 31B", "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>", id="an empty thought in a channel"),
        pytest.param("Gemma 4, E2B and E4B", "<turn|>\n<|turn>model\n", id="no thought where none is wanted"),
        pytest.param("Qwen3-VL-MoE", "<|im_end|>\n<|im_start|>assistant\n", id="a template without thoughts"),
    ],
)
def test_an_answer_begins_after_an_empty_thought_where_a_template_can_think(name: str, to_answer: str, home: Path) -> None:
    assert subject_of(name, home).grounder.markup.to_answer == to_answer


# -- squashed ------------------------------------------------------------------------------------------------------------------------------


def squash_to(folder: Path, sides: object, frame: Literal["milli", "square"] = "milli") -> Path:
    """Another way of preparing images, in the model's folder."""
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["squash"] = sides
    (folder / "processor_config.json").write_text(json.dumps(config))
    (folder / "dialect.json").write_text(dump_dialect(replace(LLAVA, frame=frame, digits=3)))
    return folder


def test_an_image_is_squashed_where_its_processor_says_so(tmp_path: Path) -> None:
    """As for the adapters that the paper's authors published, with thousandths of the image's own sides."""
    subject = Subject(KINDS["LLaVA-NeXT, Llama 3"], tmp_path)
    plain, image = subject.load(), Image.fromarray(IMAGE)
    squash_to(subject.source, [56, 56])
    squashing = subject.load()
    opening = plain.markup.opening
    found = squashing.encode(squashing, opening, image)
    expected = plain.encode(plain, opening, image.resize((56, 56), Image.Resampling.BICUBIC))
    assert torch.equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])
    assert torch.equal(found.inputs["input_ids"], expected.inputs["input_ids"])
    assert not torch.equal(found.inputs["pixel_values"], plain.encode(plain, opening, image).inputs["pixel_values"])
    grounder = MllmGrounder(squashing)
    [box] = grounder.box_numbers(grounder.open(IMAGE), np.array([[9, 12, 45, 60]], np.float32))
    assert box == (100, 100, 500, 500)


@pytest.mark.parametrize(
    ("sides", "frame", "said"),
    [
        pytest.param("wide", "milli", "squash must be a width and a height", id="no size"),
        pytest.param([56, 10**6], "milli", "of up to 4,096 pixels", id="without room"),
        pytest.param([56, 56], "square", "frame is milli or unit", id="shares of a padded square"),
    ],
)
def test_a_squash_that_is_none_is_refused(sides: object, frame: Literal["milli", "square"], said: str, tmp_path: Path) -> None:
    subject = Subject(KINDS["LLaVA-NeXT, Llama 3"], tmp_path)
    squash_to(subject.source, sides, frame)
    with pytest.raises(ModelError, match=said):
        MllmGrounder(subject.load()).open(IMAGE)


# -- refused -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name"),
    [
        pytest.param({"model_type": "qwen", "visual": {"image_size": 448}}, "Qwen-VL-Chat", id="Qwen-VL-Chat"),
        pytest.param({"model_type": "internvl_chat"}, "InternVL", id="InternVL"),
    ],
)
def test_a_folder_with_code_of_its_own_is_to_be_converted(tmp_path: Path, config: dict[str, object], name: str) -> None:
    """A folder as first published: no processor, weights that are pickles, code beside them."""
    mapping = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": mapping}))
    (tmp_path / "configuration_own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"is {name} as first published.*: sam4mllm models convert .* OUT") as caught:
        load_variants(str(tmp_path), "demo", "cpu", None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_on_the_hub_it_is_to_be_fetched_first() -> None:
    with pytest.raises(ModelError, match=r"^Qwen/Qwen-VL-Chat is Qwen-VL-Chat .*: fetch it, then sam4mllm models convert FOLDER OUT$"):
        refuse_original({"model_type": "qwen", "visual": {}}, "Qwen/Qwen-VL-Chat")


def test_the_text_models_of_its_series_are_no_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    with pytest.raises(ModelError, match="type 'qwen' are not supported; use one of qwen2_vl"):
        load_checkpoint(str(tmp_path), CPU)


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nobody/no-such-model is neither a folder nor a model.*SAM4MLLM_MODEL, --model") as caught:
        load_checkpoint("nobody/no-such-model", CPU)
    assert "\n" not in str(caught.value)


# -- windows -------------------------------------------------------------------------------------------------------------------------------


def test_windows_are_lifted_where_they_are_wide_enough() -> None:
    mistral = MistralConfig(sliding_window=4096)
    assert see_everything(mistral, "model") == 4096
    assert mistral.sliding_window is None
    qwen = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4096, max_window_layers=1)
    assert see_everything(qwen, "model") == 4096
    assert set(qwen.layer_types) == {"full_attention"}
    assert see_everything(LlamaConfig(), "model") is None
    assert see_everything(Qwen2Config(), "model") is None


def test_layers_of_a_kind_that_is_not_known_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^model: layers of the kind chunked_attention cannot be continued by several questions"):
        see_everything(SimpleNamespace(layer_types=["full_attention", "chunked_attention"]), "model")
    assert see_everything(SimpleNamespace(layer_types=["linear_attention", "full_attention"]), "model") is None


def test_narrow_windows_are_refused() -> None:
    with pytest.raises(ModelError, match="see 128 tokens back"):
        see_everything(MistralConfig(sliding_window=128), "model")
    with pytest.raises(ModelError, match="see 128 tokens back"):  # InternVL 3.5 with gpt-oss
        see_everything(GptOssConfig(), "model")


def test_a_prefix_that_fills_the_window_is_refused(home: Path) -> None:
    subject = subject_of("LLaVA-NeXT, Mistral", home)
    checkpoint = subject.load()
    object.__setattr__(checkpoint, "window", 1040)
    with pytest.raises(ImageError, match="sees 1040 at a time; use a smaller image"):
        MllmGrounder(checkpoint).open(IMAGE)
