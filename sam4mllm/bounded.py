"""Run chat templates and regular expressions from foreign files in a process of their own, which is ended at a limit.

Neither Jinja's sandbox nor Python's regular expressions have a limit of their own: ``{% for %}`` in ``{% for %}``, ``10**10**10`` or
``(a+)+b`` can run for years inside one call, which no thread can interrupt. A process can be ended from outside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("bounded_worker.py")
CPU_SECONDS = 2
"""The most processor time of one call. Starting Python with Jinja takes 0.2 s of it, a published chat template or pattern a few
milliseconds."""
MEMORY_BYTES = 1 << 30
"""The most address space of one call; Python with Jinja takes 50 MB."""
WALL_SECONDS = 60.0
"""Most time of one call by the clock. It is this long because on a busy machine two seconds of processor time can take long."""
OUTPUT_CHARACTERS = 100_000
"""Most characters of a rendered conversation. Published templates write some hundreds around the four turns that are rendered here."""


class OverLimitError(Exception):
    """A template or patterns took more time or memory than is allowed, or wrote too much, so their process was ended. The message names the
    limits of time and memory.
    """


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Return a Jinja chat template rendered with ``variables``, in the environment that transformers gives such templates.

    Raises:
        OverLimitError: the template does not end within the limits, or writes more than ``OUTPUT_CHARACTERS``.
        ValueError: the text is no template, or an error occurs in it; the message is the first line of that error.
    """
    text: str = _call({"task": "render", "template": template, "variables": variables})
    return text


def match(patterns: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """For each regular expression, the indices of the names that it matches from end to end.

    Raises:
        OverLimitError: they do not end within the limits.
        ValueError: one is no regular expression.
    """
    found: list[list[int]] = _call({"task": "match", "patterns": list(patterns), "names": list(names)})
    return found


def _call(request: Mapping[str, Any]) -> Any:
    answer = json.loads(_run(json.dumps(request)))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


@lru_cache(maxsize=32)
def _run(request: str) -> str:
    """Return the worker's answer to ``request``, both as JSON text.

    The answers to the last 32 different requests are cached, so a model that is loaded again need not wait. Raises OverLimitError if the
    worker is ended or fails; that is not cached.
    """
    limits = [str(limit) for limit in (CPU_SECONDS, MEMORY_BYTES, OUTPUT_CHARACTERS)]
    command = [sys.executable, "-I", str(WORKER), *limits]  # isolated: nothing from the environment or the current folder is imported
    try:
        done = subprocess.run(command, input=request, capture_output=True, encoding="utf-8", timeout=WALL_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise OverLimitError(f"it does not end within {CPU_SECONDS} s of processor time and {MEMORY_BYTES >> 30} GB of memory") from error
    return done.stdout
