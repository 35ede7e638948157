"""Adapters that are added to the registry, and those that serve from a folder: what their manifests decide."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sam4mllm
from backend.cli.adapter_option import follow_adapter
from sam4mllm.adapters.fields import FILES, MANIFEST, WEIGHTS
from sam4mllm.adapters.loose import read_papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, adopt, appoint
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.grounding.families import load_checkpoint, outline_checkpoint
from sam4mllm.identity import slug
from sam4mllm.prompts.dialects import DEMO, dump_dialect
from tests.papers.manifests import copied, without_papers
from tests.test_adapters import add as add_version
from tests.test_train_cli import run

# -- adapters add --------------------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_added_with_its_papers(trained: Path, home: Registry) -> None:
    papers = read_papers(trained)
    assert papers is not None
    printed = run("adapters", "add", trained, "--promote")
    champion = home.champion()
    assert champion is not None
    assert printed == f"added: {champion.version}\nserving: {champion.version}\n"
    assert champion.version.startswith(f"{slug(papers.base_model)}-1-")
    assert champion.version == sam4mllm.load(adapter=champion.version, device="cpu").version  # as a server names it, too
    for field in ("base_model", "base_sha256", "strategy", "points", "dialect", "segmenter", "plan", "metrics", "files", "data_sha256"):
        assert getattr(champion, field) == getattr(papers, field), field


def test_what_is_said_of_an_adapter_wins_over_its_papers(trained: Path, home: Registry) -> None:
    added = json.loads(run("adapters", "add", trained, "--strategy", "box", "--points", "packed", "--json"))
    assert (added["strategy"], added["points"]) == ("box", "packed")
    assert home.serving() is None


def test_an_adapter_without_papers_is_added_with_what_is_said(trained: Path, model: Path, home: Registry, tmp_path: Path) -> None:
    bare = without_papers(trained, tmp_path / "bare")
    (bare / "optimizer.pt").write_bytes(b"of a trainer")
    (tmp_path / "words.json").write_text(dump_dialect(replace(DEMO, box_question="where is {phrase}")))
    options = ("--model", model, "--strategy", "ppg", "--points", "joint", "--dialect", tmp_path / "words.json")
    added = json.loads(run("adapters", "add", bare, *options, "--json"))
    assert (added["strategy"], added["points"], added["data_sha256"]) == ("ppg", "joint", None)
    assert added["dialect"]["box_question"] == "where is {phrase}"
    assert {path.name for path in home.path(added["version"]).iterdir()} == {*FILES, MANIFEST}


def tampered(manifest: dict[str, Any]) -> None:
    manifest["files"][WEIGHTS] = "00" * 32


REFUSED = {
    "its files are others": (tampered, Claims(), "its files are not those that its manifest.json names"),
    "a key too many": (lambda manifest: manifest.update(more=1), Claims(), "lacks these keys or should not have them: more"),
    "a strategy that is none": (lambda manifest: manifest.update(strategy="best"), Claims(), "strategy must be"),
    "a dialect that is none": (lambda manifest: manifest.update(dialect={"name": "x"}), Claims(), "is none"),
    "another model's": (lambda manifest: manifest.update(base_sha256="00" * 32), Claims(), "was trained on another base model"),
    "other prompts": (lambda manifest: manifest.update(template_sha256="00" * 32), Claims(), "another set of prompts"),
    "a model that is not there": (lambda manifest: manifest.update(base_model="/no/such/model"), Claims(), "no such folder"),
    "a model against it": (lambda manifest: None, Claims(model="demo"), "was trained on another base model"),
    "a dialect against it": (lambda manifest: None, Claims(dialect="llava"), "--dialect is not what"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_is_not_what_is_said_is_not_added(case: str, trained: Path, home: Registry, tmp_path: Path) -> None:
    change, claims, said = REFUSED[case]
    with pytest.raises(Sam4mllmError, match=said) as caught:
        adopt(copied(trained, tmp_path / "a", change), home, claims)
    assert "\n" not in str(caught.value)
    assert home.versions() == []


def test_an_adapter_of_other_layers_is_not_added(trained: Path, home: Registry, tmp_path: Path) -> None:
    bare = without_papers(trained, tmp_path / "bare")
    with pytest.raises(ModelError, match="does not fit demo"):
        adopt(bare, home, Claims(model="demo"))
    assert home.versions() == []


def test_no_adapter_is_not_added(home: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is missing or not a plain file"):
        adopt(tmp_path, home, Claims())


def test_an_outline_has_the_identity_and_the_shapes_of_the_model(model: Path) -> None:
    cpu = torch.device("cpu")
    outline, whole = outline_checkpoint(str(model), cpu), load_checkpoint(str(model), cpu)
    assert (outline.base_sha256, outline.template_sha256) == (whole.base_sha256, whole.template_sha256)
    shapes = [{name: weight.shape for name, weight in one.model.named_parameters()} for one in (outline, whole)]
    assert shapes[0] == shapes[1]
    assert {weight.device.type for weight in outline.model.parameters()} == {"meta"}


# -- serve --adapter -----------------------------------------------------------------------------------------------------------------------


def test_in_an_empty_registry_the_adapter_becomes_the_champion(trained: Path, home: Registry) -> None:
    appoint(str(trained), home, Claims())
    [manifest] = home.versions()
    assert home.serving() == manifest.version
    appoint(str(trained), home, Claims())  # as a server that is started again
    assert home.versions() == [manifest]


def test_what_the_registry_has_decided_stands(trained: Path, home: Registry) -> None:
    appoint(str(trained), home, Claims())
    better = add_version(home, slug="model")
    home.promote(better)
    appoint(str(trained), home, Claims())
    assert home.serving() == better
    home.rollback()
    home.rollback()
    appoint(str(trained), home, Claims())
    assert home.serving() is None


def test_beside_others_a_new_adapter_has_to_be_added(trained: Path, home: Registry) -> None:
    version = add_version(home)
    home.promote(version)
    with pytest.raises(RegistryError, match=f"{version} serves; let this one serve with: sam4mllm adapters add .* --promote"):
        appoint(str(trained), home, Claims())
    assert home.serving() == version


def test_an_adapter_that_was_added_but_never_served_begins(trained: Path, home: Registry) -> None:
    version = adopt(trained, home, Claims()).version
    appoint(str(trained), home, Claims())
    assert home.serving() == version


def test_what_is_decided_stands_without_the_folder(trained: Path, home: Registry, tmp_path: Path) -> None:
    appoint(str(trained), home, Claims())
    appoint(str(tmp_path / "gone"), home, Claims())
    with pytest.raises(RegistryError, match="there is no folder"):
        appoint(str(tmp_path / "gone"), Registry(tmp_path / "other"), Claims())


def test_a_model_that_has_moved_is_named_where_it_lies(trained: Path, model: Path, home: Registry, tmp_path: Path) -> None:
    moved = shutil.copytree(model, tmp_path / "moved")
    lost = copied(trained, tmp_path / "a", lambda manifest: manifest.update(base_model="/gone/model"))
    assert adopt(lost, home, Claims(model=str(moved))).base_model == str(moved)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("ending", ["rolled back", "damaged", "served"])
def test_a_server_keeps_its_model_whatever_became_of_the_champion(ending: str, trained: Path, model: Path, home: Registry) -> None:
    appoint(str(trained), home, Claims())
    if ending == "rolled back":
        home.rollback()
    elif ending == "damaged":
        newer = add_version(home)
        home.promote(newer)
        (home.path(newer) / MANIFEST).write_text("{")
    follow_adapter(home.root.parent)
    assert (os.environ["SAM4MLLM_MODEL"], os.environ["SAM4MLLM_SEGMENTER"]) == (str(model), "demo")


@pytest.mark.usefixtures("environment")
def test_a_bulk_run_takes_the_model_that_peft_names(trained: Path, model: Path, home: Registry, tmp_path: Path) -> None:
    follow_adapter(home.root.parent)
    assert "SAM4MLLM_MODEL" not in os.environ
    follow_adapter(home.root.parent, str(without_papers(trained, tmp_path / "bare")))
    assert os.environ["SAM4MLLM_MODEL"] == str(model)


def test_a_version_that_never_served_begins_in_an_empty_history(trained: Path, home: Registry) -> None:
    version = adopt(trained, home, Claims()).version
    appoint(version, home, Claims())
    assert home.serving() == version
