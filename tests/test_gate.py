"""The gate refuses what is worse than champion or constant, over all, in a slice or in money, and says by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.gate import GateRows, GateVerdict, cost_of, is_holdout, judge
from tidemill.core.loop_spec import RetrainSpec
from tidemill.core.metrics import auc, log_loss
from tidemill.core.spec import CostSpec
from tidemill.errors import InvariantError

SPEC = RetrainSpec(slice_examples=100)
COSTS = CostSpec(false_alarm=1.0, miss=3.0)  # alarms from .25 on
COUNT = 1_000
LABEL = (np.arange(COUNT) % 5 == 0).astype(np.float64)
NOTHING = GateRows(label=np.empty(0), challenger=np.empty(0), champion=np.empty(0))


def sure(certainty: float) -> np.ndarray:
    """Right about every row, and so sure of it."""
    return np.where(LABEL == 1, certainty, 1 - certainty)


def rows(challenger: np.ndarray, champion: np.ndarray | None = None) -> GateRows:
    return GateRows(
        label=LABEL,
        challenger=challenger,
        champion=champion,
        codes={"place": (np.arange(COUNT) % 4 - 1).astype(np.int32)},
        values={"place": ("north", "south", "west")},
    )


def judged(recent: GateRows, holdout: GateRows = NOTHING, **changes: object) -> GateVerdict:
    return judge(recent, holdout, base_rate=0.2, costs=COSTS, spec=replace(SPEC, **changes))


def test_better_challenger_passes_and_its_numbers_are_told():
    challenger, champion = sure(0.9), sure(0.8)
    verdict = judged(rows(challenger, champion), rows(challenger, champion))
    assert verdict.is_passed
    assert verdict.reasons == ("recent: log loss 0.10536, the champion's is 0.22314",)
    assert verdict.evidence["recent/challenger/log_loss"] == log_loss(challenger, LABEL)
    assert verdict.evidence["holdout/champion/auc"] == auc(champion, LABEL) == 1
    assert verdict.evidence["recent/rows"] == COUNT
    assert verdict.evidence["recent/constant/cost"] == pytest.approx(0.2 * 3)


def test_loss_may_be_above_the_champions_by_the_margin_on_both_sets():
    good, bad = rows(sure(0.8), sure(0.8)), rows(sure(0.79), sure(0.8))
    assert judged(good, good).is_passed
    for name, sets in {"recent": (bad, good), "holdout": (good, bad)}.items():
        verdict = judged(*sets)
        assert not verdict.is_passed
        assert verdict.reasons == (f"{name}: log loss 0.23572, the champion's is 0.22314, the margin 0.002",)
        assert judged(*sets, gate_margin=0.02).is_passed


def test_first_version_has_no_champion_and_must_beat_the_constant():
    assert judged(rows(sure(0.7))).is_passed
    constant = np.full(COUNT, 0.2)
    assert judged(rows(constant)).is_passed
    verdict = judged(rows(np.full(COUNT, 0.4)), rows(constant))
    assert not verdict.is_passed
    assert verdict.reasons == ("recent: log loss 0.59192, the constant's is 0.50040",)


def test_challenger_below_the_champion_is_still_measured_against_the_constant():
    verdict = judged(rows(np.full(COUNT, 0.5), np.full(COUNT, 0.6)))
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["recent"]
    assert "the constant's" in verdict.reasons[0]


def test_cost_at_the_decision_may_not_rise():
    champion = np.where(LABEL == 1, 0.26, 0.24)  # right about all, as .25 decides
    challenger = np.where(LABEL == 1, 0.26, np.where(np.arange(COUNT) % 5 == 1, 0.251, 0.2))  # 200 false alarms
    verdict = judged(rows(challenger, champion))
    assert log_loss(challenger, LABEL) < log_loss(champion, LABEL)
    assert verdict.reasons == ("recent: cost 0.2000 a decision, the champion's is 0.0000, 0.0060 at most",)
    assert judged(rows(champion, challenger), gate_margin=0.1, slice_margin=0.1).is_passed


def test_cost_counts_false_alarms_and_misses_at_the_threshold():
    probability = np.array([0.25, 0.2, 0.3, 0.1])
    assert cost_of(probability, np.array([0, 0, 1, 1]), COSTS) == (1 * 1 + 1 * 3) / 4


def test_slice_that_became_worse_is_named():
    challenger, champion = sure(0.9), sure(0.8)
    south = np.arange(COUNT) % 4 == 2
    challenger[south] = sure(0.76)[south]
    verdict = judged(rows(challenger, champion))
    (reason,) = verdict.reasons
    assert reason == ("recent, place=south: log loss 0.27444 over 250 rows, the champion's is 0.22314, the margin 0.02")
    assert verdict.evidence["recent/slice/place=south"] == pytest.approx(np.log(0.8 / 0.76))
    assert judged(rows(challenger, champion), slice_examples=251).is_passed
    assert judged(rows(challenger, champion), slice_margin=0.2).is_passed


def test_rows_without_a_category_are_no_slice():
    challenger = sure(0.8)
    nowhere = np.arange(COUNT) % 4 == 0  # code -1
    challenger[nowhere] = sure(0.76)[nowhere]
    verdict = judged(rows(challenger, sure(0.8)), gate_margin=0.02)
    assert verdict.is_passed
    assert verdict.evidence["recent/slice/place=north"] == 0


def test_nothing_recent_is_no_proof():
    verdict = judged(NOTHING, rows(sure(0.9), sure(0.8)))
    assert (verdict.is_passed, verdict.reasons) == (False, ("there are no recent rows to compare on",))


def test_auc_of_one_class_is_absent():
    verdict = judged(GateRows(label=np.zeros(3), challenger=np.full(3, 0.1), champion=None))
    assert verdict.is_passed
    assert "recent/challenger/auc" not in verdict.evidence


# The holdout -----------------------------------------------------------------------------------------------------


def splitmix64(value: int) -> int:
    """With Python's integers."""
    mask = 2**64 - 1
    mixed = (value + 0x9E3779B97F4A7C15) & mask
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & mask
    return mixed ^ (mixed >> 31)


def test_holdout_hash_is_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first value of the generator with seed 0, as published


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.floats(0, 0.99))
def test_holdout_depends_on_the_offset_alone(offsets: list[int], share: float):
    found = is_holdout(np.array(offsets, dtype=np.int64), share)
    assert found.tolist() == [splitmix64(offset) < int(share * 2**64) for offset in offsets]


def test_holdout_is_the_declared_share_and_grows_with_it():
    offset = np.arange(100_000, dtype=np.int64)
    small, large = is_holdout(offset, 0.02), is_holdout(offset, 0.1)
    assert small.mean() == pytest.approx(0.02, abs=0.002)
    assert large.mean() == pytest.approx(0.1, abs=0.004)
    assert (large | ~small).all()
    assert not is_holdout(offset, 0.0).any()
    with pytest.raises(InvariantError, match="TM-9711"):
        is_holdout(offset, 1.0)
