"""Make glibc keep the memory that this process frees, so that the next picture uses the same pages again.

A picture's tensors are larger than what glibc keeps by default. It would take their pages from the system for each picture and give them
back after it, and the system has to fill each new page with zeros.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of parameters of glibc's mallopt(3), with their names in ``malloc.h``."""
KEPT = 1 << 30
"""Bytes that may be free at the heap's end before any are given back to the system; also the largest single request that the heap serves
itself, rather than by a mapping of its own."""

OLDER_MOST = 32 << 20
"""The largest value, in bytes, that an older glibc accepts for M_MMAP_THRESHOLD."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory that is freed, and to use one heap for all threads, because the models' thread frees what others allocated.

    Call it before threads begin. Return whether glibc accepted each setting; an older glibc is given OLDER_MOST in place of KEPT for the
    largest request. Nothing is changed, and False is returned, without glibc or if the environment has MALLOC_ variables, which then hold.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if not any(mallopt(M_MMAP_THRESHOLD, most) for most in (KEPT, OLDER_MOST)):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_ARENA_MAX, 1))
