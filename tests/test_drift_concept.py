"""The concept detector fires on what is worse, not on what is hard, late or shuffled, and keeps its run length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.drift.concept import BETS, ERRORS_MIN, ConceptDetector, ConceptState, played, scale_of
from tidemill.core.loop_spec import MonitorSpec

SPEC = MonitorSpec()
SPREAD = 0.06
finite = st.floats(-5, 5)


def noise(seed: int, count: int, correlation: float = 0.0) -> np.ndarray:
    blocks = np.random.Generator(np.random.PCG64(seed)).normal(size=count)
    for at in range(1, count):
        blocks[at] = correlation * blocks[at - 1] + (1 - correlation**2) ** 0.5 * blocks[at]
    return SPREAD * blocks


def judged(detector: ConceptDetector, block: float) -> ConceptState:
    """A tick that is a block: one label that stands for as many errors as a block needs."""
    state = detector.add(float(block), 1, ERRORS_MIN)
    assert state is not None
    return state


def told(blocks: np.ndarray, spec: MonitorSpec = SPEC) -> list[ConceptState]:
    detector = ConceptDetector(spec)
    return [judged(detector, block) for block in blocks.tolist()]


def alarms(blocks: np.ndarray, spec: MonitorSpec = SPEC) -> list[int]:
    return [at for at, state in enumerate(told(blocks, spec)) if state.is_firing]


def excess_of_days(probability: np.ndarray, label: np.ndarray) -> float:
    loss = -np.log(np.where(label == 1, probability, 1 - probability))
    return float((loss + probability * np.log(probability) + (1 - probability) * np.log(1 - probability)).mean())


def served_days(count: int, *, seed: int, inverted_from: int | None = None, hard_from: int | None = None) -> np.ndarray:
    """Blocks of 300 calibrated predictions a day."""
    source = np.random.Generator(np.random.PCG64(seed))
    blocks = []
    for day in range(count):
        margin = source.normal(-1 + 0.5 * source.normal(), 1.5, 300)
        if hard_from is not None and day >= hard_from:
            margin *= 0.1  # near .5: a loss that is twice as high, and as it says itself
        probability = 1 / (1 + np.exp(-margin))
        label = (source.random(300) < probability).astype(np.float64)
        if inverted_from is not None and day >= inverted_from:
            label = 1 - label
        blocks.append(excess_of_days(probability, label))
    return np.array(blocks)


@pytest.mark.parametrize("seed", range(8))
def test_inverted_labels_fire_within_three_days(seed: int) -> None:
    found = alarms(served_days(70, seed=seed, inverted_from=60))
    assert found and 60 <= found[0] <= 62


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_a_jump_of_half_a_nat_fires_within_three_blocks(seed: int, size: float) -> None:
    blocks = noise(seed, 70, 0.3)
    blocks[60:] += size
    assert any(60 <= at <= 62 for at in alarms(blocks))


@pytest.mark.parametrize("seed", range(8))
def test_hard_days_are_no_drift(seed: int) -> None:
    assert not alarms(served_days(120, seed=seed, hard_from=60))


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_days_are_no_drift(seed: int) -> None:
    """A stream with a drift in it, in an order in which there is none."""
    blocks = noise(seed, 120)
    blocks[:60] += 0.3
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(blocks)
    assert not alarms(shuffled)
    assert alarms(blocks[::-1])


@pytest.mark.parametrize("size", [4, 8, 12])
def test_one_bad_day_alone_does_not_fire(size: int) -> None:
    fired = 0
    for seed in range(40):
        blocks = noise(100 + seed, 61)
        blocks[58] += size * SPREAD
        fired += bool(alarms(blocks))
    assert fired <= 2


def test_one_block_counts_for_so_much_and_no_more() -> None:
    assert played(np.zeros(len(BETS)), 1e9).mean() < SPEC.average_run_length / 10


def test_better_days_are_no_drift() -> None:
    blocks = noise(3, 400)
    blocks[60:] -= 1
    assert not alarms(blocks)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
@pytest.mark.parametrize("reference_ticks", [14, 28])
def test_false_alarms_are_rarer_than_the_setting(correlation: float, reference_ticks: int) -> None:
    spec = replace(SPEC, reference_ticks=reference_ticks, average_run_length=100)
    count = sum(len(alarms(noise(seed, 500, correlation), spec)) for seed in range(40))
    assert count <= 40 * (500 - reference_ticks) / 100


def test_it_starts_anew_behind_an_alarm_and_keeps_its_reference() -> None:
    blocks = noise(5, 90)
    blocks[60:] += 0.6
    states, found = told(blocks), alarms(blocks)
    assert len(found) >= 5
    for at in found[:-1]:
        assert states[at].e_value >= SPEC.average_run_length > states[at + 1].e_value
    blocks[70:] -= 0.6
    assert all(at <= 70 for at in alarms(blocks))


def test_nothing_is_judged_within_the_reference() -> None:
    states = told(np.concatenate([[9.0], noise(6, 26), [9.0]]))
    assert {(state.e_value, state.is_firing) for state in states} == {(0.0, False)}


@given(st.lists(finite, min_size=2, max_size=40), finite)
def test_a_mean_stake_of_what_is_no_worse_is_at_most_one(blocks: list[float], at: float) -> None:
    """The e-value's law: a block at the old mean, or below, never wins."""
    level, spread = scale_of(np.array(blocks))
    assert spread > 0
    assert (played(np.zeros(len(BETS)), (min(at, float(level)) - level) / spread) <= 1 + 1e-9).all()


@given(st.lists(st.lists(finite, min_size=6, max_size=6), min_size=1, max_size=4))
def test_streams_side_by_side_are_judged_as_each_alone(streams: list[list[float]]) -> None:
    together = scale_of(np.array(streams))
    for row, stream in enumerate(streams):
        alone = scale_of(np.array(stream))
        assert (together[0][row], together[1][row]) == pytest.approx((float(alone[0]), float(alone[1])), rel=1e-12)


@pytest.mark.parametrize("excess", [float("nan"), float("inf"), -float("inf")])
def test_block_without_a_number_changes_nothing(excess: float) -> None:
    blocks, detector = noise(7, 80), ConceptDetector(SPEC)
    for at, block in enumerate(blocks.tolist()):
        state = judged(detector, block)
        if at in (5, 40, 60):
            assert detector.add(excess, 1, ERRORS_MIN) is None
    assert state == told(blocks)[-1]


def test_reference_of_one_block_and_of_equal_blocks_is_enough() -> None:
    assert not alarms(np.full(50, 0.2), replace(SPEC, reference_ticks=1))
    equal = np.full(60, 0.2)
    equal[50:] = 0.9
    assert alarms(equal)[0] <= 52


def test_a_change_of_model_does_not_blind_the_detector() -> None:
    detector = ConceptDetector(SPEC)
    for block in noise(3, SPEC.reference_ticks):
        judged(detector, block)
    detector.restart()
    fired = [judged(detector, 0.6).is_firing for _ in range(4)]
    assert any(fired), "the scale of before serves until the new model has one of its own"


def test_what_made_it_fire_does_not_become_the_measure() -> None:
    detector = ConceptDetector(SPEC)
    for block in noise(4, SPEC.reference_ticks):
        judged(detector, block)
    detector.restart()
    fired = sum(judged(detector, 0.6).is_firing for _ in range(3 * SPEC.reference_ticks))
    assert fired > SPEC.reference_ticks // 2, "months of the same fault are a fault to the end"


# Ticks with few labels --------------------------------------------------------------------------------------------

TICKS, STREAMS = 400, 24
DAY = np.arange(TICKS)
UNEVEN = {
    "few": np.full(TICKS, 5),
    "many and then few": np.where(DAY < 28, 500, 5),
    "few on weekends": np.where(DAY % 7 < 5, 2_000, 3),
    "half as many as in the reference": np.where(DAY < 28, 1_000, 500),
    "a quarter of the reference": np.where(DAY < 28, 1_000, 250),
    "a hundred": np.full(TICKS, 100),
}


def labelled(source: np.random.Generator, counts: np.ndarray, *, said: float, truth: float) -> list[tuple]:
    """Of each tick what the detector gets, where everybody has the probability `said` and is positive with `truth`."""
    positives = source.binomial(counts, truth)
    negatives = counts - positives
    entropy = -said * np.log(said) - (1 - said) * np.log(1 - said)
    excess = -positives * np.log(said) - negatives * np.log(1 - said) - counts * entropy
    squared = positives * (1 - said) ** 2 + negatives * said**2
    return list(zip(excess.tolist(), counts.tolist(), squared.tolist(), strict=True))


def firings(ticks: list[tuple]) -> list[int]:
    detector = ConceptDetector(SPEC)
    states = [detector.add(*tick) for tick in ticks]
    return [at for at, state in enumerate(states) if state is not None and state.is_firing]


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("counts", UNEVEN.values(), ids=UNEVEN)
def test_uneven_days_and_rare_positives_cost_no_more_false_alarms_than_the_setting(
    counts: np.ndarray, share: float
) -> None:
    source = np.random.Generator(np.random.PCG64(1))
    count = sum(len(firings(labelled(source, counts, said=share, truth=share))) for _ in range(STREAMS))
    assert count <= STREAMS * (TICKS - SPEC.reference_ticks) / SPEC.average_run_length


def test_ticks_too_small_for_a_block_are_judged_as_one() -> None:
    whole, cut = ConceptDetector(SPEC), ConceptDetector(SPEC)
    for block in (8 * noise(1, 60)).tolist():
        first = [cut.add(block / 4, 25, ERRORS_MIN / 4) for _ in range(3)]
        last = cut.add(block / 4, 25, ERRORS_MIN / 4)
        assert first == [None] * 3 and last is not None and last.ticks == 4
        assert last._replace(ticks=1) == whole.add(block, 100, ERRORS_MIN)


def test_block_has_half_of_the_labels_of_the_reference() -> None:
    detector = ConceptDetector(SPEC)
    for block in noise(2, SPEC.reference_ticks).tolist():
        assert detector.add(100 * block, 100, 10.0) is not None
    assert [detector.add(0.0, count, 10.0) is None for count in (50, 49, 1, 20, 29, 1)] == [
        False, True, False, True, True, False
    ]  # fmt: skip


def test_a_change_of_model_forgets_the_labels_that_wait() -> None:
    detector = ConceptDetector(SPEC)
    assert detector.add(9.0, 100, ERRORS_MIN / 2) is None
    detector.restart()
    assert detector.add(0.1, 100, ERRORS_MIN / 2) is None
    state = detector.add(0.1, 100, ERRORS_MIN / 2)
    assert state is not None and state.excess == 0.2 / 200


@pytest.mark.parametrize("count", [10, 40, 300])
@pytest.mark.parametrize(("said", "truth"), [(0.2, 0.8), (1e-6, 0.2)], ids=["inverted", "wrongly certain"])
def test_small_ticks_still_show_what_is_wrong(count: int, said: float, truth: float) -> None:
    source = np.random.Generator(np.random.PCG64(2))
    right = labelled(source, np.full(300, count), said=0.2, truth=0.2)
    wrong = labelled(source, np.full(20, count), said=said, truth=truth)
    found = firings([*right, *wrong])
    assert found and 300 <= found[0] <= 306
