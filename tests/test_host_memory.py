"""Freed memory stays with a process that asks for it, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = """
import resource, sys, threading
import numpy as np
from sam4mllm.host_memory import keep_freed_memory
print(keep_freed_memory())
def picture():
    for _ in range(50):
        np.full(8_000_000, 1, np.uint8)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=picture)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def run(**environment: str) -> tuple[str, int]:
    """What the function said, and the page faults of fifty pictures after as many others."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", WORK], env={**bare, **environment}, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_pages_are_used_again() -> None:
    said, kept = run()
    if said == "False":
        pytest.skip("this C library has no mallopt")
    said, given_back = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert said == "False"
    assert kept < given_back / 20
