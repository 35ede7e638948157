"""Foreign pictures in processes that can be ended: what takes too long or too much is refused, and the next picture is decoded."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from backend.errors import DeadlineError
from backend.images.decoding import Decoder
from backend.images.fetch import Fetcher
from backend.images.store import ImageStore
from sam4mllm.errors import ImageError
from sam4mllm.images import load_image
from tests.hostile_files import huge_tile, many_scans, odd_tags
from tests.test_images import JPEG, gradient, packed, png_chunk

PICTURE = packed(Image.fromarray(gradient(240, 400)), "PNG")


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(cpu_seconds=1, processes=1)
    yield made
    made.close()


def many_chunks(count: int) -> bytes:
    """A PNG that states its gamma so many times; the reader keeps one, so only time is taken."""
    return PICTURE[:-12] + png_chunk(b"gAMA", bytes(4)) * count + PICTURE[-12:]


def many_comments(count: int) -> bytes:
    """A GIF with so many comments before its frame."""
    gif = packed(Image.new("P", (8, 8)), "GIF")
    start = gif.index(b",")
    return gif[:start] + b"\x21\xfe\x01a\x00" * count + gif[start:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_those_of_load_image(decoder: Decoder, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = packed(Image.fromarray(gradient(600, 301)), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    pixels = decoder.decode(data)
    np.testing.assert_array_equal(pixels, load_image(data))
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("data", [b"", b"no picture", PICTURE[:60], packed(Image.new("RGB", (4, 4)), "PNG")])
def test_what_load_image_refuses_is_refused_in_its_words(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(ImageError) as known:
        load_image(data)
    with pytest.raises(ImageError, match="^" + str(known.value).replace("(", r"\(").replace(")", r"\)") + "$"):
        decoder.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(many_scans(2000, 20_000), id="JPEG of 20,000 scans"),
        pytest.param(many_scans(1000, 40_000, "RGB"), id="small colour JPEG of 40,000 scans"),
        pytest.param(many_chunks(3_000_000), id="PNG of 3,000,000 chunks"),
        pytest.param(many_comments(4_000_000), id="GIF of 4,000,000 comments"),
    ],
)
def test_what_takes_too_long_is_ended_and_not_begun_again(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(ImageError, match="longer than 1 s of CPU time to decode"):
        decoder.decode(data, 60)
    began = time.monotonic()
    with pytest.raises(ImageError, match="longer than 1 s of CPU time to decode"):
        decoder.decode(data, 60)
    assert time.monotonic() - began < 0.5
    assert decoder.decode(PICTURE).shape == (240, 400, 3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(huge_tile(), id="64 x 64 in a tile of 24,000 x 20,000"),
        pytest.param(huge_tile(1000, 60_000, 16_000), id="a megapixel in a tile of 60,000 x 16,000"),
        pytest.param(huge_tile(8, 2_000_000, 400), id="8 x 8 in a tile of 2,000,000 x 400"),
    ],
)
def test_what_takes_too_much_memory_is_refused(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(ImageError, match="more memory to decode than a picture of its size"):
        decoder.decode(data, 60)
    assert decoder.decode(PICTURE).shape == (240, 400, 3)
    [process] = decoder._idle
    peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 300_000, "kilobytes"


def test_the_deadline_ends_a_picture_and_those_that_wait(decoder: Decoder) -> None:
    began = time.monotonic()

    def late(number: int) -> bool:
        with pytest.raises(DeadlineError):
            decoder.decode(many_scans(2000, 20_000 + number), 0.6)
        return True

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(late, range(5)))
    assert time.monotonic() - began < 10
    assert decoder.decode(PICTURE).shape == (240, 400, 3)


def test_large_pictures_take_turns() -> None:
    """Together they take no more memory than the largest picture, and none waits for ever."""
    decoder = Decoder(max_pixels=600_000, cpu_seconds=20, processes=3)
    data = packed(Image.new("RGB", (1000, 600), "red"), "PNG")
    try:
        with ThreadPoolExecutor(6) as pool:
            assert all(pixels.shape == (600, 1000, 3) for pixels in pool.map(lambda _: decoder.decode(data, 60), range(12)))
    finally:
        decoder.close()


def test_a_decoder_that_was_killed_is_replaced(decoder: Decoder) -> None:
    decoder.decode(PICTURE)
    decoder._idle[0].end()
    assert decoder.decode(PICTURE).shape == (240, 400, 3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(odd_tags(3000), id="TIFF of odd tags"),
        pytest.param(JPEG[:2] + b"\xff\xe1\x00\x1eExif\0\0" + odd_tags(3)[:22] + JPEG[2:], id="JPEG whose EXIF is cut short"),
        pytest.param(huge_tile(), id="TIFF that libtiff writes of"),
    ],
)
def test_warnings_of_libraries_stay_out_of_the_log(
    data: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = ImageStore(Fetcher(), None, 50_000_000, 0)
    with contextlib.suppress(ImageError):
        store.load("data:image/tiff;base64," + base64.b64encode(data).decode(), 1)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
