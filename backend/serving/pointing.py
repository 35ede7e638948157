"""What an annotator's clicks are about: which of the masks on the screen they refine, and which ids the answer's regions get for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.corrections.log_records import Served
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.phrases import Pointed
from backend.label_studio.region_ids import alone_id, refined_ids
from backend.label_studio.wire import Region
from sam4mllm.clicks import SAME_SHOWN, Clicks, ShownInstance, merge
from sam4mllm.geometry import box_iou
from sam4mllm.run_lengths import Rle, from_rle
from sam4mllm.values import Grounding, Instance

MAX_SHOWN = 64
"""The most instances of a phrase that a click is compared with. While it is answered, each is in memory as a mask of the image's size."""
NOTHING_FOUND = Grounding("", np.zeros((0, 4), np.float32), np.zeros(0), 0.0)


@dataclass(frozen=True)
class OnScreen:
    """An instance that was served for a phrase: the ids of its regions, its box (x1, y1, x2, y2) in pixels, and its mask.

    ``page`` is the index of its picture in the task, from 0.
    """

    phrase: str
    regions: tuple[str, ...]
    box_px: tuple[float, ...]
    mask: Rle = field(repr=False)
    page: int = 0

    def shown(self) -> ShownInstance:
        height, width = self.mask["size"]
        return ShownInstance(np.array(self.box_px, np.float32), from_rle(self.mask, height, width, max_pixels=height * width))


def on_screen(records: Sequence[Served], phrase: str, present: frozenset[str]) -> tuple[OnScreen, ...]:
    """Return the instances that an annotator may see for a phrase, at most MAX_SHOWN, each group the newest first: those with a region in
    ``present``, then the others.

    ``records`` are in order of time. ``present`` are the ids of the regions in the task's drafts, annotations and predictions. An instance
    from before the last answer of its kind (interactive or not) is included only if ``present`` has one of its regions.
    """
    own = [one for one in records if one.phrase == phrase]
    last = {interactive: max((one.time for one in own if one.interactive == interactive), default=0.0) for interactive in (True, False)}
    newest = {one.region: one for one in own if one.mask is not None and (one.region in present or one.time == last[one.interactive])}
    groups: dict[tuple[float, str, bool, int, str], list[Served]] = {}
    for one in newest.values():
        if one.mask is not None and len(one.box_px) == 4:
            groups.setdefault((one.time, one.version, one.interactive, one.page, str(one.mask["counts"])), []).append(one)
    found = [
        OnScreen(phrase, tuple(one.region for one in some), some[0].box_px, some[0].mask, some[0].page)
        for some in groups.values()
        if some[0].mask
    ]
    found.reverse()  # the newest first
    return tuple(sorted(found, key=lambda one: not present & {*one.regions}))[:MAX_SHOWN]


def with_shown(clicks: Clicks, seen: Sequence[OnScreen], selected: frozenset[str] = frozenset()) -> Clicks:
    """Return the clicks with the shown instances that they may be about.

    ``selected`` are the ids of regions that the annotator selected: if one is of a shown instance, all clicks are about that instance.
    Otherwise the place of each click decides.
    """
    chosen = next((index for index, one in enumerate(seen) if selected & {*one.regions}), None)
    return Clicks(clicks.points_px, clicks.labels, clicks.boxes_px, tuple(one.shown() for one in seen), chosen)


def of_size(seen: Sequence[OnScreen], height: int, width: int) -> tuple[OnScreen, ...]:
    """Return the instances whose masks have this size. Others are of a former picture: the file at an address may have been replaced."""
    return tuple(one for one in seen if [*one.mask["size"]] == [height, width])


def selected_regions(context: Sequence[Region], config: LabelConfig) -> frozenset[str]:
    """Return the ids of the regions that the clicks of a request are about: the masks in its context, and the parents of its regions."""
    masks = {region.get("id") for region in context if region.get("from_name") == config.mask.name}
    return frozenset(one for one in masks | {region.get("parentID") for region in context} if isinstance(one, str) and one)


def touched_phrase(pointed: Pointed, seen: Mapping[str, Sequence[OnScreen]], selected: frozenset[str]) -> str:
    """Return the phrase whose instances on the screen the clicks refine, or an empty text if they refine none.

    It is also empty if the instances on the screen are of pictures of different sizes. ``seen`` are the instances by phrase.
    """
    flat = [(phrase, one) for phrase, some in seen.items() for one in some]
    sizes = {(int(one.mask["size"][0]), int(one.mask["size"][1])) for _, one in flat}
    if len(sizes) != 1:
        return ""
    [(height, width)] = sizes
    clicks = with_shown(pointed.clicks(width, height), [one for _, one in flat], selected)
    about = [target.shown for target in merge(NOTHING_FOUND, clicks) if target.pointed == "refined" and target.shown is not None]
    return flat[about[0]][0] if about else ""


def answer_ids(instance: Instance, new: Sequence[str], clicks: Clicks | None, seen: Sequence[OnScreen]) -> list[str]:
    """Return the ids of an instance's regions in an answer to an annotator. ``new`` are unused ids, one for each region.

    An instance that was made by clicks alone gets ids that say so (:func:`alone_id`). One that is not in ``seen`` yet gets ``new``. A
    refined instance keeps the ids of the instance in ``seen`` that it refines, so that the editor replaces the old regions.

    A refined instance gets derived ids (:func:`refined_ids`) where Label Studio may have selected the old region meanwhile, as after a drag
    that begins and ends on its mask: Label Studio 1.23.2 goes blank when a suggestion has the id of a selected region. If a phrase was
    typed again (``clicks`` is None), an instance gets derived ids where its box and that of one in ``seen`` have an IoU of at least
    SAME_SHOWN.
    """
    if instance.pointed == "alone":
        return [alone_id(one) for one in new]
    old = _same_object(instance, seen) if clicks is None else seen[instance.shown] if instance.shown is not None else None
    if old is None:
        return list(new)
    return refined_ids(old.regions, new, clicks is not None and not _drawn_inside(clicks, old))


def _drawn_inside(clicks: Clicks, old: OnScreen) -> bool:
    """Whether a drag may have begun and ended on the old region: two opposite corners of a box are inside its box."""
    left, top, right, bottom = old.box_px
    for x1, y1, x2, y2 in clicks.boxes_px.tolist():
        inside = {(x, y) for x in (x1, x2) for y in (y1, y2) if left <= x <= right and top <= y <= bottom}
        if {(x1, y1), (x2, y2)} <= inside or {(x1, y2), (x2, y1)} <= inside:
            return True
    return False


def _same_object(instance: Instance, seen: Sequence[OnScreen]) -> OnScreen | None:
    likeness = [float(box_iou(np.array([one.box_px], np.float32), instance.box_px[None])[0, 0]) for one in seen]
    best = int(np.argmax(likeness)) if likeness else 0
    return seen[best] if likeness and likeness[best] >= SAME_SHOWN else None
