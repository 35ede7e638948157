"""The registry of versions when a process is killed, a disk refuses, and names are foreign."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.adapters.fields import WEIGHTS
from sam4mllm.adapters.registry import STEPS, Registry
from sam4mllm.errors import RegistryError
from tests.adapter_files import ORIGIN, adapter
from tests.test_adapters import add
from tests.test_registry import PROCESSES, add_and_promote, kill_at, run, serving


@pytest.fixture
def home(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


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
