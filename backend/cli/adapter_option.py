"""What ``--adapter`` means to a server, and what an adapter's papers say that no setting does."""

from __future__ import annotations

import os
from pathlib import Path

from sam4mllm.adapters.adopt import Claims, appoint
from sam4mllm.adapters.follow import choose_segmenter
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.registry import Registry


def appoint_adapter(home: Path, adapter: str) -> None:
    """Let an adapter serve first in an empty home. Raises Sam4mllmError."""
    appoint(adapter, Registry(home), Claims(os.environ.get("SAM4MLLM_MODEL")))


def follow_adapter(home: Path, adapter: str | None = None) -> None:
    """Set the model and the segmenter that are not set as an adapter's papers say, those of the champion if none is given.

    Raises RegistryError if the segmenter is set against them.
    """
    papers = Registry(home).champion() if adapter is None else read_papers(find_adapter(adapter, home))
    if papers is None or papers.dialect is None:  # of an earlier release, whose models have no full names
        return
    os.environ["SAM4MLLM_SEGMENTER"] = choose_segmenter(os.environ.get("SAM4MLLM_SEGMENTER"), papers)
    os.environ.setdefault("SAM4MLLM_MODEL", papers.base_model)
