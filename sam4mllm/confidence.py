"""How much to trust a mask: the features that the models leave on the way to it, and a score that is computed from them.

Until reviewers have judged enough masks, the score is a fixed formula that only ranks masks. A :class:`Calibration` fitted on the
judgements makes it the probability that a reviewer accepts the mask.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4mllm.masks import lies_on

FIT_FROM = 50
"""Fewest judgements that a calibration is fitted on (engineering notes, C.5)."""
ACCEPTED_IOU = 0.5
"""IoU with the reviewer's own mask from which a mask counts as accepted: it was of the right thing. At 0.9 the score would mostly tell
fine outlines from rough ones and lose the wrong objects among them: on demo scenes its AUROC for errors falls by 0.1
(``benchmarks/score.py`` prints both)."""
PRIOR_WEIGHT = 0.2
"""Prior weight of each feature, in log-odds per standard deviation. It is the same for all features, with the sign that each is known to
have (equal weights are hard to beat with little data: Dawes 1979). 0.1 to 0.3 did as well on scenes of seed 880001."""
PRIOR_STRENGTH = 20.0
"""L2 penalty on the distance of the weights from the prior. The prior counts as much as some 80 balanced judgements, each of which adds a
quarter to the curvature. 20 to 50 did as well for 50 to 300 judgements on scenes of seed 880001."""
LEAST_SCALE = 1e-3
"""Least scale by which a feature is standardised. A feature that varies less hardly varies, and a tiny deviation of it must not count as a
large one."""
FAR = 6.0
"""Standard deviations at which a feature is clipped: nothing farther off was seen when the weights were fitted."""
AVERAGE_SCORE = 0.8
"""Score that the fixed formula is assumed to give the average mask. The demo model's masks average 0.64 (213 masks of scenes of seed
990031), because it is seldom sure of a coordinate; those of a model that is sure of its boxes average 0.9 and more. With a value between
the two, the scores of empty answers lie among those of the masks for either model."""
FIT_EMPTY_FROM = 20
"""Fewest judgements of empty answers that an :class:`EmptyCalibration` is fitted on: it has two parameters, not a dozen."""
MAX_STEPS = 100
"""The most Newton steps of a fit; ten are usual."""


@dataclass(frozen=True)
class Features:
    """What is known of one instance, each in 0–1.

    ``box_probability``: geometric mean of the box's tokens; ``sure``: share of asked points that passed the thresholds (1 if none
    was asked); ``agreement``: share of the sure points whose answer the mask bears out (1 if none); ``predicted_iou`` and
    ``stability``: the segmenter's own; ``entropy``: mean binary entropy of P(inside) of the points, asked or given, in bits (0 if none);
    ``box_agreement``: IoU with the mask that the box alone gives (1 if the prompt had no points, or the two were not compared);
    ``target_probability``: the MLLM's probability that the image shows what the phrase means (1 if a reviewer clicked); ``varied``: 0 if
    nearly all points were said to lie on the same side, else 1 (1 if none was asked); ``support``: IoU of the MLLM's box with the one that
    the segmenter found by the phrase, 0 if it found none there (1 where the segmenter was not asked); ``looked``: P(yes) when the MLLM was
    shown the mask's outline and asked whether it is what the phrase means (1 where it was not asked).
    """

    box_probability: float
    sure: float
    agreement: float
    predicted_iou: float
    stability: float
    entropy: float
    box_agreement: float
    target_probability: float
    varied: float = 1.0
    support: float = 1.0
    looked: float = 1.0


NAMES = tuple(field.name for field in fields(Features))
PRIOR = PRIOR_WEIGHT * np.array([-1.0 if name == "entropy" else 1.0 for name in NAMES])


LATER = {name: {"mean": 1.0, "scale": LEAST_SCALE, "weight": 0.0} for name in ("varied", "support", "looked")}
"""What :meth:`Calibration.from_json` takes for features that an earlier release did not have: with weight 0 they do not count."""


@dataclass(frozen=True)
class EmptyCalibration:
    """A logistic regression that gives the probability that an empty answer is right. Its log-odds are ``bias + weight * z``, where z is
    the log-odds of the MLLM's own probability that there is no such object, standardised by ``mean`` and ``scale``. ``count`` judgements
    went into it.
    """

    mean: float
    scale: float
    weight: float
    bias: float
    count: int

    def probability(self, no_target_probability: float) -> float:
        """P(a reviewer agrees that there is no such object)."""
        [[z]] = _standardise(_log_odds([no_target_probability]), np.array([self.mean]), np.array([self.scale]))
        return float(_sigmoid(np.array(self.bias + self.weight * z)))


@dataclass(frozen=True)
class Calibration:
    """A logistic regression over standardised features, fitted on the judgements of reviewers.

    ``means``, ``scales`` and ``weights`` have a number for each of NAMES; ``bias`` is the log-odds of the average instance. ``count``
    judgements of masks of the model ``version`` went into it. ``empty`` is for answers without a mask, None while too few were judged.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    count: int
    version: str
    empty: EmptyCalibration | None = None

    @property
    def id(self) -> str:
        """Eight hex digits that tell this calibration from others."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def probability(self, features: Features) -> float:
        """P(a reviewer accepts the mask)."""
        [row] = _standardise(_table([features]), np.array(self.means), np.array(self.scales))
        return float(_sigmoid(np.array(self.bias + row @ np.array(self.weights))))

    def to_json(self) -> str:
        """One line that ``from_json`` reads; the same calibration gives the same text."""
        rows = zip(NAMES, self.means, self.scales, self.weights, strict=True)
        shape = {name: {"mean": mean, "scale": scale, "weight": weight} for name, mean, scale, weight in rows}
        empty = {"empty": asdict(self.empty)} if self.empty is not None else {}
        return json.dumps({"version": self.version, "count": self.count, "bias": self.bias, "features": shape, **empty})

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what ``to_json`` wrote, here or in an earlier release.

        Raises ValueError for any other text, also if it has unknown keys or infinite numbers.
        """
        try:
            given_whole = json.loads(text)
            later = ("empty",) if isinstance(given_whole, dict) and "empty" in given_whole else ()
            top = _exactly(given_whole, ("version", "count", "bias", "features", *later))
            empty = _read_empty(top["empty"]) if later else None
            given = top["features"]
            shape = _exactly({**LATER, **given} if isinstance(given, dict) else given, NAMES)
            rows = [_exactly(shape[name], ("mean", "scale", "weight")) for name in NAMES]
            columns = {key: tuple(_finite(row[key]) for row in rows) for key in ("mean", "scale", "weight")}
            bias = _finite(top["bias"])
        except RecursionError as error:
            raise ValueError("this is no calibration: it is nested too deeply") from error
        except ValueError as error:
            raise ValueError(f"this is no calibration: {error}") from error
        count, version = top["count"], top["version"]
        if type(count) is not int or count < FIT_FROM or not isinstance(version, str) or min(columns["scale"]) < LEAST_SCALE:
            raise ValueError("this is no calibration: its count, version or a scale cannot be")
        return cls(columns["mean"], columns["scale"], columns["weight"], bias, count, version, empty)


def fit(features: Sequence[Features], accepted: Sequence[bool], version: str) -> Calibration | None:
    """Fit a calibration on judgements of N instances. Return None if there are fewer than FIT_FROM, or if all were judged alike.

    A mask is ``accepted`` if its IoU with an instance of the reviewer's is at least ACCEPTED_IOU. The weights are kept near PRIOR, so that
    a handful of rejected masks cannot bend them; the more judgements there are, the less PRIOR counts. ``version`` is the model's.

    Raises:
        ValueError: there are not as many judgements as features, or a feature is not from 0 to 1.
    """
    if len(features) != len(accepted):
        raise ValueError(f"each instance has one judgement, not {len(features)} and {len(accepted)}")
    table, labels = _table(features), np.array(accepted, np.bool_)
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("features lie between 0 and 1")
    if len(labels) < FIT_FROM or labels.all() or not labels.any():
        return None
    means, scales = table.mean(0), np.maximum(table.std(0), LEAST_SCALE)
    bias, weights = _newton(_standardise(table, means, scales), labels.astype(np.float64))
    return Calibration(_floats(means), _floats(scales), _floats(weights), bias, len(labels), version)


def fit_empty(no_target_probabilities: Sequence[float], right: Sequence[bool]) -> EmptyCalibration | None:
    """Fit the calibration of empty answers on the model's probability of each and on whether it was ``right``, that is, whether the
    reviewer left it empty. Return None if there are fewer than FIT_EMPTY_FROM.

    One right and one wrong judgement are added at the average probability: even if all answers so far were right, the next may be wrong.
    """
    if len(right) < FIT_EMPTY_FROM:
        return None
    rows = _log_odds(no_target_probabilities)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), LEAST_SCALE)
    standard = np.concatenate([_standardise(rows, mean, scale), np.zeros((2, 1))])
    labels = np.array([*right, True, False], np.float64)
    bias, [weight] = _newton(standard, labels, np.array([PRIOR_WEIGHT]))
    return EmptyCalibration(float(mean[0]), float(scale[0]), float(weight), bias, len(right))


def agreement(mask: NDArray[np.bool_], points_px: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of labelled points (K, 2) that lie in the mask (H, W) as their labels (K,) say; 1.0 without points."""
    if not len(labels):
        return 1.0
    return float((lies_on(mask, points_px) == (labels == 1)).mean())


def entropy(inside: NDArray[np.float64]) -> float:
    """Mean binary entropy of (K,) P(inside), in bits; 0.0 without points."""
    if not len(inside):
        return 0.0
    chances = np.stack([inside, 1 - inside])
    logs = np.log2(chances, out=np.zeros_like(chances), where=chances > 0)
    return float(-(chances * logs).sum(0).mean())


def score(features: Features, calibration: Calibration | None = None) -> float:
    """Return P(a reviewer accepts the mask), in 0–1; without a calibration, a fixed formula that ranks masks but is no probability.

    The formula is a weighted geometric mean of agreement, sureness and predicted IoU (weight 1 each) and the box's probability (weight a
    half), times the probability that there is a target, the support and what the look back says. A mask without one sure point counts as
    half sure, because its box alone still says where it is. The support enters as (1 + value) / 2, the look back as (3 + value) / 4.

    With the support, the AUROC of right against wrong masks of ``choose`` is 0.87 instead of 0.76; with a segmenter that misses a fifth of
    the objects it is 0.78 either way (120 scenes, ``benchmarks/choose.py``). The look back counts less because the demo model denies a
    fifth of the right masks: so the AUROC gains 0.016 on 300 scenes, and 0.008 if it enters as the support does (seeds 990701 and 990702,
    ``benchmarks/look_back.py``).
    """
    if calibration is not None:
        return calibration.probability(features)
    sure = (1 + features.sure) / 2
    parts = np.clip([features.agreement, sure, features.predicted_iou, features.box_probability], 1e-3, 1.0)
    weights = np.array([1.0, 1.0, 1.0, 0.5])
    found_twice = (1 + features.support) / 2
    confirmed = (3 + features.looked) / 4
    return float(np.exp((weights * np.log(parts)).sum() / weights.sum()) * features.target_probability * found_twice * confirmed)


def score_empty(no_target_probability: float, calibration: Calibration | None = None) -> float:
    """Return how much to trust the answer that there is no such object: the chance that it is right, in 0–1, comparable to masks' scores.

    Until enough empty answers have been judged, it is the model's probability of the answer times the score of the average mask. With the
    probability alone nearly all empty answers would rank above the masks, because models are hardly ever in doubt when they say "none".
    """
    if calibration is not None and calibration.empty is not None:
        return calibration.empty.probability(no_target_probability)
    return no_target_probability * (AVERAGE_SCORE if calibration is None else float(_sigmoid(np.array(calibration.bias))))


def _table(features: Sequence[Features]) -> NDArray[np.float64]:
    """Return features as a table (N, F) with columns in the order of NAMES."""
    return np.array([astuple(one) for one in features], np.float64).reshape(-1, len(NAMES))


def _standardise(table: NDArray[np.float64], means: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip((table - means) / scales, -FAR, FAR)


def _log_odds(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Return log-odds (N, 1) of N probabilities, clipped so that they are finite also for 0 and 1."""
    chances = np.clip(np.array(probabilities, np.float64), 1e-6, 1 - 1e-6)
    return np.log(chances / (1 - chances)).reshape(-1, 1)


def _newton(
    rows: NDArray[np.float64], labels: NDArray[np.float64], before: NDArray[np.float64] = PRIOR
) -> tuple[float, NDArray[np.float64]]:
    """Return the bias and the weights (F,) that minimise the penalised logistic loss of ``rows`` (N, F) with ``labels`` (N,), 0 or 1.

    The penalty is on the weights' distance from ``before``, the weights before any judgement; the bias has none. The loss is convex, so
    Newton's method, with each step halved until the loss falls, ends at its only minimum.
    """
    design = np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
    prior = np.concatenate([[0.0], before])
    penalty = np.array([0.0] + [PRIOR_STRENGTH] * len(before))

    def loss(at: NDArray[np.float64]) -> float:
        odds = design @ at
        return float((np.logaddexp(0, odds) - labels * odds).sum() + (penalty * (at - prior) ** 2).sum() / 2)

    share = labels.mean()
    at = prior + np.eye(len(prior))[0] * math.log(share / (1 - share))
    for _ in range(MAX_STEPS):
        chances = _sigmoid(design @ at)
        slope = design.T @ (chances - labels) + penalty * (at - prior)
        curvature = (design * (chances * (1 - chances))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        size = next((size for size in 0.5 ** np.arange(30) if loss(at - size * step) < loss(at)), 0.0)
        at = at - size * step
        if size * np.abs(step).max() < 1e-9:
            break
    return float(at[0]), at[1:]


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-np.logaddexp(0, -odds)), np.float64)


def _read_empty(given: object) -> EmptyCalibration:
    """Read an EmptyCalibration from a parsed JSON object. Raises ValueError if it is anything else."""
    names = tuple(field.name for field in fields(EmptyCalibration))
    record = _exactly(given, names)
    mean, scale, weight, bias = (_finite(record[name]) for name in names[:-1])
    count = record["count"]
    if type(count) is not int or count < FIT_EMPTY_FROM or scale < LEAST_SCALE:
        raise ValueError("the count or the scale of the empty answers cannot be")
    return EmptyCalibration(mean, scale, weight, bias, count)


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(values.tolist())


def _exactly(value: object, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"an object with the keys {', '.join(keys)} is needed")
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError("a finite number is needed")
    return float(value)
