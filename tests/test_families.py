"""Model folders that are not what they should be: one line that says what is wrong, and nothing executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam4mllm import bounded
from sam4mllm.checkpoints import INDEX
from sam4mllm.errors import ModelError, Sam4mllmError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.identity import slug
from sam4mllm.loading import pick_device
from tests.conftest import make_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint("qwen3_vl", tmp_path / "model")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])


def only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    mapping = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": mapping}))
    (folder / "evil.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")


def change(name: str, **values: object) -> Callable[[Path], None]:
    """Other values in a JSON file of the folder; None takes one out."""

    def damage(folder: Path) -> None:
        fields = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))

    return damage


def lose(weight: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state[weight]
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return damage


def reshape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.language_model.norm.weight"] = torch.ones(3)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def to_shards(folder: Path, index: bool = True) -> None:
    """As large models are stored."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{number}-of-00002.safetensors": sorted(state)[number - 1 :: 2] for number in (1, 2)}
    for name, held in shards.items():
        save_file({weight: state[weight] for weight in held}, folder / name, {"format": "pt"})
    if index:
        weight_map = {weight: name for name, held in shards.items() for weight in held}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def lose_a_shard(folder: Path) -> None:
    to_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lead_elsewhere(folder: Path) -> None:
    to_shards(folder)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../a.safetensors"}}))


def old_template(folder: Path) -> None:
    """The chat template where older processors keep it, and nowhere else."""
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()


def old_extractor(folder: Path) -> None:
    change("preprocessor_config.json", image_processor_type=None, feature_extractor_type="Qwen2VLFeatureExtractor")(folder)


def untied(folder: Path) -> None:
    change("config.json", tie_word_embeddings=True)(folder)
    lose("lm_head.weight")(folder)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[func-returns-value]


DEEP = "[" * 100_000
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(without("config.json"), "config.json is missing", id="no config"),
        pytest.param(empty, "folder: config.json, preprocessor_config.json, tokenizer_config.json is missing", id="an empty folder"),
        pytest.param(
            lose("model.language_model.norm.weight"),
            r"lacks 1 of the weights of its qwen3_vl: model\.language_model\.norm\.weight",
            id="a weight",
        ),
        pytest.param(
            lose("model.visual.patch_embed.proj.bias"), r"lacks 1 .*: model\.visual\.patch_embed\.proj\.bias", id="a weight of the tower"
        ),
        pytest.param(lose("lm_head.weight"), r"lacks 1 of the weights of its qwen3_vl: lm_head\.weight", id="a head that is not tied"),
        pytest.param(reshape, r"holds 1 weights of other shapes than config\.json says: model\.language_model\.norm\.weight", id="a shape"),
        pytest.param(
            lambda folder: to_shards(folder, False),
            rf"in model-00001.*, model-00002.*, and {INDEX}.* is missing",
            id="shards without an index",
        ),
        pytest.param(lose_a_shard, rf"model-00002-of-00002\.safetensors is missing, which {INDEX} names", id="a shard is missing"),
        pytest.param(lead_elsewhere, r"\.\./a\.safetensors is missing", id="an index that leads elsewhere"),
        pytest.param(write("chat_template.jinja", LOOP), "chat template was stopped: it does not end within", id="a template without end"),
        pytest.param(write("chat_template.jinja", "{{ 'a' * 10**10 }}"), "chat template was stopped", id="a template without room"),
        pytest.param(write("chat_template.jinja", "{% for"), "chat template cannot be rendered", id="no template"),
        pytest.param(without("chat_template.jinja"), "has no chat template", id="without a template"),
        *[
            pytest.param(write(name, DEEP), f"{name} is nested too deeply", id=f"deep {name}")
            for name in ("config.json", "dialect.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")
        ],
        pytest.param(write("tokenizer.json", DEEP), "could not be loaded as a model: ", id="deep tokenizer"),
        pytest.param(change("config.json", vision_config=5), "could not be loaded as a model: Validation error", id="a number for a part"),
        pytest.param(without("tokenizer_config.json"), "tokenizer_config.json is missing", id="no tokenizer"),
        pytest.param(without("preprocessor_config.json"), "preprocessor_config.json is missing", id="no image processor"),
        pytest.param(without("model.safetensors"), "no .safetensors weights", id="no weights"),
        pytest.param(only_pickled_weights, "no .safetensors weights", id="pickled weights only"),
        pytest.param(truncate_weights, "could not be loaded", id="weights cut short"),
        pytest.param(other_type, "'bert' are not supported", id="another kind of model"),
        pytest.param(not_json, "not valid JSON", id="broken config"),
        pytest.param(code_of_its_own, "'evil' are not supported", id="code in the folder"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a library may ask whether to run a model's own code
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    damage(folder)
    with pytest.raises(Sam4mllmError, match=message) as caught:
        load_checkpoint(str(folder), CPU)
    assert "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    "differ",
    [
        pytest.param(to_shards, id="shards"),
        pytest.param(untied, id="a head that is tied"),
        pytest.param(old_template, id="only chat_template.json"),
        pytest.param(change("preprocessor_config.json", image_processor_type="Qwen2_5_VLImageProcessor"), id="a processor of 4.49"),
        pytest.param(change("preprocessor_config.json", image_processor_type="Qwen2VLImageProcessorFast"), id="a fast processor"),
        pytest.param(old_extractor, id="a feature extractor"),
        pytest.param(change("preprocessor_config.json", processor_class="NoSuchProcessor"), id="a whole processor of another version"),
    ],
)
def test_a_folder_of_an_older_transformers_is_served(folder: Path, differ: Callable[[Path], None]) -> None:
    before = load_checkpoint(str(folder), CPU)
    differ(folder)
    found = load_checkpoint(str(folder), CPU)
    assert found.markup == before.markup
    assert type(found.image_processor) is type(before.image_processor)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_checkpoint(str(tmp_path / "nowhere"), CPU)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        load_checkpoint(str(tmp_path / "model.bin"), CPU)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cuda:99", id="not there"), pytest.param("abacus", id="no such kind"), pytest.param("meta", id="not for computing")],
)
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ModelError):
        pick_device(device)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("demo", "demo"), ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl-8b-instruct"), ("/models/My Model_2/", "my-model-2"), ("///", "model")],
)
def test_slugs(model: str, expected: str) -> None:
    assert slug(model) == expected
