"""A number from 0 to 1 for each picture. It decides which pictures are held out, and which tasks are shown without a mask."""

from __future__ import annotations

import hashlib


def place_of(image_sha256: str) -> float:
    """Return the number of a picture, from 0 to 1 (1 excluded), by the SHA-256 of its file. Rounded down to hundredths, it is the number
    that earlier releases used.
    """
    number = int(hashlib.sha256(image_sha256.encode()).hexdigest(), 16)
    hundredth, rest = number % 100, number // 100 % 10**9
    return (hundredth + rest / 10**9) / 100
