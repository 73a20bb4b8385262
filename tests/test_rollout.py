"""A rollout's comparison errs as rarely as declared, however often it is looked at and whenever its labels come."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.loop_spec import RolloutSpec
from tidemill.core.rollout import BLOCK_ROWS, LOSS_MAX, SILENT_MS, PairedDifferences, RolloutWatch
from tidemill.core.ticks import RolloutState
from tidemill.errors import InvariantError

WAIT_MS = 100
SMALL = RolloutSpec(examples_min=50, examples_max=400)


def program() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "rollouts.py"
    spec = importlib.util.spec_from_file_location("rollouts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def watching(spec: RolloutSpec = SMALL, **options: int) -> RolloutWatch:
    watch = RolloutWatch(spec, WAIT_MS)
    watch.begin("m2", 7, spec.examples_max, **options)
    return watch


def add(
    watch: RolloutWatch,
    count: int,
    *,
    first: int = 0,
    champion: float = 0.5,
    other: float = 0.5,
    spread: float = 0.0,
    offset: int = 0,
) -> None:
    """`count` events, one a ms from `first`, all positive; every other row of the other model is `spread` higher."""
    number = np.arange(count)
    others = np.clip(other + np.where(number % 2 == 0, spread, -spread), 0, 1)
    watch.add(number + first, np.full(count, champion), others, np.ones(count), number + first + offset)


def seen(watch: RolloutWatch, end: int) -> RolloutState:
    state = watch.look(end)
    assert state is not None
    return state


def test_row_counts_only_when_its_wait_for_a_label_is_over():
    watch = watching()
    add(watch, 10, champion=0.4, spread=0.1)
    assert [seen(watch, end).examples for end in (WAIT_MS, WAIT_MS + 1, WAIT_MS + 4, WAIT_MS + 50)] == [0, 1, 4, 10]


def test_nothing_is_seen_without_a_stage_nor_of_the_stage_before():
    watch = RolloutWatch(SMALL, WAIT_MS)
    add(watch, 10)
    assert watch.look(1_000) is None
    watch.begin("m2", 7, 400)
    add(watch, 10)
    assert seen(watch, 1_000).examples == 10
    watch.begin("m3", 9, 400)
    state = seen(watch, 2_000)
    assert (state.other, state.stage_start, state.examples) == ("m3", 9, 0)
    assert (state.mean, state.lower, state.upper, state.verdict) == (0.0, -LOSS_MAX, LOSS_MAX, "open")
    watch.end()
    assert watch.look(3_000) is None


def test_events_from_before_the_stage_and_rows_without_another_model_are_left_out():
    watch = watching(since=5)
    add(watch, 10)
    assert seen(watch, 1_000).examples == 5
    watch = watching()
    other = np.array([0.2, np.nan, 0.4])
    watch.add(np.arange(3), np.full(3, 0.3), other, np.zeros(3), np.arange(3))
    assert seen(watch, 1_000).examples == 2


def test_stage_without_one_pair_is_undecided_after_two_waits_and_a_week():
    watch = watching(since=1_000)
    end = 1_000 + 2 * WAIT_MS + SILENT_MS
    assert [seen(watch, at).verdict for at in (end - 1, end)] == ["open", "undecided"]
    assert seen(watch, end).examples == 0
    watch = watching(since=1_000)
    add(watch, 1, first=1_000)
    assert (seen(watch, end).verdict, seen(watch, 9 * end).verdict) == ("open", "open")  # slow is not silent
    watch.begin("m2", 8, 400, since=end)
    assert seen(watch, 2 * end - 1_001).verdict == "open"  # the next stage has its own time


def test_label_after_its_wait_is_left_out_whenever_it_comes():
    watch = watching()
    add(watch, 10)
    seen(watch, WAIT_MS + 20)
    add(watch, 5, first=15, offset=100)
    assert seen(watch, 1_000).examples == 10


def test_probability_beyond_one_is_a_bug():
    with pytest.raises(InvariantError, match="TM-9701"):
        watching().add(np.arange(1), np.array([0.5]), np.array([1.1]), np.ones(1), np.arange(1))


@pytest.mark.parametrize(
    ("champion", "other", "margin", "verdict"),
    [
        (0.5, 0.7, 0.0, "better"),
        (0.7, 0.5, 0.0, "worse"),
        (0.5, 0.5, 0.0, "undecided"),
        (0.5, 0.5, 0.05, "better"),  # with a margin it is enough not to be worse by more than that
        (0.51, 0.5, 0.05, "better"),
        (0.505, 0.5, 0.0, "undecided"),
        (0.7, 0.5, 0.05, "worse"),
    ],
)
def test_verdict_is_certain_or_comes_at_the_end(champion: float, other: float, margin: float, verdict: str):
    spec = RolloutSpec(examples_min=50, examples_max=400, margin=margin)
    watch = watching(spec)
    add(watch, 400, champion=champion, other=other, spread=0.05)
    early = seen(watch, WAIT_MS + 49)
    assert (early.examples, early.verdict) == (49, "open")
    state = seen(watch, WAIT_MS + 400)
    assert state.verdict == verdict
    assert state.lower <= state.mean <= state.upper


def test_around_the_margin_nothing_is_certain():
    spec = RolloutSpec(examples_min=50, examples_max=400, margin=0.05)
    watch = watching(spec)
    add(watch, 400, spread=0.15)
    state = seen(watch, WAIT_MS + 400)
    assert state.lower < -spec.margin < state.upper < spec.margin
    assert state.verdict == "undecided"


def test_undecided_only_when_the_stage_is_full():
    watch = watching()
    add(watch, 500, spread=0.05)
    assert seen(watch, WAIT_MS + 399).verdict == "open"
    assert seen(watch, WAIT_MS + 400).verdict == "undecided"


def test_interval_is_the_formula_of_the_paper():
    differences = np.random.Generator(np.random.PCG64(3)).normal(0.01, 0.2, 150)  # too few for blocks
    paired = PairedDifferences()
    paired.add(np.rint(differences * 2**20).astype(np.int64))
    found = paired.interval(alpha=0.05, count_best=1_000)
    rho_squared = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 1_000
    t = 150
    width = math.sqrt(
        2 * (t * rho_squared + 1) / (t**2 * rho_squared) * math.log(1 + math.sqrt(t * rho_squared + 1) / 0.05)
    )
    assert found.mean == pytest.approx(differences.mean(), abs=1e-6)
    assert found.upper - found.mean == pytest.approx(width * differences.std(ddof=1), rel=1e-4)
    assert found.mean - found.lower == pytest.approx(found.upper - found.mean)


def test_rows_that_err_together_count_for_less():
    random = np.random.Generator(np.random.PCG64(5))
    rows = BLOCK_ROWS[1] * 39  # too few for the next scale
    own = random.normal(0, 2**18, rows).astype(np.int64)
    together = np.repeat(own[:: BLOCK_ROWS[1]], BLOCK_ROWS[1])
    widths = []
    for differences in (own, together):
        paired = PairedDifferences()
        paired.add(differences)
        found = paired.interval(alpha=0.05, count_best=1_000)
        widths.append(found.upper - found.lower)
    assert 3 < widths[1] / widths[0] < 5  # the root of 16 is 4


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1_000), cuts=st.lists(st.integers(0, 1_000), max_size=6))
def test_delays_and_cuts_of_labels_choose_nothing(seed: int, cuts: list[int]):
    """Rows come in the order of their labels, in any pieces, with looks in between: the last look is the same."""
    count = 1_000  # enough for the variance between blocks, which knows an order
    random = np.random.Generator(np.random.PCG64(seed))
    event_time = np.sort(random.integers(0, 300, count))
    label = random.integers(0, 2, count)
    label_time = event_time + np.where(label, random.integers(0, WAIT_MS + 1, count), 0)
    together = np.repeat(random.normal(0, 0.1, count // 10), 10)
    other = np.clip(0.5 + together, 0, 1)
    columns = (event_time, random.uniform(0.4, 0.6, count), other, label, np.arange(count))
    whole = watching()
    whole.add(*columns)
    expected = seen(whole, 500)

    order = np.argsort(label_time, kind="stable")
    bounds = sorted({0, count, *cuts})
    pieces = watching()
    for start, end in itertools.pairwise(bounds):
        rows = random.permutation(order[start:end])
        pieces.add(*(column[rows] for column in columns))
        if end < count:
            pieces.look(int(label_time[order[end]]))  # all labels before that time are there
    assert seen(pieces, 500) == expected


def test_equal_models_are_promoted_no_oftener_than_declared_and_worse_ones_aborted():
    """`python -m benchmarks.rollouts` does it at full length."""
    rollouts = program()
    spec = RolloutSpec(examples_max=6_000)
    found = [rollouts.roll_out(rollouts.simulate(seed=seed, gain=0.0, spec=spec), spec) for seed in range(200)]
    assert rollouts.share_of("better", found) <= spec.alpha
    assert rollouts.share_of("undecided", found) >= 1 - 2 * spec.alpha
    worse = [rollouts.roll_out(rollouts.simulate(seed=seed, gain=-0.02, spec=spec), spec) for seed in range(20)]
    assert rollouts.share_of("worse", worse) == 1


def test_in_the_simulation_positives_come_later():
    stream = program().simulate(seed=1, gain=0.0, spec=SMALL)
    delay = stream.label_time - stream.event_time
    assert delay[stream.label == 1].min() > delay[stream.label == 0].max()
