"""RefCOCO-M: RefCOCO's validation phrases with masks drawn anew, as Parquet files with the pictures inside (``ROOT/data/*.parquet``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam4mllm.data.pairs import PhrasedPicture, Reading, coco_origin
from sam4mllm.errors import DatasetError

NEEDED = ("image", "file_name", "samples")
NUMBER = "image_id"
"""The column with the picture's id in COCO. Files without this column are read, too: the id is then taken from the file name."""
AT_ONCE = 16
"""Rows that are read at once; each holds a picture, about half a megabyte."""


def read_refcoco_m(root: Path) -> Reading:
    """Return a pair for each sentence of each object. The files are those in ``root/data``, or, if it has none, those in ``root`` itself.

    Raises DatasetError if pyarrow is not installed, there are no files, or a file is damaged or not RefCOCO-M. Rows are read only when the
    pairs are iterated, so damage inside a file raises DatasetError then.
    """
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 – an extra
    except ImportError as error:
        raise DatasetError("RefCOCO-M is in Parquet files, which need pyarrow: pip install 'sam4mllm[parquet]'") from error
    paths = sorted((root / "data").glob("*.parquet")) or sorted(root.glob("*.parquet"))
    if not paths:
        raise DatasetError(f"{root} holds no data/*.parquet; name the folder that the data set was downloaded to")
    files = []
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
        except (ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{path} is damaged or no Parquet file; fetch it again") from error
        if not {*NEEDED} <= {*file.schema_arrow.names}:
            raise DatasetError(f"{path} is not RefCOCO-M: it has no {', '.join(NEEDED)}")
        files.append((path, file))
    return Reading(pair for path, file in files for pair in _read(path, file, ArrowException))


def _read(path: Path, file: Any, failure: type[Exception]) -> Iterator[PhrasedPicture]:
    try:
        columns = [name for name in (*NEEDED, NUMBER) if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                yield from _pairs(row)
    except (failure, OSError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged, or not RefCOCO-M; fetch it again") from error


def _pairs(row: dict[str, Any]) -> Iterator[PhrasedPicture]:
    number = row.get(NUMBER)
    origin = f"coco:{number}" if isinstance(number, int) else coco_origin(row["file_name"])
    for index, sample in enumerate(row["samples"]):
        outlines = (sample["mask"],)
        name = sample.get("id", f"{Path(row['file_name']).stem}-{index}")
        for place, sentence in enumerate(sample["sentences"]):
            yield PhrasedPicture(row["image"]["bytes"], sentence, outlines, "val", f"refcoco-m:{name}:{place}", origin)
