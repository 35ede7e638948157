"""The dataset format: pictures with phrases and the masks they mean.

A dataset is a folder with ``images/`` and ``examples.jsonl``, one line an example::

    {
        "image": "images/ab12.png",
        "sha256": "…",
        "width": 640,
        "height": 480,
        "phrase": "the left cup",
        "instances": [{"box": [x1, y1, x2, y2], "rle": {"size": [480, 640], "counts": "…"}}],
        "split": "train",
        "label": "Cup",
        "source": "…",
        "ignore": {"size": [480, 640], "counts": "…"},
        "thought": "Two cups stand on the table; the left one is red.",
    }

``sha256`` is the hash of the image file's bytes. Width, height, boxes (pixels, right and bottom sides exclusive) and masks (COCO run
lengths) refer to the picture after it is turned as its EXIF data says. An empty ``instances`` says that the phrase has no target in the
picture. Other keys are ignored.

Four keys may be left out:

- ``label``: the label that a reviewer chose in Label Studio, null where nobody did. Older releases did not write this key; they put the
  label of a correction at the end of ``source``, from where it is still read.
- ``ignore``: a mask of pixels that are left out when a prediction is measured.
- ``thought``: the reasoning that a model is to write before it gives the boxes, in plain words (strategy ``reason``).
- ``origin``: the picture's name in a collection that several data sets share, such as ``coco:581857``. Files with the same origin are the
  same picture, even if their bytes differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm.masks import union
from sam4mllm.run_lengths import Rle, from_rle

EXAMPLES = "examples.jsonl"
IMAGES = "images"


@dataclass(frozen=True, eq=False)
class ExampleInstance:
    """One object that a phrase means: ``box_px`` (4,) float32 x1, y1, x2, y2 and its mask as ``rle``."""

    box_px: NDArray[np.float32]
    rle: Rle


@dataclass(frozen=True, eq=False)
class Example:
    """One line of a dataset; ``image`` is the path inside the dataset's folder."""

    image: str
    sha256: str
    width: int
    height: int
    phrase: str
    instances: tuple[ExampleInstance, ...]
    split: str
    source: str
    ignore: Rle | None = None
    origin: str = ""
    label: str | None = None
    thought: str = ""

    @property
    def has_target(self) -> bool:
        """Whether the phrase means anything in the picture."""
        return len(self.instances) > 0

    @property
    def boxes_px(self) -> NDArray[np.float32]:
        """(N, 4) float32 px, a row for each instance."""
        return np.array([instance.box_px for instance in self.instances], np.float32).reshape(-1, 4)

    def masks(self) -> NDArray[np.bool_]:
        """Return (N, height, width) bool, one mask for each instance.

        Raises MaskCodecError if run lengths are invalid, which those from ``read_examples`` never are.
        """
        masks = np.zeros((len(self.instances), self.height, self.width), np.bool_)
        for index, instance in enumerate(self.instances):
            masks[index] = from_rle(instance.rle, self.height, self.width, max_pixels=self.height * self.width)
        return masks

    def union(self) -> NDArray[np.bool_]:
        """(height, width) bool, all instances together; what the metrics call the truth."""
        return union(self.masks())

    def ignored(self) -> NDArray[np.bool_] | None:
        """Return (height, width) bool, the pixels that are left out when a prediction is measured, or None if all count."""
        if self.ignore is None:
            return None
        return from_rle(self.ignore, self.height, self.width, max_pixels=self.height * self.width)


@dataclass(frozen=True)
class ImageRecord:
    """A picture in a dataset's folder: its path there, the SHA-256 of its file, and its sides in pixels once it is upright."""

    image: str
    sha256: str
    width: int
    height: int
