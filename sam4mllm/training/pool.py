"""The images that a training run learns from: corrections, grouped by label, and replay.

The replay is examples of what the base model already knows; they are trained on again so that it does not forget it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.conversations import Conversation, Turn
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.errors import DatasetError, ImageError, TrainingError
from sam4mllm.identity import digest_of
from sam4mllm.images import load_image
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.validation import set_aside

BYTES_KEPT = 256 << 20
"""The most bytes of decoded images that are kept in memory: about 290 images of 640 × 480."""


def phrase_of(example: Example) -> str:
    """Return the example's phrase, which stands for its label by default."""
    return example.phrase


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An image (H, W, 3) uint8 RGB to learn from, with either the ``examples`` or the ``turns`` of the conversation about it.

    ``name`` is for messages. ``replayed``: whether the image comes from the replay and not from a correction. ``varied``: whether the image
    was changed at random, so that exactly this image does not come up again.
    """

    image: NDArray[np.uint8]
    examples: tuple[Example, ...]
    turns: tuple[Turn, ...] = ()
    name: str = ""
    replayed: bool = False
    varied: bool = False


@dataclass(frozen=True, eq=False)
class _Picture:
    folder: Path
    examples: tuple[Example, ...]
    replayed: bool = False

    @property
    def name(self) -> str:
        return self.examples[0].image

    @property
    def key(self) -> tuple[Path, str]:
        return self.folder, self.name

    def load(self) -> NDArray[np.uint8]:
        return load_example_image(self.folder, self.examples[0])

    def shown(self, image: NDArray[np.uint8]) -> TrainingImage:
        return TrainingImage(image, self.examples, name=self.name, replayed=self.replayed)


@dataclass(frozen=True, eq=False)
class _Talk:
    conversation: Conversation

    @property
    def key(self) -> tuple[Path, str]:
        return self.conversation.image, ""

    def load(self) -> NDArray[np.uint8]:
        try:
            return load_image(self.conversation.image)
        except ImageError as error:
            raise DatasetError(f"{self.conversation.image}: {error}") from error

    def shown(self, image: NDArray[np.uint8]) -> TrainingImage:
        return TrainingImage(image, (), self.conversation.turns, str(self.conversation.image))


class Pool:
    """The images that a run draws from.

    For a correction, ``draw`` first draws a label, then one of its images. A label's chance is in proportion to the square root of the
    number of its images: a rare label comes up more often than its share, but not so often that its few images are learned by heart
    (square-root resampling, as Mahajan et al. 2018).

    Images are read when they are first returned, and kept up to BYTES_KEPT. All methods that return images raise DatasetError if one cannot
    be read.

    Args:
        corrections: pairs of a dataset's folder and its examples to learn from.
        replay: the same for examples that are no corrections; may be empty.
        label: returns the label of an example; the default is its phrase.
        conversations: conversations about images, on anything but segmentation; may be empty.
        validation_share: share of the corrections' pictures that are set aside for validation (:mod:`sam4mllm.training.validation`).
        phrases: the most phrases that are asked about an image at once; an image with more counts as several images. None: no limit.

    Raises:
        DatasetError: there are no corrections.
    """

    def __init__(
        self,
        corrections: Sequence[tuple[Path, Sequence[Example]]],
        replay: Sequence[tuple[Path, Sequence[Example]]] = (),
        label: Callable[[Example], Hashable] = phrase_of,
        conversations: Sequence[Conversation] = (),
        phrases: int | None = None,
        validation_share: float = 0.0,
    ) -> None:
        pictures = list(_pictures(corrections, phrases))
        aside = _set_aside(pictures, label, validation_share)
        self._pictures = [picture for picture in pictures if picture.key not in aside]
        self._validation = [picture for picture in pictures if picture.key in aside]
        self._replay = list(_pictures(replay, phrases, replayed=True))
        self._talks = [_Talk(conversation) for conversation in conversations]
        if not self._pictures:
            raise DatasetError("there is no example to learn from; correct some masks first")
        strata: defaultdict[Hashable, list[int]] = defaultdict(list)
        for index, picture in enumerate(self._pictures):
            for key in {label(example) for example in picture.examples}:
                strata[key].append(index)
        self._strata = [strata[key] for key in sorted(strata, key=repr)]
        roots = np.sqrt([len(stratum) for stratum in self._strata])
        self._shares = np.cumsum(roots / roots.sum())
        self._orders: dict[str, tuple[tuple[int, ...], NDArray[np.int64]]] = {}
        self._images: OrderedDict[tuple[Path, str], NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # the next step's images are read while this step draws corrections to paste

    @property
    def sha256(self) -> str:
        """The hash, in hex, of all that decides what is drawn: pictures, phrases, boxes, masks, labels, thoughts and conversations.

        The folders that they lie in do not count.
        """
        digest = hashlib.sha256(digest_of({"strata": self._strata, "replay_from": len(self._pictures)}).encode())
        for picture in (*self._pictures, *self._replay, *self._validation):  # one by one: the masks of a large set fill a gigabyte
            digest.update(digest_of({"picture": [_describe(example) for example in picture.examples]}).encode())
        for talk in self._talks:
            turns = [asdict(turn) for turn in talk.conversation.turns]
            digest.update(digest_of({"image": talk.conversation.image.name, "turns": turns}).encode())
        return digest.hexdigest()

    @property
    def set_aside(self) -> int:
        """How many pictures are set aside for validation; one with more than ``phrases`` phrases counts as several."""
        return len(self._validation)

    def validation_picture(self, place: int) -> TrainingImage:
        """Return the picture at an index of those that are set aside."""
        return self._show(self._validation[place])

    # -- at random -------------------------------------------------------------------------------------------------------------------------

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        replay_share: float,
        conversation_share: float = 0.0,
        places: Iterable[int] | None = None,
    ) -> list[TrainingImage]:
        """Draw ``count`` images at random and return those at ``places`` among them, or all if that is None.

        About ``conversation_share`` of the images come with conversations, and ``replay_share`` of the others come from the replay.
        """
        drawn = [self._draw(rng, replay_share, conversation_share) for _ in range(count)]
        return [self._show(drawn[place]) for place in (range(count) if places is None else places)]

    def _draw(self, rng: np.random.Generator, replay_share: float, conversation_share: float) -> _Picture | _Talk:
        if self._talks and rng.random() < conversation_share:
            return self._talks[rng.integers(len(self._talks))]
        if self._replay and rng.random() < replay_share:
            return self._replay[rng.integers(len(self._replay))]
        stratum = self._strata[min(int(np.searchsorted(self._shares, rng.random(), side="right")), len(self._strata) - 1)]
        return self._pictures[stratum[rng.integers(len(stratum))]]

    def replay_phrases(self) -> set[str]:
        """Return all phrases that are asked about the replay's images."""
        return {example.phrase for picture in self._replay for example in picture.examples}

    def asked_of_corrections(self) -> list[tuple[Example, ...]]:
        """Return the examples of each of the corrections' images, without the images that are set aside for validation."""
        return [picture.examples for picture in self._pictures]

    def correction(self, place: int) -> TrainingImage:
        """Return the image at an index of :meth:`asked_of_corrections`."""
        return self._show(self._pictures[place])

    # -- in turn ---------------------------------------------------------------------------------------------------------------------------

    def deal(self, seed: int, places: Iterable[int], replay_share: float, conversation_share: float = 0.0) -> list[TrainingImage]:
        """Return the images at ``places`` of an endless sequence, which passes through all images again and again in a new order each time.

        Conversations and replay are spread evenly over the sequence, so that their shares are as exact as whole images allow.
        """
        return [self._show(self._dealt(seed, place, replay_share, conversation_share)) for place in places]

    def steps_of(self, plan: TrainingPlan) -> int:
        """How many steps a plan has on these images. Raises TrainingError as ``count_steps`` does."""
        shares = plan.batch, plan.replay_share, plan.conversation_share
        if plan.epochs is not None:
            return self.count_steps(plan.epochs, *shares)
        return plan.steps if plan.least_epochs is None else max(plan.steps, self.count_steps(plan.least_epochs, *shares))

    def count_steps(self, epochs: float, batch: int, replay_share: float, conversation_share: float = 0.0) -> int:
        """Return how many steps of ``batch`` images it takes until each correction was dealt ``epochs`` times.

        Raises TrainingError if the shares of replay and conversations leave no place for corrections.
        """
        own = (1 - conversation_share * bool(self._talks)) * (1 - replay_share * bool(self._replay))
        if own <= 0:
            raise TrainingError("replay_share or conversation_share is 1, so that epochs would never end; give steps, or a lesser share")
        return max(1, math.ceil(epochs * len(self._pictures) / own / batch))

    def _dealt(self, seed: int, place: int, replay_share: float, conversation_share: float) -> _Picture | _Talk:
        talks, place = _is_due(place, conversation_share * bool(self._talks))
        if talks:
            return self._talks[self._turn("conversations", seed, place, len(self._talks))]
        replayed, place = _is_due(place, replay_share * bool(self._replay))
        if replayed:
            return self._replay[self._turn("replay", seed, place, len(self._replay))]
        return self._pictures[self._turn("own", seed, place, len(self._pictures))]

    def _turn(self, kind: str, seed: int, place: int, count: int) -> int:
        """Return which of ``count`` things stands at a place of an endless sequence that passes through all of them in shuffled orders."""
        number, place = divmod(place, count)
        if self._orders.get(kind, ((),))[0] != (seed, number):
            self._orders[kind] = (seed, number), np.random.default_rng([seed, _KINDS[kind], number]).permutation(count)
        return int(self._orders[kind][1][place])

    def _show(self, what: _Picture | _Talk) -> TrainingImage:
        key = what.key
        with self._lock:
            if key not in self._images:
                self._images[key] = what.load()
                self._bytes += self._images[key].nbytes
            self._images.move_to_end(key)
            while self._bytes > BYTES_KEPT and len(self._images) > 1:
                self._bytes -= self._images.popitem(last=False)[1].nbytes
            return what.shown(self._images[key])


_KINDS = {"own": 1, "replay": 2, "conversations": 3}
"""Part of the seed of a shuffled order, so that each kind of image has an order of its own."""


def _is_due(place: int, share: float) -> tuple[bool, int]:
    """Whether a place goes to a kind of image that gets this share of all places, evenly spread; and its index among the places of its
    kind.

    If the place goes to another image, the index is that among the places of the others.
    """
    before = math.floor(place * share)
    due = math.floor((place + 1) * share) > before
    return due, before if due else place - before


def _pictures(datasets: Sequence[tuple[Path, Sequence[Example]]], phrases: int | None, replayed: bool = False) -> Iterator[_Picture]:
    for folder, examples in datasets:
        by_image: defaultdict[str, list[Example]] = defaultdict(list)
        for example in examples:
            by_image[example.image].append(example)
        for some in by_image.values():
            most = phrases or len(some)
            for start in range(0, len(some), most):
                yield _Picture(folder, tuple(some[start : start + most]), replayed)


def _set_aside(pictures: Sequence[_Picture], label: Callable[[Example], Hashable], share: float) -> set[tuple[Path, str]]:
    """Return the keys of the pictures that are for validation. Which ones these are depends on the hashes of their files."""
    labels: defaultdict[tuple[Path, str], set[Hashable]] = defaultdict(set)
    hashes: dict[tuple[Path, str], str] = {}
    for picture in pictures:
        labels[picture.key] |= {label(example) for example in picture.examples}
        hashes[picture.key] = picture.examples[0].sha256
    return set_aside(sorted(labels, key=lambda key: (hashes[key], str(key))), labels.__getitem__, share)


def _describe(example: Example) -> list[object]:
    objects = [[instance.box_px.tolist(), instance.rle["counts"]] for instance in example.instances]
    return [example.sha256, example.phrase, objects, *([example.thought] if example.thought else [])]
