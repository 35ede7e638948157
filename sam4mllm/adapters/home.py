"""The folder in which the versions of adapters are kept."""

from __future__ import annotations

import os
from pathlib import Path

HOME = Path("~/.local/share/sam4mllm").expanduser()
"""Where versions are kept unless SAM4MLLM_HOME says otherwise."""


def find_home() -> Path:
    """Return the folder in which everything is kept: that of SAM4MLLM_HOME, or HOME."""
    return Path(os.environ.get("SAM4MLLM_HOME") or HOME).expanduser()
