"""Datasets as they are written: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sam4mllm.data import write_dataset as module
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError, ImageError, Sam4mllmError
from sam4mllm.images import image_sha256
from tests.cups_dataset import CUPS, PICTURE, write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"phrase": ""}, "phrase", id="no phrase"),
        pytest.param({"phrase": "\ud800"}, "phrase", id="half a character"),
        pytest.param({"phrase": 7}, "phrase", id="a number"),
        pytest.param({"split": "a b"}, "split", id="split with a space"),
        pytest.param({"source": None}, "source", id="no source"),
        pytest.param({"masks": CUPS[:, :11]}, "masks are", id="masks of another height"),
        pytest.param({"masks": CUPS[0]}, "masks are", id="one mask of two sides"),
        pytest.param({"masks": np.zeros((1, 12, 16), np.bool_)}, "no area|empty", id="empty mask"),
        pytest.param({"masks": np.zeros((1, 12, 16), np.bool_), "boxes": [[0, 0, 1, 1]]}, "mask is empty", id="box of an empty mask"),
        pytest.param({"boxes": [[0, 0, 1, 1]]}, "boxes are", id="boxes too few"),
        pytest.param({"boxes": [[0, 0, 1], [0, 0, 1]]}, "boxes are", id="boxes of three"),
        pytest.param({"boxes": [[0, 0, 1, np.nan], [0, 0, 1, 1]]}, "box is four finite", id="box not a number"),
        pytest.param({"masks": [], "boxes": [[0, 0, 1, 1]]}, "boxes are", id="box of no mask"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with ExampleWriter(tmp_path) as writer:
        record = writer.add_image(PICTURE)
        with pytest.raises(DatasetError, match=message):
            writer.add(record, **{"phrase": "the cups", "masks": CUPS, "split": "train", "source": "", **arguments})
        writer.add(record, "nothing", np.zeros((0, 12, 16), np.bool_), "train", "", boxes=np.zeros((0, 4)))
    (example,) = read_examples(tmp_path)
    assert example.phrase == "nothing"


def test_masks_may_be_made_as_they_are_asked_for(tmp_path: Path) -> None:
    def failing() -> Iterator[NDArray[np.bool_]]:
        yield CUPS[0]
        raise Sam4mllmError("the second is damaged")

    for name, masks in (("array", CUPS), ("one by one", iter(CUPS))):
        with ExampleWriter(tmp_path / name) as writer:
            record = writer.add_image(PICTURE)
            writer.add(record, "the cups", masks, "train", "")
            with pytest.raises(Sam4mllmError, match="the second is damaged"):
                writer.add(record, "the cups", failing(), "train", "")
    assert (tmp_path / "one by one" / EXAMPLES).read_bytes() == (tmp_path / "array" / EXAMPLES).read_bytes()


def test_a_dataset_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / EXAMPLES).read_bytes()
    with pytest.raises(DatasetError, match="already holds a dataset"), ExampleWriter(tmp_path):
        pass
    assert (tmp_path / EXAMPLES).read_bytes() == before


def test_a_writer_writes_inside_its_block_only(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path)
    with pytest.raises(RuntimeError, match="with block"):
        writer.add_image(PICTURE)


def test_an_array_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer, pytest.raises(ImageError):
        writer.add_image(PICTURE[..., 0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be written"), ExampleWriter(tmp_path / "file" / "dataset"):
        pass


def write_then(folder: Path, happens: Callable[[ExampleWriter], None]) -> None:
    """Write an example, and then something happens before the block ends."""
    with ExampleWriter(folder) as writer:
        writer.add(writer.add_image(PICTURE), "the cups", CUPS, "train", "")
        happens(writer)


def test_an_error_leaves_no_dataset_and_a_second_run_writes_one(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise Sam4mllmError("midway")

    with pytest.raises(Sam4mllmError, match="midway"):
        write_then(tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    write(tmp_path)
    assert len(read_examples(tmp_path)) == 3


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DatasetError, match="No space left on device"):
        write_then(tmp_path, lambda _: monkeypatch.setattr(os, step, full))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from sam4mllm.data.write_dataset import ExampleWriter
import sam4mllm.data.write_dataset as module

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step, folder = sys.argv[1], Path(sys.argv[2])
with ExampleWriter(folder) as writer:
    record = writer.add_image(np.full((12, 16, 3), 9, np.uint8))
    if step == "image":
        module.os.replace = die
        writer.add_image(np.full((12, 16, 3), 10, np.uint8))
    for number in range(2000):
        writer.add(record, f"phrase {number}", np.ones((1, 12, 16), bool), "train", "")
        if step == "line" and number == 1500:
            die()
    if step == "flush":
        module.os.fsync = die
    if step == "rename":
        module.os.replace = die
"""


@pytest.mark.parametrize("step", ["image", "line", "flush", "rename"])
def test_a_kill_leaves_no_half_written_dataset(tmp_path: Path, step: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), step, str(tmp_path)]
    died = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / EXAMPLES).exists()
    for image in (tmp_path / "images").glob("[!.]*"):
        assert image_sha256(image)[:16] == image.stem
    write(tmp_path)
    assert len(read_examples(tmp_path)) == 3
    assert not (tmp_path / f".{EXAMPLES}.tmp").exists()
