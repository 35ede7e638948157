"""Pictures at their limits: sizes, bombs, files cut short, and what is no picture."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sam4mllm.errors import ImageError
from sam4mllm.images import MAX_PIXELS, MIN_SIDE, ImageSource, check_image, image_sha256, load_image
from tests.test_images import JPEG, PICTURE, PNG, gradient, metadata_may_warn, packed, png_claiming


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (7, 500), (500, 7), (7, 7)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "object", "array"])
def test_a_side_too_small(width: int, height: int, kind: str) -> None:
    picture = Image.new("RGB", (width, height))
    source: ImageSource = picture if kind == "object" else np.asarray(picture) if kind == "array" else packed(picture, kind)
    with pytest.raises(ImageError, match=f"{width} x {height} pixels; use one of at least {MIN_SIDE} pixels a side"):
        load_image(source)


def test_the_smallest_side_is_enough() -> None:
    assert load_image(packed(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), "PNG")).shape == (MIN_SIDE, MIN_SIDE, 3)


def test_the_cap_counts_pixels_before_the_turn_and_lets_its_own_size_pass() -> None:
    assert load_image(PNG, max_pixels=24 * 40).shape == (24, 40, 3)
    for source in (PNG, JPEG, PICTURE, Image.fromarray(PICTURE)):
        with pytest.raises(ImageError, match="40 x 24 pixels; make it smaller, at most 959 pixels"):
            load_image(source, max_pixels=24 * 40 - 1)


def gif_with_frame(width: int, height: int, screen: int = 10) -> bytes:
    """A GIF whose screen is small and whose first frame, after a comment, is not."""
    header = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    comment = b"\x21\xfe\x03abc\x02de\x00"
    control = b"\x21\xf9\x04\x08\x00\x00\x00\x00"
    return header + comment + control + b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def tiff_claiming(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 10)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags) + b"\0" * 4


def bmp_claiming(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 8


def webp_claiming(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body += b"VP8L" + struct.pack("<I", 6) + b"\x2f" + ((width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14).to_bytes(4, "little") + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_claiming(width: int, height: int) -> bytes:
    start = JPEG.index(b"\xff\xc0")
    return JPEG[: start + 5] + struct.pack(">HH", height, width) + JPEG[start + 9 :]


BOMBS = [
    pytest.param(png_claiming(50_000, 50_000), id="a header of 50,000 x 50,000"),
    pytest.param(png_claiming(16_384, 16_384, depth=1, colour=0, data=bytes(16_384 * 2_049)), id="16,384 squared in one bit"),
    pytest.param(png_claiming(10_000, 10_000), id="where Pillow only warns"),
    pytest.param(png_claiming(2**31 - 1, 2**31 - 1), id="the largest PNG"),
    pytest.param(gif_with_frame(10_000, 10_000), id="a GIF frame where Pillow only warns"),
    pytest.param(gif_with_frame(65_535, 65_535), id="a GIF frame far larger than its screen"),
    pytest.param(gif_with_frame(10, 10, screen=65_535), id="a GIF screen"),
    pytest.param(tiff_claiming(10_000, 10_000), id="TIFF where Pillow only warns"),
    pytest.param(tiff_claiming(2**31, 2**31), id="TIFF"),
    pytest.param(bmp_claiming(10_000, 10_000), id="BMP where Pillow only warns"),
    pytest.param(bmp_claiming(2**31 - 1, 2**31 - 1), id="BMP"),
    pytest.param(webp_claiming(10_000, 10_000), id="WebP where Pillow only warns"),
    pytest.param(webp_claiming(2**24, 255), id="WebP"),
    pytest.param(jpeg_claiming(10_000, 10_000), id="JPEG where Pillow only warns"),
    pytest.param(jpeg_claiming(65_535, 65_535), id="JPEG"),
]


@pytest.mark.parametrize("data", BOMBS)
@pytest.mark.parametrize("max_pixels", [MAX_PIXELS, 10**12], ids=["the usual cap", "a cap beyond Pillow's"])
def test_bombs_are_refused_without_a_warning(data: bytes, max_pixels: int) -> None:
    """Warnings are errors here, so that one that leaked would come back as another message."""
    assert len(data) < 100_000
    began = time.perf_counter()
    with pytest.raises(ImageError, match=r"pixels in all|header is damaged") as caught:
        load_image(data, max_pixels)
    assert "decompression" not in str(caught.value)
    assert time.perf_counter() - began < 2


def test_a_warning_of_pillow_is_not_needed_to_stay_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="at most 50,000,000 pixels"):
        load_image(png_claiming(50_000, 50_000))
    assert load_image(PNG).shape == PICTURE.shape


# -- broken files --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_short(kind: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = packed(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match=r"damaged|known format"):
        load_image(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "damaged", id="a signature alone"),
        pytest.param(b"\xff\xd8\xff", "damaged", id="a JPEG signature alone"),
        pytest.param(b"GIF89a", "damaged", id="a GIF signature alone"),
        pytest.param(b"GIF89a" + bytes(7) + b";", "no frame|damaged", id="a GIF of no frame"),
        pytest.param(b"GIF89a" + bytes(7) + b"!\xfe\xff", "damaged", id="a GIF that ends in a comment"),
        pytest.param(b"RIFF\x04\0\0\0WAVE", "damaged", id="a sound"),
        pytest.param(b"BM", "damaged", id="a BMP signature alone"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format", id="SVG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0", "known format", id="PostScript"),
        pytest.param(b"P6 9 9 255 " + bytes(243), "known format", id="a format Pillow reads and we do not"),
        pytest.param(b"no picture at all", "known format", id="text"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(data)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([packed(Image.fromarray(gradient(8, 9)), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
@metadata_may_warn
def test_any_flipped_bytes_give_a_picture_or_one_error(data: bytes, flips: list[tuple[float, int]]) -> None:
    broken = bytearray(data)
    for where, value in flips:
        broken[int(where * len(broken))] = value
    try:
        image = load_image(bytes(broken))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.png", tmp_path / ("x" * 5000), Path("a\0b"), Path(os.devnull)):
        with pytest.raises(ImageError, match="is not a file"):
            load_image(path)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="is not a file"):
        load_image(pipe)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    monkeypatch.setattr(Path, "open", refuse)  # permissions do not bind a superuser
    with pytest.raises(ImageError, match=r"cannot be opened \(Permission denied\); check its permissions"):
        load_image(path)


@pytest.mark.parametrize("source", [None, 3, io.StringIO("text"), [PNG]])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(ImageError, match="is given as a path, bytes"):
        load_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.zeros((20, 20), np.uint8), id="grey"),
        pytest.param(np.zeros((20, 20, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((3, 20, 20), np.uint8), id="channels first"),
        pytest.param(np.zeros((20, 20, 3), np.float32), id="float"),
        pytest.param(np.zeros((20, 20, 3), np.int64), id="wide integers"),
        pytest.param(np.zeros((1, 20, 20, 3), np.uint8), id="a batch"),
        pytest.param(np.zeros(0, np.uint8), id="empty"),
    ],
)
def test_arrays_of_another_kind(array: NDArray[np.generic]) -> None:
    for read in (load_image, check_image):
        with pytest.raises(ImageError, match=r"\(height, width, 3\) uint8 RGB"):
            read(array)


def test_check_image_lets_a_picture_pass_and_a_thread_not() -> None:
    check_image(PICTURE)
    with pytest.raises(ImageError, match="500 x 1 pixels"):
        check_image(np.zeros((1, 500, 3), np.uint8))


# -- hashes --------------------------------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_files_bytes(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    assert image_sha256(PNG) == image_sha256(path) == image_sha256(str(path)) == hashlib.sha256(PNG).hexdigest()
    with pytest.raises(ImageError, match="is not a file"):
        image_sha256(tmp_path / "missing.png")
