"""Demo scenes as a folder in the dataset format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_mixed, make_relational, make_scene, make_shifted

MAKERS: dict[str, Callable[[Sequence[int], Sequence[str] | None], DemoScene]] = {
    "default": make_scene,
    "ambiguous": partial(make_ambiguous, told=True),
    "mixed": make_mixed,
    "relational": make_relational,
    "shifted": make_shifted,
}
"""For each kind of scene, the function that makes a scene from a seed and the nouns that its phrases may ask for (None: all known ones)."""


def write_scenes(
    folder: Path,
    count: int,
    seed: int,
    nouns: Sequence[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    phrases: int | None = None,
    split: str = "test",
    kind: str = "default",
) -> int:
    """Write ``count`` scenes (images) of a seed; each phrase of a scene is an example. Returns the number of examples.

    ``nouns`` are the nouns that phrases may ask for; None stands for all known ones. ``track`` wraps the loop, for a progress bar.
    ``phrases`` is how many of each scene's phrases are written; None writes all. ``split`` is given to every example. ``kind`` is one of
    MAKERS. Raises DatasetError if the folder already holds a dataset, and FolderError if it cannot be written.
    """
    written = 0
    with ExampleWriter(folder) as writer:
        for index in track(range(count)):
            scene = MAKERS[kind]((seed, index), nouns)
            record = writer.add_image(scene.image)
            for expression in scene.expressions[:phrases]:
                targets = list(expression.targets)
                writer.add(
                    record,
                    phrase=expression.phrase,
                    masks=scene.masks[targets],
                    split=split,
                    source=f"scenes:{seed}:{index}:{expression.kind}",
                    boxes=scene.boxes_px[targets],
                )
                written += 1
    return written
