"""The verdict of a trial: a row of figures for each candidate, and a sentence that says which to take.

The sentence says "beats" only for a significant difference: the interval of the difference, paired by picture, must exclude 0, and there
must be at least LEAST_PICTURES pictures. The best of k candidates is compared with the k - 1 others, so the level of each of these
intervals is raised to 1 - 0.05 / (k - 1) (Bonferroni). With two candidates it is the usual 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sam4mllm.evaluation.intervals import Difference, Sums, differences, intervals, sum_by_image
from sam4mllm.trial.candidates import Contender
from sam4mllm.trial.run import Tried

METRIC = "gIoU"
ALPHA = 0.05
DRAWS = 10_000
"""The number of bootstrap samples. Even with 50 candidates, five samples still lie beyond each end of the widened interval."""
LEAST_PICTURES = 8
"""The fewest pictures from which the sentence compares candidates; the figures are given from any number. A bootstrap over fewer says too
little about other pictures."""
GOOD_PICTURES = 20
"""The number of pictures from which the verdict no longer says that they are few."""
FASTER = 1.5
"""The ratio of seconds from which the verdict mentions a speed. A smaller difference may come from other load on the machine."""


@dataclass(frozen=True)
class TrialRow:
    """A candidate's ``figures`` with the ``ends`` of their 95 % intervals.

    ``to_best`` is its gIoU minus the best candidate's, with an interval; None for the best itself. ``seconds`` is the time of a phrase and
    ``loading`` that of loading the models, both in seconds and as the median over the pictures. ``memory`` and ``gpu_memory`` are peak
    bytes.
    """

    candidate: Contender
    figures: dict[str, float | None]
    ends: dict[str, tuple[float, float] | None]
    to_best: Difference | None
    seconds: float
    loading: float
    memory: int
    gpu_memory: int

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def quality(self) -> float:
        """The gIoU, by which candidates are ranked; 0 if it has no value."""
        return self.figures[METRIC] or 0.0


def tabulate_trial(tried: Sequence[Tried]) -> list[TrialRow]:
    """A row for each candidate that was tried to the end, the best first; of equals the faster one."""
    done = [one for one in tried if not one.failure]
    sums = {one.candidate.name: _sums(one) for one in done}
    seconds = {one.candidate.name: _seconds(one) for one in done}
    if not done:
        return []
    best = min(sums, key=lambda name: (-(sums[name].figures()[METRIC] or 0.0), seconds[name]))
    level = 1 - ALPHA / max(1, len(done) - 1)
    rows = [_row(one, sums[one.candidate.name], sums[best], best, level) for one in done]
    return sorted(rows, key=lambda row: (row.name != best, -row.quality, row.seconds))


def _row(one: Tried, own: Sums, best: Sums, best_name: str, level: float) -> TrialRow:
    pictures = one.pictures.values()
    return TrialRow(
        one.candidate,
        own.figures(),
        intervals(own),
        None if one.candidate.name == best_name else differences(own, best, level, DRAWS)[METRIC],
        _seconds(one),
        float(np.median([picture.loading for picture in pictures])),
        max(picture.memory for picture in pictures),
        max(picture.gpu_memory for picture in pictures),
    )


def _sums(one: Tried) -> Sums:
    images = [image for image, picture in one.pictures.items() for _ in picture.phrases]
    return sum_by_image(images, [row for picture in one.pictures.values() for row in picture.terms()])


def _seconds(one: Tried) -> float:
    """Return the median seconds of a phrase over pictures: a process's first picture also waits for things that are set up once."""
    return float(np.median([picture.seconds / len(picture.phrases) for picture in one.pictures.values()]))


# -- the sentence --------------------------------------------------------------------------------------------------------------------------


def tell(rows: Sequence[TrialRow], pictures: int) -> str:
    """Which candidate to take, in one sentence; ``rows`` as ``tabulate_trial`` gives them."""
    if not rows:
        return "no candidate was tried to the end"
    best, *others = rows
    if not others:
        return f"{best.name} has a gIoU of {best.quality:.3f}; a second candidate would give it something to be compared with"
    if pictures < LEAST_PICTURES:
        return f"{pictures} pictures tell no candidates apart: label {LEAST_PICTURES} at least, better {GOOD_PICTURES} to 50"
    equal = [row for row in others if not is_beaten(row)]
    beaten = [row for row in others if is_beaten(row)]
    said = []
    if equal:
        said.append(f"is not told apart from {_listed([_gap(row, '{name} ({value} points, {low} to {high})') for row in equal])}")
    if beaten:
        said.append(f"beats {_listed([_gap(row, '{name} by {value} points ({low} to {high})') for row in beaten])}")
    few = f"; {pictures} pictures are few, label {GOOD_PICTURES} to 50" if pictures < GOOD_PICTURES else ""
    return f"{best.name} {' and '.join(said)}{_tell_speed(best, equal or beaten, others)}{few}"


def is_beaten(row: TrialRow) -> bool:
    """Whether the best candidate is better than this one by more than chance: the interval of the difference excludes 0. The number of
    pictures does not count here. False for the best candidate itself.
    """
    return row.to_best is not None and row.to_best.high < 0


def _tell_speed(best: TrialRow, rivals: Sequence[TrialRow], others: Sequence[TrialRow]) -> str:
    """Compare speeds: say that the fastest of ``others`` is clearly faster than the best.

    Otherwise say that the best is clearly faster than the first of ``rivals``; return an empty text if neither holds.
    """
    fastest = min(others, key=lambda row: row.seconds)
    if best.seconds >= FASTER * fastest.seconds > 0:
        return f"; {fastest.name} is {_times(best.seconds / fastest.seconds)} faster"
    if rivals[0].seconds >= FASTER * best.seconds > 0:
        return f"; it is {_times(rivals[0].seconds / best.seconds)} faster than {rivals[0].name}"
    return ""


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f}".removesuffix(".0") + " times"


def _gap(row: TrialRow, form: str) -> str:
    """Fill a row's name, and how many hundredths of gIoU the best lies above it, with the interval, into the format string ``form``."""
    assert row.to_best is not None
    value, low, high = (_signed(100 * end) for end in (-row.to_best.value, -row.to_best.high, -row.to_best.low))
    return form.format(name=row.name, value=value, low=low, high=high)


def _signed(value: float) -> str:
    return f"{value + 0.0:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


# -- as text -------------------------------------------------------------------------------------------------------------------------------

HEADS = ("candidate", "gIoU (95 %)", "to the best × 100", "bound", "clicks to 0.85", "s a phrase", "memory", "loading")


def trial_cells(row: TrialRow) -> list[str]:
    """Return a candidate's row as texts, one for each column of HEADS."""
    ends, clicks, reached = row.ends[METRIC], row.figures["clicks"], row.figures["reached"]
    change = row.to_best
    memory = f"{row.memory / 1e9:.1f} GB" + (f", GPU {row.gpu_memory / 1e9:.1f} GB" if row.gpu_memory else "")
    return [
        row.name,
        f"{row.quality:.3f}" + (f" ({ends[0]:.3f}–{ends[1]:.3f})" if ends else ""),
        "–" if change is None else f"{_signed(100 * change.value)} ({_signed(100 * change.low)} to {_signed(100 * change.high)})",
        "–" if row.figures["bound"] is None else f"{row.figures['bound']:.3f}",
        "–" if clicks is None or reached is None else f"{clicks:.1f}" + (f" ({1 - reached:.0%} never)" if reached < 1 else ""),
        f"{row.seconds:.2f}",
        memory,
        f"{row.loading:.1f} s",
    ]


def trial_fields(row: TrialRow) -> dict[str, Any]:
    """A row as JSON holds it."""
    return {
        "name": row.name,
        "given": row.candidate.given(),
        "figures": row.figures,
        "intervals": row.ends,
        "to_best": None if row.to_best is None else asdict(row.to_best),
        "seconds_per_phrase": row.seconds,
        "loading": row.loading,
        "memory": row.memory,
        "gpu_memory": row.gpu_memory,
    }
