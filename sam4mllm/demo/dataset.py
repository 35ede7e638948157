"""Demo scenes as a folder in the dataset format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.demo.scenes import make_scene


def write_scenes(
    folder: Path,
    count: int,
    seed: int,
    nouns: Sequence[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    phrases: int | None = None,
    split: str = "test",
) -> int:
    """Write ``count`` scenes (images) of a seed; each phrase of a scene is an example. Returns the number of examples.

    ``track`` wraps the loop, for a progress bar; ``phrases`` are taken of each scene, all if None; ``split`` is every
    example's. Raises DatasetError if the folder
    already holds a dataset.
    """
    written = 0
    with ExampleWriter(folder) as writer:
        for index in track(range(count)):
            scene = make_scene((seed, index), nouns)
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
