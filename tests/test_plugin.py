"""The class for label-studio-ml's servers, against doubles of both generations' documented base classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backend import plugin
from backend.corrections import CorrectionLog
from tests.backend_fakes import CONFIG, House, house, task

CONTEXT = {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": ["the dog"]}}]}


class OldBase:
    """1.0.9: made once a setup, ``fit`` in another process."""

    def __init__(self, label_config: str | None = None, train_output: object = None, **_: Any) -> None:
        self.label_config = label_config


class NewBase:
    """2.x: made once a request."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.label_config = label_config
        self.kept: dict[str, str] = {}
        self.setup()

    def setup(self) -> None: ...

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    made = house(tmp_path)
    monkeypatch.setattr(plugin, "_service", lambda: made.service)
    yield made
    made.service.close(5.0)


def install(base: type, monkeypatch: pytest.MonkeyPatch) -> Any:
    package, module = ModuleType("label_studio_ml"), ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", package)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    monkeypatch.delitem(plugin.__dict__, "Sam4mllmBackend", raising=False)
    made = plugin.Sam4mllmBackend
    monkeypatch.delitem(plugin.__dict__, "Sam4mllmBackend")
    return made


def test_new_generation(where: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(NewBase, monkeypatch)(project_id="1", label_config=CONFIG)
    assert backend.kept == {"model_version": where.service.version}
    [answer, failed] = backend.predict([task(description="the dog"), {}])
    assert (answer["model_version"], failed) == (where.service.version, [])
    assert backend.predict([task()], context=CONTEXT)[0]["result"]
    backend.fit("ANNOTATION_CREATED", {"annotation": {"id": 1}}, extra=1)
    [event] = CorrectionLog(tmp_path / "corrections.sqlite").events()
    assert event.body == {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}


def test_old_generation(where: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(OldBase, monkeypatch)(label_config=CONFIG, hostname="", access_token="")
    [answer] = backend.predict([task(description="the dog")], login=None, password=None, context=None)
    assert answer["result"]
    assert "model_version" not in answer
    assert backend.predict([task()], context=CONTEXT)[0]["result"]
    job = tmp_path / "123"
    job.mkdir()
    (job / "event.json").write_text("{}", encoding="utf-8")
    assert backend.fit((), event="ANNOTATION_UPDATED", data={"annotation": {"id": 2}}, job_id="123", workdir=str(job)) is None
    [event] = CorrectionLog(tmp_path / "corrections.sqlite").events()
    assert event.action == "ANNOTATION_UPDATED"
    assert not job.exists()


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        plugin.Nothing  # noqa: B018
