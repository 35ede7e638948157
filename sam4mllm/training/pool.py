"""What a run learns from: the corrections, by label, and examples of what the base model knows, so that it does not forget it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, load_example_image
from sam4mllm.errors import DatasetError

BYTES_KEPT = 256 << 20
"""Of decoded images in memory; at 640 × 480, 290 of them."""


def phrase_of(example: Example) -> str:
    """What an example counts as where it has no label."""
    return example.phrase


@dataclass(frozen=True, eq=False)
class Shown:
    """An image (H, W, 3) uint8 RGB and what is asked about it."""

    image: NDArray[np.uint8]
    examples: tuple[Example, ...]


@dataclass(frozen=True, eq=False)
class _Picture:
    folder: Path
    examples: tuple[Example, ...]


class Pool:
    """Images to draw from. Of the corrections, every label is drawn as often as any other, however rare it is.

    Args:
        corrections: (folder of the dataset, its examples to learn from).
        replay: the same for examples that are no corrections; may be empty.
        label: what an example is counted as; its phrase if None.
    """

    def __init__(
        self,
        corrections: Sequence[tuple[Path, Sequence[Example]]],
        replay: Sequence[tuple[Path, Sequence[Example]]] = (),
        label: Callable[[Example], Hashable] = phrase_of,
    ) -> None:
        self._pictures = list(_pictures(corrections))
        self._replay = list(_pictures(replay))
        if not self._pictures:
            raise DatasetError("there is no example to learn from; correct some masks first")
        strata: defaultdict[Hashable, list[int]] = defaultdict(list)
        for index, picture in enumerate(self._pictures):
            for key in {label(example) for example in picture.examples}:
                strata[key].append(index)
        self._strata = [strata[key] for key in sorted(strata, key=repr)]
        self._images: OrderedDict[tuple[Path, str], NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    @property
    def sha256(self) -> str:
        """The hash of all that draws follow from, in hex: pictures, phrases, boxes, masks and labels; not of where they lie."""
        digest = hashlib.sha256(repr((self._strata, len(self._pictures))).encode())
        for picture in (*self._pictures, *self._replay):
            for example in picture.examples:
                objects = [(instance.box_px.tolist(), instance.rle["counts"]) for instance in example.instances]
                digest.update(repr((example.sha256, example.phrase, objects)).encode())
        return digest.hexdigest()

    def draw(self, rng: np.random.Generator, count: int, replay_share: float) -> list[Shown]:
        """``count`` images, about ``replay_share`` of them from the replay."""
        drawn = []
        for _ in range(count):
            if self._replay and rng.random() < replay_share:
                picture = self._replay[rng.integers(len(self._replay))]
            else:
                stratum = self._strata[rng.integers(len(self._strata))]
                picture = self._pictures[stratum[rng.integers(len(stratum))]]
            drawn.append(Shown(self._image(picture), picture.examples))
        return drawn

    def _image(self, picture: _Picture) -> NDArray[np.uint8]:
        key = (picture.folder, picture.examples[0].image)
        if key not in self._images:
            self._images[key] = load_example_image(picture.folder, picture.examples[0])
            self._bytes += self._images[key].nbytes
        self._images.move_to_end(key)
        while self._bytes > BYTES_KEPT and len(self._images) > 1:
            self._bytes -= self._images.popitem(last=False)[1].nbytes
        return self._images[key]


def _pictures(datasets: Sequence[tuple[Path, Sequence[Example]]]) -> Iterator[_Picture]:
    for folder, examples in datasets:
        by_image: defaultdict[str, list[Example]] = defaultdict(list)
        for example in examples:
            by_image[example.image].append(example)
        for some in by_image.values():
            yield _Picture(folder, tuple(some))
