"""The results of a candidate on a picture, and the journal that keeps each of them under a hash of all that it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sam4mllm
from sam4mllm.adapters.loose import find_adapter
from sam4mllm.data.examples import Example
from sam4mllm.evaluation.clicking import MOST_CLICKS, REACHED, Correction
from sam4mllm.evaluation.intervals import Term, terms
from sam4mllm.evaluation.journal import KeyedLines
from sam4mllm.evaluation.metrics import Sample
from sam4mllm.identity import digest_of
from sam4mllm.run_lengths import Rle
from sam4mllm.segmentation.names import split_name
from sam4mllm.trial.candidates import Contender


@dataclass(frozen=True)
class TriedPhrase:
    """The result for one phrase.

    ``rle`` is the predicted mask, and ``sample`` measures it. ``bound`` is the IoU of what the segmenter draws from the true boxes and
    points. ``correction`` has the clicks that a reviewer needs. The last two are None if the phrase has no target.
    """

    sample: Sample
    rle: Rle
    bound: float | None = None
    correction: Correction | None = None

    def terms(self) -> dict[str, Term]:
        """Return what the phrase adds to the figures. As in gIoU, a phrase without a target adds 1 to ``bound``; it adds nothing to
        ``clicks`` and ``reached``.
        """
        clicks = (0.0, 0.0) if self.correction is None else (float(self.correction.clicks), 1.0)
        reached = (0.0, 0.0) if self.correction is None else (float(self.correction.reached), 1.0)
        return {**terms(self.sample), "bound": (1.0 if self.bound is None else self.bound, 1.0), "clicks": clicks, "reached": reached}


@dataclass(frozen=True)
class TriedPicture:
    """The result for one picture: its phrases in the dataset's order, and the ``seconds`` that all of them took together.

    The other fields are about the worker process: ``loading`` is the seconds it took to load the models, ``memory`` and ``gpu_memory`` the
    peak bytes up to and including this picture. ``gpu_memory`` is 0 without a GPU.
    """

    phrases: tuple[TriedPhrase, ...]
    seconds: float
    loading: float
    memory: int
    gpu_memory: int = 0

    def terms(self) -> Iterator[dict[str, Term]]:
        """What each phrase adds to the figures."""
        for phrase in self.phrases:
            yield phrase.terms()


class TrialJournal(KeyedLines[TriedPicture]):
    """What came of each picture, by key."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path, _parse)

    def add(self, key: str, candidate: str, image: str, tried: TriedPicture) -> None:
        """Write down what came of a picture; candidate and image are for people to read. Raises EvaluationError as ``put`` does."""
        self.put(key, tried, {"candidate": candidate, "image": image, **asdict(tried)})


def keys_of(candidate: Contender, images: Sequence[Sequence[Example]]) -> dict[str, str]:
    """Return the journal's key of each picture, by the picture's path.

    A key is a hash of the candidate without its name, the sizes and times of its files, the picture with its phrases and true masks, the
    rules of clicking, and this package's release. Raises RegistryError if the candidate's adapter does not exist.
    """
    clicking = (REACHED, MOST_CLICKS)
    shape = {"given": candidate.given(), "files": _stamps(candidate), "clicking": clicking, "release": sam4mllm.__version__}
    return {
        group[0].image: digest_of(
            {**shape, "asked": [(one.sha256, one.phrase, [instance.rle for instance in one.instances], one.ignore) for one in group]}
        )
        for group in images
    }


def _stamps(candidate: Contender) -> dict[str, list[tuple[str, int, int]]]:
    """Return name, size and time of change of each file that a candidate names.

    They stand for the contents: hashing the gigabytes of a model would take longer than many pictures.
    """
    detector, drawing = split_name(candidate.segmenter or "")
    segmenter = drawing.partition("#")[0]
    places = {
        "model": candidate.model,
        "detector": detector,
        "segmenter": segmenter.partition(":")[2] or segmenter,
        "adapter": None if candidate.adapter is None else str(find_adapter(candidate.adapter)),
        "dialect": candidate.dialect,
    }
    return {what: stamps for what, place in places.items() if place and (stamps := _stamp(Path(place)))}


def _stamp(place: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a file, or of each file in a folder; none if there is neither, as for a hub id."""
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    except OSError:  # loading will report the error
        return []


def _parse(fields: dict[str, Any]) -> TriedPicture:
    phrases = tuple(
        TriedPhrase(
            Sample(**one["sample"]),
            Rle(size=[int(side) for side in one["rle"]["size"]], counts=str(one["rle"]["counts"])),
            None if one["bound"] is None else float(one["bound"]),
            None if one["correction"] is None else Correction(**one["correction"]),
        )
        for one in fields["phrases"]
    )
    if not phrases:
        raise ValueError("a picture has a phrase at least")
    seconds, loading = float(fields["seconds"]), float(fields["loading"])
    return TriedPicture(phrases, seconds, loading, int(fields["memory"]), int(fields["gpu_memory"]))
