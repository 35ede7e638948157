"""One annotation with all that is known of it: its masks, and what had been served for its task. Which phrases it is about and what the
reviewer decided is worked out in :mod:`backend.corrections.phrase_shares` and :mod:`backend.corrections.decisions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.corrections.config_history import CLOCK_SECONDS
from backend.corrections.config_of import check_controls, known_label, region_labels
from backend.corrections.log_records import Served, StoredAnnotation
from backend.corrections.tables import instant
from backend.errors import TaskError
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.phrases import typed_phrases
from backend.label_studio.read_regions import from_region
from backend.label_studio.region_parts import join_labels, on_page, without_text_labels
from backend.label_studio.wire import Region, row_id
from sam4mllm.run_lengths import Rle, to_rle

MAX_REGIONS = 200
"""An annotation with more masks than this on one picture is refused: the work for each mask grows with the image's pixels."""


@dataclass(frozen=True)
class DrawnRegion:
    """A region of the mask control that holds a mask. ``labels`` are values of the config's labels. ``origin`` is what Label Studio says of
    it: "manual", or "prediction" for a prediction's region that nobody changed, or "prediction-changed". It is foreign text and not
    checked.
    """

    id: str
    labels: tuple[str, ...]
    origin: str
    mask: Rle


@dataclass(frozen=True)
class Answer:
    """One answer to a phrase: the records that were served together, and what they have in common, with the meanings of :class:`Served`. An
    answer without regions said "no such object".
    """

    phrase: str
    version: str
    time: float
    interactive: bool
    records: tuple[Served, ...]

    @property
    def regions(self) -> dict[str, Rle]:
        return {one.region: one.mask for one in self.records if one.mask is not None}


@dataclass(frozen=True)
class ReviewedAnnotation:
    """All that is known of an annotation, or of one page of it.

    ``regions`` are those of all controls, joined with their labels (:mod:`backend.label_studio.region_parts`). ``present`` are the ids of
    the regions in the mask control, ``drawn`` these regions with their masks. ``size`` is the masks' (height, width), None without a mask.
    ``answers`` are what was served for the task or its page, for batches and for annotators; ``typed`` are the phrases that the reviewer
    typed.
    """

    stored: StoredAnnotation
    config: LabelConfig
    regions: tuple[Region, ...]
    present: frozenset[str]
    drawn: tuple[DrawnRegion, ...]
    size: tuple[int, int] | None
    answers: tuple[Answer, ...]
    typed: tuple[str, ...]

    @property
    def has_parent(self) -> bool:
        """Whether Label Studio says that the annotation began as a copy of a prediction."""
        return row_id(self.stored.body.get("parent_prediction")) is not None

    def was_loaded(self, answer: Answer) -> bool:
        """Whether the annotation is taken to have held the answer's regions when the reviewer worked on it.

        This is so if one of them is still there, or if a batch served the answer and the annotation began as a copy of a prediction.
        """
        return bool(self.present & answer.regions.keys()) or (not answer.interactive and self.has_parent)

    def was_seen(self, answer: Answer) -> bool:
        """Whether the reviewer saw the answer. "No such object" always counts as seen: with or without it, the reviewer saw an image
        without a mask.
        """
        return not answer.regions or self.was_loaded(answer)

    def answers_to(self, phrase: str | None, interactive: bool | None = None) -> list[Answer]:
        """Return the answers that the reviewer may have seen, oldest first.

        These are a batch's answers from before the annotation was created, and answers to an annotator from before the annotation was last
        saved. If there are none but the annotation began as a copy of a prediction, they are the earliest answers of a batch. A ``phrase``
        of None means any phrase; ``interactive`` selects answers to an annotator (True) or those of a batch (False), None both.
        """
        body = self.stored.body
        until = {False: instant(body.get("created_at")) + CLOCK_SECONDS, True: self.stored.updated + CLOCK_SECONDS}
        fit = [answer for answer in self.answers if phrase in (None, answer.phrase) and interactive in (None, answer.interactive)]
        seen = [answer for answer in fit if answer.time <= until[answer.interactive]]
        if not seen and self.has_parent:
            # The annotation began as a copy of a prediction, which was thus served before. If no answer is that old, the clocks of Label
            # Studio and this server differ, and the earliest answer is taken.
            batch = [answer for answer in fit if not answer.interactive]
            seen = [answer for answer in batch if answer.time == batch[0].time]
        return seen


def read_annotation(
    stored: StoredAnnotation, config: LabelConfig, page: int | None, served: Sequence[Served], max_pixels: int
) -> ReviewedAnnotation:
    """Return what an annotation says about one picture.

    Args:
        stored: the whole annotation.
        config: the labelling config that it was made under, with the labels that its task adds.
        page: the picture's number, from 0, in a task of several; None in any other.
        served: what was served for its task, in order of time.
        max_pixels: the most pixels that a mask may have.

    Raises:
        Sam4mllmError: the annotation cannot be trusted; the text says why.
    """
    if stored.body.get("last_action") == "prediction":
        raise TaskError("the annotation was made from a prediction by an action, not by a reviewer")
    result = stored.body.get("result")
    if not isinstance(result, list):
        raise TaskError("the annotation's result is no list of regions")
    regions = join_labels(without_text_labels(region for region in result if isinstance(region, dict)), config)
    check_controls(regions, config)
    if page is not None:
        regions = on_page(regions, page)
        served = [one for one in served if one.page == page]
    own = [region for region in regions if region.get("from_name") == config.mask.name]
    if len(own) > MAX_REGIONS:
        raise TaskError(f"the annotation has {len(own)} masks; at most {MAX_REGIONS} are read")
    drawn, size = _drawn(own, config, max_pixels)
    present = frozenset(str(region.get("id")) for region in own)
    answers = _answers(served)
    return ReviewedAnnotation(
        stored, config, regions, present, drawn, size, answers, typed_phrases(regions, config, [answer.phrase for answer in answers])
    )


def _drawn(regions: Sequence[Region], config: LabelConfig, max_pixels: int) -> tuple[tuple[DrawnRegion, ...], tuple[int, int] | None]:
    """Return the regions with their masks, and the (height, width) that all masks share, None without a region.

    Raises TaskError if a mask cannot be read, a label is not in the config, or the masks are of different sizes.
    """
    drawn: list[DrawnRegion] = []
    sizes: set[tuple[int, int]] = set()
    for region in regions:
        mask, *size = from_region(region, config, max_pixels)
        sizes.add((size[0], size[1]))
        drawn.append(DrawnRegion(str(region.get("id")), _labels(region, config), str(region.get("origin")), to_rle(mask)))
    if len(sizes) > 1:
        raise TaskError("the annotation's masks are of different sizes")
    return tuple(drawn), next(iter(sizes), None)


def _labels(region: Region, config: LabelConfig) -> tuple[str, ...]:
    """The values of the region's labels. Raises TaskError for one that the config does not have."""
    found = []
    for name in region_labels(region, config):
        known = known_label(name, config)
        if known is None:
            raise TaskError(f"the label {quoted(name)} is not in the labelling config")
        found.append(known)
    return tuple(found)


def _answers(served: Iterable[Served]) -> tuple[Answer, ...]:
    groups: dict[tuple[float, str, str, bool], list[Served]] = {}
    for one in served:
        groups.setdefault((one.time, one.version, one.phrase, one.interactive), []).append(one)
    return tuple(
        Answer(phrase, version, time, interactive, tuple(records)) for (time, version, phrase, interactive), records in groups.items()
    )


def quoted(text: object) -> str:
    """Return foreign text in ASCII and shortened, so that it fits into a message of one line."""
    return ascii(text)[:60]
