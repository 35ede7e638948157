"""What a caller can choose: the strategy, how the MLLM is asked about points, and the precision in which a model is held.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from sam4mllm import extensions
from sam4mllm.errors import ModelError

Strategy = str
"""One of STRATEGIES, or one that another package brings (:mod:`sam4mllm.strategies`)."""
STRATEGIES: tuple[Strategy, ...] = ("box", "ppg", "pqpp", "reason", "concept", "choose")
BY_CONCEPT: tuple[Strategy, ...] = ("concept", "choose")
"""The strategies that need a segmenter which takes phrases. No adapter learns them, for they are about how that segmenter is prompted."""
LearnedStrategy = Literal["box", "ppg", "pqpp", "reason"]
"""The strategies that an adapter may have learned and that its papers may name."""
NO_MODEL = "none"
"""The name that stands for no MLLM."""
PLAIN = "none"
"""The name that stands for no adapter of the segmenter's mask decoder."""
NO_ADAPTER = "the adapter {} serves with an MLLM, and the model is none: name the adapter's model, or leave the adapter out"
THRESHOLD = 0.5
"""Least score of what a segmenter finds by a phrase, where nothing else is set: that of SAM 3's published demos."""
AskedStrategy = str
"""A Strategy, or ``auto``: whichever the model has learned, see :func:`resolve_strategy`."""
PointsName = Literal["packed", "joint"]
Pattern = Literal["spread", "interior", "unsure", "second-look"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
PATTERN: Pattern = "spread"
"""The pattern of points where nothing else is set, as published (:mod:`sam4mllm.points`)."""
PATTERN_SIZE = 30
"""Points of the published pattern, of which its notebook uses the first 15 (released inference notebook)."""
COUNT, COUNT_JOINT = PATTERN_SIZE, 15
"""How many points are asked about in a box where nothing else is set: each on its own (all of the published
pattern), or all in one question (the first half, as in the released inference notebook)."""
UNNAMED_COUNTS = (30, 15)
"""The same numbers in the releases so far. Versions that ask about so many points have no number of points in their names' hash."""
Choice = Literal["predicted", "single", "agreement"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
LookBack = Literal["off", "score", "drop"]
LOOKS_BACK: tuple[LookBack, ...] = get_args(LookBack)
DtypeName = Literal["auto", "bf16", "fp16", "fp32"]
THOUGHT_TOKENS = 512
"""The longest thought in tokens (strategy ``reason``) where nothing else is set: some 350 words. With its question and its answer such a
thought takes no more than the 1,024 tokens that are kept for a conversation about one phrase. Models made for long thoughts write thousands
of tokens."""
MAX_THOUGHT_TOKENS = 16_384
"""The largest allowed ``Options.thought_tokens``. It is half of the window of 32,768 tokens that Qwen2.5-VL was trained with, because the
image needs room, too."""
QuantizeName = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class Thresholds:
    """When an answer is sure enough to become a prompt point (released inference notebook: 0.75 and 0.9).

    With P = P(inside): a point is positive if P > ``positive``, negative if 1 - P > ``negative``, and dropped between.
    """

    positive: float = 0.75
    negative: float = 0.90


@dataclass(frozen=True)
class Options:
    """How a phrase is answered: the strategy, how the MLLM is asked about points, which answers count, and which mask is taken.

    ``strategy``: one of STRATEGIES, see :mod:`sam4mllm.pipeline`, or another package's; or ``auto``, which the pipeline replaces.
    ``joint``: whether all points of a box are asked about in one question (as published) or each on its own; None is what the adapter has
    learned, else each on its own. ``count``: how many points are asked about in each box, from 0 to PATTERN_SIZE; None is
    30 if each is asked on its own, 15 if all are asked in one question.
    ``thresholds``: which answers count.

    ``pattern``: where points fall. ``spread``: over the box (published). ``interior``: half of them deep in the mask that the box alone
    gives, half deep in the rest of the box. ``unsure``: half of them spread, the other half where the answers to these are in doubt.
    ``second-look``: spread, and the MLLM is asked again beside each point whose answer the mask contradicts. ``choice``: which of the
    segmenter's candidates is taken: the best by ``predicted`` IoU (published); the best by that IoU times the ``agreement`` with all
    answers; or ``single``, the only one that the segmenter is asked for where a box has two points or more. docs/points.md measures
    patterns and choices.

    ``threshold``: where the segmenter takes the phrase itself, the least score of what it finds, from 0 to 1.
    ``thought_tokens``: with ``reason``, the number of tokens after which a thought is cut off and the answer asked for.
    ``look_back``: whether the MLLM is shown each mask's outline and asked if that is what the phrase means: ``off``; ``score``, for the
    score alone; or ``drop``, which also drops what it denies. It is not asked where a reviewer clicks.
    ``edges``: a short hash of the mask edges that a team has adopted, empty for none. It only becomes part of the version's name; the
    backend moves the edges (:mod:`sam4mllm.edges`) after the pipeline has answered.
    ``former_mask``: whether the segmenter is also given the mask that a reviewer's click corrects. docs/points.md measures it.

    Raises ValueError if ``strategy``, ``pattern``, ``choice`` or ``look_back`` is not a known name, or if ``count``,
    ``threshold`` or ``thought_tokens`` is out of its range.
    """

    strategy: AskedStrategy = "auto"
    joint: bool | None = None
    count: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    pattern: Pattern = PATTERN
    choice: Choice = "predicted"
    threshold: float = THRESHOLD
    thought_tokens: int = THOUGHT_TOKENS
    former_mask: bool = True
    look_back: LookBack = "off"
    edges: str = ""

    def __post_init__(self) -> None:
        check_named(self.strategy)
        named = {"pattern": PATTERNS, "choice": CHOICES, "look_back": LOOKS_BACK}
        for name, known in named.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not isinstance(self.points, int) or not 0 <= self.points <= PATTERN_SIZE:
            raise ValueError(f"count must be a whole number from 0 to {PATTERN_SIZE}, not {self.count!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, not {self.threshold!r}")
        if not 1 <= self.thought_tokens <= MAX_THOUGHT_TOKENS:
            raise ValueError(f"thought_tokens must be from 1 to {MAX_THOUGHT_TOKENS:,}, not {self.thought_tokens!r}")

    @property
    def points(self) -> int:
        return self.count if self.count is not None else COUNT_JOINT if self.joint else COUNT

    def shaping(self) -> dict[str, Any]:
        """Return the options that shape predictions, to be hashed. A change of an option that is left out gives no version a new name.

        ``former_mask`` is always left out. ``threshold`` and ``thought_tokens`` are left out if the strategy does not use them,
        ``look_back`` if it is off, and ``edges`` if it is empty.
        """
        chosen = asdict(self)
        if self.count is None and self.points != UNNAMED_COUNTS[bool(self.joint)]:
            chosen["count"] = self.points
        del chosen["former_mask"]  # it matters only where a reviewer clicks, and predictions are made without clicks
        if self.strategy not in BY_CONCEPT:
            del chosen["threshold"]
        if self.strategy != "reason":
            del chosen["thought_tokens"]
        if self.look_back == "off":
            del chosen["look_back"]
        if not self.edges:
            del chosen["edges"]
        return chosen


def known_strategies() -> tuple[Strategy, ...]:
    """STRATEGIES and those that other packages bring."""
    return (*STRATEGIES, *brought_strategies())


def brought_strategies() -> tuple[Strategy, ...]:
    """Return the names of the strategies that other installed packages bring. One with a name of ours is left out, and so is the second of
    two with the same name; a warning in the log says so, once a process.
    """
    return extensions.names("strategies", (*STRATEGIES, "auto"))


def check_named(asked: AskedStrategy) -> AskedStrategy:
    """Return ``asked`` unchanged. Raises ValueError if it is neither ``auto`` nor the name of a known strategy."""
    if asked not in ("auto", *STRATEGIES) and asked not in known_strategies():
        raise ValueError(f"strategy must be one of {', '.join(('auto', *known_strategies()))}, not {asked!r}")
    return asked


def resolve_strategy(asked: AskedStrategy, *, demo: bool, has_adapter: bool, has_model: bool = True) -> Strategy:
    """The strategy that answers: the one that is named, else the one that the model has learned.

    Args:
        asked: ``auto``, or a strategy, which is returned whatever the model is; an adapter's papers may have named it.
        demo: whether the model is the demo's, or another that was trained to answer about points.
        has_adapter: whether an adapter is in use; training in this project teaches it to answer about points.
        has_model: whether there is an MLLM at all; without one the segmenter takes the phrase.

    A model that was never trained on points may answer all of them alike, and 30 wrong points overrule a good box. So for such a model
    ``auto`` means ``box``.
    """
    if asked != "auto":
        return asked
    if not has_model:
        return "concept"
    return "pqpp" if demo or has_adapter else "box"


def check_look_back(look_back: LookBack, *, has_model: bool) -> None:
    """Raises ModelError if ``look_back`` is not "off" and there is no MLLM to be shown a mask."""
    if look_back != "off" and not has_model:
        raise ModelError(f"look back {look_back} asks an MLLM, and the model is none: name a model, or leave it off")


def check_strategy(strategy: Strategy, *, has_model: bool, takes_phrases: bool, segmenter: str = "this one") -> None:
    """Raises ModelError if a strategy needs an MLLM and ``has_model`` is false, or if it needs a segmenter that takes phrases and
    ``takes_phrases`` is false. All but ``concept`` count as needing an MLLM, other packages' too; only those of BY_CONCEPT as needing such
    a segmenter. The name itself is not checked. ``segmenter`` is what the error message calls the segmenter.
    """
    if not has_model and strategy != "concept":
        raise ModelError(f"strategy {strategy} asks an MLLM, and the model is none: name a model, or use strategy concept")
    if strategy in BY_CONCEPT and not takes_phrases:
        needed = "SAM 3, or grounding-dino+SEGMENTER"
        raise ModelError(f"strategy {strategy} needs a segmenter that takes phrases: {needed}; {segmenter} takes boxes and points only")


def describe_strategy(strategy: Strategy, learned: bool) -> str:
    """A strategy in words, and what to know of it. ``learned``: whether the model was trained to answer about points."""
    if strategy == "concept":
        return "strategy concept: the segmenter takes the phrase, and no MLLM is asked"
    if learned or strategy not in STRATEGIES:
        return f"strategy {strategy}"
    if strategy == "choose":
        return "strategy choose: without an adapter this model has not learned to answer about points, and is asked for boxes alone"
    if strategy == "box":
        return "strategy box: without an adapter this model has not learned to answer about points"
    return f"strategy {strategy}, though without an adapter this model has not learned about points; box is the safer one"


@dataclass(frozen=True)
class Precision:
    """How a model is held. Raises ModelError if a value is not one of those named.

    ``dtype`` auto: on a GPU bfloat16, or float16 where that is only emulated; on a CPU float32. ``quantize``: weights of the language
    model in 8 bit (LLM.int8) or 4 bit (nf4 with double quantisation, as QLoRA), multiplied in the dtype. ``device_map`` auto: a
    model that no GPU holds alone is spread over all of them.
    """

    dtype: DtypeName = "auto"
    quantize: QuantizeName = "none"
    device_map: Literal["auto"] | None = None

    def __post_init__(self) -> None:
        for value, known, setting in (
            (self.dtype, get_args(DtypeName), "SAM4MLLM_DTYPE"),
            (self.quantize, get_args(QuantizeName), "SAM4MLLM_QUANTIZE"),
            (self.device_map, (None, "auto"), "SAM4MLLM_DEVICE_MAP"),
        ):
            if value not in known:
                choices = ", ".join(choice for choice in known if choice is not None)
                raise ModelError(f"{setting}: {value!r} is not known; use {choices}{' or leave it out' if None in known else ''}")

    @property
    def advice(self) -> str:
        """What to change where a model does not fit."""
        smaller = {"none": "set SAM4MLLM_QUANTIZE=8bit or 4bit (--quantize)", "8bit": "set SAM4MLLM_QUANTIZE=4bit (--quantize)"}
        return f"{smaller.get(self.quantize, 'free memory')}, or use a smaller model or another device"


AUTO = Precision()
