"""Losses over the latest ticks: what is expected, gaps on the same examples, worst slices, and the learner's guard."""

from __future__ import annotations

import numpy as np
import pytest
from watched_days import CATEGORIES, an_example_batch

from tidemill.core.loss_window import EXAMPLES_MIN, LearnerGuard, LossWindow, expected_loss_units
from tidemill.core.metrics import LOSS_UNIT
from tidemill.core.records import FeatureBatch


def test_expected_losses_are_entropies_and_finite_at_the_ends() -> None:
    units = expected_loss_units(np.array([0.0, 0.5, 1.0]))
    assert (units * LOSS_UNIT).tolist() == pytest.approx([0, np.log(2), 0], abs=1e-9)


def test_a_window_forgets_the_ticks_before_it() -> None:
    window = LossWindow(CATEGORIES, 2)
    for said in (0.1, 0.5, 0.5):
        window.add(an_example_batch(EXAMPLES_MIN // 2, blend=np.full(EXAMPLES_MIN // 2, said)))
        window.close_tick()

    assert window.examples == EXAMPLES_MIN and window.is_judged
    assert window.losses["blend"] == pytest.approx(np.log(2))
    window.close_tick()
    assert not window.is_judged and window.gaps == {}


def test_a_gap_compares_the_same_examples_only() -> None:
    window = LossWindow(CATEGORIES, 1)
    rows = 2 * EXAMPLES_MIN
    is_late = np.arange(rows) >= EXAMPLES_MIN
    # The booster came when the days had become easy: on its rows the blend is as good.
    window.add(an_example_batch(rows, blend=np.where(is_late, 0.2, 0.7), booster=np.where(is_late, 0.2, np.nan)))
    window.close_tick()

    assert window.losses["blend"] > window.losses["booster"]
    assert window.gaps["booster"] == 0.0

    window.add(an_example_batch(rows, booster=np.where(np.arange(rows) > EXAMPLES_MIN, 0.5, np.nan)))
    window.close_tick()
    assert set(window.gaps) == {"learner", "base_rate"}


def test_values_of_a_category_behind_the_first_ones_are_one_rest() -> None:
    window = LossWindow(CATEGORIES, 1)
    rows = 60_000
    shops = tuple(f"s{at % 1_000}" for at in range(rows))
    features = FeatureBatch(np.zeros((rows, 2), dtype=np.float32), (shops,))
    window.add(an_example_batch(rows, features=features, blend=np.full(rows, 0.9)))
    easy = FeatureBatch(np.zeros((100, 2), dtype=np.float32), (("s1",) * 100,))
    window.add(an_example_batch(100, features=easy, blend=np.full(100, 0.3)))  # better than it expects
    window.close_tick()

    slices = window.worst_slices(count=1_000, rows_min=50)
    assert len(slices) == 256 and slices[0][0] == "shop=s0"
    assert slices[0][1] == pytest.approx(-np.log(0.1) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1), abs=1e-6)
    assert [name for name, _ in window.worst_slices(count=3, rows_min=61)] == ["shop=s1"]

    window.add(an_example_batch(100, features=easy, blend=np.full(100, 0.3)))
    window.close_tick()
    assert window.worst_slices(count=3, rows_min=50) == ()


def test_the_guard_needs_enough_examples_of_all_three() -> None:
    guard = LearnerGuard(2)
    bad = {"learner": np.full(400, 0.9)}
    for known in (True, False):
        guard.add(an_example_batch(400, **bad, booster=np.full(400, 0.5 if known else np.nan)))
        verdict = guard.close_tick()
    assert not verdict.is_bad
    guard.add(an_example_batch(400, **bad, offset=np.arange(7, 407)))
    guard.close_tick()
    guard.add(an_example_batch(400, **bad, offset=np.arange(500, 900)))
    assert guard.close_tick() == (True, 7)
