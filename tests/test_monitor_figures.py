"""Every figure that the monitor publishes, recomputed from the records of the topics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from builders import a_category, a_field, a_group, a_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_by_hand import DAY_MS, Probability, Record, assert_same_rows, constant, no_change, rows_by_hand

from tidemill.apps.monitor_rows import PublishedRows
from tidemill.core.records import ExampleColumns, FeatureBatch, Float64s, Output
from tidemill.core.spec import AppSpec, ComparatorSpec, CostSpec
from tidemill.core.validation import Validation
from tidemill.io.monitored import prediction_columns
from tidemill.io.wire import Encoder, decode, decode_examples

START_MS = 1_357_000_000_000
TRAINED_UNTIL, RETRAIN_EVERY = START_MS + 20 * DAY_MS, 15 * DAY_MS
COLUMNS = ("colour", "shop")


class ShareByAmount:
    """A model that can be made by hand: the share of positives, more for large amounts."""

    def __init__(self, positives: int, n: int) -> None:
        self.share = (positives + 1) / (n + 2)

    def probability(self, features: FeatureBatch) -> Float64s:
        return np.where(features.numeric[:, 0] > 0, self.share, self.share / 2)


class FakeTraining:
    def __init__(self) -> None:
        self.examples: list[tuple[int, int]] = []

    def append(self, examples: ExampleColumns) -> None:
        self.examples += zip(examples.label_time.tolist(), (examples.label == 1).tolist(), strict=True)

    def train(self, spec: ComparatorSpec, before_ms: int) -> ShareByAmount | None:
        labels = [label for time, label in self.examples if time < before_ms]
        return ShareByAmount(sum(labels), len(labels)) if labels else None


def by_hand(every_ms: int | None):
    """The same comparator: each event by the newest model that was trained until its time."""

    def said(examples: Sequence[Record]) -> list[Probability]:
        column: list[Probability] = []
        models: dict[int, float] = {}
        until: int | None = TRAINED_UNTIL
        for place, one in enumerate(examples):
            if until is not None and one["label_time"] >= until:
                while every_ms is not None and until + every_ms <= one["label_time"]:
                    until += every_ms
                known = [other["label"] for other in examples[:place] if other["label_time"] < until]
                models[until] = (sum(known) + 1) / (len(known) + 2)
                until = None if every_ms is None else until + every_ms
            usable = [time for time in models if time <= one["event_time"]]
            share = models[max(usable)] if usable else None
            column.append(None if share is None else share if one["numeric"][0] > 0 else share / 2)
        return column

    return said


def an_app() -> AppSpec:
    spec = a_spec(a_group("event", (), a_field("amount", "amount"), *(a_category(name, "shop") for name in COLUMNS)))
    comparators = (
        ComparatorSpec(name="constant", kind="constant"),
        ComparatorSpec(name="no_change", kind="no_change"),
        ComparatorSpec(name="frozen", kind="booster", trained_until_ms=TRAINED_UNTIL),
        ComparatorSpec(name="monthly", kind="booster", trained_until_ms=TRAINED_UNTIL, retrain_every_ms=RETRAIN_EVERY),
    )
    return dataclasses.replace(spec, costs=CostSpec(false_alarm=3, miss=2), comparators=comparators)


COMPARATORS = {"constant": constant, "no_change": no_change, "frozen": by_hand(None), "monthly": by_hand(RETRAIN_EVERY)}


def records(seed: int, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions, and examples in log order: late, early and amended labels among them, two workers interleaved."""
    random = np.random.default_rng(seed)
    event_time = START_MS + np.sort(random.integers(0, 70 * DAY_MS, count))
    predictions, examples = [], []
    for number, time in enumerate(event_time.tolist()):
        blend = float(random.choice([0.0, 0.6, 1.0, random.random()], p=[0.02, 0.03, 0.02, 0.93]))
        flags = [flag for flag in ("degraded", "outlier", "late", "label_first") if random.random() < 0.05]
        served = {
            "id": str(number),
            "event_time": time,
            "blend": blend,
            "learner": None if random.random() < 0.1 else float(random.random()),
            "booster": None if number < count // 2 else float(random.random()),
            "base_rate": float(random.random()),
            "n": number,
            "model_version": "m1",
            "other": None,
            "other_version": "",
            "feature_digest": "d",
            "numeric": [float(random.normal())],
            "categories": [str(random.choice(["red", "green", ""])), f"s{int(random.exponential(8))}"],
            "flags": flags,
        }
        more = {"topic": "events", "partition": 0, "offset": number, "decision": blend > 0.6, "entities": []}
        predictions.append({**served, **more, "top_features": [], "top_contributions": []})
        if random.random() < 0.9:
            label = int(random.random() < 0.2 + 0.5 * blend)
            delay = int(random.exponential(random.choice([40, 3_600_000, 2 * DAY_MS])))
            label_time = time - 5 if "label_first" in flags else time + delay + 1
            is_learned = not {"late", "label_first", "outlier"} & set(flags)
            example = {**served, "kind": "example", "label": label, "label_time": label_time, "is_learned": is_learned}
            examples.append(example)
            if random.random() < 0.05:
                again = {**example, "kind": "amendment", "label": 1 - label, "label_time": label_time + 9}
                nothing = {"learner": None, "booster": None, "base_rate": None, "blend": 0.0, "is_learned": False}
                examples.append({**again, **nothing, "numeric": [], "categories": [], "flags": [], "n": 0})
    order = np.argsort([one["label_time"] + int(random.integers(0, 600_000)) for one in examples], kind="stable")
    return predictions, [examples[place] | {"offset": at * 2} for at, place in enumerate(order.tolist())]


def encoded(schema: str, rows: Sequence[Record]) -> list[bytes]:
    return Encoder(schema).encode({name: [row[name] for row in rows] for name in rows[0]})


def fold_all(validation: Validation, predictions, examples, cuts: Sequence[int]) -> None:
    """Both topics as bytes, cut into pieces."""
    values = encoded("example.v1", [{k: v for k, v in one.items() if k != "offset"} for one in examples])
    bounds = [0, *sorted(cuts), len(values)]
    for start, end in pairwise(bounds):
        piece, _ = decode_examples(values[start:end], [one["offset"] for one in examples[start:end]])
        validation.fold(piece)
    values = encoded("prediction.v1", predictions)
    for start in range(0, len(values), 700):
        validation.fold_predictions(prediction_columns(decode("prediction.v1", values[start : start + 700])))


def kept(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """What a compacted topic keeps of the outputs."""
    newest = {output.key: output.value for output in outputs}
    return decode("metrics.v1", [value for value in newest.values() if value is not None]).to_pylist()


@pytest.fixture(scope="module")
def stream() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return records(seed=7, count=1_500)


def test_every_published_figure_is_that_of_plain_numpy(stream) -> None:
    predictions, examples = stream
    validation = Validation(an_app(), COLUMNS, FakeTraining())
    fold_all(validation, predictions, examples, [1, 400, 401, 900])
    outputs, _ = PublishedRows("m").changes(validation, with_slices=True)
    expected = rows_by_hand(
        predictions,
        examples,
        columns=COLUMNS,
        false_alarm=3,
        miss=2,
        comparators=COMPARATORS,
        compared_from=TRAINED_UNTIL,
    )
    assert assert_same_rows(kept(outputs), expected) > 20_000
    assert "blend/run/0/shop" in expected and "frozen/run/0/" in expected and "blend/run/0/colour=" in expected


def test_rows_published_on_the_way_end_as_those_of_one_look(stream) -> None:
    """Values come and go among the most frequent ones; rows that are no more are taken back."""
    predictions, examples = stream
    stepwise, at_once = (Validation(an_app(), COLUMNS, FakeTraining()) for _ in range(2))
    published = PublishedRows("m")
    written: list[Output] = []
    for start in range(0, len(examples), 200):
        part = examples[start : start + 200]
        fold_all(stepwise, [one for one in predictions if int(one["id"]) // 200 == start // 200], part, [])
        written += published.changes(stepwise, with_slices=start % 400 == 0)[0]
    written += published.changes(stepwise, with_slices=True)[0]
    served = [one for one in predictions if int(one["id"]) // 200 <= start // 200]
    fold_all(at_once, served, examples, [])

    assert {output.key for output in written if output.value is None}
    outputs, _ = PublishedRows("m").changes(at_once, with_slices=True)
    assert {o.key: o.value for o in outputs} == {
        key: value for key, value in {o.key: o.value for o in written}.items() if value is not None
    }


def test_a_monitor_that_starts_again_has_nothing_to_publish(stream) -> None:
    predictions, examples = stream
    first, again = (Validation(an_app(), COLUMNS, FakeTraining()) for _ in range(2))
    fold_all(first, predictions, examples, [])
    written, _ = PublishedRows("m").changes(first, with_slices=True)

    fold_all(again, predictions, examples, [77, 800])
    published = PublishedRows("m")
    published.load((output.key or b"", output.value) for output in written)
    assert published.changes(again, with_slices=True)[0] == []


def test_rows_of_another_log_are_taken_back(stream) -> None:
    predictions, examples = stream
    validation = Validation(an_app(), COLUMNS, FakeTraining())
    fold_all(validation, predictions, examples, [])
    published = PublishedRows("m")
    published.load([(b"blend/1d/86400000/", b"of old"), (b"gone/run/0/", b"too"), (b"blend/28d/0/shop=x", b"too")])
    outputs, _ = published.changes(validation, with_slices=True)
    taken_back = {output.key for output in outputs if output.value is None}
    assert taken_back == {b"blend/1d/86400000/", b"gone/run/0/", b"blend/28d/0/shop=x"}


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.integers(0, 200), max_size=4))
def test_any_log_in_any_pieces_has_the_figures_of_plain_numpy(seed: int, cuts: list[int]) -> None:
    predictions, examples = records(seed, 220)
    validation = Validation(an_app(), COLUMNS, FakeTraining())
    fold_all(validation, predictions, examples, [min(cut, len(examples)) for cut in cuts])
    expected = rows_by_hand(
        predictions,
        examples,
        columns=COLUMNS,
        false_alarm=3,
        miss=2,
        comparators=COMPARATORS,
        compared_from=TRAINED_UNTIL,
    )
    assert_same_rows(kept(PublishedRows("m").changes(validation, with_slices=True)[0]), expected)
