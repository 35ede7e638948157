"""The project's brush codec compared with Label Studio's own: whether both write the same bytes, and how long each takes.

    python benchmarks/brush.py --sdk FOLDER        # FOLDER holds label_studio_sdk/, from an unpacked wheel
    python benchmarks/brush.py --sdk FOLDER --digests        # the golden digests of tests/test_brush.py

Without ``--sdk``, an installed ``label_studio_sdk`` is used; if there is none, only the times of the project's own codec are shown. The
masks are made with SHAKE-256 and integer arithmetic, so they are the same on every machine and with every version of numpy.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The checkout need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend.brush import decode, encode

Mask = NDArray[np.uint8]
DIGESTS = 30
HALF = 1 << 15


# Masks


def noise(seed: str, height: int, width: int) -> Mask:
    """Return bytes (height, width) that look random and depend on nothing but the seed and the size."""
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(height * width), np.uint8).reshape(height, width)


def distance(height: int, width: int, jitter: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
    """Return (height, width) the squared distance from the middle, scaled so that it is 65,536 at the middle of each edge.

    ``jitter`` (height, 1) shifts each row to the left by so many pixels.
    """
    y, x = np.mgrid[:height, :width]
    across, down = 2 * (x + jitter) + 1 - width, 2 * y + 1 - height
    out: NDArray[np.int64] = (across**2 << 16) // width**2 + (down**2 << 16) // height**2
    return out


def disc(seed: str, height: int, width: int) -> Mask:
    return (distance(height, width) < HALF) * np.uint8(255)


def ragged(seed: str, height: int, width: int) -> Mask:
    """An ellipse whose outline jumps from row to row, as a segmenter's does on hair or leaves."""
    jitter = noise(seed, height, 1).astype(np.int64) * (width // 40) // 256
    return (distance(height, width, jitter) < HALF) * np.uint8(255)


def soft(seed: str, height: int, width: int) -> Mask:
    """An ellipse with a grey edge, as the browser's brush leaves it."""
    # The values change by about 64 from one pixel to the next.
    return np.clip(128 + (HALF - distance(height, width)) * min(height, width) // 2900, 0, 255).astype(np.uint8)


def speckle(seed: str, height: int, width: int) -> Mask:
    """A ragged ellipse with 2 % of all pixels inverted."""
    return np.where(noise(seed, height, width) < 5, ~ragged(seed, height, width), ragged(seed, height, width))


def salt(seed: str, height: int, width: int) -> Mask:
    return (noise(seed, height, width) > 127) * np.uint8(255)


def blobs(seed: str, height: int, width: int) -> Mask:
    """Squares of 8 x 8 pixels on and off."""
    coarse = salt(seed, -(-height // 8), -(-width // 8))
    return np.kron(coarse, np.ones((8, 8), np.uint8))[:height, :width]


def stripes(seed: str, height: int, width: int) -> Mask:
    return np.repeat(noise(seed, height, 1) & 192, width, axis=1)


def empty(seed: str, height: int, width: int) -> Mask:
    return np.zeros((height, width), np.uint8)


def full(seed: str, height: int, width: int) -> Mask:
    return np.full((height, width), 255, np.uint8)


KINDS: tuple[Callable[[str, int, int], Mask], ...] = (disc, ragged, soft, speckle, salt, noise, blobs, stripes, empty, full)


def sample(index: int) -> Mask:
    """Return the sample mask of a number. The kinds take turns.

    Most sides are 1 to 128 pixels long; some masks are a single pixel, row or column, or have sides of 256 to 511.
    """
    seed = f"brush {index}"
    a, b, shape, _ = hashlib.shake_256(seed.encode()).digest(4)
    height, width = {0: (1, 1), 1: (1, 1 + b), 2: (1 + a, 1), 3: (256 + a, 256 + b)}.get(shape % 16, (1 + a // 2, 1 + b // 2))
    return KINDS[index % len(KINDS)](seed, height, width)


# Label Studio's codec


def load_sdk(folder: Path | None) -> ModuleType | None:
    """Import the SDK's ``converter/brush.py`` alone, without the packages that the rest of the SDK needs; None if there is no SDK.

    ``folder`` holds ``label_studio_sdk/``; None means the installed SDK.
    """
    if folder is None:
        spec = importlib.util.find_spec("label_studio_sdk")
        if spec is None or not spec.submodule_search_locations:
            return None
        package = Path(spec.submodule_search_locations[0])
    else:
        package = folder / "label_studio_sdk"
    spec = importlib.util.spec_from_file_location("label_studio_brush", package / "converter" / "brush.py")
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agrees(sdk: ModuleType, mask: Mask) -> bool:
    """Whether both codecs write the same bytes, except for a trailing zero of the SDK's, and each decodes what the other wrote."""
    ours, theirs = encode(mask), sdk.mask2rle(mask)
    same = theirs in (ours, [*ours, 0])
    read = np.array_equal(decode(theirs, *mask.shape), mask)
    return same and read and np.array_equal(sdk.decode_rle(ours), np.repeat(mask.ravel(), 4))


# Reports


def median_ms(call: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def compare(sdk: ModuleType, count: int) -> bool:
    equal = sum(agrees(sdk, sample(index)) for index in range(count))
    print(f"masks compared {count:,}, equal {equal:,}")
    return equal == count


def print_times(sdk: ModuleType | None, runs: int) -> None:
    rows = [("ragged", ragged, 640, 480), ("ragged", ragged, 1920, 1080), ("ragged", ragged, 4032, 3024)]
    rows += [("soft", soft, 1920, 1080), ("speckle 2 %", speckle, 1920, 1080), ("grey noise", noise, 640, 480)]
    print(
        f"median of {runs}, ms".ljust(26) + "bytes".rjust(9) + "".join(f"{step:>9}{'SDK':>9}{'ratio':>8}" for step in ("encode", "decode"))
    )
    for name, make, width, height in rows:
        mask = make("benchmark", height, width)
        rle = encode(mask)
        ours = [median_ms(partial(encode, mask), runs), median_ms(partial(decode, rle, height, width), runs)]
        theirs = [float("nan")] * 2
        if sdk is not None:
            theirs = [median_ms(partial(sdk.mask2rle, mask), runs), median_ms(partial(sdk.decode_rle, rle), runs)]
        figures = "".join(f"{a:9.2f}{b:9.1f}{b / a:7.1f}x" for a, b in zip(ours, theirs, strict=True))
        print(f"{name:12}{f'{width} x {height}':>14}{len(rle):9,}{figures}")


def print_digests(sdk: ModuleType) -> None:
    """Print the SHA-256 of the SDK's encoding of each of the first DIGESTS samples, with trailing zeros, as lines for the test."""
    for index in range(DIGESTS):
        print(f'    "{hashlib.sha256(bytes(sdk.mask2rle(sample(index)))).hexdigest()}",')


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our brush codec beside Label Studio's own.")
    parser.add_argument("--sdk", type=Path, metavar="FOLDER", help="a folder that holds label_studio_sdk/")
    parser.add_argument("--masks", type=int, default=1000, help="masks to compare (default: 1000)")
    parser.add_argument("--runs", type=int, default=7, help="runs of which the median is shown (default: 7)")
    parser.add_argument("--digests", action="store_true", help="print the digests for the tests and stop")
    options = parser.parse_args(arguments)
    sdk = load_sdk(options.sdk)
    if options.digests:
        if sdk is None:
            parser.error("the digests are the SDK's: give --sdk FOLDER")
        print_digests(sdk)
        return 0
    if sdk is None:
        print("label_studio_sdk is not installed, and no --sdk FOLDER was given: only our own times follow")
    same = sdk is None or compare(sdk, options.masks)
    print_times(sdk, options.runs)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
