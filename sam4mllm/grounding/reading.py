"""Read an answer's text as boxes and points in pixels: in the dialect's own grammar, or in any other spelling and frame that a model uses.

Numbers may not be in the dialect's frame: they go beyond it, they are shares where it has whole numbers, or they have a unit. They are then
read in the first frame that they fit, and a note says so. All boxes of one answer that are alike in unit, and in being shares or not, are
taken to be in one frame.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.geometry import order_box
from sam4mllm.grounding.foreign_frames import BEYOND, Foreign, choose_frame
from sam4mllm.grounding.frames import Framed, highest, to_pixels
from sam4mllm.prompts.answer_text import ends_inside_thought, fold, without_thoughts
from sam4mllm.prompts.conversation import BoxNumbers, PointNumbers
from sam4mllm.prompts.coordinates import FoundBox, FoundPoint
from sam4mllm.prompts.dialects import Dialect
from sam4mllm.prompts.gathering import Manner
from sam4mllm.prompts.general import Found, find_boxes
from sam4mllm.prompts.parse import (
    MAX_INSTANCES,
    MAX_POINTS,
    number_order,
    parse_points,
    parse_prompt,
    says_no_target,
    spelled_boxes,
    whole_number,
)
from sam4mllm.prompts.pointing import find_marks

WEAK_SIDE = 0.01
"""Least side, as a share of the image's, of a box that only four numbers suggest, lest counts or years be taken for a box."""
ONLY_THOUGHT = "the model's thought does not end, so there is no answer"
_INSIDE, _OUTSIDE = frozenset(("inside", "positive", "foreground")), frozenset(("outside", "negative", "background"))


@dataclass(frozen=True, eq=False)
class ReadInstance:
    """One object of an answer.

    ``box_px`` (4,) float32 is inside the image and not empty; only if the model answers with points is it a point, a box without sides.
    ``inside_px`` (P, 2) and ``outside_px`` (Q, 2) float32 are points that the model wrote for the object. ``numbers`` are the box's numbers
    in the dialect's frame; None if the box was read in another frame, or if the model answers with points. ``start`` and ``end`` say where
    the box stands in the answer's text after :func:`~sam4mllm.prompts.answer_text.fold`.
    """

    box_px: NDArray[np.float32]
    inside_px: NDArray[np.float32]
    outside_px: NDArray[np.float32]
    numbers: BoxNumbers | None
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class ReadAnswer:
    """What an answer says. ``instances`` are the objects in the answer's order, at most MAX_INSTANCES. ``absent``: the answer says that
    there is no such object. ``note`` is one line on how the answer was read, for the user; empty if it was read as it stands.
    """

    instances: tuple[ReadInstance, ...]
    absent: bool
    note: str


def read_answer(dialect: Dialect, image: Framed, text: str, *, with_points: bool = False, finished: bool = True) -> ReadAnswer:
    """Read an answer to a question for boxes or, ``with_points``, for a whole prompt (PPG). Never raises.

    ``finished``: the model ended the answer itself; otherwise the last number of the text may be incomplete. Numbers in a thought are not
    read. If a thought does not end, there is no answer after it, and the note says so.
    """
    folded = fold(text)
    clear = without_thoughts(folded)
    if dialect.answers_with_points:
        return _read_points(dialect, image, folded, clear, finished)
    manner = Manner(number_order(dialect), _is_paired(dialect), not parse_points(dialect, clear), finished)
    found = find_boxes(clear, manner)
    candidates = _merged(_own(dialect, clear), found)
    read, notes = _placed(dialect, image, candidates)
    if with_points:
        read = _with_points(dialect, image, clear, read, found, [box.start for box in candidates])
    absent = not read and (says_no_target(dialect, clear) or any(not any(box.corners) for box in candidates))
    if not read and not absent and ends_inside_thought(folded):
        notes = [ONLY_THOUGHT]
    return ReadAnswer(tuple(instance for instance, _ in read[:MAX_INSTANCES]), absent, "; ".join(notes))


def _read_points(dialect: Dialect, image: Framed, folded: str, clear: str, finished: bool) -> ReadAnswer:
    """Read the answer of a model that answers with points: each point becomes an object whose box has no sides."""
    instances: dict[PointNumbers, ReadInstance] = {}
    for mark in find_marks(clear, finished):
        point_px = to_pixels(dialect, image, (mark.x, mark.y))
        instance = ReadInstance(np.tile(point_px, 2), point_px[None], _no_points(), None, mark.start, mark.end)
        instances.setdefault((mark.x, mark.y), instance)
    absent = not instances and says_no_target(dialect, clear)
    note = ONLY_THOUGHT if not instances and not absent and ends_inside_thought(folded) else ""
    return ReadAnswer(tuple(instances.values())[:MAX_INSTANCES], absent, note)


def note_on(read: ReadAnswer, finished: bool, cut_at: int = 0) -> str:
    """Return what a user should know about an answer, in one line; empty if all is well.

    ``finished``: the model ended the answer itself. ``cut_at``: after how many tokens the thought before it was cut off, 0 if it was not.
    """
    thought = f"the thought was cut off at {cut_at:,} tokens" if cut_at else ""
    if not read.instances and not read.absent:
        return "; ".join(filter(None, (read.note or "the model's answer could not be read", thought)))
    return "; ".join(filter(None, (read.note, "" if finished else "the model's answer was cut off; there may be more", thought)))


def _is_paired(dialect: Dialect) -> bool:
    """Whether a box is spelled as two corners in brackets, between whatever tags."""
    return re.search(r"\(\{x1\}\W*\{y1\}\)\W*\(\{x2\}\W*\{y2\}\)", dialect.box) is not None


# -- which boxes ---------------------------------------------------------------------------------------------------------------------------


def _own(dialect: Dialect, clear: str) -> list[FoundBox]:
    boxes = []
    for spelled, start, end in spelled_boxes(dialect, clear):
        x1, y1, x2, y2 = (float(text) for text in spelled)
        boxes.append(FoundBox((x1, y1, x2, y2), spelled, "", start, end))
    return boxes


def _merged(own: Sequence[FoundBox], found: Found) -> list[FoundBox]:
    """Merge the boxes in the dialect's own spelling (``own``) with those that the general reader ``found``, in the answer's order.

    Where both read the same place, the own reading is kept, unless the answer itself says which number is which or in what unit, or that
    the numbers are not a box.
    """
    spans = [(box.start, box.end, box) for box in found.boxes] + [(start, end, None) for start, end in found.ignored]
    spans.sort(key=lambda span: (span[0], span[1]))
    kept: list[FoundBox] = []
    replaced: set[int] = set()
    at = 0
    for box in own:
        while at < len(spans) and spans[at][1] <= box.start:
            at += 1
        beside = [other for start, end, other in spans[at : at + 4] if start < box.end and end > box.start]
        if any(other is None or (other.spelled != box.spelled and _says_more(other)) for other in beside):
            continue
        replaced |= {id(other) for other in beside}
        kept.append(box)
    return sorted([*kept, *(box for box in found.boxes if id(box) not in replaced)], key=lambda box: (box.start, box.end))


def _says_more(box: FoundBox) -> bool:
    """Whether the answer itself says which number is which, or in what unit."""
    return box.measure in ("%", "px") or (box.named and not box.measure)


# -- where they are ------------------------------------------------------------------------------------------------------------------------

_Placed = list[tuple[ReadInstance, "Foreign | None"]]


def _placed(dialect: Dialect, image: Framed, candidates: Sequence[FoundBox]) -> tuple[_Placed, list[str]]:
    """Place boxes in the image, without repetitions. Return each with the frame it was read in (None: the dialect's), and the notes."""
    boxes = [box for box in candidates if any(box.corners)]  # four zeros are how some models say that there is nothing
    groups: dict[tuple[str, bool], list[FoundBox]] = {}
    for box in boxes:
        groups.setdefault((box.measure, box.as_shares), []).append(box)
    frames = {key: choose_frame(dialect, image, group) for key, group in groups.items()}
    placed: dict[tuple[float, ...], tuple[ReadInstance, Foreign | None]] = {}
    notes: dict[str, None] = {}
    for box in boxes:
        frame = frames[box.measure, box.as_shares]
        if frame is None or frame is BEYOND:
            instance = _in_own_frame(dialect, image, box, frame is BEYOND)
        else:
            instance = _in_foreign_frame(frame, image, box)
        if instance is not None and not (box.weak and _is_doubtful(instance.box_px, box, image)):
            placed.setdefault(instance.numbers or tuple(instance.box_px.tolist()), (instance, frame))
            if frame is not None:
                notes.setdefault(frame.note(dialect))
    return list(placed.values()), list(notes)


def _in_own_frame(dialect: Dialect, image: Framed, box: FoundBox, beyond: bool) -> ReadInstance | None:
    """Read a box in the dialect's frame, cut at the image's edge.

    None if nothing is left of the box after the cut, and ``beyond`` is true or the box has a negative number. ``beyond``: some box of the
    box's group does not fit the frame.
    """
    spelled = box.spelled or tuple(f"{max(0.0, number):.9f}" for number in box.corners)
    x1, y1, x2, y2 = (_own_number(dialect, image, text) for text in spelled)
    numbers = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    box_px = to_pixels(dialect, image, numbers)
    if (beyond or min(box.corners) < 0) and (box_px[2:] <= box_px[:2]).any():
        return None
    box_px = order_box(box_px, image.width, image.height)
    return ReadInstance(box_px, _no_points(), _no_points(), numbers, box.start, box.end)


def _own_number(dialect: Dialect, image: Framed, text: str) -> int:
    return min(int(whole_number(text, dialect.decimals)), highest(dialect, image))


def _in_foreign_frame(frame: Foreign, image: Framed, box: FoundBox) -> ReadInstance | None:
    x1, y1, x2, y2 = frame.to_pixels(np.array(box.corners), image)
    box_px = np.clip(
        np.array([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]), 0, [image.width, image.height, image.width, image.height]
    )
    if box_px[2] <= box_px[0] or box_px[3] <= box_px[1]:
        return None
    return ReadInstance(
        order_box(box_px.astype(np.float32), image.width, image.height), _no_points(), _no_points(), None, box.start, box.end
    )


def _is_doubtful(box_px: NDArray[np.float32], box: FoundBox, image: Framed) -> bool:
    x1, y1, x2, y2 = box.corners
    width, height = box_px[2:] - box_px[:2]
    return x2 <= x1 or y2 <= y1 or width < WEAK_SIDE * image.width or height < WEAK_SIDE * image.height


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


# -- points of a prompt --------------------------------------------------------------------------------------------------------------------


def _with_points(dialect: Dialect, image: Framed, clear: str, read: _Placed, found: Found, starts: Sequence[int]) -> _Placed:
    """Return the instances with their points.

    The points are those of the dialect's grammar if it reads the same boxes, and reads points at all if there are any. Otherwise a box has
    the points between it and the next box, each on the side that the last word for inside or outside before it names.
    """
    spoken = {instance.box: instance for instance in parse_prompt(dialect, clear, highest(dialect, image))}
    told = any(instance.inside or instance.outside for instance in spoken.values()) or not found.points
    if told and all(frame in (None, BEYOND) and instance.numbers in spoken for instance, frame in read):
        return [
            (
                replace(
                    instance,
                    inside_px=_own_points(dialect, image, spoken[instance.numbers].inside),
                    outside_px=_own_points(dialect, image, spoken[instance.numbers].outside),
                ),
                frame,
            )
            for instance, frame in read
            if instance.numbers is not None
        ]
    events: list[tuple[int, str, FoundPoint | None]] = [(point.start, "", point) for point in found.points]
    events += [(at, word, None) for word, at in found.words if word in _INSIDE | _OUTSIDE]
    events.sort(key=lambda event: event[0])
    at = [event[0] for event in events]
    given: _Placed = []
    for instance, frame in read:
        following = bisect.bisect_left(starts, instance.end)  # repeated boxes count here too: points after one are not this box's
        until = starts[following] if following < len(starts) else len(clear) + 1
        own = events[bisect.bisect_left(at, instance.end) : bisect.bisect_left(at, until)]
        given.append((_given_points(dialect, image, instance, frame, own), frame))
    return given


def _own_points(dialect: Dialect, image: Framed, points: Sequence[PointNumbers]) -> NDArray[np.float32]:
    return to_pixels(dialect, image, np.array(points, np.float64).reshape(-1, 2))


def _given_points(
    dialect: Dialect, image: Framed, instance: ReadInstance, frame: Foreign | None, events: Sequence[tuple[int, str, FoundPoint | None]]
) -> ReadInstance:
    sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    side: int | None = None
    for _, word, point in events:
        if point is None:
            side = 0 if word in _INSIDE else 1
        elif side is not None and len(sides[side]) < MAX_POINTS:
            sides[side].append(_point_px(dialect, image, frame, point))
    inside, outside = (np.array(points, np.float32).reshape(-1, 2) for points in sides)
    return replace(instance, inside_px=inside, outside_px=outside)


def _point_px(dialect: Dialect, image: Framed, frame: Foreign | None, point: FoundPoint) -> NDArray[np.float32]:
    if frame is None or frame is BEYOND:
        return to_pixels(dialect, image, [_own_number(dialect, image, number.text) for number in (point.x, point.y)])
    px = frame.to_pixels(np.array([point.x.value, point.y.value]), image)
    return np.asarray(np.clip(px, 0, [image.width, image.height]), np.float32)
