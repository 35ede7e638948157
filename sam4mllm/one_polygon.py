"""A mask as one polygon, for formats that give an object a single one and know no holes, as YOLO's.

The polygon runs through the centres of the mask's border pixels: OpenCV's ``fillPoly``, which readers use, fills by the even-odd rule and
draws the outline as well. The borders of holes and of other pieces are joined to it by bridges, straight cuts that are walked there and
back. A bridge to a hole lies in the mask and changes nothing; one to another piece adds its own pixels, as many as the gap is wide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_IOU = 0.985
"""Least IoU between a mask and its one polygon when that is filled again. A mask whose pieces lie too far apart for this IoU gets one
polygon for each piece. Readers that put points between the corners before they fill, as Ultralytics does, lose another 0.005 of IoU, so
that 0.98 is left."""
MIN_CORNERS = 3
"""A polygon of fewer points is read as a box, or refused, by readers of YOLO's format."""

Points = NDArray[np.int32]


@dataclass(frozen=True)
class _Bridge:
    """A cut between two borders; each end is the number of a border and the index of a point in it."""

    length: float
    first: tuple[int, int]
    second: tuple[int, int]


def to_one_polygon(mask: NDArray[np.bool_], least_iou: float = LEAST_IOU) -> list[Points]:
    """Return a mask (H, W) as a list of one polygon (K, 2) int32: x, y of pixels, from 0. ``fill`` gives the mask back, with the bridges
    between pieces added.

    Where these bridges would bring the IoU below ``least_iou``, the list has a polygon for each piece instead, each exact. For an empty
    mask it is empty.
    """
    window = cv2.boundingRect(mask.astype(np.uint8))
    x, y, width, height = window
    if not width:
        return []
    part = np.ascontiguousarray(mask[y : y + height, x : x + width], np.uint8)
    borders, pieces = _borders(part)
    bridges = _bridges(part, borders)
    polygons = _join(borders, _spanning(bridges, range(len(borders))))
    if len(polygons) == 1 and len(set(pieces)) > 1 and _iou(polygons[0], part) < least_iou:
        within = [one for one in bridges if pieces[one.first[0]] == pieces[one.second[0]]]
        polygons = _join(borders, _spanning(within, range(len(borders))))
    return [polygon + np.array([x, y], np.int32) for polygon in polygons]


def fill(polygon: Points, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) of a polygon, as readers of YOLO's format fill it."""
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [polygon.reshape(-1, 1, 2)], 1)
    return canvas.astype(np.bool_)


def _iou(polygon: Points, part: NDArray[np.uint8]) -> float:
    filled, inside = fill(polygon, *part.shape), part.astype(np.bool_)
    return float((filled & inside).sum() / (filled | inside).sum())


def _borders(part: NDArray[np.uint8]) -> tuple[list[Points], list[int]]:
    """Return the borders of all pieces and holes, each (K, 2), and for each border the index of its piece's outer border in that list."""
    found, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = hierarchy[0][:, 3].tolist()
    return [np.asarray(border, np.int32)[:, 0] for border in found], [
        index if parent < 0 else parent for index, parent in enumerate(parents)
    ]


def _bridges(part: NDArray[np.uint8], borders: list[Points]) -> list[_Bridge]:
    """Bridges between borders that are neighbours: enough for a shortest tree over all of them.

    Each pixel is given to its nearest border point; where two pixels side by side belong to different borders, these are neighbours.
    """
    if len(borders) == 1:
        return []
    owner = np.full(part.shape, -1, np.int64)
    place = np.zeros(part.shape, np.int64)
    best: dict[tuple[int, int], _Bridge] = {}

    def offer(bridge: _Bridge) -> None:
        key = (min(bridge.first[0], bridge.second[0]), max(bridge.first[0], bridge.second[0]))
        if key not in best or bridge.length < best[key].length:
            best[key] = bridge

    for number, border in enumerate(borders):
        xs, ys = border[:, 0], border[:, 1]
        # where the mask is one pixel wide, two borders share it
        for index in np.flatnonzero((owner[ys, xs] >= 0) & (owner[ys, xs] != number)):
            offer(_Bridge(0.0, (int(owner[ys[index], xs[index]]), int(place[ys[index], xs[index]])), (number, int(index))))
        free = owner[ys, xs] < 0
        owner[ys[free], xs[free]] = number
        place[ys[free], xs[free]] = np.flatnonzero(free)
    _, nearest = cv2.distanceTransformWithLabels((owner < 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    owned = np.argwhere(owner >= 0)
    points = np.zeros((int(nearest.max()) + 1, 2), np.int64)
    points[nearest[owned[:, 0], owned[:, 1]]] = owned
    for a, b in ((nearest[:, :-1], nearest[:, 1:]), (nearest[:-1], nearest[1:])):
        pairs = np.unique(np.stack([a[a != b], b[a != b]], 1), axis=0)
        first, second = points[pairs[:, 0]], points[pairs[:, 1]]
        apart = owner[first[:, 0], first[:, 1]] != owner[second[:, 0], second[:, 1]]
        lengths = np.hypot(*(first - second).T)
        for one, other, length in zip(first[apart], second[apart], lengths[apart], strict=True):
            ends = [(int(owner[y, x]), int(place[y, x])) for y, x in (one, other)]
            offer(_Bridge(float(length), ends[0], ends[1]))
    return list(best.values())


def _spanning(bridges: list[_Bridge], borders: range) -> list[_Bridge]:
    """The shortest bridges that join all that can be joined (Kruskal)."""
    root = list(borders)

    def find(border: int) -> int:
        while root[border] != border:
            root[border] = root[root[border]]
            border = root[border]
        return border

    kept = []
    for bridge in sorted(bridges, key=lambda one: one.length):
        first, second = find(bridge.first[0]), find(bridge.second[0])
        if first != second:
            root[first] = second
            kept.append(bridge)
    return kept


def _join(borders: list[Points], bridges: list[_Bridge]) -> list[Points]:
    """Return one polygon for each set of borders that bridges join. Each border is walked around once, from where a bridge reaches it."""
    leaving: dict[int, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
    for bridge in bridges:
        leaving[bridge.first[0]].append((bridge.first[1], bridge.second))
        leaving[bridge.second[0]].append((bridge.second[1], bridge.first))
    seen: set[int] = set()
    polygons = []
    for start in range(len(borders)):
        if start in seen:
            continue
        walked: list[Points] = []
        # a stack instead of recursion, which Python limits: thousands of borders can hang from one another
        walks = [_around(borders, leaving, seen, (start, 0))]
        crossed: list[Points] = []
        while walks:
            part = next(walks[-1], None)
            if part is None:
                walks.pop()
                walked += [crossed.pop()[::-1]] if crossed else []
            elif isinstance(part, tuple):
                walks.append(_around(borders, leaving, seen, part))
                crossed.append(_cross(walked[-1][-1], borders[part[0]][part[1]]))
                walked.append(crossed[-1])
            else:
                walked.append(part)
        polygons.append(_simplified(np.concatenate(walked)))
    return polygons


def _cross(start: Points, end: Points) -> Points:
    """Return all pixels of a bridge from ``start`` to ``end``. With its ends alone, a reader that puts points along long sides might not go
    back over the same pixels.
    """
    steps = int(np.abs(end - start).max()) + 1
    return np.asarray(np.rint(np.linspace(start, end, steps)), np.int32)


def _around(
    borders: list[Points], leaving: Mapping[int, list[tuple[int, tuple[int, int]]]], seen: set[int], arrival: tuple[int, int]
) -> Iterator[Points | tuple[int, int]]:
    """Walk once around a border, from its point ``arrival`` (border, index) back to it. Yield its points in runs, and after a run that ends
    at a bridge the (border, index) to which the bridge leads, unless that border was seen.

    ``leaving`` holds the bridges of each border: the index of the point where one begins, and the (border, index) where it ends. ``seen``
    are the borders that were walked; this one is added to them.
    """
    number, place = arrival
    seen.add(number)
    ring = np.roll(borders[number], -place, axis=0)
    ring = np.concatenate([ring, ring[:1]])
    done = 0
    for step, other in sorted(((at - place) % len(borders[number]), other) for at, other in leaving.get(number, ())):
        if other[0] not in seen:
            yield ring[done : step + 1]
            yield other
            done = step
    yield ring[done:]


def _simplified(points: Points) -> Points:
    """Return the points without those that repeat the point before them or lie inside a straight run of pixels.

    If fewer than MIN_CORNERS are left, they are repeated up to that number.
    """
    different = np.any(points != np.roll(points, 1, axis=0), axis=1)
    points = points[different] if different.any() else points[:1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    inside = np.all(before == after, axis=1) & (np.abs(before).max(axis=1) == 1)
    kept = points[~inside]
    return np.asarray(kept[np.arange(max(MIN_CORNERS, len(kept))) % len(kept)], np.int32)
