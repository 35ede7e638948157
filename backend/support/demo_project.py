"""What to say where the demo's models serve a project that is not the demo's: they know drawn scenes, and find nothing in photos."""

from __future__ import annotations

from pathlib import Path

from backend.settings import Settings
from sam4mllm.durable import replace_file

FILE = "demo-project.txt"
"""The name of the file in SAM4MLLM_HOME that holds the id of the demo's project in Label Studio; `sam4mllm demo` writes it."""


def note_demo(home: Path, project: int) -> None:
    """Write into the folder ``home`` which project is the demo's; the folder is made if need be."""
    home.mkdir(parents=True, exist_ok=True)
    replace_file(home / FILE, str(project).encode())


def demo_notice(settings: Settings, project: int | None = None) -> str:
    """Return a line that names the demo models in use and the settings to change; empty if none is in use, or if ``project`` is the demo's,
    by the file FILE in the settings' home.

    With ``project`` None the line is about the whole server, and is empty if its home has that file.
    """
    asked = settings.strategy != "concept"
    named = {"SAM4MLLM_MODEL": asked and settings.model == "demo", "SAM4MLLM_SEGMENTER": settings.segmenter.split("+")[-1] == "demo"}
    unset = [name for name, is_demo in named.items() if is_demo]
    noted = _noted(settings.home) if unset else None
    if not unset or (noted is not None and project in (None, noted)):
        return ""
    which = "models serve" if len(unset) == 2 else "segmenter serves" if named["SAM4MLLM_SEGMENTER"] else "language model serves"
    return f"the demo's {which}, made for drawn scenes and not for photos; set {' and '.join(unset)} (docs/which.md)"


def _noted(home: Path) -> int | None:
    try:
        return int((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
