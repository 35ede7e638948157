"""Copies of an adapter's folder: with a changed manifest, or with none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam4mllm.adapters.fields import MANIFEST


def copied(folder: Path, to: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> Path:
    shutil.copytree(folder, to)
    manifest = json.loads((to / MANIFEST).read_text())
    change(manifest)
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to


def without_papers(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    (to / MANIFEST).unlink()
    return to
