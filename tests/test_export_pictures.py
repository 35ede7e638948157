"""The pictures of an export: named as their files, no two of a stem, and upright."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from backend.export.pictures import Names, read_upright
from sam4mllm.images import SUFFIXES

NAMES: dict[str, tuple[str, str, str]] = {
    "an upload": ("/data/upload/3/ab-cup.jpg", ".jpg", "ab-cup.jpg"),
    "quoted": ("/data/upload/3/a%20cup.PNG", ".png", "a cup.PNG"),
    "a local file": ("/data/local-files/?d=some/where/a.jpeg", ".jpg", "a.jpeg"),
    "a cloud's": ("s3://bucket/x/y.webp", ".webp", "y.webp"),
    "an address": ("https://example.com/p/z.jpg?size=3", ".jpg", "z.jpg"),
    "of another format": ("/data/upload/3/a.jpg", ".png", "a.png"),
    "another spelling of its format's ending": ("/data/upload/3/a.TIFF", ".tif", "a.TIFF"),
    "without an ending": ("https://example.com/p/z", ".jpg", "z.jpg"),
    "in the data": ("data:image/png;base64,AAAA", ".png", "task-4.png"),
    "climbing": ("/data/upload/3/..%2F..%2Fetc%2Fpasswd", "", "passwd"),
    "hostile": ("/data/upload/3/a%00b%0Ac:d.png", ".png", "a_b_c_d.png"),
    "dots": ("/data/upload/3/..", ".png", "...png"),
    "no address": ("http://[", "", "["),
}


@pytest.mark.parametrize(("reference", "ending", "name"), NAMES.values(), ids=NAMES.keys())
def test_a_picture_is_named_as_its_file(reference: str, ending: str, name: str) -> None:
    chosen = Names().choose(reference, 4, ending)
    assert chosen == name
    assert Path(chosen).name == chosen


def test_no_two_pictures_share_a_stem() -> None:
    names = Names()
    chosen = [names.choose(f"/data/upload/{number}/{name}", 4, "") for number, name in enumerate(["a.png", "a.jpg", "A.png", "a.png"])]
    assert len({Path(one).stem.casefold() for one in chosen}) == 4


def test_a_name_that_looks_like_a_number_of_ours_does_not_stop_the_export() -> None:
    names = Names()
    chosen = [names.choose(f"/data/upload/{name}.png", 1, "") for name in ("a", "a-1-3", "a", "a", "a-1-4", "a")]
    assert len(set(chosen)) == 6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "a-1", "a-1-3", "a-1-4", "A"]), st.integers(0, 2)), max_size=12))
def test_every_picture_gets_a_name_of_its_own(asked: list[tuple[str, int]]) -> None:
    names = Names()
    chosen = [names.choose(f"/data/upload/{name}.png", task, "") for name, task in asked]
    assert len({Path(one).stem.casefold() for one in chosen}) == len(asked)


def test_a_long_name_fits_a_file_system(tmp_path: Path) -> None:
    names = Names()
    for _ in range(4):
        (tmp_path / names.choose(f"/data/upload/{'杯' * 120}.png", 10**9, ".png")).write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_picture_is_kept_as_it_is_unless_it_is_turned() -> None:
    data = io.BytesIO()
    Image.new("RGB", (30, 20)).save(data, "JPEG")
    file = read_upright(data.getvalue(), 10**6)
    assert (file.data, file.ending, file.height, file.width) == (data.getvalue(), ".jpg", 20, 30)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_turned_picture_is_written_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = io.BytesIO()
    Image.new("RGB", (30, 20)).save(data, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    file = read_upright(data.getvalue(), 10**6)
    if kind in ("BMP", "GIF"):  # they hold no EXIF data
        assert (file.data, file.ending, file.height, file.width) == (data.getvalue(), SUFFIXES[kind][0], 20, 30)
    else:
        assert (file.ending, file.height, file.width) == (".png", 30, 20)


def test_a_photo_with_further_ones_in_its_file_is_a_jpeg() -> None:
    """Cameras put a preview or a depth map behind the picture (MPO), under the name of a JPEG or without an ending in a link."""
    data = io.BytesIO()
    Image.new("RGB", (30, 20)).save(data, "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))])
    assert read_upright(data.getvalue(), 10**6).ending == ".jpg"
