"""What must have become of every input record, from the inputs alone.

In: the inputs in merged order, and per row the group watermark that its commit states. Out: `Expected`.
Invariant: every row gets exactly one outcome; an example exists exactly for the first label in time of a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tests.verify.declared import Declared
from tests.verify.inputs import BAD, GOOD, PUNCTUATION, Inputs, Int64s

# Outcomes of input records: position = code.
RECORD_OUTCOMES = (
    "prediction",
    "event_duplicate",
    "event_dead_letter",
    "example",
    "amendment",
    "label_duplicate",
    "orphan",
    "label_dead_letter",
    "waiting",
    "state",
    "context_dead_letter",
    "punctuation",
)
LATER_OUTCOMES = ("expired", "waiting_joined", "waiting_orphaned")  # they resolve an earlier outcome
_CODE = {name: code for code, name in enumerate(RECORD_OUTCOMES)}

_PENDING, _WAITING, _JOINED, _EXPIRED = range(4)


class ExpectedExample(NamedTuple):
    """`cause_row`: the label's row, or the event's where the label came first."""

    kind: str
    id: str
    label: int
    event_time: int
    label_time: int
    is_label_first: bool
    cause_row: int
    label_row: int
    event_row: int


@dataclass
class Expected:
    """`outcome`: code of each row. `expired` and `waiting_orphaned`: least and most that may have been settled."""

    outcome: npt.NDArray[np.int8]
    examples: list[ExpectedExample] = field(default_factory=list)
    expired: tuple[int, int] = (0, 0)
    waiting_orphaned: tuple[int, int] = (0, 0)
    waiting_joined: int = 0
    open_at_end: int = 0  # due by the inputs, but no commit's watermark has reached them


@dataclass(slots=True)
class _Row:
    state: int
    event_time: int
    label_time: int
    label: int
    event_row: int
    label_row: int


def expect(
    declared: Declared,
    inputs: Inputs,
    group_watermark: Int64s,
    *,
    settled_least: Int64s,
    settled_most: int,
    newest_of_all: int,
) -> Expected:
    """Play the rules of the join over all events and labels.

    Args:
        group_watermark: per row, what its batch settled open rows with; -1 none.
        settled_least: per row, the largest group watermark that the row's own partition has committed.
        settled_most: no row that is due at or after this time may be settled.
        newest_of_all: rows that are due before this time should have been settled when all is over.
    """
    roles = [topic.role for topic in declared.topics]
    expected = Expected(_plain_outcomes(roles, inputs))
    rows: dict[str, _Row] = {}
    settled = {_PENDING: 0, _WAITING: 0}
    kept = np.isin(inputs.topic, [i for i, role in enumerate(roles) if role != "context"]) & (inputs.verdict == GOOD)
    order = inputs.order[kept[inputs.order]]
    ids = {i: inputs.columns[i].fields[t.id_field] for i, t in enumerate(declared.topics) if t.id_field is not None}
    is_event = [role == "event" for role in roles]
    outcome = expected.outcome
    table = (order, inputs.topic[order], inputs.time[order], group_watermark[order])
    for row_index, topic, time, watermark in zip(*(column.tolist() for column in table), strict=True):
        local = row_index - inputs.first_row[topic]
        id_ = str(ids[topic][local])  # as outputs name it, whatever its type
        row = rows.get(id_)
        while row is not None and _due(declared, row) < watermark:
            if row.state in settled:
                settled[row.state] += 1
            if row.state == _PENDING:
                row.state = _EXPIRED
            else:
                del rows[id_]
                row = None
        if is_event[topic]:
            if row is None:
                outcome[row_index] = _CODE["prediction"]
                rows[id_] = _Row(_PENDING, time, -1, -1, row_index, -1)
            elif row.state == _WAITING:
                outcome[row_index] = _CODE["prediction"]
                expected.waiting_joined += 1
                row.state, row.event_time, row.event_row = _JOINED, time, row_index
                expected.examples.append(_example("example", id_, row, row.label, row.label_time, True, row_index))
            else:
                outcome[row_index] = _CODE["event_duplicate"]
            continue
        label = inputs.columns[topic].labels[local]
        if row is None:
            outcome[row_index] = _CODE["waiting"]
            rows[id_] = _Row(_WAITING, -1, time, label, -1, row_index)
        elif row.state == _EXPIRED or (row.state == _PENDING and time > row.event_time + declared.wait_ms):
            outcome[row_index] = _CODE["orphan"]
        elif row.state == _PENDING:
            outcome[row_index] = _CODE["example"]
            row.state, row.label_time, row.label, row.label_row = _JOINED, time, label, row_index
            expected.examples.append(_example("example", id_, row, label, time, False, row_index))
        elif row.label == label:
            outcome[row_index] = _CODE["label_duplicate"]
        else:
            outcome[row_index] = _CODE["amendment"]
            expected.examples.append(_example("amendment", id_, row, label, time, False, row_index))
    _settle_rest(declared, expected, rows, settled, settled_least, settled_most, newest_of_all)
    return expected


def _due(declared: Declared, row: _Row) -> int:
    if row.state == _PENDING:
        return row.event_time + declared.settle_ms
    if row.state == _WAITING:
        return row.label_time + declared.settle_ms
    return row.event_time + declared.forget_ms


def _example(
    kind: str, id_: str, row: _Row, label: int, label_time: int, is_label_first: bool, cause_row: int
) -> ExpectedExample:
    return ExpectedExample(
        kind, id_, label, row.event_time, label_time, is_label_first, cause_row, row.label_row, row.event_row
    )


def _plain_outcomes(roles: list[str], inputs: Inputs) -> npt.NDArray[np.int8]:
    outcome = np.full(len(inputs.order), -1, dtype=np.int8)
    for topic, role in enumerate(roles):
        mine = inputs.topic == topic
        outcome[mine & (inputs.verdict == BAD)] = _CODE[f"{role}_dead_letter"]
        if role == "context":
            outcome[mine & (inputs.verdict == GOOD)] = _CODE["state"]
    outcome[inputs.verdict == PUNCTUATION] = _CODE["punctuation"]
    return outcome


def _settle_rest(
    declared: Declared,
    expected: Expected,
    rows: dict[str, _Row],
    settled: dict[int, int],
    settled_least: Int64s,
    settled_most: int,
    newest_of_all: int,
) -> None:
    least, most = dict(settled), dict(settled)
    for row in rows.values():
        if row.state not in settled:
            continue
        due = _due(declared, row)
        made_by = row.event_row if row.state == _PENDING else row.label_row
        least[row.state] += due < settled_least[made_by]
        most[row.state] += due < settled_most
        expected.open_at_end += settled_most <= due < newest_of_all
    expected.expired = (least[_PENDING], most[_PENDING])
    expected.waiting_orphaned = (least[_WAITING], most[_WAITING])
