"""The method: image and phrases in, masks out. Read :meth:`Pipeline.segment` from top to bottom.

- ``box``: the MLLM gives boxes, the segmenter draws each.
- ``ppg``: the MLLM gives boxes and points in one answer (paper: prompt-point generation).
- ``pqpp``: the MLLM gives boxes; points spread over each box are put to it as yes/no questions; the sure answers join the box
  (paper: proactive query of prompt points).
- ``reason``: the MLLM thinks before it gives boxes; then as ``pqpp`` where it has learned to answer about points, else as ``box``.
- ``concept``: the segmenter takes the phrase and finds all of its kind; no MLLM is asked.
- ``choose``: the segmenter finds all of the phrase's kind, and the MLLM's boxes say which are meant; a box that fits none of them is drawn
  as by ``pqpp`` or ``box``.

Some models answer with points and give no boxes. The segmenter then draws a mask from each point. With ``choose``, and where points are
asked about, the box around it is taken as the model's; else that mask is the answer (:mod:`sam4mllm.first_masks`).

``auto``, the default, is ``pqpp`` for a model that has learned to answer about points, else ``box``; without an MLLM ``concept``. Other
packages may bring further strategies (:mod:`sam4mllm.strategies`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sam4mllm import candidates, look_back
from sam4mllm.answers import answer_of, timed
from sam4mllm.clicks import Clicks, PromptTarget, merge
from sam4mllm.confidence import Calibration, score
from sam4mllm.drawing import Drawing
from sam4mllm.errors import PhraseError
from sam4mllm.first_masks import draw_first
from sam4mllm.grounding.naming import NAME_QUESTION
from sam4mllm.grounding.nobody import is_nobody
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Scene
from sam4mllm.identity import digest_of
from sam4mllm.images import check_image
from sam4mllm.lockstep import AskPoints, Locate, Walk, ask_points, go_on, locate, walk_alone, walk_together
from sam4mllm.options import (
    BY_CONCEPT,
    AskedStrategy,
    Options,
    Strategy,
    check_look_back,
    check_strategy,
    describe_strategy,
    resolve_strategy,
)
from sam4mllm.points import ALIKE, Answers, are_alike, beside, disputed, heed, interior, select, settle, spread, unsure
from sam4mllm.prompts.thinking import WORDS
from sam4mllm.segmentation.concept import ConceptSegmenter
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.strategies import Given, find_by, find_strategy, identify, usable_strategies
from sam4mllm.values import Grounding, Instance, Segmentation, check_phrase

_QUESTIONS: dict[AskedStrategy, Question] = {"ppg": "prompt", "reason": "reason"}


@dataclass(frozen=True, eq=False)
class Opened:
    """An image (H, W, 3) uint8 taken in by both models, for any number of calls. ``seconds``: how long each of the two took, by stage."""

    scene: Scene
    embedding: Embedding
    image: NDArray[np.uint8]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes that a cache should count for the opened image: those of the scene, the embedding and the pixels."""
        return self.scene.nbytes + self.embedding.nbytes + self.image.nbytes


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of an opened image: the arguments of ``Pipeline.segment``."""

    opened: Opened
    phrases: Sequence[str]
    strategy: Strategy | None = None
    clicks: Clicks | None = None
    threshold: float | None = None


class Versioned(Protocol):
    """An adapter of the grounder's or the segmenter's model, which names the pipeline's version."""

    def version_for(self, identity: str) -> str: ...


class Pipeline:
    """A grounder, a segmenter and the options between them. Holds no image; safe to call from several threads if grounder and segmenter are
    (for pipelines that share a model see :class:`sam4mllm.loading.Variants`).
    """

    def __init__(
        self,
        grounder: Grounder,
        segmenter: Segmenter,
        options: Options | None = None,
        slug: str = "custom",
        adapter: Versioned | None = None,
        learned: bool = True,
    ) -> None:
        """``slug``: the first part of the version's name. ``learned``: whether the model was trained to answer about points; if not, the
        answers about a box are dropped if nearly all of them are alike.

        Raises ModelError if the strategy or the look back in ``options`` needs an MLLM and the grounder is a
        :class:`~sam4mllm.grounding.nobody.NoGrounder`, or if the strategy needs a segmenter that takes phrases and this one does not.
        """
        self.grounder = grounder
        self.segmenter = segmenter
        self.has_model = not is_nobody(grounder)
        self._finder = segmenter if isinstance(segmenter, ConceptSegmenter) else None
        self.slug = slug
        self.adapter = adapter
        self.learned = learned
        chosen = options or Options()
        check_look_back(chosen.look_back, has_model=self.has_model)
        self.options = replace(chosen, strategy=self.resolve(chosen.strategy), joint=bool(chosen.joint))
        self.calibration: Calibration | None = None
        """The calibration that scores masks; if it is None, a fixed formula does. Any thread may replace it at any time. The version does
        not depend on it."""

    @property
    def identity(self) -> str:
        """A hash of what shapes predictions besides the MLLM's adapter: the models, the dialect, the options and the adapter that is merged
        into the mask decoder.
        """
        return self._identity(self.options)

    @property
    def version(self) -> str:
        """The name ``<slug>-<n>-<8 hex>`` that predictions carry.

        ``n`` is the adapter's number in the registry, 0 without an adapter or for one outside of the registry. The hex digits are a hash of
        the identity and the adapter.
        """
        return self._version(self.options)

    @property
    def decoder(self) -> str:
        """The hash of the adapter that the segmenter's mask decoder has; empty if it has none."""
        return str(getattr(self.segmenter, "adapter", ""))

    def through(self, grounder: Grounder, options: Options | None = None, segmenter: Segmenter | None = None) -> Pipeline:
        """Return a new pipeline with another grounder in front of the same model and, where they are given, other options and another
        segmenter. The new pipeline starts without a calibration. Raises ModelError as the constructor does.
        """
        return Pipeline(grounder, segmenter or self.segmenter, options or self.options, self.slug, self.adapter, self.learned)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.segmenter, self.options, self.learned)

    def resolve(self, asked: AskedStrategy) -> Strategy:
        """Return the strategy that ``asked`` means here, with ``auto`` resolved.

        Raises ModelError if this grounder or segmenter cannot carry it out.
        """
        strategy = resolve_strategy(asked, demo=self.learned, has_adapter=self.adapter is not None, has_model=self.has_model)
        check_strategy(strategy, has_model=self.has_model, takes_phrases=self._finder is not None)
        return strategy

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategies that model and segmenter can carry out and that are worth comparing.

        A model that was trained to answer about points has ``reason`` among them only if that is the pipeline's own strategy: otherwise it
        was not trained to think.
        """
        if not self.has_model:
            return ("concept",)
        thinks = not self.learned or self.strategy == "reason"
        phrases = BY_CONCEPT if self._finder is not None else ()
        return ("box", "ppg", "pqpp", *(("reason",) if thinks else ()), *phrases, *usable_strategies())

    @property
    def manner(self) -> str:
        """The strategy in words."""
        return describe_strategy(self.strategy, self.learned)

    @property
    def strategy(self) -> Strategy:
        """The strategy by which the pipeline answers if a call names none."""
        return self.resolve(self.options.strategy)

    def _identity(self, options: Options) -> str:
        parts = {"grounder": self.grounder.identity, "segmenter": self.segmenter.identity, "options": options.shaping()}
        thought = {"thought": WORDS} if options.strategy == "reason" else {}
        doubted = {} if self.learned or options.strategy != "pqpp" else {"alike": ALIKE}
        found = {"same": candidates.SAME} if options.strategy in BY_CONCEPT else {}
        brought = identify(options.strategy)
        looking = {} if options.look_back == "off" else {"look_back": look_back.SHAPE}
        choosing = {"name": NAME_QUESTION, "fits": candidates.FITS} if options.strategy == "choose" else {}
        return digest_of({**parts, **doubted, **found, **choosing, **thought, **brought, **looking})

    def _version(self, options: Options) -> str:
        identity = self._identity(options)
        return f"{self.slug}-0-{identity[:8]}" if self.adapter is None else self.adapter.version_for(identity)

    def open(self, image: NDArray[np.uint8], embedding: Embedding | None = None, between: Callable[[], None] = go_on) -> Opened:
        """Take in an image (H, W, 3) uint8 RGB, EXIF-rotated, with both models. ``embedding`` is the segmenter's, if it has taken in the
        image already. ``between`` is called after the first model and before the second.

        Raises ImageError if the image has another shape or type, or is too small.
        """
        check_image(image)
        seconds: dict[str, float] = {}
        with timed(seconds, "image"):
            scene = self.grounder.open(image)
        between()
        with timed(seconds, "segmenter"):
            embedding = self.segmenter.encode(image) if embedding is None else embedding
        return Opened(scene, embedding, image, seconds)

    def segment(
        self,
        image: NDArray[np.uint8] | Opened,
        phrases: Sequence[str],
        strategy: Strategy | None = None,
        clicks: Clicks | None = None,
        threshold: float | None = None,
        between: Callable[[], None] = go_on,
    ) -> list[Segmentation]:
        """Masks for each phrase, in order.

        Args:
            image: (H, W, 3) uint8 RGB, or what ``open`` made of it.
            phrases: referring expressions. Without phrases, clicks stand alone: the result is one Segmentation with an empty phrase.
                Without phrases and clicks the result is empty.
            strategy: the strategy of this call; None is that of the pipeline's options. The version in the answers depends on it.
            clicks: a reviewer's own points and boxes; they join the prompts.
            threshold: the least score of what the segmenter finds by a phrase; None is that of the pipeline's options.
            between: called before and after each question to the MLLM: where a phrase is, whether points lie on it, or (look back) whether
                an outline surrounds it. Not for the question for a phrase's noun.

        Raises:
            ImageError, PhraseError: the image or a phrase cannot be used.
            ModelError: the strategy cannot be carried out here, or a model or another package failed.
            PromptError: a click stands alone and the segmenter takes no point without a box.
            ValueError: the strategy is unknown, or the threshold is not from 0 to 1.
        """
        options, cleaned = self._read(phrases, strategy, threshold)
        opened = image if isinstance(image, Opened) else self.open(image)
        seconds = dict(opened.seconds) if not isinstance(image, Opened) else {}
        return walk_alone(self.grounder, self._walk(opened, cleaned, options, clicks, seconds), between)

    def segment_each(self, asked: Sequence[Asked], between: Callable[[], None] = go_on) -> list[list[Segmentation] | Exception]:
        """Do what ``segment`` does for several opened images, whose questions share forward passes: for each its answer, or its error,
        which is not raised. ``between``: see :func:`~sam4mllm.lockstep.walk_together`.
        """

        def walk(one: Asked) -> Walk[list[Segmentation]]:
            options, cleaned = self._read(one.phrases, one.strategy, one.threshold)
            return (yield from self._walk(one.opened, cleaned, options, one.clicks, {}))

        return walk_together(self.grounder, [walk(one) for one in asked], between)

    def _read(self, phrases: Sequence[str], strategy: Strategy | None, threshold: float | None) -> tuple[Options, list[str]]:
        """Return the options of a call, and its phrases with tidied white space.

        Raises PhraseError, ModelError or ValueError, see ``segment``.
        """
        options = self.options if strategy is None else replace(self.options, strategy=self.resolve(strategy))
        options = options if threshold is None else replace(options, threshold=threshold)
        if isinstance(phrases, str):
            raise PhraseError("phrases is a list of phrases, not one text; write [phrase]")
        return options, [check_phrase(phrase) for phrase in phrases]

    def _walk(
        self, opened: Opened, cleaned: Sequence[str], options: Options, clicks: Clicks | None, seconds: dict[str, float]
    ) -> Walk[list[Segmentation]]:
        """The method for one image; questions to the MLLM are asked only in the ``yield from``. Stages' times are added to ``seconds``."""
        groundings = (yield from self._locate(opened, cleaned, options, seconds)) if cleaned else []
        targets = [merge(grounding, clicks) for grounding in groundings]
        if not cleaned and clicks is not None:
            groundings, targets = [_nothing("")], [merge(_nothing(""), clicks)]
        if cleaned and self._asks_points(options.strategy):
            targets = yield from self._question(opened, groundings, targets, seconds)
        calibration = self.calibration
        with timed(seconds, "segmenter"):
            # what a reviewer points at is there; and reviewers wait for their mask, so nothing is drawn that only the score needs
            present = [1.0 if clicks is not None else 1.0 - grounding.no_target_probability for grounding in groundings]
            judge = partial(score, calibration=calibration)
            compared = options.strategy != "box" and clicks is None
            instances = self._drawing.draw(opened.embedding, targets, present, judge, compared)
        if options.look_back != "off" and clicks is None:
            looked: list[list[Instance]] = []
            for phrase, found in zip(cleaned, instances, strict=True):
                looked.append((yield from look_back.look_back(opened.image, phrase, found, judge, seconds)))
            instances = looked
            if options.look_back == "drop":
                left = [look_back.drop_denied(*one) for one in zip(groundings, instances, strict=True)]
                groundings, instances = [grounding for grounding, _ in left], [kept for _, kept in left]
        version = self._version(options)
        return [
            answer_of(grounding, found, opened.embedding, version, seconds, calibration)
            for grounding, found in zip(groundings, instances, strict=True)
        ]

    def _locate(self, opened: Opened, phrases: Sequence[str], options: Options, seconds: dict[str, float]) -> Walk[list[Grounding]]:
        """Where the phrases are, by the MLLM, by the segmenter, by both, or by another package's strategy."""
        finder, threshold = self._finder, options.threshold
        if (other := find_strategy(options.strategy)) is not None:
            return (yield from find_by(other, Given(opened.scene, opened.embedding, self.segmenter, phrases, options, seconds)))
        if options.strategy == "concept" and finder is not None:
            with timed(seconds, "segmenter"):
                return candidates.find(finder, opened.embedding, phrases, threshold)
        told = yield from locate(Locate(opened.scene, phrases, _QUESTIONS.get(options.strategy, "box"), seconds))
        if any(one.boxless for one in told):
            with timed(seconds, "segmenter"):
                stand = options.strategy != "choose" and not self._asks_points(options.strategy)
                told = draw_first(self.segmenter, opened.embedding, told, stand)
        if options.strategy != "choose" or finder is None:
            return told
        with timed(seconds, "box"):
            heads = candidates.find_heads(self.grounder, opened.scene, phrases)
        with timed(seconds, "segmenter"):
            return candidates.choose(finder, opened.embedding, told, heads, threshold)

    def _asks_points(self, strategy: AskedStrategy) -> bool:
        return strategy == "pqpp" or (strategy in ("reason", "choose") and self.learned)

    def _question(
        self, opened: Opened, groundings: Sequence[Grounding], targets: list[list[PromptTarget]], seconds: dict[str, float]
    ) -> Walk[list[list[PromptTarget]]]:
        """Ask the MLLM about points in the boxes of all phrases (see ``_is_asked``), each round in one pass.

        Return the targets with these points added. Only points with a sure answer become prompt points; the others have the label -1.
        """
        asked: list[tuple[Grounding, int]] = []
        for grounding, found in zip(groundings, targets, strict=True):
            said = [target for target in found if _is_of_phrase(target)]
            known = replace(grounding, boxes_px=np.array([target.box_px for target in said], np.float32).reshape(-1, 4))
            asked += [(known, index) for index, target in enumerate(said) if _is_asked(target)]
        answers = iter((yield from self._ask_pattern(opened, asked, seconds)))
        return [[self._keep(target, next(answers)) if _is_asked(target) else target for target in found] for found in targets]

    def _ask_pattern(self, opened: Opened, asked: Sequence[tuple[Grounding, int]], seconds: dict[str, float]) -> Walk[list[Answers]]:
        """Ask about points in each box of ``asked``, pairs of a grounding and the index of one of its boxes, and return the answers."""
        boxes, count = [grounding.boxes_px[index] for grounding, index in asked], self.options.points
        # a reviewer's clicks are left out of these masks: if they moved the points, the MLLM would be asked anew at each click
        bare = [PromptTarget(box, 1.0) for box in boxes]

        def ask(points: list[NDArray[np.float32]]) -> Walk[list[Answers]]:
            inquiries = [Inquiry(*one, points_px) for one, points_px in zip(asked, points, strict=True)]
            said = yield from ask_points(AskPoints(opened.scene, inquiries, bool(self.options.joint), seconds))
            return [Answers(points_px, heed(one.inside, one.mass)) for points_px, one in zip(points, said, strict=True)]

        match self.options.pattern:
            case "interior":
                with timed(seconds, "points"):
                    drawn = self._drawing.masks(opened.embedding, bare)
                return (yield from ask([interior(box, mask, count) for box, mask in zip(boxes, drawn, strict=True)]))
            case "unsure":
                first = yield from ask([spread(box, count // 2) for box in boxes])
                second = yield from ask([unsure(box, known, count - count // 2) for box, known in zip(boxes, first, strict=True)])
                return [known.and_then(later) for known, later in zip(first, second, strict=True)]
            case "second-look":
                first = yield from ask([spread(box, count) for box in boxes])
                known_so_far = [self._keep(target, known) for target, known in zip(bare, first, strict=True)]
                with timed(seconds, "points"):
                    drawn = self._drawing.masks(opened.embedding, known_so_far)
                doubted = [disputed(known, mask) for known, mask in zip(first, drawn, strict=True)]
                second = yield from ask(
                    [beside(box, known.points_px[which]) for box, known, which in zip(boxes, first, doubted, strict=True)]
                )
                return [settle(known, which, again.inside) for known, which, again in zip(first, doubted, second, strict=True)]
            case "spread":
                return (yield from ask([spread(box, count) for box in boxes]))

    def _keep(self, target: PromptTarget, answers: Answers) -> PromptTarget:
        kept, labels = select(answers.inside, self.options.thresholds)
        marks = np.full(len(answers.inside), -1, np.int64)
        marks[kept] = labels
        if not self.learned and are_alike(answers.inside, marks):
            marks[:] = -1
        # a reviewer who draws a box knows that the thing is in it, so answers that find it nowhere in the box are not believed
        if target.boxed and not (marks == 1).any():
            return target
        return target.with_points(answers.points_px, answers.inside, marks)


def _nothing(phrase: str) -> Grounding:
    return Grounding(phrase, np.zeros((0, 4), np.float32), np.zeros(0), 0.0)


def _is_of_phrase(target: PromptTarget) -> bool:
    """Whether the target's box is one of the phrase's: what stands alone is no part of it."""
    return target.box_px is not None and target.pointed != "alone"


def _is_asked(target: PromptTarget) -> bool:
    """Whether the MLLM is asked about points in the target's box. It is not asked where the segmenter found the thing by itself."""
    return _is_of_phrase(target) and target.candidate is None
