"""Records of what was served, for the log: what a reviewer has corrected is known only by comparison with what was served."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from backend.corrections.log_records import Served
from backend.images.store import LoadedImage
from backend.label_studio.wire import Region
from sam4mllm.run_lengths import to_rle
from sam4mllm.values import Instance, Segmentation


@dataclass(frozen=True, eq=False)
class ServedAnswer:
    """A phrase's answer with its label, and each instance with its regions of the mask control."""

    found: Segmentation
    label: str | None
    instances: tuple[tuple[Instance, tuple[Region, ...]], ...]


def served_records(
    drawn: Sequence[ServedAnswer], image: LoadedImage, project: int, task: int, version: str, interactive: bool, page: int
) -> list[Served]:
    """Return a record for each region, and one for each phrase that has no object in the image. ``page`` is the picture's index, from 0.

    Two kinds of answers get no record: those without a phrase (to clicks alone), and empty ones that could not be used, such as an
    unreadable answer of the model.
    """
    now = time.time()
    height, width = image.pixels.shape[:2]
    records = []
    for one in drawn:
        if not one.found.phrase or (one.found.note and not one.instances):
            continue
        none = Served(
            time=now,
            project=project,
            task=task,
            version=version,
            phrase=one.found.phrase,
            label=one.label,
            region="",
            mask=None,
            box_px=(),
            features={"no_target": one.found.no_target_probability},
            score=one.found.score,
            interactive=interactive,
            width=width,
            height=height,
            image_sha256=image.sha256,
            page=page,
        )
        if not one.instances:
            records.append(none)
        for instance, regions in one.instances:
            rle, box = to_rle(instance.mask), tuple(float(side) for side in instance.box_px)
            features = {name: float(value) for name, value in asdict(instance.features).items()}
            records += [
                replace(none, region=str(region["id"]), mask=rle, box_px=box, features=features, score=instance.score) for region in regions
            ]
    return records
