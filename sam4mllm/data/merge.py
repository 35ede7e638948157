"""Merges datasets into one, leaves out of training every picture that any of them tests on, and writes repeated examples once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sam4mllm.data.examples import Example
from sam4mllm.data.pairs import TRAIN, Prepared, Track, new_dataset, same_example, untracked
from sam4mllm.data.read_dataset import each_example

TESTED_ON = "its picture is tested on in another split or set"


def merge(folders: Sequence[Path], out: Path, track: Track[tuple[Path, Example]] = untracked) -> Prepared:
    """Write the examples of several datasets, in their order, as one new dataset in ``out``.

    Two pictures are the same if their files are equal byte for byte, or if they have the same origin: some sets re-encode pictures of COCO.
    Every split but ``train`` counts as tested on, and keeps its examples; only an example that repeats an earlier one with the same split
    and source is dropped. From ``train``, examples with a picture that is tested on are left out, and repeated ones are written once.
    Pictures are hard-linked to those of the datasets where the disk allows it, else copied. ``track`` wraps the loop over the examples,
    for a progress bar.

    Raises DatasetError if a dataset is not in the format, a picture's file is missing or has changed, or ``out`` is not empty or cannot be
    written.
    """
    names: dict[str, str] = {}
    tested: set[str] = set()
    count = 0
    for _, example in _each(folders):
        count += 1
        if example.origin or example.sha256 not in names:
            names[example.sha256] = example.origin or example.sha256
        if example.split != TRAIN:
            tested |= {example.sha256, *([example.origin] if example.origin else [])}
    # One set may test on a file without giving its origin while another set gives it: then the origin is tested on, too.
    tested |= {names[name] for name in tested if name in names}
    prepared = Prepared()
    seen: set[bytes] = set()
    images: set[str] = set()
    with new_dataset(out) as writer:
        for folder, example in track(_each(folders), count):
            prepared.read[example.split] += 1
            if example.split == TRAIN and not tested.isdisjoint((example.sha256, example.origin, names[example.sha256])):
                prepared.leave_out(TESTED_ON, example.source)
                continue
            key = same_example(names[example.sha256], example.phrase, example.instances)
            key += b"" if example.split == TRAIN else f"{example.split}\n{example.source}".encode()
            if key in seen:
                prepared.merged += 1
                continue
            seen.add(key)
            images.add(example.sha256)
            writer.copy(folder, example)
            prepared.written[example.split] += 1
    prepared.images = len(images)
    return prepared


def _each(folders: Sequence[Path]) -> Iterator[tuple[Path, Example]]:
    yield from ((folder, example) for folder in folders for example in each_example(folder))
