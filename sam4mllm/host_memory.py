"""Memory that is freed stays with the process.

A picture's tensors are larger than what glibc keeps by default: it would take their pages from the system for each picture and give them
back after it, and the system has to fill each page with zeros. A process that works picture by picture uses the same pages again.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Names of glibc's ``malloc.h`` (mallopt(3))."""
KEPT = 1 << 30
"""Bytes: what is free at the heap's end is given back only beyond it, and what is asked for at once is of the heap up to it."""

OLDER_MOST = 32 << 20
"""Bytes up to which an older glibc takes the second of these."""


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed, and to have one heap for all threads, for the models' thread frees what others asked for.

    To be called before threads begin. False, and nothing is changed, without glibc or where the environment's MALLOC_ variables say what
    is wanted.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if not any(mallopt(M_MMAP_THRESHOLD, most) for most in (KEPT, OLDER_MOST)):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_ARENA_MAX, 1))
