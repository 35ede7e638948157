"""The report of a run: what is shown of the changes, and a page that stands alone whatever is in it."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.learning.gate import Checks, Decision, PairedSample, decide
from backend.learning.report import CURVE_POINTS, Change, RunReport, choose_changes, draw_curve, write_report
from backend.learning.run_folder import RunFolder

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
PAIRS = [PairedSample("cup", 0.5, 0.6)] * 20 + [PairedSample("dog", 0.5, 0.7)] * 20
DECISION = decide(PAIRS, Checks(0.8, 0.81, smoke=True))
REPORT = RunReport(
    run="run-000001",
    state="promoted",
    started="2026-05-04T12:11:09+00:00",
    seconds=754.0,
    config={"model": "demo", "plan": {"steps": 800, "rate": 1e-4}, "golden": None},
    curve=[(step, 2.0 / step) for step in range(1, 101)],
    decision=DECISION,
    challenger="demo-1-0a1b2c3d",
    champion="demo-0-11223344",
    counts={"train": 412, "holdout": 40},
    pictures=[Change("the left cup", "cup", 0.2, 0.9, PNG, PNG), Change("the dog", "dog", 0.8, 0.7, PNG, PNG)],
)
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>\u202e\x00\ud800{{ 7 * 7 }}"
SHARES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, **changes: Any) -> Page:
    write_report(RunFolder(folder), replace(REPORT, **changes))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("changes", "count", "chosen"),
    [
        pytest.param([], 10, [], id="nothing"),
        pytest.param([0.1, 0.3, -0.2], 10, [1, 2, 0], id="the largest first"),
        pytest.param([0.0, 0.3, 0.0], 10, [1], id="what did not change is not shown"),
        pytest.param([0.3, 0.2, 0.1, -0.05], 3, [0, 1, 3], id="one loss among gains"),
        pytest.param([-0.3, -0.2, -0.1, 0.05], 2, [0, 3], id="one gain among losses"),
        pytest.param([0.5] * 12 + [-0.01, -0.02, -0.03], 10, [0, 1, 2, 3, 4, 5, 6, 7, 14, 13], id="two of ten places for losses"),
        pytest.param([0.3, -0.4], 1, [1], id="one place goes to the largest"),
        pytest.param([0.3, -0.4], 0, [], id="no place"),
        pytest.param([0.25, -0.25, 0.25], 10, [0, 1, 2], id="equals in their order"),
    ],
)
def test_which_changes_are_shown(changes: list[float], count: int, chosen: list[int]) -> None:
    assert choose_changes([0.5] * len(changes), [0.5 + change for change in changes], count) == chosen


@given(pairs=SHARES, count=st.integers(0, 12))
def test_both_directions_are_shown_and_the_order_holds(pairs: list[tuple[float, float]], count: int) -> None:
    before, after = [old for old, _ in pairs], [new for _, new in pairs]
    chosen = choose_changes(before, after, count)
    sizes = [abs(after[index] - before[index]) for index in chosen]
    moved = [index for index in range(len(pairs)) if abs(after[index] - before[index]) > 1e-9]
    assert len(set(chosen)) == len(chosen) == min(count, len(moved))
    assert sizes == sorted(sizes, reverse=True)
    if count >= 2:
        assert {after[index] > before[index] for index in chosen} == {after[index] > before[index] for index in moved}


def test_samples_without_their_other_half_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 0"):
        choose_changes([0.5], [])


def test_the_page_tells_the_verdict_first_and_why(tmp_path: Path) -> None:
    text = page(tmp_path).text.split("}")[-1]  # after the style
    positions = [text.index(part) for part in ("The new version is better", DECISION.reasons[0], "run-000001", "By label", "the left cup")]
    assert positions == sorted(positions)
    assert all(part in text for part in ("0.500 → 0.650", "+0.150", "+0.700", "−0.100", "412 train", "13 min", "plan.steps"))


@pytest.mark.parametrize(
    ("decision", "title"),
    [
        pytest.param(None, "no decision", id="none"),
        pytest.param(decide([PairedSample("cup", 0.5, 0.4)] * 30, Checks(None, None, smoke=True)), "not asked", id="no golden set"),
        pytest.param(decide([], Checks(0.8, 0.8, smoke=True)), "Too few corrections", id="wait"),
        pytest.param(decide(PAIRS, Checks(0.8, 0.7, smoke=False)), "The old version stays", id="keep"),
        pytest.param(decide(PAIRS[:10], Checks(0.8, 0.8, smoke=True)), "By chance alone", id="few pairs"),
    ],
)
def test_every_outcome_has_a_page(tmp_path: Path, decision: Decision | None, title: str) -> None:
    found = page(tmp_path, decision=decision, pictures=[], curve=[], counts={}, config={}, champion="")
    assert title in found.text
    assert all(reason in found.text for reason in (decision.reasons if decision else ()))
    assert "svg" not in [tag for tag, _ in found.tags]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert not {"script", "link", "iframe", "a", "base", "form", "object"} & {tag for tag, _ in found.tags}
    pictures = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(source == "data:image/png;base64," + base64.b64encode(PNG).decode() for source in pictures)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    plain = page(tmp_path)
    hostile = page(
        tmp_path,
        run=HOSTILE,
        state=HOSTILE,
        started=HOSTILE,
        champion=HOSTILE,
        challenger=HOSTILE,
        config={HOSTILE: HOSTILE, "plan": {HOSTILE: [HOSTILE], "rate": HOSTILE}, "golden": None},
        counts={HOSTILE: 412, "holdout": 40},
        decision=decide([replace(pair, label=HOSTILE) for pair in PAIRS[:20]] + PAIRS[20:], Checks(0.8, 0.81, smoke=True)),
        pictures=[replace(one, phrase=HOSTILE, label=HOSTILE + "!") for one in REPORT.pictures],
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in hostile.tags] == [sorted(attributes) for _, attributes in plain.tags]
    assert "{{ 7 * 7 }}" in hostile.text


def test_the_record_has_all_but_the_pictures(tmp_path: Path) -> None:
    write_report(RunFolder(tmp_path), replace(REPORT, curve=[(1, 0.5), (2, math.nan)], config={"path": Path("/data"), "rate": math.inf}))
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert record["pictures"][0] == {"phrase": "the left cup", "label": "cup", "before_iou": 0.2, "after_iou": 0.9}
    assert record["curve"] == [[1, 0.5], [2, None]]
    assert record["config"] == {"path": "/data", "rate": None}
    assert record["decision"]["verdict"] == "promote"
    assert record["decision"]["labels"]["dog"]["pairs"] == 20
    assert {"run", "state", "started", "seconds", "challenger", "champion", "counts"} <= set(record)


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    page(tmp_path)
    assert "run-000002" in page(tmp_path, run="run-000002").text
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


@pytest.mark.parametrize(
    "curve",
    [
        pytest.param([], id="empty"),
        pytest.param([(1, 0.5)], id="one point"),
        pytest.param([(1, math.nan), (2, 0.5), (3, math.inf)], id="one finite point"),
        pytest.param([(3, 0.5), (3, 0.4)], id="one step"),
    ],
)
def test_too_little_is_no_curve(curve: list[tuple[int, float]]) -> None:
    assert draw_curve(curve) is None


@pytest.mark.parametrize(
    "curve",
    [
        pytest.param([(1, 2.0), (2, 1.0)], id="two points"),
        pytest.param([(1, 0.0), (2, 0.0)], id="zero"),
        pytest.param([(1, -1.0), (2, -3.0), (3, 4.0)], id="below zero"),
        pytest.param([(step, 1e9 / step) for step in range(1, 5000)], id="many and large"),
        pytest.param([(step, 1e-9 * step) for step in range(1, 50)], id="tiny"),
        pytest.param([(1, math.nan), (2, 1.0), (3, 0.5)], id="with a hole"),
    ],
)
def test_a_curve_stays_within_its_frame(curve: list[tuple[int, float]]) -> None:
    plot = draw_curve(curve, [(step, 3 * loss) for step, loss in curve])
    assert plot is not None
    assert draw_curve(curve).validation == ""  # type: ignore[union-attr]
    for line in (plot.line, plot.smooth, " ".join(plot.validation.split()[:CURVE_POINTS])):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        assert 2 <= len(points) <= CURVE_POINTS
        assert all(0 <= x <= 720 and 0 <= y <= 240 for x, y in points)
    assert 1 <= len(plot.across) <= 12
    assert 1 <= len(plot.upward) <= 10
    assert all(0 <= y <= 240 for y, _ in plot.upward)
