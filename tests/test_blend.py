"""The blend: weights by hand, laws of Fixed Share with sleepers, and how far it may be from its best expert."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.blend import PROBABILITY_MIN, BlendWeights, blend, excess_over_best, updated
from tidemill.core.metrics import log_loss
from tidemill.core.records import Float32s, Float64s
from tidemill.core.spec import BlendSpec

NAMES = ("booster", "learner", "base_rate")
NAN = float("nan")
Column = dict[str, Float64s]

PROBABILITIES = st.one_of(st.floats(0, 1), st.just(NAN))
ROWS = st.lists(st.tuples(PROBABILITIES, PROBABILITIES, PROBABILITIES, st.integers(0, 1)), min_size=1, max_size=40)
GOLDEN = "booster=0x1.e47de3aaff27bp-3,learner=0x1.08085e5b665fap-1,base_rate=0x1.fb60a2e76759ap-3"
SPECS = st.builds(BlendSpec, rate=st.floats(0.01, 1), share=st.floats(0, 0.5))


def columns(rows: list[tuple[float, float, float, int]]) -> tuple[Column, Float32s]:
    """Experts' probabilities by name, and labels."""
    *experts, label = zip(*rows, strict=True)
    named = zip(NAMES, experts, strict=True)
    return {name: np.array(column, dtype=np.float64) for name, column in named}, np.array(label, dtype=np.float32)


def part(scores: Column, start: int, stop: int) -> Column:
    return {name: column[start:stop] for name, column in scores.items()}


# ---- by hand


def test_five_steps_by_hand() -> None:
    """Rate 1/2, share .3, so of what came each expert gets the root, and all awake share .3 of their total.

    1. (.5, .25, .25) * roots (.8, .4, .8) = (.4, .1, .2), together .7; times .7 * 1 / .7, plus .3 / 3
    2. the third sleeps: (.5, .2) * (.9, .2) = (.45, .04), together .49; times .7 * .7 / .49, plus .3 * .7 / 2
    3. all say the same, so only the share works: .7 w + .1
    4. only the first is awake: it keeps what it has
    5. the first sleeps: (.2015, .31) * (.4, .2) = (.0806, .062), that is 13 to 10; .7 * .5115 by 13 : 10, plus .076725
    """
    weights = BlendWeights(NAMES, (0.5, 0.25, 0.25))
    by_hand = [
        ((0.64, 0.16, 0.64, 1), (0.5, 0.2, 0.3)),
        ((0.19, 0.96, NAN, 0), (0.555, 0.145, 0.3)),
        ((0.36, 0.36, 0.36, 1), (0.4885, 0.2015, 0.31)),
        ((0.91, NAN, NAN, 0), (0.4885, 0.2015, 0.31)),
        ((NAN, 0.16, 0.04, 1), (0.4885, 0.35805 * 13 / 23 + 0.076725, 0.35805 * 10 / 23 + 0.076725)),
    ]
    for row, expected in by_hand:
        weights = updated(weights, BlendSpec(rate=0.5, share=0.3), *columns([row]))
        assert weights.weights == pytest.approx(expected, rel=1e-12)


def test_wrong_certainty_costs_as_much_as_the_least_probability() -> None:
    certain, label = columns([(0.0, 0.5, NAN, 1), (1.0, 0.5, NAN, 0)])
    weights = updated(BlendWeights.even(NAMES), BlendSpec(rate=1, share=0), certain, label)
    # 1/3 and 1/3 keep their 2/3: (.001 / .5)^2 to 1
    assert weights.weights[0] / weights.weights[1] == pytest.approx((PROBABILITY_MIN / 0.5) ** 2, rel=1e-9)
    assert weights.weights[2] == 1 / 3


def test_bits_are_the_same_on_every_machine() -> None:
    """Also with every Python: the built-in `sum` of 3.12 adds floats in another way than that of 3.11."""
    chance = np.random.default_rng(5)
    scores = {name: np.round(chance.random(500), 3) for name in NAMES}
    label = chance.integers(0, 2, 500).astype(np.float32)
    found = updated(BlendWeights.even(NAMES), BlendSpec(rate=0.3, share=0.01), scores, label)
    assert found.to_text() == GOLDEN


def test_rate_is_the_exponent() -> None:
    scores, label = columns([(0.2, 0.9, NAN, 1)])
    for rate in (1, 0.75, 0.3, 0.1, 1 / 3, 0.001):
        weights = updated(BlendWeights.even(NAMES), BlendSpec(rate=rate, share=0), scores, label).weights
        assert weights[0] / weights[1] == pytest.approx((0.2 / 0.9) ** rate, rel=1e-6)


# ---- laws


@settings(max_examples=50, deadline=None)
@given(ROWS, SPECS)
def test_weights_are_positive_and_add_up_to_one(rows: list[tuple[float, float, float, int]], spec: BlendSpec) -> None:
    weights = updated(BlendWeights.even(NAMES), spec, *columns(rows)).weights
    assert min(weights) > 0
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ROWS, SPECS)
def test_sleeper_keeps_its_weight_and_the_awake_their_total(
    rows: list[tuple[float, float, float, int]], spec: BlendSpec
) -> None:
    scores, label = columns(rows)
    before = BlendWeights.even(NAMES)
    for at in range(len(label)):
        after = updated(before, spec, part(scores, at, at + 1), label[at : at + 1])
        asleep = [math.isnan(scores[name][at]) for name in NAMES]
        pairs = list(zip(before.weights, after.weights, asleep, strict=True))
        assert all(old == new for old, new, sleeps in pairs if sleeps)
        kept = math.fsum(new - old for old, new, sleeps in pairs if not sleeps)
        assert kept == pytest.approx(0, abs=1e-12)
        before = after


@settings(max_examples=50, deadline=None)
@given(ROWS, SPECS, st.lists(st.integers(0, 40), max_size=4))
def test_pieces_leave_no_trace(rows: list[tuple[float, float, float, int]], spec: BlendSpec, cuts: list[int]) -> None:
    scores, label = columns(rows)
    at_once = updated(BlendWeights.even(NAMES), spec, scores, label)
    weights, start = BlendWeights.even(NAMES), 0
    for stop in [*sorted(cuts), len(rows)]:
        weights = updated(weights, spec, part(scores, start, stop), label[start:stop])
        start = stop
    assert weights == at_once


@settings(max_examples=50, deadline=None)
@given(ROWS, st.tuples(*[st.floats(1e-6, 1)] * 3))
def test_blend_lies_between_the_awake(rows: list[tuple[float, float, float, int]], weights: tuple[float, ...]) -> None:
    scores, _ = columns(rows)
    mixed = blend(BlendWeights(NAMES, weights), scores)
    for at, value in enumerate(mixed.tolist()):
        awake = [column[at] for column in scores.values() if not math.isnan(column[at])]
        assert min(awake) <= value <= max(awake) if awake else math.isnan(value)


def test_blend_is_the_weighted_mean_of_the_awake() -> None:
    weights = BlendWeights(NAMES, (0.5, 0.3, 0.2))
    scores = {"booster": None, "learner": np.array([0.2, NAN]), "base_rate": np.array([0.6, 0.4])}
    assert blend(weights, scores).tolist() == pytest.approx([(0.3 * 0.2 + 0.2 * 0.6) / 0.5, 0.4], rel=1e-15)


def test_row_is_blended_by_itself() -> None:
    chance = np.random.default_rng(2)
    scores = {name: chance.random(40) for name in NAMES}
    weights = BlendWeights(NAMES, (0.61, 0.28, 0.11))
    one_by_one = [blend(weights, part(scores, at, at + 1))[0] for at in range(40)]
    assert blend(weights, scores).tolist() == one_by_one


def test_loser_without_a_share_is_not_lost_for_ever() -> None:
    """10,000 wrong answers would make the weight 0, from which nothing returns."""
    count, spec = 10_000, BlendSpec(rate=1, share=0)
    wrong = {"booster": np.full(count, 0.01), "learner": np.full(count, 0.99), "base_rate": np.full(count, 0.5)}
    label = np.ones(count, dtype=np.float32)
    weights = updated(BlendWeights.even(NAMES), spec, wrong, label)
    assert 0 < weights.weights[0] < 1e-50
    weights = updated(weights, spec, wrong, 1 - label)
    assert weights.weights[0] > 0.99


def test_favourite_of_yesterday_gives_way_within_days() -> None:
    """With a share, the new best expert has most of the weight after some hundred rows, however long it was wrong."""
    spec, count = BlendSpec(rate=0.1, share=0.001), 20_000
    scores = {"booster": np.full(count, 0.9), "learner": np.full(count, 0.1), "base_rate": np.full(count, 0.5)}
    label = np.ones(count, dtype=np.float32)
    weights = updated(BlendWeights.even(NAMES), spec, scores, label)
    assert weights.weights[0] > 0.99
    weights = updated(weights, spec, part(scores, 0, 100), 1 - label[:100])
    assert weights.weights[1] > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000))
def test_excess_is_within_the_bound(seed: int) -> None:
    """At rate 1 without share this is Bayes' mixture: its log loss exceeds the best one's by ln(K) / T at most."""
    chance, count = np.random.default_rng(seed), 300
    truth = chance.random(count)
    label = (chance.random(count) < truth).astype(np.float32)
    noise = zip(NAMES, chance.random(3), strict=True)
    scores = {name: np.clip(truth + size * chance.normal(size=count), 0.01, 0.99) for name, size in noise}
    weights, mixed = BlendWeights.even(NAMES), np.empty(count)
    for at in range(count):
        one = part(scores, at, at + 1)
        mixed[at] = blend(weights, one)[0]
        weights = updated(weights, BlendSpec(rate=1, share=0), one, label[at : at + 1])
    assert excess_over_best(mixed, scores, label) <= math.log(3) / count + 1e-9


def test_excess_compares_a_sleeper_on_the_rows_where_it_was_awake() -> None:
    label = np.array([1, 1, 0], dtype=np.float32)
    scores = {"learner": np.array([0.5, 0.5, 0.5]), "booster": np.array([NAN, 0.8, NAN])}
    mixed = np.array([0.9, 0.6, 0.1])
    ours, theirs = log_loss(mixed[1:2], label[1:2]), log_loss([0.8], [1])
    assert excess_over_best(mixed, scores, label) == pytest.approx(ours - theirs)
    assert excess_over_best(mixed, {"learner": scores["learner"]}, label) < 0


# ---- text


@given(st.lists(st.floats(1e-300, 1), min_size=1, max_size=4))
def test_text_gives_back_the_same_bits(weights: list[float]) -> None:
    made = BlendWeights(tuple(f"m{at}=x" for at in range(len(weights))), tuple(weights))
    assert BlendWeights.from_text(made.to_text()) == made
