"""The results of an ablation to look at: rows with intervals and paired differences, as CSV, Markdown and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.evaluation.intervals import Difference, Sums, differences, intervals
from sam4mllm.evaluation.settings import Setting, choices
from sam4mllm.options import BY_CONCEPT

METRIC = "gIoU"
"""The figure that settings are ranked by. It counts every phrase once, whether it has a target or not."""
COLUMNS = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "kept", "kept_right", "seconds_per_phrase")
"""The figures that fit on one line of the table; the CSV has all of them."""
HEADS = {"kept": "kept", "kept_right": "of them right", "seconds_per_phrase": "s a phrase"}


@dataclass(frozen=True)
class Row:
    """A setting's figures with the ends of their 95 % intervals.

    ``to_base`` and ``to_published`` say how much larger each figure is than that of the base and of the published setting. Where nothing
    was measured for a figure, it is None, and so are its interval and differences.
    """

    setting: Setting
    figures: dict[str, float | None]
    ends: dict[str, tuple[float, float] | None]
    to_base: dict[str, Difference | None]
    to_published: dict[str, Difference | None]


def tabulate(results: Mapping[Setting, Sums]) -> list[Row]:
    """One row a setting, in order. Raises ValueError if there is no base or no published setting among them, or if they differ in their
    figures or in the number of images.
    """
    base, published = (_named(results, name) for name in ("base", "published"))
    return [
        Row(setting, sums.figures(), intervals(sums), differences(sums, results[base]), differences(sums, results[published]))
        for setting, sums in results.items()
    ]


def find_best(rows: Sequence[Row]) -> Row:
    """Return the row with the largest METRIC of those that can be used in practice: neither the upper bound nor a control."""
    to_have = [row for row in rows if not row.setting.oracle and row.setting.answers == "model"]
    return max(to_have, key=lambda row: row.figures[METRIC] or 0.0)


def describe(setting: Setting) -> str:
    """Describe a setting in words, for example ``box, segmenter demo``: its strategy, the options that most affect this strategy, the
    segmenter and the adapters.
    """
    if setting.oracle:
        return f"true boxes and points, {_drawing(setting)}"
    words: list[str] = [setting.options.strategy]
    options = setting.options
    if setting.options.strategy == "ppg":
        words.append(f"choice {options.choice}")
    if setting.options.strategy in BY_CONCEPT:
        words.append(f"threshold {options.threshold:g}")
    if setting.options.strategy in ("pqpp", "choose", "reason"):
        named = [f"{name} {getattr(options, name)}" for name in choices()]
        words += ["joint" if options.joint else "packed", f"{options.points} points", *named]
        words.append(f"thresholds {options.thresholds.positive:g}/{options.thresholds.negative:g}")
        if setting.answers != "model":
            words.append(f"answers {setting.answers}")
    words.append(_drawing(setting))
    return ", ".join(words if setting.adapter is None else [*words, f"adapter {setting.adapter}"])


def _drawing(setting: Setting) -> str:
    adapted = "" if setting.segmenter_adapter is None else f" with the adapter {setting.segmenter_adapter}"
    return f"segmenter {setting.segmenter}{adapted}"


def tell_gain(rows: Sequence[Row]) -> str:
    """Return one line: the best setting and its METRIC, and how much that is above the published setting's, if this is another setting."""
    best = find_best(rows)
    gain = best.to_published[METRIC]
    if gain is None or "published" in best.setting.names:
        return f"best by {METRIC}: the published setting, {show(best.figures[METRIC])}"
    return (
        f"best by {METRIC}: {best.setting.label}, {show(best.figures[METRIC])}; over the published setting "
        f"{show_change(gain.value)} (95 % {show_change(gain.low)} to {show_change(gain.high)})"
    )


# -- how it is written ---------------------------------------------------------------------------------------------------------------------


def show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_change(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def cells(row: Row) -> list[str]:
    """A row as text: its name, METRIC with its interval, the other COLUMNS, METRIC's difference to the base with its interval."""
    ends, gain = row.ends[METRIC], row.to_base[METRIC]
    first = show(row.figures[METRIC]) + (f" ({ends[0]:.3f}–{ends[1]:.3f})" if ends else "")
    change = "–" if gain is None or "base" in row.setting.names else _interval(gain)
    return [row.setting.label, first, *[show(row.figures[name]) for name in COLUMNS[1:]], change]


def heads() -> list[str]:
    """Return the heads of the columns that ``cells`` fills."""
    return ["setting", f"{COLUMNS[0]} (95 %)", *[HEADS.get(name, name) for name in COLUMNS[1:]], f"{METRIC} to base (95 %)"]


def to_markdown(rows: Sequence[Row], note: str = "") -> str:
    """Return a Markdown table. Lines below it say what base and published stand for and what the best setting gains, and give the note."""
    lines = [f"| {' | '.join(heads())} |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(row))} |" for row in rows]
    legend = [f"{name}: {describe(row.setting)}" for row in rows for name in ("base", "published") if name in row.setting.names]
    return "\n".join([*lines, "", *[f"{line}  " for line in (*legend, tell_gain(rows), note) if line]]) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """One line a setting: what it is, every figure with its interval, every difference to base and published with its interval."""
    file = io.StringIO()
    records = [to_fields(row) for row in rows]
    flat = [{"setting": fields["setting"], "is": fields["is"], **_flat(fields)} for fields in records]
    writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def to_fields(row: Row) -> dict[str, Any]:
    """Return a row as a dict that can be written as JSON."""
    return {
        "setting": row.setting.label,
        "is": describe(row.setting),
        "figures": row.figures,
        "intervals": {name: list(ends) if ends else None for name, ends in row.ends.items()},
        "to_base": {name: _listed(change) for name, change in row.to_base.items()},
        "to_published": {name: _listed(change) for name, change in row.to_published.items()},
    }


def to_plot(rows: Sequence[Row]) -> bytes:
    """A PNG: METRIC of each setting with its interval on the left, its difference to the base on the right."""
    from matplotlib.figure import Figure  # noqa: PLC0415 – takes a second, and only plots need it

    figure = Figure(figsize=(10, 1.2 + 0.36 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        colour = "#8a8a86" if row.setting.oracle else "#c2331f" if "published" in row.setting.names else "#2463c4"
        value, ends, gain = row.figures[METRIC], row.ends[METRIC], row.to_base[METRIC]
        if value is not None and ends is not None:
            left.errorbar(value, place, xerr=[[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]], fmt="o", color=colour, capsize=3)
        if gain is not None and "base" not in row.setting.names:
            reach = [[max(0.0, gain.value - gain.low)], [max(0.0, gain.high - gain.value)]]
            right.errorbar(gain.value, place, xerr=reach, fmt="o", color=colour, capsize=3)
    base = next(row.figures[METRIC] for row in rows if "base" in row.setting.names)
    for axes, at, title in ((left, base, METRIC), (right, 0.0, f"{METRIC}: difference to base, same images")):
        if at is not None:
            axes.axvline(at, color="#bbbbb5", linewidth=1, zorder=0)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="x", color="#ececea")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(rows)), [_plain(row.setting.label) for row in rows])
    left.invert_yaxis()
    figure.supxlabel("95 % intervals, bootstrap over images; red: as published, grey: true boxes and points", fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _plain(text: str) -> str:
    """Escape dollar signs, which matplotlib would take for the beginning of a formula."""
    return text.replace("$", r"\$")


def _flat(fields: Mapping[str, Any]) -> dict[str, float | None]:
    flat: dict[str, float | None] = {}
    for name, value in fields["figures"].items():
        low, high = fields["intervals"][name] or (None, None)
        flat |= {name: value, f"{name} low": low, f"{name} high": high}
    for what in ("base", "published"):
        for name, change in fields[f"to_{what}"].items():
            value, low, high = change or (None, None, None)
            flat |= {f"{name} to {what}": value, f"{name} to {what} low": low, f"{name} to {what} high": high}
    return flat


def _interval(change: Difference) -> str:
    return f"{show_change(change.value)} ({show_change(change.low)} to {show_change(change.high)})"


def _listed(change: Difference | None) -> list[float] | None:
    return None if change is None else [change.value, change.low, change.high]


def _named(results: Mapping[Setting, Sums], name: str) -> Setting:
    for setting in results:
        if name in setting.names:
            return setting
    raise ValueError(f"no setting is called {name}")
