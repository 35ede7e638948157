"""Poisson-disk points: nowhere near each other, everywhere in the box."""

from __future__ import annotations

import numpy as np

from sam4mllm.training.disks import PATTERNS, RADIUS, draw_disks, pattern

BOX = np.array([100, 50, 300, 450], np.float32)


def test_no_two_points_are_near_each_other_and_no_place_is_far_from_all() -> None:
    places = np.stack(np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)), -1).reshape(-1, 2)
    for index in range(0, PATTERNS, 7):
        points = pattern(index)
        assert 55 <= len(points) <= 75  # the released ones have 61 to 69
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points))
        assert gaps.min() >= RADIUS
        assert np.linalg.norm(places[:, None] - points[None], axis=-1).min(1).max() < 2 * RADIUS


def test_points_of_a_box() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw_disks(BOX, 10, rng) for _ in range(50)]
    for points in drawn:
        assert points.shape == (10, 2)
        assert points.dtype == np.float32
        assert ((points >= BOX[:2]) & (points <= BOX[2:])).all()
        shares = (points - BOX[:2]) / (BOX[2:] - BOX[:2])
        gaps = np.linalg.norm(shares[:, None] - shares[None], axis=-1) + np.eye(10)
        assert gaps.min() >= RADIUS - 1e-5
    assert len({points.tobytes() for points in drawn}) == 50
    assert np.abs(np.concatenate(drawn).mean(0) - [200, 250]).max() < 20
    assert 55 <= len(draw_disks(BOX, 200, rng)) <= 75
