"""What becomes of events and labels: the join, its order, its windows."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.label_rule import label_values
from tidemill.core.labels import EventEntry, Joined, LabelEntry, join_labels, names_aside
from tidemill.core.open_rows import name_aside
from tidemill.core.records import Due, Outcome, Partition
from tidemill.core.rows import Row, RowState, due_time, pack_row, unpack_row
from tidemill.core.settlements import Decided, Example, Labelled
from tidemill.core.spec import Condition, LabelSpec

EVENTS, LABELS = "events", "labels"
TOPICS = (EVENTS, LABELS)
SPEC = LabelSpec(
    positive_if_any=(Condition(field="delay", above=15),), wait_ms=100, allowed_lateness_ms=10, dedup_window_ms=1000
)
LABEL_COLUMNS = pa.RecordBatch.from_pylist([{"id": "x", "delay": float(i)} for i in range(30)])


class Log:
    """Feeds entries one batch at a time and keeps the rows, as the store would."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.due: dict[str, Due] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.offset = 0

    def batch(
        self, *records: tuple[str, str, int] | tuple[str, str, int, int], watermark: int = -1, **more: object
    ) -> Joined:
        entries: list[EventEntry | LabelEntry] = []
        orders: Counter[str] = Counter()
        for position, (kind, id_, time, *label) in enumerate(records):
            place = (position, id_, time, TOPICS.index(kind), 0, self.offset, orders[kind])
            entries.append(EventEntry(*place) if kind == EVENTS else LabelEntry(*place, label[0]))  # type: ignore[arg-type]
            orders[kind] += 1
            self.offset += 1
        labelled: Labelled | None = more.get("labelled")  # type: ignore[assignment]
        names = [entry.id for entry in entries] + ([] if labelled is None else names_aside(entries, labelled))
        due = [(d, self.rows.get(d.id)) for d in self.due.values() if d.time < watermark]
        joined = join_labels(
            spec=SPEC,
            topic_names=TOPICS,
            entries=entries,
            rows={name: self.rows.get(name) for name in names},
            due=due,
            due_before=watermark,
            published=more.get("published", {}),  # type: ignore[arg-type]
            predicted=more.get("predicted"),  # type: ignore[arg-type]
            labelled=labelled,
            label_columns={1: LABEL_COLUMNS},
        )
        if joined.blocked_at >= 0:
            return joined
        for id_, row in joined.rows.items():
            if row is None:
                del self.rows[id_]
            else:
                assert row.revision == (unpack_row(self.rows[id_]).revision if id_ in self.rows else 0) + 1
                self.rows[id_] = pack_row(row)
        for entry in joined.due_remove:
            assert self.due.pop(entry.id) == entry
        for entry in joined.due_add:
            self.due[entry.id] = entry
        for counter in joined.outcomes.values():
            self.outcomes.update(counter)
        assert set(self.due) == set(self.rows)  # every row is looked at again some day
        for id_, packed in self.rows.items():
            assert self.due[id_].time == due_time(SPEC, unpack_row(packed))
        return joined

    def state(self, id_: str) -> RowState:
        return unpack_row(self.rows[id_]).state


def test_label_in_time_joins_its_prediction():
    log = Log()
    log.batch((EVENTS, "a", 0))
    joined = log.batch((LABELS, "a", 100, 1))

    assert [(j.id, j.label, j.event_time, j.label_time) for j in joined.joins] == [("a", 1, 0, 100)]
    assert log.state("a") is RowState.JOINED
    assert log.outcomes == {Outcome.PREDICTION: 1, Outcome.EXAMPLE: 1}


def test_label_in_the_batch_of_its_event_joins_it_there():
    joined = Log().batch((EVENTS, "a", 0), (LABELS, "a", 50, 0))
    assert joined.joins[0].event_order == 0 and joined.joins[0].tail is None


def test_label_after_the_wait_is_an_orphan_and_the_prediction_stays_open():
    log = Log()
    joined = log.batch((EVENTS, "a", 0), (LABELS, "a", 101, 1))
    assert not joined.joins and log.outcomes[Outcome.ORPHAN] == 1
    assert log.state("a") is RowState.PENDING


def test_amendment_is_counted_but_not_joined_twice():
    log = Log()
    log.batch((EVENTS, "a", 0), (LABELS, "a", 5, 1))
    joined = log.batch((LABELS, "a", 6, 0), (LABELS, "a", 7, 1))
    assert not joined.joins
    assert [(a.id, a.label) for a in joined.amendments] == [("a", 0)]
    assert log.outcomes[Outcome.AMENDMENT] == 1 and log.outcomes[Outcome.LABEL_DUPLICATE] == 1


def test_second_event_of_an_id_is_a_duplicate_until_the_window_ends():
    log = Log()
    log.batch((EVENTS, "a", 0), (LABELS, "a", 5, 1))
    log.batch((EVENTS, "a", 900))
    assert log.outcomes[Outcome.EVENT_DUPLICATE] == 1
    log.batch(watermark=1001)
    assert log.rows == {}


def test_prediction_without_label_expires_by_the_group_watermark():
    log = Log()
    log.batch((EVENTS, "a", 0))
    log.batch(watermark=110)
    assert log.state("a") is RowState.PENDING
    log.batch(watermark=111)
    assert log.state("a") is RowState.EXPIRED and log.outcomes[Outcome.EXPIRED] == 1
    log.batch((LABELS, "a", 50, 1))
    assert log.outcomes[Outcome.ORPHAN] == 1


def test_label_before_its_event_waits_and_joins_it():
    log = Log()
    log.batch((LABELS, "a", 5, 1))
    assert log.outcomes[Outcome.WAITING] == 1
    joined = log.batch((EVENTS, "a", 6))
    assert joined.label_first == [True] and joined.joins[0].label_tail is not None
    assert log.outcomes[Outcome.WAITING_JOINED] == 1 and log.state("a") is RowState.JOINED
    assert next(iter(log.due.values())).partition == Partition(EVENTS, 0)


def waited(*offsets: int, group_watermark: int = -1) -> dict[Partition, list[Decided]]:
    return {Partition(LABELS, 0): [Decided(0, 10, group_watermark, 0, (), offsets, ())]}


def decided(offset: int, group_watermark: int, *waiting: int) -> Decided:
    return Decided(offset, offset + 1, group_watermark, 0, (), waiting, ())


def joined_at(offset: int, group_watermark: int) -> Decided:
    return Decided(offset, offset + 1, group_watermark, 0, (offset,), (), ())


@pytest.mark.parametrize(
    ("times", "labels"),
    [
        pytest.param((5, 9), [decided(0, -1, 0), decided(1, -1)], id="the other one found it waiting"),
        pytest.param((9, 5), [decided(0, -1, 0), decided(1, 200, 1)], id="the other one had waited in vain"),
    ],
)
def test_in_a_roll_forward_the_label_that_joined_waits_whichever_comes_first(
    times: tuple[int, int], labels: list[Decided]
):
    """Two labels came before their event; another worker applies what is due."""
    past = {Partition(LABELS, 0): labels, Partition(EVENTS, 0): [decided(2, 200)]}
    log, labelled = Log(), Labelled([Example("a", 20, 5, 1)], past)
    for time in times:
        log.batch((LABELS, "a", time, 1), predicted=frozenset(), labelled=labelled)
    joined = log.batch((EVENTS, "a", 20), predicted=frozenset({(0, 0, 2)}), labelled=labelled)
    assert [join.label_time for join in joined.joins] == [5]
    assert log.state("a") is RowState.JOINED


def test_in_a_roll_forward_an_older_event_stands_aside_until_its_label_comes():
    past = {Partition(EVENTS, 0): [decided(0, -1), decided(1, 1_500)], Partition(LABELS, 0): [joined_at(2, 10)]}
    log, labelled = Log(), Labelled([Example("a", 0, 5, 1)], past)
    for offset, time in enumerate((0, 2_000)):
        log.batch((EVENTS, "a", time), predicted=frozenset({(0, 0, offset)}), labelled=labelled)
    assert set(log.rows) == {"a", name_aside("a", 0)}
    joined = log.batch((LABELS, "a", 5, 1), predicted=frozenset(), labelled=labelled)
    assert [join.event_time for join in joined.joins] == [0]
    assert set(log.rows) == {"a"} and unpack_row(log.rows["a"]).event_time == 2_000


def test_in_a_roll_forward_a_label_that_nobody_told_of_is_kept_aside_to_be_counted():
    """A worker that goes on, `degraded`, let it wait meanwhile."""
    log = Log()
    log.batch((LABELS, "a", 5, 1))
    labelled = Labelled([], {Partition(EVENTS, 0): [decided(1, 200)]})
    log.batch((EVENTS, "a", 300), predicted=frozenset({(0, 0, 1)}), labelled=labelled)
    assert {name: log.state(name) for name in log.rows} == {
        "a": RowState.PENDING,
        name_aside("a", 5): RowState.WAITING,
    }


def test_in_a_roll_forward_a_label_that_another_rule_turns_around_moves_no_row():
    """By the rule of that time it waited and joined."""
    log, labelled = Log(), Labelled([Example("a", 0, 5, 1)], {Partition(LABELS, 0): [decided(1, 900, 1)]})
    log.batch((EVENTS, "a", 0))
    log.batch((LABELS, "a", 5, 0), predicted=frozenset(), labelled=labelled)
    assert set(log.rows) == {"a"} and log.state("a") is RowState.PENDING


def test_in_a_roll_forward_a_label_that_met_a_row_makes_none():
    """The one that waited is of another partition: who applies this one first must not let it wait instead."""
    log, labelled = Log(), Labelled([], waited(1))
    log.batch((LABELS, "a", 5, 1), predicted=frozenset(), labelled=labelled)
    assert log.rows == {}
    log.batch((LABELS, "a", 9, 1), predicted=frozenset(), labelled=labelled)
    assert log.state("a") is RowState.WAITING


@pytest.mark.parametrize(("due_before", "state"), [(1_001, RowState.WAITING), (1_000, RowState.JOINED)])
def test_in_a_roll_forward_a_label_that_waited_shows_that_the_row_before_was_forgotten(due_before, state):
    """Nobody tells of rows that ended and are forgotten; one that is due later came after the label the first time."""
    log, labelled = Log(), Labelled([], waited(9, group_watermark=due_before))
    log.batch((EVENTS, "a", 0), (LABELS, "a", 5, 1))
    assert next(iter(log.due.values())).time == 1_000
    log.offset = 9
    log.batch((LABELS, "a", 900, 1), predicted=frozenset(), labelled=labelled)
    assert log.state("a") is state


def test_label_whose_event_never_comes_becomes_an_orphan():
    log = Log()
    waiting = log.batch((LABELS, "a", 5, 1)).waiting
    assert log.batch(watermark=116).settled == waiting == {Partition(LABELS, 0): [0]}
    assert log.rows == {} and log.outcomes[Outcome.WAITING_ORPHANED] == 1


def test_label_of_an_unpublished_prediction_of_another_worker_blocks():
    log = Log()
    log.batch((EVENTS, "a", 0))
    other = Partition(EVENTS, 0)
    assert log.batch((LABELS, "b", 5, 1), (LABELS, "a", 5, 1), published={other: 0}).blocked_at == 1
    assert log.batch((LABELS, "a", 5, 1), published={other: 1}).blocked_at == -1


def test_null_satisfies_no_condition():
    columns = pa.RecordBatch.from_pydict({"delay": [16.0, 15.0, None]})
    assert label_values(SPEC, columns).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition(field="s", one_of=("x", "y")), [1, 0, 1]),
        (Condition(field="s", equals="z"), [0, 1, 0]),
        (Condition(field="n", at_least=2), [0, 1, 1]),
        (Condition(field="n", below=2), [1, 0, 0]),
    ],
)
def test_conditions_of_the_label_rule(condition, expected):
    columns = pa.RecordBatch.from_pydict({"s": ["x", "z", "y"], "n": [1, 2, 3]})
    rule = LabelSpec(positive_if_any=(condition,), wait_ms=1)
    assert label_values(rule, columns).tolist() == expected


def test_row_survives_packing():
    row = Row(7, RowState.PENDING, 5, -1, -1, 1, 3, 9, b"tail")
    assert unpack_row(pack_row(row)) == row


@given(
    st.lists(st.tuples(st.sampled_from([EVENTS, LABELS]), st.sampled_from("abc"), st.integers(0, 1)), max_size=30),
    st.data(),
)
def test_both_balances_close_however_the_log_is_cut(stream, data):
    log = Log()
    records = [
        (kind, id_, 20 * at, label)[: 4 if kind == LABELS else 3] for at, (kind, id_, label) in enumerate(stream)
    ]
    whole = Log()
    whole.batch(*records)
    while records:
        size = data.draw(st.integers(1, len(records)))
        log.batch(*records[:size])
        records = records[size:]

    assert log.outcomes == whole.outcomes
    count = log.outcomes
    states = Counter(log.state(id_) for id_ in log.rows)
    labels_in = sum(kind == LABELS for kind, _, _ in stream)
    assert labels_in == sum(
        count[o] for o in (Outcome.EXAMPLE, Outcome.AMENDMENT, Outcome.LABEL_DUPLICATE, Outcome.ORPHAN, Outcome.WAITING)
    )
    assert count[Outcome.WAITING] == count[Outcome.WAITING_JOINED] + states[RowState.WAITING]
    assert (
        count[Outcome.PREDICTION] == count[Outcome.EXAMPLE] + count[Outcome.WAITING_JOINED] + states[RowState.PENDING]
    )
