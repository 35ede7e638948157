"""Applies the option ``--adapter`` of the server's commands, and the settings that an adapter's papers imply."""

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
    """Make an adapter, a folder or a version, the champion of SAM4MLLM_HOME. If the home has no adapters, it is registered first.

    If the home has ever decided on a champion and either holds the adapter or finds no such folder or version, nothing changes. Raises
    ModelError if the settings have no model, RegistryError if the home has other adapters but not this one, and what
    :func:`~sam4mllm.adopt.adopt` raises.
    """
    if not settings.has_model:
        raise ModelError(NO_ADAPTER.format(adapter))
    given = {name: getattr(settings, name) for name in ("model", "segmenter") if name in settings.model_fields_set}
    claims = Claims(**given, device=settings.device, options=settings.options, precision=settings.precision)
    appoint(adapter, Registry(settings.home), claims)


def follow_adapter(home: Path, adapter: str | None = None) -> None:
    """Set SAM4MLLM_MODEL and SAM4MLLM_SEGMENTER, where they are not set, as an adapter's papers (its ``manifest.json``) say.

    Without ``adapter``, the papers are those of the version that serves, or that served last: after a rollback to the base model they still
    name that model. Nothing is set if there are no papers and no ``adapter``, or if the papers come from a release whose papers did not
    name the model in full. A name that the papers lack is taken from the adapter's own configuration, else it is ``demo``.

    Raises RegistryError if the segmenter is set to another than the papers', or if the given adapter cannot be read. If SAM4MLLM_MODEL is
    none, no version of the home serves and nothing is set; a given adapter then raises ModelError.
    """
    if os.environ.get("SAM4MLLM_MODEL") == NO_MODEL:
        if adapter is not None:
            raise ModelError(NO_ADAPTER.format(adapter))
        return
    folder = None if adapter is None else find_adapter(adapter, home)
    papers = _last_served(home) if folder is None else read_papers(folder)
    if folder is not None and papers is None and FILES not in parts_of(folder):  # it changes only the segmenter, so the MLLM is the home's
        papers = _last_served(home)
    drawing = Registry(home).root / papers.version if folder is None and isinstance(papers, Manifest) else folder
    if papers is not None and papers.dialect is None:  # papers of an earlier release, which do not name the model in full
        return
    if papers is not None or drawing is not None:
        os.environ["SAM4MLLM_SEGMENTER"] = choose_segmenter(os.environ.get("SAM4MLLM_SEGMENTER"), papers, drawing)
        os.environ.setdefault("SAM4MLLM_MODEL", choose_model(None, papers, folder))


def _last_served(home: Path) -> Papers | None:
    """Return the papers of the version that serves or served last, or None. Damaged versions are passed over without a message: the code
    that loads them falls back to the version before.
    """
    registry, names = Registry(home), list[str | None]()
    with suppress(RegistryError):
        names.append(registry.serving())
    with suppress(RegistryError):
        names += [line.version for line in reversed(registry.history())]
    for name in filter(None, names):
        with suppress(RegistryError):
            return registry.show(name)
    return None
