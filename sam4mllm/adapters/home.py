"""The folder in which the versions of adapters are kept."""

from __future__ import annotations

import os
from pathlib import Path

HOME = Path("~/.local/share/sam4mllm").expanduser()
"""Where versions are kept unless SAM4MLLM_HOME says otherwise."""


def find_home() -> Path:
    """Return the folder that holds the registry of adapters and what a server keeps: the one that the environment variable SAM4MLLM_HOME
    names, or HOME if that is unset or empty.
    """
    return Path(os.environ.get("SAM4MLLM_HOME") or HOME).expanduser()
