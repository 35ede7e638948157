"""What ``--adapter`` means to a server, and what an adapter's papers say that no setting does."""

from __future__ import annotations

import os
from pathlib import Path

from backend.settings import Settings
from sam4mllm.adapters.follow import choose_segmenter
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, appoint


def appoint_adapter(settings: Settings, adapter: str) -> None:
    """Let an adapter serve first in an empty home. Raises Sam4mllmError."""
    given = {name: getattr(settings, name) for name in ("model", "segmenter") if name in settings.model_fields_set}
    claims = Claims(**given, device=settings.device, options=settings.options, precision=settings.precision)
    appoint(adapter, Registry(settings.home), claims)


def follow_adapter(home: Path, adapter: str | None = None) -> None:
    """Set the model and the segmenter that are not set as an adapter's papers say, those of the champion if none is given.

    Raises RegistryError if the segmenter is set against them.
    """
    papers = Registry(home).champion() if adapter is None else read_papers(find_adapter(adapter, home))
    if papers is None or papers.dialect is None:  # of an earlier release, whose models have no full names
        return
    os.environ["SAM4MLLM_SEGMENTER"] = choose_segmenter(os.environ.get("SAM4MLLM_SEGMENTER"), papers)
    os.environ.setdefault("SAM4MLLM_MODEL", papers.base_model)
