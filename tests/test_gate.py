"""Every rule of the gate at its boundary, the exact test against all signs written out, and what must hold for any figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from backend.learning import gate, paired_tests
from backend.learning.evaluation import read_pair
from backend.learning.gate import Checks, Decision, PairedSample, decide, is_kept
from backend.learning.paired_tests import lower_bounds, sign_flip_p

GOOD = Checks(golden_champion=0.8, golden_challenger=0.8, smoke=True)
SHARE = st.floats(0, 1)
PAIRS = st.lists(st.builds(PairedSample, st.sampled_from(["cup", "dog"]), SHARE, SHARE), max_size=45)


def shifted(count: int, by: float, label: str = "cup", champion: float = 0.5) -> list[PairedSample]:
    """Pairs that all differ by the same."""
    return [PairedSample(label, champion, champion + by)] * count


def mixed(better: int, worse: int, same: int = 0) -> list[PairedSample]:
    """So many pairs that are better by 0.1, worse by 0.1, or the same."""
    return shifted(better, 0.1) + shifted(worse, -0.1) + shifted(same, 0)


@pytest.mark.parametrize(
    ("pairs", "verdict", "method"),
    [
        pytest.param([], "wait", "none", id="no pairs"),
        pytest.param(shifted(7, 0.4), "wait", "none", id="7 that are better are too few"),
        pytest.param(shifted(7, -0.4), "wait", "none", id="7 that are worse are too few"),
        pytest.param(shifted(8, 0.01), "promote", "sign-flip", id="8 better"),
        pytest.param(mixed(7, 1), "promote", "sign-flip", id="7 better of 8, p = 9/256"),
        pytest.param(mixed(6, 2), "keep", "sign-flip", id="6 better of 8, p = 37/256"),
        pytest.param(mixed(5, 0, 3), "promote", "sign-flip", id="5 better and 3 the same, p = 1/32"),
        pytest.param(mixed(4, 0, 4), "keep", "sign-flip", id="4 better and 4 the same, p = 1/16"),
        pytest.param(shifted(8, 0), "keep", "sign-flip", id="8 the same"),
        pytest.param(shifted(29, 0.01), "promote", "sign-flip", id="29 better"),
        pytest.param(shifted(29, -0.01), "keep", "sign-flip", id="29 worse"),
        pytest.param(shifted(30, 0.01), "promote", "bootstrap", id="30 better"),
        pytest.param(shifted(30, 0), "keep", "bootstrap", id="30 the same"),
        pytest.param(shifted(30, -0.01), "keep", "bootstrap", id="30 worse"),
        pytest.param(mixed(2, 0, 28), "keep", "bootstrap", id="2 better of 30: 13 % of draws have neither"),
        pytest.param(mixed(17, 13), "keep", "bootstrap", id="17 better of 30"),
        pytest.param(mixed(24, 6), "promote", "bootstrap", id="24 better of 30"),
        pytest.param(mixed(100, 100), "keep", "bootstrap", id="as many better as worse"),
        pytest.param([PairedSample("dog", 0.0, 1.0)] * 40, "promote", "bootstrap", id="phrases without a target, all fixed"),
    ],
)
def test_the_pairs_decide(pairs: list[PairedSample], verdict: str, method: str) -> None:
    decision = decide(pairs, GOOD)
    assert (decision.verdict, decision.method) == (verdict, method)
    assert len(decision.reasons) == 1
    assert decision.figures["pairs"] == len(pairs)
    assert (decision.figures["p"] is not None) == (method == "sign-flip")
    assert (decision.figures["lower_bound"] is not None) == (method == "bootstrap")


def on(count: int, by: float, champion: float = 0.9, **how: bool) -> list[PairedSample]:
    """Pairs of as many images."""
    return [PairedSample("cup", champion, champion + by, f"{how}{champion}{by}{index}", **how) for index in range(count)]


def alone(count: int, by: float) -> list[PairedSample]:
    return on(count, by, 0.5, unassisted=True)


def let_stand(count: int, by: float) -> list[PairedSample]:
    return on(count, by, 1.0, accepted=True)


@pytest.mark.parametrize(
    ("pairs", "verdict", "method"),
    [
        pytest.param(alone(5, 0.1) + let_stand(5, -0.03), "promote", "sign-flip", id="accepted masks that are drawn alike are ties"),
        pytest.param(alone(4, 0.1) + let_stand(5, -0.03), "keep", "sign-flip", id="fewer than half unassisted: no ties"),
        pytest.param(alone(5, 0.1) + let_stand(4, -0.03) + let_stand(1, -0.101), "keep", "sign-flip", id="less than 0.9 is no tie"),
        pytest.param(alone(4, 0.1) + alone(1, 0) + let_stand(5, -0.03), "wait", "none", id="4 without a tie are too few"),
        pytest.param(alone(3, 0.1) + let_stand(3, -0.03), "wait", "none", id="6 are too few at all"),
        pytest.param(alone(5, -0.1) + let_stand(5, 0), "keep", "sign-flip", id="worse where nobody was shown a mask"),
        pytest.param(alone(29, 0.1) + let_stand(29, -0.03), "promote", "sign-flip", id="29 without a tie"),
        pytest.param(alone(30, 0.1) + let_stand(30, -0.03), "promote", "bootstrap", id="30 without a tie"),
        pytest.param(alone(30, 0.0001) + let_stand(30, -0.03), "promote", "bootstrap", id="ties do not weigh against a small gain"),
        pytest.param(on(8, -0.03, 1.0) + alone(8, 0.01), "keep", "sign-flip", id="only accepted masks tie"),
    ],
)
def test_accepted_masks_tie_where_half_are_unassisted(pairs: list[PairedSample], verdict: str, method: str) -> None:
    decision = decide(pairs, GOOD)
    assert (decision.verdict, decision.method) == (verdict, method)
    assert is_kept(pairs) == (verdict == "keep")


def test_ties_do_not_veto_by_their_label() -> None:
    pairs = alone(25, 0.1) + [dataclasses.replace(pair, label="dog") for pair in let_stand(25, -0.05)]
    decision = decide(pairs, GOOD)
    assert decision.verdict == "promote"
    assert (decision.figures["unassisted_images"], decision.figures["ties"]) == (25, 25)
    assert decision.labels["dog"]["difference"] == 0


def test_an_image_is_unassisted_if_all_its_samples_are() -> None:
    half = [PairedSample("cup", 0.5, 0.6, f"{index}", unassisted=True) for index in range(8)]
    assert not gate.allows_ties([*half, *[PairedSample("dog", 1.0, 0.95, f"{index}", accepted=True) for index in range(5)]])
    assert gate.allows_ties([*half, *[PairedSample("dog", 1.0, 0.95, f"{index}", accepted=True) for index in range(4)]])
    assert not gate.allows_ties([])


@pytest.mark.parametrize("how", [{}, {"accepted": True}, {"unassisted": True, "phrase": "the cup"}, {"accepted": 1}])
def test_a_pair_is_read_from_its_record(how: dict[str, Any]) -> None:
    """A run of an earlier release, taken up by this one, has a record that does not say how its samples came about."""
    pair = read_pair({"label": "cup", "champion": 0.5, "challenger": 0.6, "image": "a", **how})
    assert pair == PairedSample("cup", 0.5, 0.6, "a", how.get("accepted") is True, how.get("unassisted") is True)


@pytest.mark.parametrize(
    ("extra", "verdict"),
    [
        pytest.param(shifted(20, -0.031, "dog"), "keep", id="20 pairs lose more than 0.03"),
        pytest.param(shifted(20, -0.03, "dog", champion=0.8), "promote", id="20 pairs lose 0.03"),
        pytest.param(shifted(20, -0.03, "dog", champion=0.3), "promote", id="20 pairs lose 0.03, which rounds the other way"),
        pytest.param(shifted(19, -0.5, "dog"), "promote", id="19 pairs are no judge"),
        pytest.param(shifted(10, -0.06, "dog") + shifted(10, 0, "dog"), "promote", id="the mean of the label counts"),
        pytest.param(shifted(10, -0.07, "dog") + shifted(10, 0, "dog"), "keep", id="the mean of the label counts too much"),
    ],
)
def test_no_label_pays_for_the_others(extra: list[PairedSample], verdict: str) -> None:
    decision = decide(shifted(200, 0.2) + extra, GOOD)
    assert decision.verdict == verdict
    assert ("“dog”" in decision.reasons[0]) == (verdict == "keep")
    assert decision.labels["dog"]["pairs"] == len(extra)
    assert decision.labels["cup"]["difference"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "verdict", "word"),
    [
        pytest.param({}, "promote", "95 %", id="all is well"),
        pytest.param({"golden_challenger": 0.79}, "promote", "95 %", id="the golden set loses 0.01"),
        pytest.param({"golden_champion": 0.3, "golden_challenger": 0.29}, "promote", "95 %", id="0.01, which rounds the other way"),
        pytest.param({"golden_challenger": 0.7899}, "keep", "golden set", id="the golden set loses more than 0.01"),
        pytest.param({"golden_challenger": 0.9}, "promote", "95 %", id="the golden set gains"),
        pytest.param({"smoke": False}, "keep", "fresh process", id="no smoke answer"),
    ],
)
def test_checks_overrule_a_gain(changes: dict[str, Any], verdict: str, word: str) -> None:
    decision = decide(shifted(40, 0.1), dataclasses.replace(GOOD, **changes))
    assert decision.verdict == verdict
    assert len(decision.reasons) == 1
    assert word in decision.reasons[0]


UNASKED = dataclasses.replace(GOOD, golden_champion=None, golden_challenger=None)


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        pytest.param(shifted(30, -0.1), True, id="worse"),
        pytest.param(shifted(8, 0.0), True, id="few, and equal"),
        pytest.param(shifted(200, 0.2) + shifted(20, -0.2, "dog"), True, id="a label pays"),
        pytest.param(shifted(30, 0.1), False, id="better"),
        pytest.param(shifted(3, -0.1), False, id="too few to say"),
    ],
)
def test_the_golden_set_is_asked_unless_the_pairs_decide(pairs: list[PairedSample], kept: bool) -> None:
    assert is_kept(pairs) == kept
    if kept:
        decision = decide(pairs, UNASKED)
        assert decision.verdict == decide(pairs, GOOD).verdict == "keep"
        assert decision.reasons == decide(pairs, GOOD).reasons
        assert decision.figures["golden_difference"] is None
    else:
        with pytest.raises(ValueError, match="golden"):
            decide(pairs, UNASKED)


def test_every_reason_to_keep_is_told() -> None:
    pairs = shifted(30, -0.1) + shifted(20, -0.2, "dog") + shifted(20, 0.1, "red\nfox\u202e" + "x" * 100)
    decision = decide(pairs, Checks(0.8, 0.7, smoke=False))
    assert decision.verdict == "keep"
    assert [next(word for word in ("cup", "dog", "golden", "fresh", "95 %") if word in line) for line in decision.reasons] == [
        "cup", "dog", "golden", "fresh", "95 %",
    ]  # fmt: skip
    assert decision.reasons[1] == (
        "the label “dog” falls from a mean IoU of 0.5000 to 0.3000 over 20 holdout samples; it may lose at most 0.03"
    )


def test_a_label_stays_in_its_line() -> None:
    [reason] = decide(shifted(200, 0.2) + shifted(20, -0.2, "red\nfox\u202e" + "x" * 100), GOOD).reasons
    assert reason.isprintable()
    assert "“red fox xxx" in reason
    assert len(reason) < 200


def test_a_broken_adapter_is_not_waited_for() -> None:
    decision = decide([], dataclasses.replace(GOOD, golden_challenger=0.0, smoke=False))
    assert decision.verdict == "keep"
    assert len(decision.reasons) == 2


def test_reasons_name_the_figures() -> None:
    assert decide(mixed(7, 1), GOOD).reasons == (
        "the mean IoU of 8 holdout images changes by +0.0750; if both were equally good, chance would do as much in 3.52 % of cases",
    )
    assert decide(shifted(30, 0.25), GOOD).reasons == (
        "the mean IoU of 30 holdout images changes by +0.2500, with 95 % confidence by at least +0.2500",
    )
    assert decide(shifted(3, 0.25), GOOD).reasons == ("the holdout has 3 corrected images so far; a decision takes 8",)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.01, 65.0])
def test_what_is_no_share_is_refused(value: float) -> None:
    for pair in (PairedSample("cup", value, 0.5), PairedSample("cup", 0.5, value)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            decide([*shifted(40, 0.1), pair], GOOD)
    for checks in (dataclasses.replace(GOOD, golden_champion=value), dataclasses.replace(GOOD, golden_challenger=value)):
        with pytest.raises(ValueError, match="golden"):
            decide(shifted(40, 0.1), checks)


def test_tables_of_another_shape_are_refused() -> None:
    lists: list[ArrayLike] = [[], [0.1] * 30, [math.nan], [[0.1]]]
    for differences in lists:
        with pytest.raises(ValueError, match="sign-flip"):
            sign_flip_p(differences)
    tables: list[ArrayLike] = [[0.1], [[]], [[math.inf]]]
    for table in tables:
        with pytest.raises(ValueError, match="differences"):
            lower_bounds(table)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-12, 12), min_size=1, max_size=12))
def test_sign_flip_is_the_count_of_all_signs(hundredths: list[int]) -> None:
    sums = np.array(list(itertools.product((1, -1), repeat=len(hundredths)))) @ np.array(hundredths)
    assert sign_flip_p([number / 100 for number in hundredths]) == np.count_nonzero(sums >= sum(hundredths)) / 2 ** len(hundredths)


@pytest.mark.parametrize("count", [8, 13, 20, 28, 29])
def test_sign_flip_of_equal_sizes_is_the_sign_test(count: int) -> None:
    for better in (0, count // 2, count - 3, count):
        expected = sum(math.comb(count, number) for number in range(better, count + 1)) / 2**count
        assert sign_flip_p([0.1] * better + [-0.1] * (count - better)) == expected


def test_lower_bound_is_that_of_theory() -> None:
    """Of many normal differences the bound is the mean less 1.645 standard errors."""
    differences = np.random.default_rng(0).normal(0.05, 0.1, (3, 1000))
    expected = differences.mean(1) - 1.645 * differences.std(1) / math.sqrt(1000)
    assert lower_bounds(differences) == pytest.approx(expected, abs=2e-4)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(0, 0.1, (2, 50))
    whole = lower_bounds(differences)
    monkeypatch.setattr(paired_tests, "BLOCK", 7_777)
    assert lower_bounds(differences) == pytest.approx(whole)
    monkeypatch.setattr(paired_tests, "BLOCK", 10)
    assert lower_bounds(differences) == pytest.approx(whole)


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_a_challenger_that_is_nowhere_better_is_never_promoted(pairs: list[PairedSample]) -> None:
    same = [PairedSample(pair.label, pair.champion, pair.champion) for pair in pairs]
    worse = [PairedSample(pair.label, max(pair.champion, pair.challenger), min(pair.champion, pair.challenger)) for pair in pairs]
    expected = {"wait", "keep"} if len(pairs) < 8 else {"keep"}
    assert decide(same, GOOD).verdict in expected
    assert decide(worse, GOOD).verdict in expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 0.95), min_size=30, max_size=60))
def test_a_challenger_that_is_better_everywhere_is_promoted(champions: list[float]) -> None:
    assert decide([PairedSample("cup", champion, min(1.0, champion + 0.05)) for champion in champions], GOOD).verdict == "promote"


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pairs: list[PairedSample], order: random.Random) -> None:
    shuffled = pairs.copy()
    order.shuffle(shuffled)
    assert decide(shuffled, GOOD) == decide(pairs, GOOD)


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.builds(Checks, SHARE, SHARE, st.booleans()))
def test_every_decision_is_json_with_reasons_of_one_line(pairs: list[PairedSample], checks: Checks) -> None:
    decision = decide(pairs, checks)
    stored = json.loads(json.dumps(dataclasses.asdict(decision), allow_nan=False))
    assert Decision(**{**stored, "reasons": tuple(stored["reasons"])}) == decision
    assert decision.reasons
    assert all(line.isprintable() and line for line in decision.reasons)
    if decision.verdict == "promote":
        assert checks.smoke


def test_phrases_of_one_image_count_once() -> None:
    """Eight copies of a picture that got better are one picture; a label's pairs are still each a pair."""
    copies = [dataclasses.replace(pair, image="one.png") for pair in shifted(8, 0.2)]
    assert decide(copies, GOOD).verdict == "wait"
    assert decide([*copies, *shifted(7, 0.2)], GOOD).verdict == "promote"
    assert decide(copies, GOOD).labels["cup"]["pairs"] == 8


def test_an_equal_challenger_is_rarely_promoted_though_phrases_go_together() -> None:
    rng = np.random.default_rng(3)
    promoted = 0
    for _ in range(60):
        differences = rng.normal(0, 0.1, (40, 1)) + rng.normal(0, 0.02, (40, 5))
        pairs = [
            PairedSample("cup", 0.5, float(np.clip(0.5 + by, 0, 1)), f"{image}.png") for image, row in enumerate(differences) for by in row
        ]
        promoted += decide(pairs, GOOD).verdict == "promote"
    assert promoted <= 8
