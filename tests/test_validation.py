"""Cells and tallies: integers that add up in any order; and what is measured at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import a_category, a_group, a_spec
from hypothesis import given
from hypothesis import strategies as st
from test_comparators import examples_of

from tidemill.config_checks import check_app
from tidemill.core.metrics import BINS, RunningMetrics
from tidemill.core.spec import ComparatorSpec, CostSpec
from tidemill.core.validation import Validation, Window
from tidemill.core.validation_cells import Cells, ScoredRows, Tally, delay_bucket, delay_of

SCORE = st.none() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
ROWS = st.lists(
    st.tuples(SCORE, st.booleans(), st.integers(0, 10**10), st.integers(0, 3), st.sampled_from("ab")),
    min_size=1,
    max_size=30,
)


def scored(rows) -> ScoredRows:
    """Two series: the score and its opposite."""
    said = np.array([np.nan if row[0] is None else row[0] for row in rows])
    return ScoredRows.of(
        series=[said, 1 - said],
        constant=np.full(len(rows), 0.3),
        no_change=np.array([0.99 if row[3] % 2 else 0.01 for row in rows]),
        is_positive=np.array([row[1] for row in rows]),
        delay_ms=np.array([row[2] for row in rows]),
        offset=np.array([row[3] for row in rows]),
        threshold=0.5,
    )


def cells_of(*pieces) -> Cells:
    cells = Cells(series=2, bins=BINS)
    for rows in pieces:
        if rows:
            names, of_row = np.unique([row[4] for row in rows], return_inverse=True)
            cells.add(scored(rows), names.tolist(), of_row)
    return cells


def plain(tally: Tally) -> tuple:
    running = tally.running
    counts = (running.positives.tolist(), running.negatives.tolist(), running.loss_units, running.squared_units)
    return *counts, tally.sums.tolist(), tally.delays.tolist(), tally.offset_first, tally.offset_last


@given(ROWS, st.data())
def test_rows_fold_in_any_order_and_pieces_to_the_same_integers(rows, data) -> None:
    whole, shuffled = cells_of(rows), data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    in_pieces = cells_of(shuffled[:cut], shuffled[cut:])
    for group in {row[4] for row in rows}:
        assert whole.size(group) == sum(row[4] == group for row in rows)
        for series in range(2):
            assert plain(whole.tally(group, series)) == plain(in_pieces.tally(group, series))


@given(ROWS, st.integers(0, 30))
def test_tallies_of_parts_add_up_to_that_of_all(rows, cut) -> None:
    rows = [(*row[:4], "a") for row in rows]
    parts = [cells_of(part).tally("a", 0) for part in (rows[:cut], rows[cut:]) if part]
    for order in (parts, parts[::-1]):
        assert plain(sum(order[1:], start=order[0])) == plain(cells_of(rows).tally("a", 0))


@given(ROWS)
def test_a_cell_is_the_running_metrics_of_its_rows(rows) -> None:
    has = [row for row in rows if row[0] is not None and row[4] == rows[0][4]]
    tally = cells_of(rows).tally(rows[0][4], 0)
    alone = RunningMetrics.of([row[0] for row in has], [int(row[1]) for row in has])
    assert tally.running.positives.tolist() == alone.positives.tolist()
    assert (tally.running.loss_units, tally.running.squared_units) == (alone.loss_units, alone.squared_units)
    assert tally.sum_of("hits") == sum(row[0] > 0.5 and row[1] for row in has)
    assert tally.sum_of("constant_right") == sum(not row[1] for row in has)


@given(st.integers(0, 2**41 - 1))
def test_a_delay_is_rounded_down_by_at_most_a_64th(delay) -> None:
    rounded = delay_of(int(delay_bucket(np.array([delay]))[0]))
    assert rounded <= delay and delay - rounded <= delay / 64
    assert delay_bucket(np.array([rounded])) == delay_bucket(np.array([delay]))


def test_delays_beyond_the_buckets_are_the_longest() -> None:
    assert delay_bucket(np.array([2**41, 2**60])).tolist() == delay_bucket(np.array([2**41 - 1] * 2)).tolist()


def test_amendments_and_flagged_examples_are_not_measured_but_counted() -> None:
    """Of four records one teaches; one is flagged, one's label came first, one is an amendment."""
    examples = dataclasses.replace(
        examples_of([(1, 5, 1), (2, 5, 0), (9, 5, 1), (1, 6, 0)]),
        is_learned=np.array([True, False, True, False]),
        blend=np.array([0.8, 0.7, 0.6, 0.0]),
        base_rate=np.array([0.5, 0.5, 0.5, np.nan]),
    )
    app = dataclasses.replace(
        a_spec(a_group("event", (), a_category("shop", "shop"))), costs=CostSpec(false_alarm=1, miss=1)
    )
    validation = Validation(app, ["shop"])
    validation.fold(examples)
    rows = {row["series"]: row for row in validation.window_rows(Window("run", 0))}
    assert rows["blend"]["n"] == 1 and rows["blend"]["log_loss"] == pytest.approx(-np.log(0.8), abs=1e-9)
    assert "learner" not in rows  # it said nothing
    assert (rows["predictions"]["labelled"], rows["predictions"]["unmeasured"]) == (3, 2)


def test_a_log_that_is_folded_once_changes_its_windows_once() -> None:
    validation = Validation(a_spec(a_group("event", (), a_category("shop", "shop"))), ["shop"])
    day = 86_400_000
    examples = examples_of([(day, day + 1, 1), (day, 9 * day, 0)])
    validation.fold(dataclasses.replace(examples, blend=np.array([0.5, 0.5])))
    changed = validation.changed_windows()
    assert {window for window in changed if window.name == "1d"} == {Window("1d", 1), Window("1d", 9)}
    assert {window for window in changed if window.name == "7d"} == {Window("7d", 0), Window("7d", 1)}
    assert validation.changed_slices() == [Window("28d", 0), Window("run", 0)]
    assert validation.changed_windows() == [] and validation.changed_slices() == []


def test_values_beyond_the_counted_ones_are_the_rest() -> None:
    examples = examples_of([(at, 1_000 + at, at % 2) for at in range(300)])  # the event's time is its category
    validation = Validation(a_spec(a_group("event", (), a_category("shop", "shop"))), ["shop"])
    validation.fold(dataclasses.replace(examples, blend=np.full(300, 0.5)))
    rows = list(validation.slice_rows(Window("run", 0)))
    assert len(rows) == 21 and sum(row["n"] for row in rows) == 300
    assert [row["n"] for row in rows if row["slice_value"] is None] == [280]


def test_a_comparator_cannot_take_the_name_of_a_series() -> None:
    app = dataclasses.replace(
        a_spec(a_group("event", (), a_category("shop", "shop"))),
        comparators=(ComparatorSpec(name="blend", kind="constant"), ComparatorSpec(name="usual", kind="constant")),
    )
    named = [where[1] for where, _ in check_app(app) if where[0] == "comparators"]
    assert named == ["blend"]
