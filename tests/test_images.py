"""Pictures of every kind: orientation by EXIF, modes, and files made to hurt or simply broken."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sam4mllm import images
from sam4mllm.errors import ImageError
from sam4mllm.images import SUFFIXES, ImageSource, load_image, picture_suffix


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
