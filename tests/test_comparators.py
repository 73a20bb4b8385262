"""What the monitor compares with: known at the event's time, wherever the log is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.comparators import Comparators, KnownLabels
from tidemill.core.examples import rows
from tidemill.core.metrics import NO_CHANGE_CERTAINTY, constant_at_delay, no_change_at_delay
from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.core.spec import ComparatorSpec
from tidemill.errors import InvariantError

LOG = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 1)), max_size=30)
CUTS = st.lists(st.integers(0, 30), max_size=4)


def examples_of(log: list[tuple[int, int, int]]) -> ExampleColumns:
    """(event time, label time, label); the only feature is the event time."""
    event_time, label_time, label = (np.array([one[at] for one in log], dtype=np.int64) for at in range(3))
    nothing = np.full(len(log), np.nan)
    return ExampleColumns(
        offset=np.arange(len(log)),
        features=FeatureBatch(event_time.astype(np.float32).reshape(-1, 1), (tuple(map(str, event_time.tolist())),)),
        label=label.astype(np.float32),
        is_learned=np.ones(len(log), dtype=np.bool_),
        event_time=event_time,
        label_time=label_time,
        learner=nothing,
        booster=nothing,
        base_rate=nothing,
        blend=nothing,
    )


def pieces(examples: ExampleColumns, cuts: list[int]) -> list[ExampleColumns]:
    bounds = [0, *sorted(min(cut, len(examples)) for cut in cuts), len(examples)]
    return [rows(examples, start, end) for start, end in pairwise(bounds)]


class Recorded:
    """Remembers what it was trained on; its model says the share of positives."""

    def __init__(self) -> None:
        self.labels: list[tuple[int, float]] = []
        self.trained: list[tuple[str, int, int]] = []  # comparator, until, examples

    def append(self, examples: ExampleColumns) -> None:
        self.labels += zip(examples.label_time.tolist(), examples.label.tolist(), strict=True)

    def train(self, spec: ComparatorSpec, before_ms: int):
        known = [label for time, label in self.labels if time < before_ms]
        self.trained.append((spec.name, before_ms, len(known)))
        return Share(sum(known) / len(known)) if known else None


class Share:
    def __init__(self, share: float) -> None:
        self.share = share

    def probability(self, features: FeatureBatch):
        return np.full(len(features), self.share)


@given(LOG, CUTS)
def test_a_label_is_known_from_its_time_on_to_what_stands_behind_it(log, cuts) -> None:
    expected = []
    for place, (event, _, _) in enumerate(log):
        known = [(time, at, y) for at, (_, time, y) in enumerate(log[:place]) if time <= event]
        latest = {None: 0.5, 0: 1 - NO_CHANGE_CERTAINTY, 1: NO_CHANGE_CERTAINTY}[max(known)[2] if known else None]
        expected.append(((sum(y for _, _, y in known) + 1) / (len(known) + 2), latest))

    labels, found = KnownLabels(), []
    for piece in pieces(examples_of(log), cuts):
        baselines = labels.fold(piece.event_time, piece.label_time, piece.label == 1)
        found += zip(baselines.constant.tolist(), baselines.no_change.tolist(), strict=True)
    assert found == expected


@given(LOG, CUTS)
def test_of_a_log_in_time_order_the_baselines_are_those_of_whole_columns(log, cuts) -> None:
    ordered = sorted(((event, event + 1 + delay, y) for event, delay, y in log), key=lambda one: one[1])
    whole, labels = examples_of(ordered), KnownLabels()
    found = [labels.fold(p.event_time, p.label_time, p.label == 1) for p in pieces(whole, cuts)]
    columns = whole.event_time, whole.label_time, whole.label
    assert [one for each in found for one in each.constant.tolist()] == constant_at_delay(*columns).tolist()
    assert [one for each in found for one in each.no_change.tolist()] == no_change_at_delay(*columns).tolist()


def test_many_labels_are_kept() -> None:
    """More than the room at the start, in disorder."""
    random = np.random.default_rng(3)
    label_time = np.arange(10_000) + random.integers(0, 50, 10_000)
    labels = KnownLabels()
    for start in range(0, 10_000, 999):
        part = slice(start, start + 999)
        labels.fold(label_time[part] - 60, label_time[part], label_time[part] % 3 == 0)
    last = labels.fold(np.array([20_000]), np.array([20_001]), np.array([True]))
    assert last.constant.tolist() == [((label_time % 3 == 0).sum() + 1) / 10_002]


BOOSTERS = (
    ComparatorSpec(name="frozen", kind="booster", trained_until_ms=5),
    ComparatorSpec(name="renewed", kind="booster", trained_until_ms=5, retrain_every_ms=3),
)


def test_a_booster_is_trained_on_what_came_before_and_says_nothing_of_earlier_events() -> None:
    log = [(0, 2, 1), (1, 4, 0), (3, 5, 1), (4, 6, 1), (5, 7, 1), (6, 9, 0), (9, 10, 1)]
    training = Recorded()
    _, said = Comparators(BOOSTERS, training).fold(examples_of(log))
    assert training.trained == [("frozen", 5, 2), ("renewed", 5, 2), ("renewed", 8, 5)]
    nan = np.nan
    np.testing.assert_array_equal(said["frozen"], [nan, nan, nan, nan, 0.5, 0.5, 0.5])
    # An event of before the second training is scored by the first model, although its label came after it.
    np.testing.assert_array_equal(said["renewed"], [nan, nan, nan, nan, 0.5, 0.5, 0.8])


def test_a_gap_in_the_log_trains_once() -> None:
    training = Recorded()
    Comparators(BOOSTERS[1:], training).fold(examples_of([(0, 1, 1), (90, 100, 0), (100, 102, 0), (101, 103, 0)]))
    assert training.trained == [("renewed", 98, 1), ("renewed", 101, 2)]


@given(LOG, CUTS)
def test_where_the_log_is_cut_does_not_matter_to_a_booster(log, cuts) -> None:
    ordered = [(event, event + delay, y) for event, delay, y in log]
    whole = Comparators(BOOSTERS, Recorded()).fold(examples_of(ordered))[1]
    in_pieces = Comparators(BOOSTERS, Recorded())
    found = [in_pieces.fold(piece)[1] for piece in pieces(examples_of(ordered), cuts)]
    for name, said in whole.items():
        np.testing.assert_array_equal(np.concatenate([each[name] for each in found]), said)


def test_a_booster_without_training_is_refused() -> None:
    with pytest.raises(InvariantError, match="TM-9605"):
        Comparators(BOOSTERS, None)
