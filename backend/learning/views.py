"""A held-out picture in several views: slightly other sizes, canvases and light, of which its phrases mean the same.

Where few pictures decide, much of what two versions differ in on one of them is luck: on a view of it a phrase that was just missed may be
found, and the other way round. The mean over views tells the versions apart on fewer pictures; docs/first-retraining.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.training.pool import TrainingImage
from sam4mllm.training.variety import augment

VIEWS = 4
"""Views of each picture, itself among them; our choice. A comparison takes four times as long, where there are few pictures."""
AMOUNT = 0.4
"""How far a view is from its picture, as a share of what training's variety changes: with all of that, the version that was trained so
would have an advantage.
"""


def views(image: NDArray[np.uint8], examples: Sequence[Example], count: int) -> Iterator[tuple[NDArray[np.uint8], Sequence[Example]]]:
    """Yield the picture (H, W, 3) with its examples, and then ``count - 1`` views, each with the examples moved accordingly.

    A view is the picture itself where a change would make it too small or an object vanish. The changes follow from the file's hash: they
    are the same at each call, and differ from picture to picture, because the test of many pictures takes their differences for
    independent. ``examples`` must not be empty.
    """
    yield image, examples
    shown = TrainingImage(image, tuple(examples))
    rng = np.random.default_rng(int(examples[0].sha256[:16], 16))
    for _ in range(count - 1):
        view = augment(shown, rng, AMOUNT)
        yield view.image, view.examples
