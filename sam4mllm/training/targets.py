"""The points that PPG answers are to give, made as in the paper.

Of random groups of points on and off an object, those are kept from which SAM draws the object best. They are made once, before the run,
and kept in the dataset's folder in ``.prompts-<8 hex>.<n>.jsonl``, one line an object. The hex digits are a hash of the segmenter and of
``prompt_groups``, ``prompt_kept``, ``prompt_inside`` and ``prompt_outside``; ``n`` is the rank of the process that wrote the file. A run
that is resumed makes only the lines that are missing. An object's line depends on the object, the segmenter and those numbers alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.errors import DatasetError
from sam4mllm.identity import digest_of
from sam4mllm.masks import mask_iou
from sam4mllm.run_lengths import from_rle
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.training.asking import Asking
from sam4mllm.training.processes import Processes
from sam4mllm.values import Masks, Prompt

PROMPTS_AT_ONCE = 8
"""How many prompts the segmenter is given in one call. The candidate masks of all of them are in memory until they are compared."""

Points = NDArray[np.float32]
Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]


@dataclass(frozen=True, eq=False)
class Groups:
    """The k groups of points that were kept for an object, best first: ``inside_px`` (k, p, 2) lie on it, ``outside_px`` (k, n, 2) off it.

    ``iou`` (k,) compares the mask that SAM draws from each group with the true one. All groups of an object have the same numbers of
    points; n is 0 for an object that fills its box.
    """

    inside_px: Points
    outside_px: Points
    iou: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Targets:
    """The groups of all objects, by ``key_of``.

    ``identity`` is a hash of the segmenter and of the numbers by which the groups were made; it is empty where none were made.
    """

    identity: str
    groups: Mapping[str, Groups]

    def draw(self, example: Example, index: int, rng: np.random.Generator) -> tuple[Points, Points] | None:
        """Draw one of the groups of an example's object: its points on the object (p, 2) and off it (n, 2). None if it has no groups."""
        if not self.groups:
            return None
        found = self.groups.get(key_of(example, index))
        if found is None:
            return None
        place = rng.integers(len(found.iou))
        return found.inside_px[place], found.outside_px[place]


NO_TARGETS = Targets("", {})


def key_of(example: Example, index: int) -> str:
    """The hash of a picture and an object's box and mask in it."""
    instance = example.instances[index]
    return digest_of({"image": example.sha256, "box": instance.box_px.tolist(), "mask": instance.rle["counts"]})[:32]


def make_targets(
    datasets: Sequence[tuple[Path, Sequence[Example]]],
    segmenter: Segmenter,
    asking: Asking,
    processes: Processes,
    track: Track = lambda pictures, total: pictures,
) -> Targets:
    """Return the groups of all objects of some datasets, each a pair (folder, examples); groups that no file holds yet are made.

    Several processes share the work, and each reads what all have made; all of them must call this. ``track`` wraps the pictures whose
    groups are made here, for a progress bar. Raises DatasetError if a folder cannot be written, or a picture or a file of groups cannot be
    read; broken lines are made again.
    """
    identity = _identity(segmenter, asking)
    groups: dict[str, Groups] = {}
    for folder, examples in datasets:
        known = _read_all(folder, identity)
        missing = [some for some in _by_picture(examples) if any(key not in known for key in _keys(some))]
        own = [missing[place] for place in processes.places(len(missing))]
        _make(folder, own, known, segmenter, asking, _path(folder, identity, processes.rank), track)
        processes.wait()
        found = _read_all(folder, identity)
        groups |= {key: found[key] for some in _by_picture(examples) for key in _keys(some)}
    return Targets(identity, groups)


def sample_groups(mask: NDArray[np.bool_], box_px: Points, asking: Asking, rng: np.random.Generator) -> tuple[Points, Points]:
    """Draw K = ``prompt_groups`` random groups of points, each at the centre of a pixel.

    Return the points on the mask (H, W), as (K, p, 2), and those off the mask but inside the box (4,), as (K, n, 2).
    """
    x1, y1 = np.floor(box_px[:2]).astype(int).clip(0)
    x2, y2 = np.ceil(box_px[2:]).astype(int)
    of_box = np.zeros_like(mask)
    of_box[y1:y2, x1:x2] = True
    inside = _centres(mask)
    outside = _centres(of_box & ~mask)
    return _pick(inside, asking.prompt_inside, asking, rng), _pick(outside, asking.prompt_outside, asking, rng)


def _centres(mask: NDArray[np.bool_]) -> Points:
    rows, columns = np.nonzero(mask)
    return np.stack([columns, rows], axis=1).astype(np.float32) + np.float32(0.5)


def _pick(points: Points, count: int, asking: Asking, rng: np.random.Generator) -> Points:
    """Draw K = ``prompt_groups`` groups (K, c, 2) from points (N, 2), each without repetition; c is ``count``, or N if that is less."""
    count = min(count, len(points))
    chosen = [rng.choice(len(points), count, replace=False) for _ in range(asking.prompt_groups)] if count else []
    return points[np.array(chosen, np.int64).reshape(asking.prompt_groups, count)]


def _best_groups(
    segmenter: Segmenter, embedding: Embedding, mask: NDArray[np.bool_], box_px: Points, asking: Asking, rng: np.random.Generator
) -> Groups:
    inside, outside = sample_groups(mask, box_px, asking, rng)
    points = np.concatenate([inside, outside], axis=1)
    labels = np.repeat([1, 0], [inside.shape[1], outside.shape[1]])
    prompts = [Prompt(box_px, one, labels) for one in points]
    iou = np.array([mask_iou(_chosen(masks), mask) for masks in _decode(segmenter, embedding, prompts)])
    kept = np.argsort(-iou, kind="stable")[: asking.prompt_kept]
    return Groups(inside[kept], outside[kept], iou[kept])


def _decode(segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt]) -> Iterator[Masks]:
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        yield from segmenter.decode(embedding, prompts[start : start + PROMPTS_AT_ONCE])


def _chosen(masks: Masks) -> NDArray[np.bool_]:
    """Return the candidate mask that serving would take."""
    return masks.mask(masks.best)


def _make(
    folder: Path,
    pictures: list[list[Example]],
    known: Mapping[str, Groups],
    segmenter: Segmenter,
    asking: Asking,
    path: Path,
    track: Track,
) -> None:
    """Make the groups of some pictures' objects, except those in ``known``, and append them to the file at ``path``."""
    if not pictures:
        return
    try:
        with path.open("ab") as file:
            file.write(b"\n")  # a killed process may have left half a line
            for examples in track(pictures, len(pictures)):
                embedding = segmenter.encode(load_example_image(folder, examples[0]))
                file.writelines(_lines(examples, known, segmenter, embedding, asking))
                file.flush()
    except OSError as error:
        raise DatasetError(f"{path} cannot be written ({error.strerror}); the points of PPG answers are kept beside the dataset") from error


def _lines(
    examples: list[Example], known: Mapping[str, Groups], segmenter: Segmenter, embedding: Embedding, asking: Asking
) -> Iterator[bytes]:
    done = set(known)
    for example in examples:
        for index, instance in enumerate(example.instances):
            key = key_of(example, index)
            if key not in done:
                done.add(key)
                mask = from_rle(instance.rle, example.height, example.width, max_pixels=example.height * example.width)
                groups = _best_groups(segmenter, embedding, mask, instance.box_px, asking, np.random.default_rng(int(key, 16)))
                fields = {"key": key, "iou": [round(iou, 4) for iou in groups.iou.tolist()]}
                points = {"inside": groups.inside_px.tolist(), "outside": groups.outside_px.tolist()}
                yield json.dumps({**fields, **points}).encode() + b"\n"


def _read_all(folder: Path, identity: str) -> dict[str, Groups]:
    found: dict[str, Groups] = {}
    for path in sorted(folder.glob(f".prompts-{identity}.*.jsonl")):
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
        for line in lines:
            found.update(_read_line(line))
    return found


def _read_line(line: bytes) -> dict[str, Groups]:
    """Return the groups of the object in a line, by its key; nothing if the line is broken, so that the object is done again."""
    try:
        fields = json.loads(line)
        iou = np.array(fields["iou"], np.float64)
        inside, outside = (np.array(fields[name], np.float32).reshape(len(iou), -1, 2) for name in ("inside", "outside"))
        return {str(fields["key"]): Groups(inside, outside, iou)} if len(iou) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _by_picture(examples: Iterable[Example]) -> list[list[Example]]:
    pictures: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        pictures[example.image].append(example)
    return list(pictures.values())


def _keys(examples: Iterable[Example]) -> list[str]:
    return [key_of(example, index) for example in examples for index in range(len(example.instances))]


def _path(folder: Path, identity: str, rank: int) -> Path:
    return folder / f".prompts-{identity}.{rank}.jsonl"


def _identity(segmenter: Segmenter, asking: Asking) -> str:
    numbers = {name: getattr(asking, name) for name in ("prompt_groups", "prompt_kept", "prompt_inside", "prompt_outside")}
    return digest_of({"segmenter": segmenter.identity, **numbers})[:8]
