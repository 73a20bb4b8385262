"""Entry rules: which records break them, what the dead letter says, and what a flag does to learning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import App, Worker, a_shop
from test_config import APP, error_of, write_app

from tests.memory_kafka import Message, kafka_in_memory
from tidemill.config import load_app
from tidemill.core.records import Kind, Outcome, Partition, Span
from tidemill.core.rules import broken_text, first_broken, is_broken
from tidemill.core.spec import RuleSpec
from tidemill.io.framing import header_of
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

MINUTE_MS = 60_000


@pytest.fixture(autouse=True)
def kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


SCHEMA = pa.schema(
    [
        ("count", pa.int64()),
        ("small", pa.int32()),
        ("amount", pa.float64()),
        ("rate", pa.float32()),
        ("text", pa.string()),
        ("other", pa.string()),
        ("is_new", pa.bool_()),
    ]
)
LONGS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1])
BOUNDS = st.floats(-5, 5) | st.sampled_from([2.0**53, -(2.0**53), 1e300, 0.5]) | st.integers(-5, 5)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "count": st.none() | LONGS | st.integers(-5, 5),
            "small": st.none() | st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5),
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-5, 5),
            "rate": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
            "text": st.none() | st.text("abAB01\n é", max_size=4),
            "other": st.none() | st.text("ab", max_size=1),
            "is_new": st.none() | st.booleans(),
        }
    ),
    max_size=8,
)
BOUND_NAMES = ("above", "at_least", "below", "at_most")
PATTERNS = ("[A-Z]{2}[0-9]+", "a|b", "", "a.b", "[^a]*")


@st.composite
def rules(draw: st.DrawFn) -> RuleSpec:
    kind = draw(st.sampled_from(["bounds", "one_of", "whole", "matches", "missing", "compare", "differ"]))
    numbers = st.sampled_from(["count", "small", "amount", "rate"])
    tests: dict[str, Any]
    if kind == "bounds":
        field = draw(numbers)
        tests = draw(st.dictionaries(st.sampled_from(BOUND_NAMES), BOUNDS, min_size=1))
    elif kind == "one_of":
        field, tests = "text", {"one_of": draw(st.tuples(st.text("abAB01", max_size=2), st.just("a")))}
    elif kind == "whole":
        field, tests = draw(st.sampled_from(["count", "small"])), {"one_of": draw(st.tuples(LONGS, st.integers(-5, 5)))}
    elif kind == "matches":
        field, tests = "text", {"matches": draw(st.sampled_from(PATTERNS))}
    elif kind == "missing":
        field, tests = draw(st.sampled_from(SCHEMA.names)), {"is_missing": draw(st.booleans())}
    elif kind == "compare":
        field, other = draw(st.sampled_from([("count", "small"), ("small", "count"), ("amount", "rate")]))
        tests = {draw(st.sampled_from(["not_after", "not_before", "differs_from"])): other}
    else:
        field, tests = "text", {"differs_from": "other"}
    return RuleSpec(field=field, otherwise=draw(st.sampled_from(["flag", "dead_letter"])), **tests)


def breaks(rule: RuleSpec, record: dict[str, Any]) -> bool:
    """The same, for one record and in plain Python."""
    value = record[rule.field]
    if rule.is_missing is not None:
        return (value is None) != rule.is_missing
    if value is None:
        return False
    if rule.one_of is not None:
        return value not in rule.one_of
    if rule.matches is not None:
        return re.fullmatch(rule.matches, value) is None
    for name, is_bad in (
        ("not_after", lambda other: value > other),
        ("not_before", lambda other: value < other),
        ("differs_from", lambda other: value == other),
    ):
        if getattr(rule, name) is not None:
            other = record[getattr(rule, name)]
            return other is not None and is_bad(other)
    return not (
        (rule.above is None or value > rule.above)
        and (rule.at_least is None or value >= rule.at_least)
        and (rule.below is None or value < rule.below)
        and (rule.at_most is None or value <= rule.at_most)
    )


@settings(deadline=None, max_examples=300)
@given(st.lists(rules(), max_size=4), RECORDS)
def test_columns_and_single_records_are_judged_alike(declared: list[RuleSpec], records: list[dict[str, Any]]):
    columns = pa.RecordBatch.from_pylist(records, schema=SCHEMA)
    found = first_broken(declared, columns)
    expected = [
        next((at for at, rule in enumerate(declared) if breaks(rule, record)), -1) for record in columns.to_pylist()
    ]
    assert (found is None) == (max(expected, default=-1) < 0)
    if found is not None:
        assert found.tolist() == expected
        for row in np.flatnonzero(found >= 0).tolist():
            assert declared[found[row]].field in broken_text(declared[found[row]], columns.slice(row, 1))


def a_ruled_shop(learn_flagged: bool = False, **rules_of: tuple[RuleSpec, ...]) -> App:
    spec = a_shop()
    topics = tuple(replace(topic, rules=rules_of.get(topic.name, ())) for topic in spec.topics)
    return App(replace(spec, topics=topics, learn_flagged=learn_flagged))


HIGH = RuleSpec(field="amount", below=100, otherwise="flag")
IMPOSSIBLE = RuleSpec(field="amount", at_least=0, otherwise="dead_letter")


def test_a_record_that_breaks_a_rule_is_a_dead_letter_with_its_bytes_and_the_reason():
    app = a_ruled_shop(events=(HIGH, IMPOSSIBLE))
    app.inputs.add("events", MINUTE_MS, id="good", shop="s", amount=1.0)
    bad = app.inputs.add("events", 2 * MINUTE_MS, id="bad", shop="s", amount=-3.0)
    Worker(app).claim().run_all()
    assert [row["id"] for row in app.log.rows("prediction.v1")] == ["good"]
    assert app.log.outcomes()[Outcome.EVENT_DEAD_LETTER] == 1
    (letter,) = app.log.outputs("events.dlq")
    assert (letter.key, letter.value) == (bad.message.key(), bad.message.value())
    headers = dict(letter.headers)
    assert headers["tidemill.dlq.code"] == b"TM-2017" and headers["tidemill.dlq.stage"] == b"rules"
    assert headers["__streams.errors.message"] == b"events[0]@1: field amount is -3.0; the rule: at_least 0"


def test_a_dead_letter_of_a_rule_feeds_no_feature_and_no_label_joins_it():
    app = a_ruled_shop(
        readings=(RuleSpec(field="reading", is_missing=False, otherwise="dead_letter"),), events=(IMPOSSIBLE,)
    )
    app.inputs.add("readings", MINUTE_MS, shop="s", reading=None)
    app.inputs.add("events", 2 * MINUTE_MS, id="bad", shop="s", amount=-3.0)
    app.inputs.add("outcomes", 3 * MINUTE_MS, id="bad", outcome=1)
    app.inputs.add("events", 4 * MINUTE_MS, id="good", shop="s", amount=1.0)
    Worker(app).claim().run_all()
    (row,) = app.log.rows("prediction.v1")
    assert row["numeric"][:3] == [1.0, 0.0, 0.5]  # amount, readings of the shop, prior of its late rate
    assert app.log.outcomes()[Outcome.WAITING] == 1 and app.log.outcomes()[Outcome.CONTEXT_DEAD_LETTER] == 1


@pytest.mark.parametrize("learn_flagged", [False, True])
@pytest.mark.parametrize("cuts", [(), (2,)], ids=["one batch", "label in the next batch"])
def test_an_outlier_is_predicted_feeds_features_and_is_learned_only_where_declared(
    learn_flagged: bool, cuts: tuple[int, ...]
):
    app = a_ruled_shop(learn_flagged, events=(HIGH,))
    app.inputs.add("events", MINUTE_MS, id="high", shop="s", amount=500.0)
    app.inputs.add("events", MINUTE_MS + 1, id="usual", shop="s", amount=5.0)
    app.inputs.add("outcomes", 2 * MINUTE_MS, id="high", outcome=1)
    app.inputs.add("outcomes", 2 * MINUTE_MS, id="usual", outcome=1)
    app.inputs.add("events", 3 * MINUTE_MS, id="later", shop="s", amount=None)
    Worker(app).claim().run_all(cuts)
    flags = {row["id"]: row["flags"] for row in app.log.rows("prediction.v1")}
    assert flags == {"high": ["outlier"], "usual": [], "later": []}
    examples = {row["id"]: (row["flags"], row["is_learned"]) for row in app.log.rows("example.v1")}
    assert examples == {"high": (["outlier"], learn_flagged), "usual": ([], True)}
    later = next(row for row in app.log.rows("prediction.v1") if row["id"] == "later")
    assert later["numeric"][2] == pytest.approx(2.5 / 3)  # both labels count: (2 + 0.5) / (2 + 1)


@pytest.mark.parametrize("is_label_first", [False, True])
def test_a_flagged_label_makes_its_example_an_outlier_and_not_the_prediction(is_label_first: bool):
    app = a_ruled_shop(outcomes=(RuleSpec(field="outcome", at_most=5, otherwise="flag"),))
    app.inputs.add("events", 2 * MINUTE_MS, id="a", shop="s", amount=1.0)
    app.inputs.add("outcomes", MINUTE_MS if is_label_first else 3 * MINUTE_MS, id="a", outcome=9)
    Worker(app).claim().run_all((1,))
    (prediction,) = app.log.rows("prediction.v1")
    assert "outlier" not in prediction["flags"]
    (example,) = app.log.rows("example.v1")
    assert example["flags"] == (["label_first", "outlier"] if is_label_first else ["outlier"])
    assert not example["is_learned"]


def test_rules_hold_for_every_writer_of_a_topic_and_leave_the_merged_order():
    spec = a_shop()
    topic = replace(spec.topics[2], rules=(IMPOSSIBLE,), time_field="at")
    long_field = {"name": "at", "type": "long"}
    schema = {**topic.schema, "fields": [*topic.schema["fields"], long_field]}
    older = {**schema, "fields": [field for field in schema["fields"] if field["name"] != "user"]}
    topic = replace(topic, schema=schema)
    decoder = InputDecoder(replace(spec, topics=(*spec.topics[:2], topic)), {"events": [older]})
    amounts = [1.0, -1.0, 2.0, -2.0]
    records = []
    for offset, (amount, written) in enumerate(zip(amounts, [schema, older, older, schema], strict=True)):
        value = {"id": str(offset), "shop": "s", "user": 1, "amount": amount, "at": 100 - offset}
        records.append(SourceRecord(100, 2, 0, offset, Message(b"k", _framed(written, value), (), 100, offset)))
    batch = decoder.decode(records, {Partition("events", 0): Span(0, 4, 100, False)})
    assert [letter.offset for _, letter in sorted(batch.dead_letters)] == [1, 3]
    assert all(batch.kind[position] == Kind.DEAD_LETTER for position, _ in batch.dead_letters)
    assert batch.records["events"].columns.column("amount").to_pylist() == [2.0, 1.0]
    assert batch.offset[batch.records["events"].row_index].tolist() == [2, 0]


def _framed(schema: dict[str, Any], value: dict[str, Any]) -> bytes:
    body = BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), value)
    return header_of(schema) + body.getvalue()


RULED = APP.replace(
    "time: sold_at, partitions: 2}",
    "time: sold_at, partitions: 2, rules: [{field: price, at_least: 0, below: 1e9, otherwise: dead_letter}]}",
)


def test_rules_stand_with_their_topic(tmp_path: Path):
    app = load_app(write_app(tmp_path, RULED + "learn_flagged: true\n"))
    assert app.topics[0].rules == (RuleSpec(field="price", at_least=0.0, below=1e9, otherwise="dead_letter"),)
    assert app.learn_flagged and not load_app(write_app(tmp_path)).learn_flagged


@pytest.mark.parametrize(
    ("rule", "code", "says"),
    [
        ("{field: price, at_least: 0}", "TM-1003", "otherwise"),
        ("{field: price, otherwise: flag}", "TM-1003", "exactly one of one_of, matches, is_missing, not_after"),
        ("{field: price, below: 1, is_missing: false, otherwise: flag}", "TM-1003", "exactly one of"),
        ("{field: price, under: 1, otherwise: flag}", "TM-1002", "unknown key topics.sales.v1.rules.0.under"),
        ("{field: price, below: 1, otherwise: drop}", "TM-1003", "otherwise"),
        ("{field: prise, below: 1, otherwise: flag}", "TM-1005", "did you mean 'price'"),
        ("{field: shop, below: 1, otherwise: flag}", "TM-1005", "sales.v1.shop is string"),
        ("{field: price, above: 2, below: 1, otherwise: flag}", "TM-1005", "every record would break this rule"),
        ("{field: price, matches: a, otherwise: flag}", "TM-1005", "sales.v1.price is double"),
        ("{field: shop, matches: 'a(', otherwise: flag}", "TM-1005", "no regular expression of RE2"),
        ("{field: shop, matches: 'a)(b', otherwise: flag}", "TM-1005", "no regular expression of RE2"),
        ("{field: shop, matches: '(?=a)', otherwise: flag}", "TM-1005", "no regular expression of RE2"),
        ("{field: price, one_of: [a], otherwise: flag}", "TM-1005", "sales.v1.price is double"),
        ("{field: shop, one_of: [1], otherwise: flag}", "TM-1005", "sales.v1.shop is string"),
        ("{field: shop, one_of: [], otherwise: flag}", "TM-1003", "rules.0.one_of"),
        ("{field: price, not_after: shop, otherwise: flag}", "TM-1005", "what price (double) is compared with"),
        ("{field: price, not_after: cost, otherwise: flag}", "TM-1005", "sales.v1 has no field 'cost'"),
        ("{field: shop, differs_from: price, otherwise: flag}", "TM-1005", "what shop (string) is compared with"),
        ("{field: tags, is_missing: false, otherwise: flag}", "TM-1005", "sales.v1.tags is array"),
        ("{field: shop, burst_above: 5, otherwise: dead_letter}", "TM-1003", "it can flag only"),
        ("{field: price, burst_above: 5, otherwise: flag}", "TM-1005", "sales.v1.price is double"),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_line(tmp_path: Path, rule: str, code: str, says: str):
    error = error_of(tmp_path, APP.replace("partitions: 2}", f"rules: [{rule}]}}"))
    assert error.code == code and "app.yaml:3: " in error.message and says in error.message, error.message


def test_a_symbol_that_an_enum_does_not_have_is_told(tmp_path: Path):
    rules = "id: id, rules: [{field: why, one_of: [broke], otherwise: flag}]}"
    error = error_of(tmp_path, APP.replace("schema: returned.avsc, id: id}", f"schema: returned.avsc, {rules}"))
    assert "never 'broke'; did you mean 'broken'" in error.message


def test_a_context_topic_cannot_flag_and_says_why(tmp_path: Path):
    context = "  prices.v1: {role: context, schema: sale.avsc, rules: [{field: price, below: 1, otherwise: flag}]}\n"
    error = error_of(tmp_path, APP.replace("label:\n", context + "label:\n", 1))
    assert "app.yaml:5: " in error.message and "`otherwise: dead_letter`" in error.message


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40), st.integers(1, 10))
def test_a_burst_is_every_record_of_a_value_that_comes_too_often_in_a_batch(values: list[str | None], limit: int):
    rule = RuleSpec(field="source", otherwise="flag", burst_above=limit)
    columns = pa.RecordBatch.from_pydict({"source": pa.array(values, pa.string())})
    expected = [value is not None and values.count(value) > limit for value in values]
    assert is_broken(rule, columns).tolist() == expected


def test_a_burst_of_labels_is_published_and_teaches_nothing():
    """The outcome stands for the name of who sent the label: 7 pours four out at once, 8 sends one."""
    app = a_ruled_shop(outcomes=(RuleSpec(field="outcome", otherwise="flag", burst_above=3),))
    for number in range(5):
        app.inputs.add("events", MINUTE_MS + number, id=str(number), shop="s", amount=1.0)
        app.inputs.add("outcomes", 2 * MINUTE_MS + number, id=str(number), outcome=7 if number < 4 else 8)
    Worker(app).claim().run_all(())
    examples = {row["id"]: (row["flags"], row["is_learned"]) for row in app.log.rows("example.v1")}
    assert examples == {**dict.fromkeys("0123", (["outlier"], False)), "4": ([], True)}
