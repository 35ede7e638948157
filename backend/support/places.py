"""A place from 0 to 1 for each picture: who is held out, and whose tasks are shown without a mask, follows from it."""

from __future__ import annotations

import hashlib


def place_of(image_sha256: str) -> float:
    """The place of a picture, by the SHA-256 of its file: from 0 to 1, 1 excluded. Its hundredth is what earlier releases went by."""
    number = int(hashlib.sha256(image_sha256.encode()).hexdigest(), 16)
    hundredth, rest = number % 100, number // 100 % 10**9
    return (hundredth + rest / 10**9) / 100
