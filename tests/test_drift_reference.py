"""A reference is a function of the rows as a set; it survives JSON; its laws know that days stick together."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from boosters import CATEGORIES, NUMERIC, a_trained
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tidemill.core.drift.laws import ONE, SD_MARGIN, chi2, neighbours, psi, scattered
from tidemill.core.drift.reference import BINS_MAX, VALUES_MAX, Reference, cells_of, edges_of, reference_of
from tidemill.core.loop_spec import DAY_MS, MonitorSpec
from tidemill.core.manifest import Manifest
from tidemill.errors import ModelRefusedError

SPEC = MonitorSpec()
PLACES = ("", *(f"p{at}" for at in range(70)))
floats = st.floats(-100, 100, width=32)


def a_reference(
    days: int = 40, rows: int = 100, *, day_effect: float = 0.0, seed: int = 1, **more: object
) -> Reference:
    """Numbers "x" (with an effect of the day) and "few" (0 or 1, some missing), places, labels and probabilities."""
    return reference_of(*made_rows(days, rows, day_effect, seed), **{**names(), "spec": SPEC, **more})


def names() -> dict[str, object]:
    return {"numeric_names": ("x", "few"), "category_names": ("place",), "vocabularies": (PLACES,)}


def made_rows(days: int, rows: int, day_effect: float, seed: int) -> tuple[np.ndarray, ...]:
    source = np.random.Generator(np.random.PCG64(seed))
    count = days * rows
    effect = np.repeat(source.normal(size=days) * day_effect, rows)
    few = np.where(source.random(count) < 0.1, np.nan, source.random(count) < 0.05)
    numeric = np.column_stack([source.normal(size=count) + effect, few]).astype(np.float32)
    codes = np.minimum(source.geometric(0.1, (count, 1)) - 1, len(PLACES) - 1)
    probability = source.random(count)
    label = (source.random(count) < probability).astype(np.float32)
    return numeric, codes, label, probability, np.repeat(np.arange(days) * DAY_MS, rows)


# Cells -----------------------------------------------------------------------------------------------------------


@given(st.lists(floats, min_size=1, max_size=80))
def test_cells_cover_all_values_and_none_is_empty(values: list[float]) -> None:
    column = np.array(values, dtype=np.float32)
    edges = edges_of(np.sort(column))
    assert all(left < right for left, right in pairwise(edges)) and len(edges) < BINS_MAX
    counts = np.bincount(cells_of(column, edges), minlength=len(edges) + 2)
    assert counts[-1] == 0 and (counts[:-1] > 0).all()


@given(st.lists(floats, min_size=1, max_size=40))
def test_few_values_have_a_cell_each(values: list[float]) -> None:
    column = np.unique(np.array(values[:BINS_MAX], dtype=np.float32))
    assert len(set(cells_of(column, edges_of(column)).tolist())) == len(column)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.97])
def test_value_that_most_rows_share_does_not_hide_the_others(share: float) -> None:
    spread = np.sort(np.concatenate([np.linspace(0, 1, 1_000), np.full(int(1_000 * share / (1 - share)), 1.0)]))
    for column in (spread, np.sort(-spread)):
        counts = np.bincount(cells_of(column, edges_of(column)))
        assert len(counts) >= 2 and counts.min() > 0


def test_nothing_is_missing_but_not_a_number() -> None:
    column = np.array([-np.inf, 0, 1, 2, np.inf, np.nan], dtype=np.float32)
    assert cells_of(column, (0.0, 1.0)).tolist() == [0, 0, 1, 2, 2, 3]


# Distances -------------------------------------------------------------------------------------------------------

shares_strategy = st.lists(st.integers(1, 50), min_size=2, max_size=12)


@given(shares_strategy, st.integers(1, 20))
def test_distance_of_equal_shares_is_zero(weights: list[int], times: int) -> None:
    counts = np.array(weights, dtype=np.float64)
    shares = counts / counts.sum()
    for distance in (psi, chi2):
        assert distance(times * counts, shares, ONE)[0] == pytest.approx(0, abs=1e-12)


@given(shares_strategy, st.data())
def test_distances_are_those_of_the_textbook(weights: list[int], data: st.DataObject) -> None:
    shares = np.array(weights) / sum(weights)
    counts = data.draw(arrays(np.int64, len(weights), elements=st.integers(400, 2_000))).astype(np.float64)
    events = counts.sum()
    if (shares * events).min() >= 5:
        expected = stats.chisquare(counts, shares * events).statistic / events
        assert chi2(counts, shares, ONE)[0] == pytest.approx(expected, rel=1e-9)
    found = counts / events
    naive = float(((found - shares) * np.log(found / shares)).sum())
    assert psi(1e6 * counts, shares, ONE)[0] == pytest.approx(naive, rel=1e-3, abs=1e-9)


@given(shares_strategy, shares_strategy, st.data())
def test_subjects_side_by_side_are_judged_as_each_alone(left: list[int], right: list[int], data: st.DataObject) -> None:
    parts = [np.array(weights) / sum(weights) for weights in (left, right)]
    counts = [data.draw(arrays(np.float64, (3, len(part)), elements=st.integers(0, 30))) for part in parts]
    starts = np.array([0, len(left)])
    both = psi(np.concatenate(counts, axis=1), np.concatenate(parts), starts)
    assert both.shape == (3, 2) and np.isfinite(both).all()
    for at in range(2):
        np.testing.assert_allclose(both[:, at], psi(counts[at], parts[at], ONE)[:, 0], rtol=1e-9, atol=1e-12)


# Windows and laws ------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(1, 30))
def test_windows_are_different_ticks(count: int, size: int) -> None:
    size = min(size, count)
    for windows in (scattered(count, size), neighbours(count, size)):
        assert windows.shape[1] == count and set(np.unique(windows)) <= {0.0, 1.0}
        assert (windows.sum(axis=1) == size).all()


def test_scattered_windows_visit_all_ticks_alike() -> None:
    visits = scattered(90, 7).sum(axis=0)
    assert stats.chisquare(visits).pvalue > 0.001
    assert len(np.unique(scattered(90, 7), axis=0)) == len(scattered(90, 7))


def test_independent_rows_give_the_multinomial_law() -> None:
    law = a_reference(90, 300).numeric["x"].law
    noise = 1 / law.window_events + 1 / law.events
    assert law.mean == pytest.approx(9 * noise, rel=0.25)
    assert law.sd == pytest.approx(SD_MARGIN * 18**0.5 * noise, rel=0.35)
    assert (law.window_events, law.events) == (2_100, 27_000)


def test_rows_of_a_day_that_stick_together_give_a_wider_law() -> None:
    loose, sticky = (a_reference(day_effect=effect).numeric["x"].law for effect in (0.0, 0.5))
    assert sticky.mean > 3 * loose.mean and sticky.sd > 3 * loose.sd


def test_what_lasts_longer_than_a_day_gives_a_wider_law_than_the_same_days_in_another_order() -> None:
    numeric, codes, label, probability, time = made_rows(84, 100, 0.0, 5)
    numeric[:, 0] += np.repeat(np.random.Generator(np.random.PCG64(6)).normal(size=12) * 0.5, 700)  # of its week
    day = np.repeat(np.random.Generator(np.random.PCG64(7)).permutation(84), 100) * DAY_MS
    lasting, mixed = (
        reference_of(numeric, codes, label, probability, when, **names(), spec=SPEC).numeric["x"].law
        for when in (time, day)
    )
    assert lasting.mean > 2 * mixed.mean


def test_short_history_has_no_measured_law() -> None:
    reference = a_reference(days=7)
    assert {column.law[:4] for column in reference.numeric.values()} == {(0.0, 0.0, 0.0, 0.0)}
    assert reference.label.law == (0.0, 0.0, 0.0, 0.0, 700)


def test_score_of_a_few_newest_days_borrows_its_law_of_the_older_ones() -> None:
    numeric, codes, label, probability, time = made_rows(60, 100, 0.0, 1)
    newest = np.where(np.arange(6_000) >= 5_400, probability, np.nan)
    alone, lent = (
        reference_of(numeric, codes, label, newest, time, **names(), seen_probability=seen, spec=SPEC).score
        for seen in (None, probability)
    )
    assert alone.law.windows == 0 and lent.law.windows > 7
    assert (alone.edges, alone.shares) == (lent.edges, lent.shares)
    assert lent.law.events == 600  # it is still as uncertain as six days are
    every = reference_of(numeric, codes, label, probability, time, **names(), spec=SPEC).score
    assert lent.law.mean > every.law.mean


def test_order_of_the_rows_changes_nothing() -> None:
    rows = made_rows(12, 50, 0.3, 2)
    order = np.random.Generator(np.random.PCG64(3)).permutation(600)
    assert reference_of(*(column[order] for column in rows), **names(), spec=SPEC) == reference_of(
        *rows, **names(), spec=SPEC
    )


def test_codes_change_nothing() -> None:
    numeric, codes, label, probability, time = made_rows(12, 50, 0.3, 2)
    turned = {**names(), "vocabularies": (PLACES[::-1],)}
    again = reference_of(numeric, len(PLACES) - 1 - codes, label, probability, time, **turned, spec=SPEC)
    assert again == reference_of(numeric, codes, label, probability, time, **names(), spec=SPEC)


def test_reference_knows_the_most_frequent_values_the_rest_and_what_is_missing() -> None:
    _, codes, *_ = rows = made_rows(20, 500, 0.0, 4)
    column = reference_of(*rows, **names(), spec=SPEC).categories["place"]
    counts = np.bincount(codes[:, 0], minlength=len(PLACES)) / len(codes)
    assert "" not in column.values and len(column.values) == VALUES_MAX == len(column.shares) - 2
    assert column.shares[-1] == pytest.approx(counts[0], abs=1e-3)
    assert column.shares[0] == pytest.approx(counts[1], abs=1e-3) and column.values[0] == "p0"
    assert sum(column.shares) == pytest.approx(1, abs=1e-4)


# JSON ------------------------------------------------------------------------------------------------------------


def test_reference_survives_json_and_is_small() -> None:
    count = 3_000
    source = np.random.Generator(np.random.PCG64(7))
    values = tuple(f"a value that is long {at}" for at in range(100))
    wide = reference_of(
        source.normal(size=(count, 30)).astype(np.float32),
        source.integers(0, 100, (count, 10)),
        np.zeros(count, dtype=np.float32),
        source.random(count),
        np.arange(count) * DAY_MS // 100,
        numeric_names=tuple(f"a_feature_with_a_long_name_{at}" for at in range(30)),
        category_names=tuple(f"a_category_{at}" for at in range(10)),
        vocabularies=(values,) * 10,
        spec=SPEC,
    )
    text = json.dumps(wide.to_json(), allow_nan=False)
    assert len(text) < 100_000
    assert Reference.from_json(json.loads(text)) == wide


def test_columns_without_values_and_infinite_ones_survive_json() -> None:
    numeric, codes, label, _, time = made_rows(10, 20, 0.0, 1)
    numeric[:, 1] = np.nan
    numeric[::5, 0], numeric[1::5, 0] = np.inf, -np.inf
    reference = reference_of(numeric, 0 * codes, label, np.full(200, np.nan), time, **names(), spec=SPEC)
    assert reference.numeric["few"].span is None and reference.score is None
    assert reference.categories["place"].values == ()
    assert Reference.from_json(json.loads(json.dumps(reference.to_json(), allow_nan=False))) == reference


HARMS = {
    "format": lambda content: content.update(format=2),
    "more": lambda content: content.update(more=1),
    "less": lambda content: content.pop("label"),
    "score": lambda content: content["score"]["edges"].reverse(),
    "law": lambda content: content["numeric"]["x"]["law"].pop(),
    "negative": lambda content: content["label"]["law"].__setitem__(1, -0.1),
    "text": lambda content: content["numeric"]["x"]["shares"].__setitem__(0, "much"),
    "zero": lambda content: content["numeric"]["x"]["shares"].__setitem__(0, 0.0),
    "values": lambda content: content["categories"]["place"]["values"].__setitem__(0, "p1"),
    "list": lambda content: content.update(numeric=[]),
    "not a number": lambda content: content["label"].update(share=float("nan")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_anything_else_is_no_reference(harm: str) -> None:
    content = a_reference(days=9).to_json()
    HARMS[harm](content)
    with pytest.raises(ValueError, match=r"reference|law|shares|edges|format"):
        Reference.from_json(content)


# In the manifest -------------------------------------------------------------------------------------------------


def test_trained_manifest_carries_the_reference_of_all_columns() -> None:
    manifest = a_trained(features=("x",)).manifest
    reference = Reference.from_json(manifest.reference)
    assert (tuple(reference.numeric), tuple(reference.categories)) == (NUMERIC, CATEGORIES)
    assert reference.score is not None and reference.score.law.events == 60  # the newest tenth of 600
    assert reference.label.law.events == 600
    assert Manifest.from_bytes(manifest.to_bytes(), manifest.version) == manifest


def test_manifest_of_before_is_read_and_keeps_its_name() -> None:
    old = replace(a_trained().manifest, reference=None)
    assert b'"reference"' not in old.to_bytes()
    again = Manifest.from_bytes(old.to_bytes(), old.version)
    assert again == old and again.version == old.version != a_trained().manifest.version


@pytest.mark.parametrize("reference", [None, {}, {"format": 1}, "a text"])
def test_manifest_with_a_broken_reference_is_refused(reference: object) -> None:
    content = json.loads(a_trained().manifest.to_bytes())
    content["reference"] = reference
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ModelRefusedError, match="TM-5010"):
        Manifest.from_bytes(data, "m1")


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 14))
def test_any_window_and_history_give_a_reference(days: int, window: int) -> None:
    reference = a_reference(days, 4, spec=replace(SPEC, window_ms=window * DAY_MS))
    assert Reference.from_json(reference.to_json()) == reference
