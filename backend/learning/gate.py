"""Whether a challenger adapter may take the champion's place: figures in, a decision with its reasons out; no model is loaded here.

The two are compared on the same holdout samples, in pairs, so that easy and hard images weigh on both alike. The phrases of one image are
not independent, so an image counts once, with the mean of its pairs. What counts as better depends on how many images there are:

from 30   the one-sided 95 % lower bound of the mean difference, by the paired percentile bootstrap, lies above 0
8 to 29   the exact one-sided paired sign-flip test gives p ≤ 0.05; a bootstrap of so few is too sure of itself
below 8   nothing is decided: wait for more

The two figures of a sample are each the mean over several views of its image where images are few (:mod:`backend.learning.views`).

A mask that a reviewer accepted is the champion's own: the champion has an IoU of 1 with it, an equally good challenger about 0.97. That
would be unfair to the challenger. Where at least half of the images were drawn without a prediction in sight (``unassisted``), an accepted
sample is therefore a tie if the challenger has an IoU of 0.9 or more with it, and the images whose difference is not 0 decide: fewer than 5
wait, fewer than 30 take the sign-flip test of those images, and from 30 the bootstrap of all images decides. With fewer unassisted images
there are no ties, for nothing would show the losses that a reviewer's acceptance hides.

Whatever the pairs say, the champion stays if a label with many pairs gets clearly worse, if the golden set does, or if a fresh process got
no answer from the adapter. These checks go before "wait", for more pairs would not change them.
Where the pairs already keep the champion, the golden set need not be evaluated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.learning.paired_tests import BOOTSTRAP_PAIRS, LEVEL, TIE, lower_bounds, sign_flip_p

SIGN_FLIP_PAIRS = 8
"""Fewest images (a pair of means each) for a decision. The smallest p of n is 2⁻ⁿ: of 5 all must be better, of 8 one may be as much worse.
"""
LABEL_PAIRS = 20
"""A label with fewer pairs is not judged on its own: at a spread of 0.10 the mean of 20 has a standard error of 0.022."""
LABEL_LOSS = 0.03
"""Mean IoU that a label may lose. At a spread of 0.10, chance alone makes the mean of 20 pairs fall as far about once in eleven times."""
GOLDEN_LOSS = 0.01
"""gIoU that the golden set may lose: six of the 600 phrases of the golden set that is drawn from demo scenes."""

TIED_IOU = 0.9
"""IoU of a challenger's mask with an accepted mask from which the sample is a tie."""
UNASSISTED_HALF = 0.5
"""Least share of unassisted images for ties to be used: only unassisted images show the true difference."""
UNTIED_PAIRS = 5
"""Fewest images with a difference, where ties are used, for a decision: 5 is the least n whose smallest p, 2⁻ⁿ, is below LEVEL."""

Figures = dict[str, float | int | None]
Verdict = Literal["promote", "keep", "wait"]
Method = Literal["bootstrap", "sign-flip", "none"]


@dataclass(frozen=True)
class PairedSample:
    """One holdout sample under both adapters.

    ``champion`` and ``challenger`` are the IoUs with the truth; for a phrase without a target, 1 if nothing was drawn, else 0. ``image``
    names the sample's image, and may be empty if no other sample has the same one. ``accepted``: the reviewer kept the served mask;
    ``unassisted``: the reviewer drew the mask without a prediction in sight.
    """

    label: str
    champion: float
    challenger: float
    image: str = ""
    accepted: bool = False
    unassisted: bool = False


@dataclass(frozen=True)
class Checks:
    """The results of the checks besides the holdout.

    ``golden_champion`` and ``golden_challenger`` are the gIoU on the golden set, None if it was not evaluated because the pairs alone keep
    the champion (``is_kept``). ``smoke`` says whether a fresh process loaded the adapter and answered.
    """

    golden_champion: float | None
    golden_challenger: float | None
    smoke: bool


@dataclass(frozen=True)
class Decision:
    """The verdict, why (one plain line each, at least one), and what it rests on; ``dataclasses.asdict`` of it is JSON.

    ``figures`` holds None where something was not measured. ``labels`` has for each label its ``pairs``, the means ``champion`` and
    ``challenger``, and their ``difference``.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    figures: Figures
    method: Method = "none"
    labels: dict[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class _Evidence:
    """What the pairs alone say."""

    verdict: Verdict
    method: Method
    reason: str
    lower_bound: float | None = None
    p: float | None = None


def decide(pairs: Sequence[PairedSample], checks: Checks) -> Decision:
    """Compare a challenger with the champion; the order of the pairs does not matter, and the same input gives the same decision.

    Raises:
        ValueError: an IoU or gIoU is not a number from 0 to 1, or the golden set was not evaluated though the pairs alone do not keep
            the champion.
    """
    _require_shares(pairs, checks)
    fair = allows_ties(pairs)
    pairs = tie(pairs) if fair else pairs
    if _golden_difference(checks) is None and not is_kept(pairs):
        raise ValueError("without the golden set nothing is promoted")
    labels = compare_labels(pairs)
    evidence = _weigh(_differences(pairs), fair)
    vetoes = _vetoes(labels, checks)
    figures = {
        **_compare(pairs),
        "lower_bound": evidence.lower_bound,
        "p": evidence.p,
        "golden_champion": checks.golden_champion,
        "golden_challenger": checks.golden_challenger,
        "golden_difference": _golden_difference(checks),
        "smoke": int(checks.smoke),
        "unassisted_images": count_unassisted(pairs),
        "ties": sum(map(_is_tie, pairs)) if fair else 0,
    }
    if vetoes:
        reasons = (*vetoes, evidence.reason) if evidence.verdict == "keep" else tuple(vetoes)
        return Decision("keep", reasons, figures, evidence.method, labels)
    return Decision(evidence.verdict, (evidence.reason,), figures, evidence.method, labels)


def is_kept(pairs: Sequence[PairedSample]) -> bool:
    """Whether the pairs alone keep the champion, so that the golden set, the longest part of a comparison, need not be evaluated."""
    fair = allows_ties(pairs)
    pairs = tie(pairs) if fair else pairs
    return _weigh(_differences(pairs), fair).verdict == "keep" or bool(losing_labels(compare_labels(pairs)))


def allows_ties(pairs: Sequence[PairedSample]) -> bool:
    """Whether accepted samples may be ties: at least UNASSISTED_HALF of the images are unassisted. False without pairs."""
    return bool(pairs) and count_unassisted(pairs) >= UNASSISTED_HALF * len(_by_image(pairs))


def count_unassisted(pairs: Sequence[PairedSample]) -> int:
    """Count the images of which every sample is ``unassisted``: its reviewer drew the mask without a prediction in sight."""
    return sum(all(pair.unassisted for pair in found) for found in _by_image(pairs))


def tie(pairs: Sequence[PairedSample]) -> list[PairedSample]:
    """The pairs, with the champion's IoU in place of the challenger's where they tie."""
    return [replace(pair, challenger=pair.champion) if _is_tie(pair) else pair for pair in pairs]


def _is_tie(pair: PairedSample) -> bool:
    return pair.accepted and pair.challenger >= TIED_IOU


def compare_labels(pairs: Sequence[PairedSample]) -> dict[str, Figures]:
    """For each label, in alphabetical order, the figures that ``Decision.labels`` holds."""
    grouped: defaultdict[str, list[PairedSample]] = defaultdict(list)
    for pair in pairs:
        grouped[pair.label].append(pair)
    return {label: _compare(grouped[label]) for label in sorted(grouped)}


def losing_labels(labels: dict[str, Figures]) -> list[str]:
    """Those of the labels in ``compare_labels`` that have enough pairs and lose more than is allowed."""
    return [label for label, figures in labels.items() if _number(figures, "pairs") >= LABEL_PAIRS and _loses_too_much(figures)]


def _weigh(differences: NDArray[np.float64], ties: bool) -> _Evidence:
    """Weigh the (N,) differences of the images. With ``ties``, differences of 0 are ties: they count neither in the sign-flip
    test nor for the choice of the test; the bootstrap takes all differences."""
    count = len(differences)
    if count < SIGN_FLIP_PAIRS:
        return _Evidence("wait", "none", f"the holdout has {count} corrected images so far; a decision takes {SIGN_FLIP_PAIRS}")
    change = f"the mean IoU of {count} holdout images changes by {math.fsum(differences) / count:+.4f}"
    telling = differences[np.abs(differences) > TIE] if ties else differences
    if ties and len(telling) < UNTIED_PAIRS:
        return _Evidence(
            "wait", "none", f"on only {len(telling)} of {count} holdout images do the two differ; a decision takes {UNTIED_PAIRS}"
        )
    if len(telling) < BOOTSTRAP_PAIRS:
        return _weigh_few(telling, change)
    bound = float(lower_bounds(differences[None])[0])
    reason = f"{change}, with 95 % confidence by at least {bound:+.4f}"
    if bound > TIE:
        return _Evidence("promote", "bootstrap", reason, lower_bound=bound)
    return _Evidence("keep", "bootstrap", f"{reason}, which would have to be above 0", lower_bound=bound)


def _weigh_few(differences: NDArray[np.float64], change: str) -> _Evidence:
    p = sign_flip_p(differences)
    reason = f"{change}; if both were equally good, chance would do as much in {100 * p:.2f} % of cases"
    if p <= LEVEL:
        return _Evidence("promote", "sign-flip", reason, p=p)
    return _Evidence("keep", "sign-flip", f"{reason}, where at most {100 * LEVEL:.0f} % are allowed", p=p)


def _vetoes(labels: dict[str, Figures], checks: Checks) -> list[str]:
    """One line for each reason to keep the champion that no gain elsewhere makes up for."""
    vetoes = [_explain_label(label, labels[label]) for label in losing_labels(labels)]
    if (_golden_difference(checks) or 0.0) < -GOLDEN_LOSS - TIE:
        before, after = checks.golden_champion, checks.golden_challenger
        vetoes.append(f"the golden set falls from a gIoU of {before:.4f} to {after:.4f}; it may lose at most {GOLDEN_LOSS}")
    if not checks.smoke:
        vetoes.append("a fresh process could not load the new adapter, or had no answer from it")
    return vetoes


def _explain_label(label: str, figures: Figures) -> str:
    before, after = _number(figures, "champion"), _number(figures, "challenger")
    return (
        f"the label {_printable(label)} falls from a mean IoU of {before:.4f} to {after:.4f} over {figures['pairs']} holdout samples; "
        f"it may lose at most {LABEL_LOSS}"
    )


def _loses_too_much(figures: Figures) -> bool:
    return _number(figures, "difference") < -LABEL_LOSS - TIE


def _compare(pairs: Sequence[PairedSample]) -> Figures:
    """How many pairs, the mean of each side, and of the differences; None of no pairs."""
    if not pairs:
        return {"pairs": 0, "champion": None, "challenger": None, "difference": None}
    # fsum rounds once, at the end, so that no order of the pairs gives another mean
    return {
        "pairs": len(pairs),
        "champion": math.fsum(pair.champion for pair in pairs) / len(pairs),
        "challenger": math.fsum(pair.challenger for pair in pairs) / len(pairs),
        "difference": math.fsum(pair.challenger - pair.champion for pair in pairs) / len(pairs),
    }


def _differences(pairs: Sequence[PairedSample]) -> NDArray[np.float64]:
    """(N,) challenger minus champion of each image, sorted: the bootstrap draws by place, and the order of the pairs must not matter."""
    means = [math.fsum(pair.challenger - pair.champion for pair in found) / len(found) for found in _by_image(pairs)]
    return np.sort(np.array(means, np.float64))


def _by_image(pairs: Sequence[PairedSample]) -> list[list[PairedSample]]:
    """The pairs of each image; one whose image has no name is alone."""
    grouped: defaultdict[str | int, list[PairedSample]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        grouped[pair.image or index].append(pair)
    return list(grouped.values())


def _require_shares(pairs: Sequence[PairedSample], checks: Checks) -> None:
    for pair in pairs:
        if not (0 <= pair.champion <= 1 and 0 <= pair.challenger <= 1):
            raise ValueError(f"an IoU lies between 0 and 1, not {pair.champion} and {pair.challenger} (label {_printable(pair.label)})")
    if not all(0 <= value <= 1 for value in (checks.golden_champion, checks.golden_challenger) if value is not None):
        raise ValueError(f"the golden gIoU lies between 0 and 1, not {checks.golden_champion} and {checks.golden_challenger}")


def _golden_difference(checks: Checks) -> float | None:
    if checks.golden_champion is None or checks.golden_challenger is None:
        return None
    return checks.golden_challenger - checks.golden_champion


def _number(figures: Figures, name: str) -> float:
    value = figures[name]
    return math.nan if value is None else value


def _printable(label: str) -> str:
    """A label as it may stand in a line: quoted, without line breaks and control characters, and not endless."""
    line = "".join(character if character.isprintable() else " " for character in label)
    return f"“{line[:60]}{'…' if len(line) > 60 else ''}”"
