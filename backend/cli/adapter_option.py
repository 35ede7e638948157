"""What ``--adapter`` means to a server, and what an adapter's papers say that no setting does."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from backend.settings import Settings
from sam4mllm.adapters.fields import FILES
from sam4mllm.adapters.files import parts_of
from sam4mllm.adapters.follow import choose_model, choose_segmenter
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, appoint
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.options import NO_ADAPTER, NO_MODEL


def appoint_adapter(settings: Settings, adapter: str) -> None:
    """Let an adapter serve first in an empty home. Raises Sam4mllmError."""
    if not settings.has_model:
        raise ModelError(NO_ADAPTER.format(adapter))
    given = {name: getattr(settings, name) for name in ("model", "segmenter") if name in settings.model_fields_set}
    claims = Claims(**given, device=settings.device, options=settings.options, precision=settings.precision)
    appoint(adapter, Registry(settings.home), claims)


def follow_adapter(home: Path, adapter: str | None = None) -> None:
    """Set the model and the segmenter that are not set as an adapter's papers say; if none is given, those of the version that serves, or
    served last: after a rollback to the base model that base model is still the one.

    Raises RegistryError if the segmenter is set against them, or an adapter that is given cannot be read, and ModelError if one is given
    and the model is none: then no version of the home serves, and none has a say.
    """
    if os.environ.get("SAM4MLLM_MODEL") == NO_MODEL:
        if adapter is not None:
            raise ModelError(NO_ADAPTER.format(adapter))
        return
    folder = None if adapter is None else find_adapter(adapter, home)
    papers = _last_served(home) if folder is None else read_papers(folder)
    if folder is not None and papers is None and FILES not in parts_of(folder):  # the rest is the champion's
        papers = _last_served(home)
    drawing = Registry(home).root / papers.version if folder is None and isinstance(papers, Manifest) else folder
    if papers is not None and papers.dialect is None:  # of an earlier release, whose models have no full names
        return
    if papers is not None or drawing is not None:
        os.environ["SAM4MLLM_SEGMENTER"] = choose_segmenter(os.environ.get("SAM4MLLM_SEGMENTER"), papers, drawing)
        os.environ.setdefault("SAM4MLLM_MODEL", choose_model(None, papers, folder))


def _last_served(home: Path) -> Papers | None:
    """Of damaged versions nothing is said here: whoever loads them goes back to the one before."""
    registry, names = Registry(home), list[str | None]()
    with suppress(RegistryError):
        names.append(registry.serving())
    with suppress(RegistryError):
        names += [line.version for line in reversed(registry.history())]
    for name in filter(None, names):
        with suppress(RegistryError):
            return registry.show(name)
    return None
