"""Pictures of every kind: orientation by EXIF, modes, and files made to hurt or simply broken."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sam4mllm import images
from sam4mllm.errors import ImageError
from sam4mllm.images import MAX_PIXELS, MIN_SIDE, SUFFIXES, ImageSource, check_image, image_sha256, load_image, picture_suffix


def gradient(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    """A picture (height, width, 3) whose four corners all differ, smooth enough for JPEG."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 255 // (height - 1), columns * 255 // (width - 1), 0 * rows + 60], axis=-1).astype(np.uint8)


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data, 9)) + png_chunk(b"IEND", b"")


PICTURE = gradient()
PNG = packed(Image.fromarray(PICTURE), "PNG")
JPEG = packed(Image.fromarray(PICTURE), "JPEG", quality=95)

metadata_may_warn = pytest.mark.filterwarnings("ignore::UserWarning")
"""Of broken metadata Pillow says so in a warning and goes on; here warnings are errors."""


# -- sources -------------------------------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_array(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        sources: list[ImageSource] = [path, str(path), PNG, io.BytesIO(PNG), file, Image.open(io.BytesIO(PNG)), PICTURE]
        for source in sources:
            image = load_image(source)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert image.flags.writeable
            np.testing.assert_array_equal(image, PICTURE)


def test_an_array_is_copied() -> None:
    mine = gradient()
    load_image(mine)[:] = 0
    np.testing.assert_array_equal(mine, PICTURE)


def test_the_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(load_image(path), PICTURE)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 16),
        ("JPEG", {"quality": 95}, 16),
        ("JPEG", {"quality": 95, "progressive": True}, 16),
        ("GIF", {}, 60),
    ],
)
def test_formats(kind: str, options: dict[str, object], tolerance: int) -> None:
    image = load_image(packed(Image.fromarray(PICTURE), kind, **options))
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() <= tolerance


def test_every_format_that_is_read_has_its_endings() -> None:
    assert SUFFIXES.keys() == {getattr(reader, "format", None) for _, reader in images._READERS}
    assert [picture_suffix(Path(name)) for name in ("a.JPEG", "b/c.tif", "d.txt", "e")] == [".jpeg", ".tif", "", ""]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_frames_the_first(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("white", "black", "red")]
    image = load_image(packed(frames[0], kind, save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(image, np.full((12, 16, 3), 255))


# -- orientation ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (4, PICTURE[::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE, -1)),
        (7, np.rot90(PICTURE.transpose(1, 0, 2), 2)),
        (8, np.rot90(PICTURE)),
        (0, PICTURE),
        (9, PICTURE),
    ],
)
def test_exif_orientation(kind: str, orientation: int, upright: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = packed(Image.fromarray(PICTURE), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    for source in (data, Image.open(io.BytesIO(data))):
        image = load_image(source)
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright).max() <= (90 if kind == "JPEG" else 0)
        # smooth but for a block's edge: the corners tell the eight ways apart
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            assert np.abs(image[corner].astype(int) - upright[corner]).max() <= 40


@metadata_may_warn
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40, b"nonsense"])
def test_broken_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    image = load_image(JPEG[:2] + segment + JPEG[2:])
    assert image.shape == PICTURE.shape


# -- modes ---------------------------------------------------------------------------------------------------------------------------------


def uniform(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (9, 8), colour)  # type: ignore[arg-type]


def palette(transparency: int | bytes | None = None) -> bytes:
    image = Image.new("P", (9, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return packed(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


@pytest.mark.parametrize(
    ("source", "colour"),
    [
        pytest.param(packed(uniform("L", 77), "PNG"), (77, 77, 77), id="grey"),
        pytest.param(packed(uniform("1", 1), "PNG"), (255, 255, 255), id="one bit"),
        pytest.param(packed(uniform("LA", (77, 255)), "PNG"), (77, 77, 77), id="grey and opaque"),
        pytest.param(packed(uniform("LA", (77, 0)), "PNG"), (255, 255, 255), id="grey and transparent is white"),
        pytest.param(packed(uniform("RGBA", (10, 20, 30, 255)), "PNG"), (10, 20, 30), id="opaque"),
        pytest.param(packed(uniform("RGBA", (10, 20, 30, 0)), "PNG"), (255, 255, 255), id="transparent is white"),
        pytest.param(packed(uniform("RGBA", (0, 0, 255, 51)), "PNG"), (204, 204, 255), id="a fifth of blue on white"),
        pytest.param(packed(uniform("RGBA", (10, 20, 30, 0)), "WEBP", lossless=True), (255, 255, 255), id="transparent WebP"),
        pytest.param(palette(), (200, 100, 50), id="palette"),
        pytest.param(palette(transparency=1), (255, 255, 255), id="palette with a transparent colour"),
        pytest.param(palette(transparency=b"\xff\x00"), (255, 255, 255), id="palette with alpha"),
        pytest.param(palette(transparency=0), (200, 100, 50), id="palette with another colour transparent"),
        pytest.param(packed(uniform("L", 77), "PNG", transparency=77), (255, 255, 255), id="a transparent grey"),
        pytest.param(packed(uniform("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (255, 255, 255), id="a transparent colour"),
        pytest.param(packed(uniform("I;16", 0x4D00), "PNG"), (77, 77, 77), id="16-bit grey PNG"),
        pytest.param(packed(uniform("I;16", 0xFFFF), "PNG"), (255, 255, 255), id="16-bit white"),
        pytest.param(packed(uniform("I;16", 0x00FF), "TIFF"), (0, 0, 0), id="16-bit dark TIFF"),
        pytest.param(packed(uniform("I;16B", 0x4D00), "TIFF"), (77, 77, 77), id="16-bit grey, big-endian"),
        pytest.param(packed(uniform("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0), id="CMYK TIFF"),
        pytest.param(uniform("HSV", (0, 0, 255)), (255, 255, 255), id="an HSV object"),
        pytest.param(uniform("PA", 0), (255, 255, 255), id="palette and alpha"),
    ],
)
def test_modes_become_rgb(source: bytes | Image.Image, colour: tuple[int, int, int]) -> None:
    image = load_image(source)
    assert image.shape == (8, 9, 3)
    assert np.abs(image.astype(int) - colour).max() <= 1


def test_a_cmyk_jpeg() -> None:
    image = load_image(packed(uniform("CMYK", (0, 255, 255, 0)), "JPEG"))
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 10


def test_a_16_bit_colour_png() -> None:
    rows = (b"\0" + struct.pack(">HHH", 0x1000, 0x8000, 0xFFFF) * 9) * 8
    image = load_image(png_claiming(9, 8, depth=16, data=rows))
    np.testing.assert_array_equal(image, np.broadcast_to(np.array([0x10, 0x80, 0xFF]), (8, 9, 3)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_a_channel_have_no_white(mode: str) -> None:
    with pytest.raises(ImageError, match="8 or 16 bits"):
        load_image(packed(uniform(mode, 0), "TIFF"))


# -- sizes ---------------------------------------------------------------------------------------------------------------------------------


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
