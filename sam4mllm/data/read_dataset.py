"""Reads a dataset's folder: its examples, each checked, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.example_fields import check_fields, parse_line, shown
from sam4mllm.data.examples import EXAMPLES, IMAGES, Example, ImageRecord
from sam4mllm.errors import DatasetError, ImageError
from sam4mllm.images import MAX_PIXELS, image_sha256, load_image


def read_examples(folder: Path, max_pixels: int = MAX_PIXELS) -> list[Example]:
    """Return all examples of a dataset, in order. Each is checked: its fields, boxes and masks, and that the folder has its image.

    Images are not opened here; ``load_example_image`` checks an image when it loads it. ``max_pixels`` is the largest
    width × height that an example may state.

    Raises:
        DatasetError: a line is wrong or a file is missing; the message names it.
    """
    return list(each_example(folder, max_pixels))


def each_example(folder: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Example]:
    """Yield the examples of ``read_examples`` one at a time, because those of a large set together fill a gigabyte.

    Raises DatasetError when it comes to a line that is wrong, or if the file cannot be read.
    """
    folder = Path(folder)
    path = folder / EXAMPLES
    pictures: dict[str, ImageRecord] = {}
    root = folder.resolve()
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    example = check_fields(parse_line(line), max_pixels)
                    _check_picture(root, example, pictures)
                except DatasetError as error:
                    raise DatasetError(f"{path}, line {number}: {error}") from error
                yield example
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); a dataset is a folder with {EXAMPLES} and {IMAGES}/") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text after line {number}; write it again") from error


def load_example_image(folder: Path, example: Example, verify_sha256: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An example's picture, upright, (height, width, 3) uint8 RGB.

    Args:
        folder: the dataset.
        example: one of its examples.
        verify_sha256: compare the file's hash too, which reads it a second time.
        max_pixels: the most pixels that are decoded, as in ``load_image``.

    Raises:
        DatasetError: the picture lies outside the folder, is missing, cannot be decoded, or has not the size (or hash) of the example.
    """
    path = find_image(Path(folder).resolve(), example.image)
    try:
        if verify_sha256 and image_sha256(path) != example.sha256:
            raise DatasetError(f"{path} is not the file that the dataset was written with (SHA-256); restore it or write the dataset again")
        image = load_image(path, max_pixels)
    except ImageError as error:
        raise DatasetError(f"{path}: {error}") from error
    if image.shape[:2] != (example.height, example.width):
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise DatasetError(f"{path} is {size} pixels, its examples say {example.width} x {example.height}; write the dataset again")
    return image


def _check_picture(root: Path, example: Example, pictures: dict[str, ImageRecord]) -> None:
    """Raise DatasetError unless an example's image is there, and its hash and size are those of earlier examples with the same image.

    ``pictures`` holds the images of the examples checked so far, by path, so that each file is looked for only once; a new one is added.
    """
    record = ImageRecord(example.image, example.sha256, example.width, example.height)
    if example.image not in pictures:
        find_image(root, example.image)
    if pictures.setdefault(example.image, record) != record:
        raise DatasetError(f"the image {shown(example.image)} has another hash or size on an earlier line; write the dataset again")


def find_image(root: Path, image: str) -> Path:
    """Return the path of an image in the folder ``root``, which must be resolved already.

    Raises DatasetError if the image is missing, or lies outside the folder once links are followed.
    """
    path = root / image
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise DatasetError(f"the image {shown(image)} is not inside the dataset's folder; copy it there")
    if not os.path.isfile(path):
        raise DatasetError(f"the image {shown(image)} is missing; copy it into the dataset's folder")
    return path
