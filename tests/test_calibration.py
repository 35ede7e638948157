"""The calibration follows the reviews, is kept, and a damaged file costs nothing but itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.corrections.reviews import Review
from backend.serving.calibration import Scorer
from sam4mllm.confidence import FIT_EMPTY_FROM, FIT_FROM, NAMES, Features, score_empty
from tests.test_auto_rollback import review


def judged(count: int, seed: int = 1) -> list[Review]:
    """Reviews whose agreement follows one of the features."""
    rng = np.random.default_rng(seed)
    listed = []
    for index in range(count):
        features = {name: float(rng.uniform(0.2, 1)) for name in NAMES}
        changes: dict[str, Any] = {"features": features}
        listed.append(Review(**{**asdict(review("demo-0-00000000", features["agreement"] ** 0.5, float(index))), **changes}))
    return listed


def test_it_is_fitted_from_so_many_reviews_on_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    scorer = Scorer(path)
    assert not scorer.refit(judged(FIT_FROM - 1), "demo-0-00000000")
    assert scorer.calibration is None
    assert scorer.refit(judged(200), "demo-0-00000000")
    assert scorer.calibration is not None
    sure, unsure = (Features(**{**dict.fromkeys(NAMES, 0.6), "agreement": value}) for value in (1.0, 0.2))
    assert scorer.calibration.probability(sure) > scorer.calibration.probability(unsure)
    assert Scorer(path).calibration == scorer.calibration


def test_it_is_fitted_anew_only_when_there_is_clearly_more(tmp_path: Path) -> None:
    scorer = Scorer(tmp_path / "score.json")
    assert scorer.refit(judged(100), "a")
    assert not scorer.refit(judged(119), "a")
    assert scorer.refit(judged(120), "a")


def test_reviews_without_features_or_agreement_do_not_count(tmp_path: Path) -> None:
    none = [review("demo-0-00000000", 1.0, float(index)) for index in range(100)]
    assert not Scorer(tmp_path / "score.json").refit(none, "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "a"}', "\x00"], ids=["empty", "half", "a list", "keys missing", "binary"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "score.json"
    path.write_text(text)
    scorer = Scorer(path)
    assert scorer.calibration is None
    assert scorer.refit(judged(100), "a")


@pytest.mark.parametrize("unknown", [("looked",), ("support", "looked"), ("varied", "support", "looked")], ids=" and ".join)
def test_what_an_earlier_release_fitted_and_noted_still_counts(tmp_path: Path, unknown: tuple[str, ...]) -> None:
    path = tmp_path / "score.json"
    reviews = judged(100)
    assert Scorer(path).refit(reviews, "a")
    kept = json.loads(path.read_text())
    for name in unknown:
        del kept["features"][name]
    path.write_text(json.dumps(kept))
    calibration = Scorer(path).calibration
    assert calibration is not None
    features = Features(**dict.fromkeys(NAMES, 0.6))
    assert calibration.probability(features) == calibration.probability(replace(features, **dict.fromkeys(unknown, 1.0)))
    earlier = [replace(one, features={name: value for name, value in one.features.items() if name not in unknown}) for one in reviews]
    path.unlink()
    assert Scorer(path).refit(earlier, "a")


def emptied(count: int, seed: int = 2) -> list[Review]:
    """Reviews of "none" served, which is right as often as its probability says."""
    rng = np.random.default_rng(seed)
    chances = rng.uniform(0.5, 0.999, count)
    plain = asdict(review("demo-0-00000000", 1.0, 1.0))
    return [
        Review(**{**plain, "features": {"no_target": float(chance)}, "iou": float(rng.random() < chance), "outcome": "none"})
        for chance in chances
    ]


def test_empty_answers_have_the_chance_that_they_are_right(tmp_path: Path) -> None:
    scorer = Scorer(tmp_path / "score.json")
    assert scorer.refit(judged(100) + emptied(FIT_EMPTY_FROM - 1), "a")
    assert scorer.calibration is not None
    assert scorer.calibration.empty is None
    assert scorer.refit(judged(100) + emptied(400), "a"), "enough empty ones are there"
    assert not scorer.refit(judged(100) + emptied(401), "a")
    assert scorer.calibration.empty is not None
    assert Scorer(tmp_path / "score.json").calibration == scorer.calibration
    low, high = (score_empty(chance, scorer.calibration) for chance in (0.55, 0.99))
    assert low < high
    told = [(score_empty(one.features["no_target"], scorer.calibration), one.iou) for one in emptied(2000, seed=3)]
    assert abs(np.mean([chance for chance, _ in told]) - np.mean([right for _, right in told])) < 0.04
