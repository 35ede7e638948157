"""The public data sets by the names of ``sam4mllm data prepare``, and how large each is as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sam4mllm.data import coco, refer
from sam4mllm.data.ade20k import read_ade20k
from sam4mllm.data.pairs import Prepared, Reading
from sam4mllm.data.reasonseg import read_reasonseg
from sam4mllm.data.refcoco_m import read_refcoco_m


@dataclass(frozen=True)
class Reader:
    """How a data set is read, and the published numbers of sentences and pictures in each split; empty where none are published."""

    read: Callable[[Path], Reading]
    sentences: Mapping[str, int] = field(default_factory=dict)
    pictures: Mapping[str, int] = field(default_factory=dict)


SENTENCES: dict[str, dict[str, int]] = {
    "refcoco": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog": {"train": 80_512, "val": 4_896, "test": 9_602},
    "grefcoco": {"train": 209_344, "val": 16_870, "testA": 18_712, "testB": 14_933},
    "refcoco-m": {"val": 5_598},
    "reasonseg": {"val": 200, "test": 779},
}
"""The published number of sentences in each split. gRefCOCO's add up to the 259,859 of its released file; the paper has 278,232, some of
which its authors hold back. ReasonSeg's are the sentences that published figures are measured on, one for each picture."""
PICTURES: dict[str, dict[str, int]] = {
    "reasonseg": {"train": 239, "val": 200, "test": 779},
    "coco": {"train": 118_287, "val": 5_000},
    "ade20k": {"train": 25_574, "val": 2_000},
    "paco-lvis": {"train": 45_790, "val": 2_410, "test": 9_443},
    "partimagenet": {"train": 16_540, "val": 2_957, "test": 4_598},
}
"""The published number of pictures in each split. For COCO it is that of the release of 2017."""

_READ: dict[str, Callable[[Path], Reading]] = {
    **{name: partial(refer.read_refer, name=name) for name in refer.SETS},
    "refcoco-m": read_refcoco_m,
    "reasonseg": read_reasonseg,
    **{name: partial(coco.read_coco_folder, name=name) for name in coco.SETS},
    "ade20k": read_ade20k,
}
READERS = {name: Reader(read, SENTENCES.get(name, {}), PICTURES.get(name, {})) for name, read in _READ.items()}


def compare(reader: Reader, reading: Reading, prepared: Prepared) -> list[str]:
    """Return a line for each published number, of a split's sentences or pictures, that the files do not match.

    Sentences that were left out count as found. A set without published numbers gives no line.
    """
    return [
        f"{split}: {found.get(split, 0):,} {what} found, {count:,} are published"
        for what, published, found in (("sentences", reader.sentences, prepared.read), ("pictures", reader.pictures, reading.pictures))
        for split, count in published.items()
        if found.get(split, 0) != count
    ]
