"""What serves must go on serving: through kills, full disks and names that are hostile."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import resource
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


def roll_back(folder: Path, name: str) -> None:
    kill_at(name)
    Registry(folder).rollback()


def add_many(folder: Path, value: float) -> None:
    for count in range(8):
        Registry(folder).promote(add(Registry(folder), value + count))


def fill_up(folder: Path, version: str) -> None:
    """Real short writes: the system refuses to let a file grow, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    for change in (lambda: add(Registry(folder)), lambda: Registry(folder).promote(version), Registry(folder).rollback):
        with pytest.raises(RegistryError, match="cannot be written"):
            change()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


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


@pytest.mark.parametrize("name", STEPS)
def test_a_kill_in_a_new_home_leaves_the_base_model_or_the_champion(name: str, tmp_path: Path) -> None:
    assert run(add_and_promote, tmp_path, name) == -signal.SIGKILL
    after = Registry(tmp_path)
    assert (serving(after) is not None) == (name == "settle champion")
    version = add(after)
    after.promote(version)
    assert serving(after) == version


@pytest.mark.parametrize("name", STEPS[STEPS.index("append history") :])
def test_a_kill_of_a_rollback(name: str, home: Registry, tmp_path: Path) -> None:
    a, b, c = (add(home, value) for value in (0.1, 0.2, 0.3))
    for version in (a, b, c):
        home.promote(version)
    assert run(roll_back, tmp_path, name) == -signal.SIGKILL
    after = Registry(tmp_path)
    expected = [c, b, a, None] if name != "settle champion" else [b, a, None]
    assert serving(after) == expected[0]
    found = [after.rollback() for _ in expected[1:]]
    assert [manifest.version if manifest else None for manifest in found] == expected[1:]


def test_two_processes_use_one_home(tmp_path: Path) -> None:
    both = [PROCESSES.Process(target=add_many, args=(tmp_path, value)) for value in (1.0, 2.0)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
        process.close()
    home = Registry(tmp_path)
    assert [manifest.number for manifest in home.versions()] == list(range(1, 17))
    assert [line.number for line in home.history()] == list(range(1, 17))
    for manifest in home.versions():
        home.verify(manifest.version)
    assert serving(home) is not None


# -- disks that refuse ---------------------------------------------------------------------------------------------------------------------


class Refusing:
    """Lets ``calls`` changes of the disk pass and refuses every later one, as a disk does that is full or was mounted read-only."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int, calls: int) -> None:
        self.left, self.code, self.refused = calls, code, ""
        for name in ("mkdir", "fsync", "replace"):
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: Any, **kwargs: Any) -> object:
            self.left -= 1
            if self.left < 0:
                self.refused = self.refused or name
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return wrapped


def refusal(home: Registry, version: str) -> str:
    try:
        home.add(adapter(0.3), **ORIGIN)
        home.promote(version)
    except RegistryError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_the_champion_goes_on_serving_from_a_disk_that_refuses(code: int, home: Registry, tmp_path: Path) -> None:
    old = add(home, 0.1)
    home.promote(old)
    new = add(home, 0.2)
    served, calls = [old], 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            refusing = Refusing(patch, code, calls)
            message = refusal(home, new)
            assert not message or ("cannot be written" in message and os.strerror(code) in message)
            assert bool(message) == bool(refusing.refused)
            served.append(str(serving(Registry(tmp_path))))
        if not refusing.refused:
            break
        assert home.broken() == []
        assert not (home.root / ".version.partial").exists(), "a full disk is not filled further"
        assert served[-1] == old or calls >= 14, calls
        home.promote(old)
        calls += 1
    assert calls == 15, "each mkdir, fsync and replace was refused once"
    assert served[-1] == new
    assert set(served) == {old, new}


def test_the_champion_goes_on_serving_when_writes_are_cut_short(home: Registry, tmp_path: Path) -> None:
    a, b, c = (add(home, value) for value in (0.1, 0.2, 0.3))
    home.promote(a)
    home.promote(b)
    assert run(fill_up, tmp_path, c) == 0
    assert serving(home) == b
    assert len(home.versions()) == 3
    home.promote(c)
    assert [manifest.version for manifest in (home.rollback(), home.rollback()) if manifest] == [b, a]


def test_a_home_that_may_not_be_written(home: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = add(home, 0.1), add(home, 0.2)
    home.promote(a)

    real = os.open

    def read_only(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    for change in (lambda: add(home), lambda: home.promote(b), home.rollback):
        with pytest.raises(RegistryError, match="Permission denied"):
            change()
    assert serving(home) == a
    assert len(home.versions()) == 2


def test_a_source_that_is_missing(home: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"lost\.safetensors cannot be read"):
        home.add({**adapter(), WEIGHTS: tmp_path / "lost.safetensors"}, **ORIGIN)
    assert home.versions() == []


# -- names and links -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    [
        "..",
        ".",
        "",
        "../demo-1-00000000",
        "demo-1-00000000/..",
        "/etc",
        "demo-0-00000000",
        "demo-1-0000000G",
        "demo-1-00000000\n",
        "demo-١-00000000",
        "demo-1-00000000\0",
        "demo-01-00000000",
        "DEMO-1-00000000",
        "champion",
        f"{'a' * 33}-1-00000000",
        "..\\demo-1-00000000",
    ],
)
def test_names_that_are_no_version_are_refused(version: str, home: Registry, tmp_path: Path) -> None:
    add(home)
    calls: tuple[Callable[[], object], ...] = (
        lambda: home.path(version),
        lambda: home.show(version),
        lambda: home.verify(version),
        lambda: home.promote(version),
        lambda: home.export(version, tmp_path / "out"),
    )
    for call in calls:
        with pytest.raises(RegistryError, match="is no version"):
            call()


def test_links_and_renamed_folders_are_no_versions(home: Registry, tmp_path: Path) -> None:
    version = add(home)
    shutil.copytree(home.path(version), tmp_path / "outside")
    (home.root / "demo-5-00000000").symlink_to(tmp_path / "outside")
    (home.root / "demo-6-00000000").symlink_to(home.path(version))
    for name in ("demo-5-00000000", "demo-6-00000000"):
        with pytest.raises(RegistryError, match="is a link"):
            home.verify(name)
    shutil.copytree(home.path(version), home.root / "demo-7-00000000")
    with pytest.raises(RegistryError, match="cannot be renamed"):
        home.verify("demo-7-00000000")
    with pytest.raises(RegistryError, match="there is no version"):
        home.verify("demo-8-00000000")
    assert [manifest.version for manifest in home.versions()] == [version]
    assert len(home.broken()) == 3


def test_leftovers_are_swept_and_links_not_followed(home: Registry, tmp_path: Path) -> None:
    add(home)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (home.root / ".version.partial").symlink_to(tmp_path / "precious")
    (home.root / ".champion.partial").write_text("x")
    (home.root / ".other.partial").mkdir()
    (home.root / ".other.partial" / "file").write_text("x")
    add(home)
    assert not list(home.root.glob(".*.partial"))
    assert (tmp_path / "precious" / "file").read_text() == "x"
