"""What serves must go on serving: through kills, full disks and names that are hostile."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.adapters import registry
from sam4mllm.adapters.fields import CONFIG, FILES, MANIFEST, WEIGHTS
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.adapters.registry import STEPS, Registry
from sam4mllm.errors import RegistryError
from tests.adapter_files import LORA, ORIGIN, PAPERS, adapter, weights
from tests.test_adapters import add

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sam4mllm.adapters.registry", "tests.test_registry"])  # each child would import torch again


def serving(home: Registry) -> str | None:
    """What a server would load after a restart, verified as it would."""
    champion = home.champion()
    if champion is not None:
        home.verify(champion.version)
    return None if champion is None else champion.version


@pytest.fixture
def home(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


# -- storing and reading -------------------------------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_as_it_was(home: Registry, tmp_path: Path) -> None:
    source = tmp_path / "trained.safetensors"
    source.write_bytes(weights())
    manifest = home.add({CONFIG: json.dumps(LORA).encode(), WEIGHTS: source}, **ORIGIN)

    assert manifest.version.startswith("demo-1-")
    assert manifest.metrics == {"gIoU": 0.5}
    assert manifest.files[WEIGHTS] == hashlib.sha256(source.read_bytes()).hexdigest()
    again = Registry(tmp_path)
    assert again.versions() == [manifest]
    assert again.show(manifest.version) == manifest
    again.verify(manifest.version)
    folder = again.path(manifest.version)
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST}
    assert (folder / WEIGHTS).read_bytes() == source.read_bytes()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_an_empty_home_is_read_without_being_made(home: Registry, tmp_path: Path) -> None:
    assert home.versions() == []
    assert home.broken() == []
    assert home.history() == []
    assert home.champion() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["identity", "base_sha256", "template_sha256", "files"])
def test_the_hash_covers_what_shapes_a_prediction(field: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {**ORIGIN}
    if field == "identity":
        changed["identity"] = "12" * 32
    elif field != "files":
        changed["papers"] = replace(PAPERS, **{field: "12" * 32})
    first = Registry(tmp_path / "a").add(adapter(), **ORIGIN).version
    assert Registry(tmp_path / "b").add(adapter(), **ORIGIN).version == first
    assert Registry(tmp_path / "c").add(adapter(0.6 if field == "files" else 0.5), **changed).version != first


def test_unreadable_versions_are_listed_apart(home: Registry, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = add(home), add(home)
    (home.path(bad) / MANIFEST).write_text("{")
    (home.root / "not-a-version").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [manifest.version for manifest in home.versions()] == [good]
    assert bad in caplog.text
    assert {broken.name for broken in home.broken()} == {bad, "not-a-version"}


def test_versions_are_in_the_order_of_their_numbers(home: Registry) -> None:
    added = [add(home, 0.01 * count) for count in range(11)]
    assert [manifest.version for manifest in home.versions()] == added
    assert [manifest.number for manifest in home.versions()] == list(range(1, 12))


def test_a_number_is_never_used_again(home: Registry) -> None:
    add(home)
    shutil.rmtree(home.path(add(home)))
    third = add(home, slug="other.model-2")
    assert third.startswith("other.model-2-3-")
    shutil.rmtree(home.path(third))
    (home.root / "highest").unlink()
    (home.root / "demo-7-00000000").mkdir()
    assert add(home).startswith("demo-8-")
    (home.root / "highest").write_text("many")
    with pytest.raises(RegistryError, match="highest is not a number"):
        add(home)


@pytest.mark.parametrize("slug", ["", "Demo", "a" * 33, "a/b", "..", "a\n", "ü", "a_b"])
def test_slugs(slug: str, home: Registry) -> None:
    if slug == "..":  # odd, but nothing more than the start of a name
        assert home.path(add(home, slug=slug)).parent == home.root
        return
    with pytest.raises(RegistryError, match="slug"):
        add(home, slug=slug)


def test_export_is_whole_and_overwrites_nothing(home: Registry, tmp_path: Path) -> None:
    version = add(home)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "er", tmp_path / "empty"):
        home.export(version, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in home.path(version).iterdir()
        }
        with pytest.raises(RegistryError, match="not empty"):
            home.export(version, folder)
    (home.path(version) / WEIGHTS).write_bytes(b"")
    with pytest.raises(RegistryError, match="SHA-256"):
        home.export(version, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


# -- promotion -----------------------------------------------------------------------------------------------------------------------------


def test_rollback_goes_back_one_by_one_and_never_forth(home: Registry) -> None:
    a, b, c = (add(home, value) for value in (0.1, 0.2, 0.3))
    for version in (a, b, a, c):
        assert home.promote(version).version == version
        assert serving(home) == version
    assert home.promote(c).version == c  # serves already: nothing to go back to
    for expected in (a, b, a, None):
        manifest = home.rollback()
        assert (manifest.version if manifest else None) == expected == serving(home)
    with pytest.raises(RegistryError, match="nothing to roll back"):
        home.rollback()
    home.promote(b)
    assert home.rollback() is None
    assert [line.version for line in home.history()] == [a, b, a, c, a, b, a, None, b, None]
    assert [line.number for line in home.history()] == list(range(1, 11))


@pytest.mark.parametrize("stray", [b'{"number": 3, "vers', b"\xff\xfe", b"[]\n", b"\n\n", b'{"number": "3"}\n', b"null"])
def test_a_damaged_line_of_history_does_no_harm(stray: bytes, home: Registry) -> None:
    a, b, c = (add(home, value) for value in (0.1, 0.2, 0.3))
    home.promote(a)
    home.promote(b)
    with (home.root / "history.jsonl").open("ab") as file:
        file.write(stray)
    home.promote(c)
    for expected in (b, a):
        rolled = home.rollback()
        assert rolled is not None
        assert rolled.version == expected


def test_a_promotion_that_never_came_to_serve_is_not_gone_back_to(home: Registry) -> None:
    a, b, c = (add(home, value) for value in (0.1, 0.2, 0.3))
    home.promote(a)
    home.promote(b)
    line = {"number": 3, "version": a, "former": 2, "time": "2026-01-01T00:00:00+00:00"}
    with (home.root / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    home.promote(c)
    found = [home.rollback() for _ in range(3)]
    assert [manifest.version if manifest else None for manifest in found] == [b, a, None]


def test_a_line_that_names_itself_as_its_former_is_none(home: Registry) -> None:
    a, b = add(home, 0.1), add(home, 0.2)
    home.promote(a)
    home.promote(b)
    line = {"number": 3, "version": b, "former": 3, "time": "2026-01-01T00:00:00+00:00"}
    with (home.root / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert home.before() == [a, None]


def test_a_broken_version_is_not_promoted_or_rolled_back_to(home: Registry) -> None:
    a, b = add(home, 0.1), add(home, 0.2)
    home.promote(a)
    home.promote(b)
    (home.path(a) / WEIGHTS).write_bytes(weights(0.9))
    for change in (lambda: home.promote(a), home.rollback):
        with pytest.raises(RegistryError, match=f"{a}: .*SHA-256"):
            change()
        assert serving(home) == b


def test_a_lost_history_is_said(home: Registry) -> None:
    a = add(home)
    home.promote(a)
    (home.root / "history.jsonl").unlink()
    with pytest.raises(RegistryError, match="promote a version instead"):
        home.rollback()
    assert serving(home) == a


@pytest.mark.parametrize("text", ["", "../../etc", "demo-1", "x" * 10_000])
def test_a_damaged_champion_is_said_and_mended_by_promoting(text: str, home: Registry) -> None:
    a = add(home)
    home.promote(a)
    (home.root / "champion").write_text(text)
    with pytest.raises(RegistryError, match="promote one"):
        home.champion()
    home.promote(a)
    assert serving(home) == a


# -- kills ---------------------------------------------------------------------------------------------------------------------------------


def kill_at(name: str) -> None:
    def killed(now: str) -> None:
        if now == name:
            os.kill(os.getpid(), signal.SIGKILL)

    registry.step = killed


def add_and_promote(folder: Path, name: str) -> None:
    kill_at(name)
    Registry(folder).promote(add(Registry(folder), 0.3))


def run(target: Callable[..., None], *arguments: object) -> int | None:
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    code = process.exitcode
    process.close()
    return code


def test_the_list_of_steps_is_what_happens(home: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(registry, "step", names.append)
    home.promote(add(home))
    assert tuple(names) == STEPS


@pytest.mark.parametrize("name", STEPS)
def test_a_kill_leaves_the_champion(name: str, home: Registry, tmp_path: Path) -> None:
    a, b = add(home, 0.1), add(home, 0.2)
    home.promote(a)
    home.promote(b)

    assert run(add_and_promote, tmp_path, name) == -signal.SIGKILL

    after = Registry(tmp_path)
    served = serving(after)
    assert served is not None
    assert (served != b) == (name == "settle champion")
    versions = [manifest.version for manifest in after.versions()]
    assert after.broken() == []
    for version in versions:
        after.verify(version)
    newest = after.show(add(after, 0.4))
    assert newest.number == (4 if STEPS.index(name) > STEPS.index("replace highest") else 3)
    assert not list(after.root.glob(".*.partial"))
    after.promote(newest.version)
    expected = [b, a, None] if served == b else [served, b, a, None]
    found = [after.rollback() for _ in expected]
    assert [manifest.version if manifest else None for manifest in found] == expected
