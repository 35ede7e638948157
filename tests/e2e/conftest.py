"""A real Label Studio, this backend with the shipped models, and a browser; each started once and only if a test asks for it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from backend.demo.launch import READY_TIMEOUT, find_label_studio, is_ready, start_backend
from backend.demo.local_label_studio import LocalLabelStudio
from backend.errors import SettingsError
from backend.support.child import HOST, check_port
from sam4mllm.durable import locked

if TYPE_CHECKING:
    from tests.e2e.editor import Editor

START_SECONDS = 1200
"""For a test that may be the first to start Label Studio: a new database is migrated, on a machine that may be busy."""


class BackendServer(NamedTuple):
    """The running backend: its address, and the folder with its data and ``backend.log``."""

    url: str
    home: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The start of the servers counts as time of the test that comes first."""
    for item in items:
        if "label_studio" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(START_SECONDS))


@pytest.fixture(scope="session")
def label_studio_data(pytestconfig: pytest.Config) -> Path:
    """The data of a Label Studio that was started once and has no project: its database takes most of a minute to make.

    Kept in pytest's cache, for each Label Studio by itself, so that all processes of a run and the runs after it copy the same one.
    """
    try:
        executable = find_label_studio()
    except SettingsError as error:
        pytest.skip(str(error))
    of = hashlib.sha256(f"{executable.resolve()} {executable.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    cache = pytestconfig.cache
    assert cache is not None
    place = cache.mkdir("label-studio")
    with locked(place / f"{of}.lock"):
        if not (place / of).exists():
            making = place / f"{of}.making"
            shutil.rmtree(making, ignore_errors=True)  # of a run that was broken off
            with LocalLabelStudio(executable, making):
                pass
            making.rename(place / of)
    return place / of


@pytest.fixture(scope="session")
def label_studio(label_studio_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    """Label Studio with an empty database."""
    folder = shutil.copytree(label_studio_data, tmp_path_factory.mktemp("label-studio") / "data")
    files = tmp_path_factory.mktemp("local-files")
    with LocalLabelStudio(find_label_studio(), folder, local_files=files) as running:
        yield running


@contextlib.contextmanager
def serving(home: Path, label_studio: LocalLabelStudio, **settings: str) -> Iterator[str]:
    """The address of a backend with the demo models, ready, and with access to ``label_studio``."""
    port = check_port(0)
    url = f"http://{HOST}:{port}"
    child = start_backend(home, port, label_studio, **settings)
    try:
        child.wait_until(lambda: is_ready(url), READY_TIMEOUT, lambda _: None)
        yield url
    finally:
        child.stop()


@pytest.fixture(scope="session")
def backend_server(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendServer]:
    """The one that the tests share."""
    home = tmp_path_factory.mktemp("backend")
    with serving(home, label_studio) as url:
        yield BackendServer(url, home)


@pytest.fixture(scope="module")
def editor(label_studio: LocalLabelStudio) -> Iterator[Editor]:
    """A browser, logged in; nothing but loopback is let through, and afterwards nothing else may have been asked for."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    from tests.e2e.editor import Editor, find_chromium  # noqa: PLC0415

    if find_chromium() is None:
        pytest.skip("there is no Chromium: install your system's package chromium")
    with Editor.launch(label_studio.url) as opened:
        opened.log_in(label_studio.user, label_studio.password)
        yield opened
        assert not opened.blocked


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for pages that are not Label Studio's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    from tests.e2e.editor import ARGUMENTS, SHOTS, find_chromium  # noqa: PLC0415 – needs playwright

    if find_chromium() is None:
        pytest.skip("there is no Chromium: install your system's package chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        yield chromium
        chromium.close()
