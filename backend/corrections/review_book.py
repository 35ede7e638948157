"""The log's reviews, kept up to date: what has not changed since the last look is not read again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from backend.corrections.config_of import read_config
from backend.corrections.log import CorrectionLog
from backend.corrections.log_records import StoredAnnotation
from backend.corrections.renames import Renames, follow, rename, unknown
from backend.corrections.reviews import Key, Refused, Review, Reviews, Taught, choose, key_of, read_one
from backend.label_studio.label_config import Label
from backend.settings import PROMPT_NAME
from sam4mllm.errors import Sam4mllmError
from sam4mllm.images import MAX_PIXELS

log = logging.getLogger(__name__)


class ReviewBook:
    """What reviewers made of each phrase of a picture.

    The reviews in memory have no masks, which would take megabytes; ``with_masks`` reads them from the log. Threads may share the object.
    Methods raise LogError.
    """

    def __init__(
        self,
        corrections: CorrectionLog,
        phrase_field: str,
        prompt_control: str = PROMPT_NAME,
        max_pixels: int = MAX_PIXELS,
        is_left_out: Callable[[Review], bool] = lambda _: False,
        renamed: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        """``phrase_field``, ``max_pixels`` and ``prompt_control`` are those of :func:`~backend.corrections.reviews.read_reviews`.

        ``is_left_out`` says whether nothing is to be learned from a review. ``renamed`` maps former label values to present ones, by
        project, for renames that the configs do not show.
        """
        self._log = corrections
        self._is_left_out = is_left_out
        self._told = renamed
        self._renames: dict[int, Renames] = {}
        self._how = phrase_field, max_pixels, prompt_control
        self._lock = threading.Lock()
        self._position: float | None = None
        self._configs: dict[int, str] = {}
        self._projects: dict[int, int] = {}
        """The project of each annotation that was read."""
        self._keys: dict[int, tuple[Key, ...]] = {}
        """The keys of each annotation's reviews."""
        self._candidates: dict[Key, dict[int, tuple[bool, Review]]] = {}
        """All reviews of a phrase, by annotation, each with whether the annotation is a ground truth."""
        self._best: dict[Key, Review] = {}
        self._refused: dict[int, Refused] = {}

    def read(self) -> Reviews:
        """The reviews as they are now, in no order.

        If ``is_left_out`` holds for some annotations' reviews of a phrase, one is chosen among the others. If it holds for all of them, the
        chosen one is in ``left_out``.
        """
        with self._lock:
            position, configs = self._log.position(), self._log.config_states()
            for stored in self._news(configs):
                self._take(stored, self._read_one(stored))
            self._position, self._configs = position, configs
            admitted, left_out = [], []
            for key, candidates in self._candidates.items():
                out = [annotation for annotation, (_, review) in candidates.items() if self._is_left_out(review)]
                if not out:
                    admitted.append(self._best[key])
                elif len(out) == len(candidates):
                    left_out.append(self._best[key])
                else:
                    admitted.append(choose([candidates[annotation] for annotation in sorted(candidates.keys() - set(out))]))
            return Reviews(admitted, list(self._refused.values()), left_out)

    def _read_one(self, stored: StoredAnnotation) -> Taught:
        found = read_one(stored, self._log, *self._how)
        return replace(found, reviews=tuple(rename(found.reviews, self._renames_of(stored.project))))

    def _renames_of(self, project: int) -> Renames:
        found = self._renames.get(project)
        if found is None:
            told, configs = self._told.get(project, {}), [self._labels(text) for text in self._log.config_texts(project)]
            if wrong := unknown(configs, told):
                log.warning("SAM4MLLM_RENAMED names labels that project %d does not have: %s", project, ascii(wrong)[:200])
            found = self._renames[project] = follow(configs, told)
        return found

    def _labels(self, text: str) -> tuple[Label, ...]:
        try:
            return read_config(text, self._how[2]).mask.labels
        except Sam4mllmError:
            return ()

    def _news(self, configs: Mapping[int, str]) -> Iterator[StoredAnnotation]:
        """Return the annotations that must be read. What was known of them is forgotten first."""
        if self._position is None:
            self._forget(list(self._projects))  # left over from a first look that an error ended
            return self._log.each_annotation()
        edited = {project for project in configs if configs[project] != self._configs.get(project)}
        for project in edited:
            self._renames.pop(project, None)
        touched = {*self._log.touched(self._position), *(number for number, project in self._projects.items() if project in edited)}
        self._forget(touched)
        return self._log.each_annotation(sorted(touched))

    def with_masks(self, reviews: Iterable[Review]) -> Iterator[Review]:
        """Yield these reviews with their masks, in the order of their annotations.

        A review is left out if its annotation has changed since it was read.
        """
        wanted = {(review.annotation, key_of(review)): review.changed for review in reviews}
        for stored in self._log.each_annotation(sorted({annotation for annotation, _ in wanted})):
            for review in self._read_one(stored).reviews:
                if wanted.get((review.annotation, key_of(review))) == review.changed:
                    yield review

    def _forget(self, annotations: Iterable[int]) -> None:
        for annotation in annotations:
            self._refused.pop(annotation, None)
            for key in self._keys.pop(annotation, ()):
                del self._candidates[key][annotation]
                self._choose(key)

    def _take(self, stored: StoredAnnotation, found: Taught) -> None:
        self._projects[stored.id] = stored.project
        if found.refusal:
            self._refused[stored.id] = Refused(stored.id, stored.project, stored.task, found.refusal)
        self._keys[stored.id] = tuple(map(key_of, found.reviews))
        for review in found.reviews:
            self._candidates.setdefault(key_of(review), {})[stored.id] = found.truth, replace(review, instances=(), served=())
            self._choose(key_of(review))

    def _choose(self, key: Key) -> None:
        candidates = self._candidates[key]
        if candidates:
            self._best[key] = choose([candidates[annotation] for annotation in sorted(candidates)])
        else:
            del self._candidates[key], self._best[key]
