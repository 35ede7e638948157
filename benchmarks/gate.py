"""How often the gate promotes challengers that are worse than the champion, equally good, or better, by simulation.

    python benchmarks/gate.py [--trials 1000] [--json]

In the first three tables the paired differences in IoU are normally distributed around the true difference, with a standard deviation of
0.10, and the champion's IoU is 0.5. The first table has the cases with bars. The second has equal adapters and few pairs, for which the
gate uses an exact test. The third has harder cases without a bar: many labels, each of which can veto a promotion, or a challenger that
answers nearly all phrases as the champion does.

In the last two tables reviewers accept nine of ten masks that are no failures (:mod:`benchmarks.accepting`). Half of the pictures, in the
first, or none of them, in the second, were drawn by reviewers who saw no mask. Bars apply only to the first. ``--json`` leaves both out.
Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from backend.learning.gate import Checks, PairedSample, compare_labels, decide, losing_labels
from backend.learning.paired_tests import BOOTSTRAP_PAIRS, TIE, lower_bounds
from benchmarks.accepting import CHALLENGERS, Challenger, draw_pairs

SEED = 990_004
SPREAD = 0.10
CHAMPION = 0.5
CHECKED = 20
"""Number of trials of each case that are also decided one by one, to check that deciding all at once gives the same decisions."""
PICTURES = (8, 12, 20, 30, 100)
RISK, POWER = 0.06, 0.90
"""Bars with reviewers who accept: RISK is the largest share of trials in which a challenger that is no better may be promoted; POWER is the
least share in which one that mends half of 20 % failures must be promoted, with 100 pictures.
"""
EQUAL = Checks(golden_champion=0.8, golden_challenger=0.8, smoke=True)


@dataclass(frozen=True)
class Case:
    """A simulated comparison. ``difference`` is the challenger's true difference in IoU; ``changed`` is the share of pairs whose answers
    differ at all, while the spread over all pairs stays the same; ``bar`` is the least and the largest share of trials that may promote.
    """

    name: str
    pairs: int
    difference: float = 0.0
    labels: int = 1
    changed: float = 1.0
    bar: tuple[float, float] | None = None


BARS = (
    Case("worse", 200, -0.02, bar=(0.0, 0.01)),
    Case("equal", 200, 0.0, bar=(0.0, 0.10)),
    Case("better", 200, 0.02, bar=(0.80, 1.0)),
)
FEW = tuple(Case("equal", pairs) for pairs in (8, 20, 29, 30))
HARD = (
    Case("better, 5 labels", 200, 0.02, labels=5),
    Case("better, 10 labels", 200, 0.02, labels=10),
    *(
        Case(f"equal, {100 * changed:.0f} % of answers changed", pairs, changed=changed)
        for pairs in (30, 60, 200)
        for changed in (0.1, 0.05)
    ),
)


@dataclass(frozen=True)
class Result:
    case: Case
    trials: int
    promoted: float

    @property
    def met(self) -> bool:
        return self.case.bar is None or self.case.bar[0] <= self.promoted <= self.case.bar[1]


def simulate(case: Case, trials: int) -> Result:
    """Simulate so many trials of a case, and return the share that is promoted."""
    rng = np.random.default_rng((SEED, case.pairs, case.labels, round(case.changed * 1000), round((case.difference + 1) * 1000)))
    noise = rng.normal(0, SPREAD / math.sqrt(case.changed), (trials, case.pairs)) * (rng.random((trials, case.pairs)) < case.changed)
    differences = np.clip(case.difference + noise, -CHAMPION, 1 - CHAMPION)
    promoted = decide_each(differences, case.labels) if case.pairs < BOOTSTRAP_PAIRS else decide_at_once(differences, case.labels)
    return Result(case, trials, float(promoted.mean()))


def decide_each(differences: NDArray[np.float64], labels: int) -> NDArray[np.bool_]:
    """Return (T,) whether the gate promotes on each row of the differences (T, N)."""
    return np.array([decide(make_pairs(row, labels), EQUAL).verdict == "promote" for row in differences], np.bool_)


def decide_at_once(differences: NDArray[np.float64], labels: int) -> NDArray[np.bool_]:
    """Return the same as ``decide_each`` in a fraction of the time, for rows of at least BOOTSTRAP_PAIRS differences.

    All rows share one resampling; the gate's own resampling has a fixed seed, so the decisions are the same. Exits if they are not, in the
    first CHECKED rows.
    """
    convincing = lower_bounds(np.sort(differences, axis=1)) > TIE
    spared = [not losing_labels(compare_labels(make_pairs(row, labels))) for row in differences]
    promoted: NDArray[np.bool_] = convincing & np.array(spared, np.bool_)
    if (promoted[:CHECKED] != decide_each(differences[:CHECKED], labels)).any():
        raise SystemExit("deciding all at once is not what the gate does")
    return promoted


def make_pairs(differences: NDArray[np.float64], labels: int) -> list[PairedSample]:
    """Return (N,) differences as pairs to which so many labels are assigned in turn."""
    return [
        PairedSample(f"label {index % labels}", CHAMPION, CHAMPION + difference) for index, difference in enumerate(differences.tolist())
    ]


def promoted_of_accepting(kind: Challenger, pictures: int, unassisted: float, trials: int) -> float:
    """Return the share of trials in which a challenger of a kind is promoted, with reviewers who accept.

    ``unassisted`` is the share of the pictures that are drawn without a mask in sight.
    """
    rng = np.random.default_rng((SEED, pictures, round(100 * unassisted), CHALLENGERS.index(kind)))
    return float(np.mean([decide(draw_pairs(rng, kind, pictures, unassisted), EQUAL).verdict == "promote" for _ in range(trials)]))


def print_accepting(unassisted: float, trials: int) -> bool:
    """Print a table of promotions in percent, and return whether its bars are met; without unassisted pictures there are none."""
    print(f"Reviewers who accept, {100 * unassisted:.0f} % of the pictures unassisted: promoted, in %\n")
    print(f"| challenger | net | {' | '.join(map(str, PICTURES))} |\n|---|---:|{'---:|' * len(PICTURES)}")
    met = True
    for kind in CHALLENGERS:
        shares = [promoted_of_accepting(kind, pictures, unassisted, trials) for pictures in PICTURES]
        right = shares[-1] >= POWER if kind.bar == "promoted" else max(shares) <= RISK if kind.bar == "kept" else True
        met &= right or not unassisted
        mark = "" if right or not unassisted else " MISSED"
        print(f"| {kind.name} | {kind.net:+.3f} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |{mark}", flush=True)
    print()
    return met


def print_table(title: str, results: Sequence[Result]) -> None:
    print(f"{title}\n\n| challenger | true difference | pairs | trials | promoted | bar | |\n|---|---:|---:|---:|---:|---:|---|")
    for result in results:
        case = result.case
        row = f"| {case.name} | {case.difference:+.2f} | {case.pairs} | {result.trials} | {100 * result.promoted:.1f} % "
        print(f"{row}| {describe(case.bar)} | {'' if case.bar is None else 'met' if result.met else 'MISSED'} |")
    print()


def describe(bar: tuple[float, float] | None) -> str:
    if bar is None:
        return ""
    return f"≤ {100 * bar[1]:.0f} %" if bar[0] == 0 else f"≥ {100 * bar[0]:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error("--trials is at least 1")
    tables = {
        title: [simulate(case, arguments.trials) for case in cases]
        for title, cases in (("The bars", BARS), ("Few pairs", FEW), ("Harder cases", HARD))
    }
    if arguments.json:
        print(json.dumps({title: [asdict(result) for result in results] for title, results in tables.items()}))
    else:
        for title, results in tables.items():
            print_table(title, results)
    met = all(result.met for results in tables.values() for result in results)
    accepting = [print_accepting(unassisted, arguments.trials) for unassisted in (0.5, 0.0)] if not arguments.json else []
    if not met or not all(accepting):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
