"""What belongs to a tick: a function of the log, however it was read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.apps import monitor_logs
from tidemill.apps.monitor_logs import ExampleLog, PredictionLog
from tidemill.io.outputs import Encoder, FeatureShape

SHAPE = FeatureShape("digest", 2, 1)
TICK = 100
ENCODERS = {name: Encoder(name) for name in ("prediction.v1", "example.v1", "command.v1")}


class Message:
    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value


class Reader:
    """A log in memory, as `LogReader` reads one."""

    def __init__(self, messages: list[Message], at_once: int) -> None:
        self._messages, self._at_once, self.position = messages, at_once, 0

    def read(self, *, until_offset: int | None, timeout_s: float, max_records: int) -> list[Message]:
        found = [one for one in self._messages if one.offset() >= self.position]
        found = [one for one in found if until_offset is None or one.offset() < until_offset][: self._at_once]
        if found:
            self.position = found[-1].offset() + 1
        return found


def features(count: int, digest: str = "digest") -> dict[str, Any]:
    return {
        "feature_digest": [digest] * count,
        "numeric": np.zeros((count, SHAPE.numeric), np.float32),
        "categories": [["a"]] * count,
        "blend": np.full(count, 0.25),
        "learner": [None] * count,
        "booster": [None] * count,
        "base_rate": [None] * count,
        "n": np.zeros(count, np.int64),
        "model_version": ["initial"] * count,
        "other": [None] * count,
        "other_version": [""] * count,
        "flags": [[]] * count,
    }


def example(time: int) -> bytes:
    own = {"kind": ["example"], "id": ["x"], "label": [1], "event_time": [time], "label_time": [time]}
    return ENCODERS["example.v1"].encode(features(1) | own | {"is_learned": [True]})[0]


def command(time: int) -> bytes:
    row = {"id": ["c"], "kind": ["freeze"], "expects": ["initial"], "model_version": ["initial"], "cause": [""]}
    return ENCODERS["command.v1"].encode(row | {"time": [time]})[0]


def prediction(time: int, digest: str = "digest") -> bytes:
    own: dict[str, Any] = {name: [[]] for name in ("entities", "top_features", "top_contributions")}
    own |= {"id": ["x"], "event_time": [time], "topic": ["t"], "partition": [0], "offset": [0], "decision": [False]}
    return ENCODERS["prediction.v1"].encode(features(1, digest) | own)[0]


def spread(values: list[bytes]) -> list[Message]:
    """Every third offset is a hole, as transactions leave them."""
    return [Message(index + index // 2, value) for index, value in enumerate(values)]


def read_all(log: ExampleLog | PredictionLog) -> None:
    while log.read(until_offset=None, timeout_s=0.0) is not None:
        pass


def ticks_of_examples(messages: list[Message], at_once: int, count: int) -> list[tuple[list[int], list[int], int]]:
    log = ExampleLog(Reader(messages, at_once), SHAPE)  # type: ignore[arg-type]
    found = []
    for number in range(1, count + 1):
        while not log.is_read_beyond(number * TICK) and log.read(until_offset=None, timeout_s=0.0) is not None:
            pass
        part, commands, offset_next = log.cut(number * TICK, None)
        found.append((part.offset.tolist(), [one.offset for one in commands], offset_next))
    return found


LOG = st.lists(
    st.tuples(st.booleans(), st.integers(0, 5 * TICK - 1)),
    max_size=40,
).map(lambda rows: spread([command(time) if is_command else example(time) for is_command, time in rows]))


@settings(deadline=None, max_examples=60)
@given(messages=LOG, at_once=st.integers(1, 40), lookahead=st.integers(1, 6))
def test_how_the_log_is_read_does_not_change_its_ticks(messages: list[Message], at_once: int, lookahead: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(monitor_logs, "LOOKAHEAD_RECORDS", lookahead)
        found = ticks_of_examples(messages, at_once, 6)
        assert found == ticks_of_examples(messages, 1, 6) == ticks_of_examples(messages, 1_000, 6)
    examples = [offset for part, _, _ in found for offset in part]
    commands = [offset for _, part, _ in found for offset in part]
    assert len(examples) == len(set(examples)) and all(part == sorted(part) for part, _, _ in found)
    assert commands == sorted(set(commands))  # each once, in order
    assert all(left <= right for (_, _, left), (_, _, right) in pairwise(found))


@settings(deadline=None, max_examples=60)
@given(messages=LOG, positions=st.lists(st.integers(0, 60), min_size=6, max_size=6).map(sorted))
def test_written_positions_give_every_record_to_one_tick(messages: list[Message], positions: list[int]) -> None:
    positions[-1] = 100
    log = ExampleLog(Reader(messages, 7), SHAPE)  # type: ignore[arg-type]
    read_all(log)
    seen: list[int] = []
    for number, position in enumerate(positions, start=1):
        part, commands, offset_next = log.cut(number * TICK, position)
        assert offset_next == position and (part.offset < position).all() and (part.label_time < number * TICK).all()
        seen += [*part.offset.tolist(), *(one.offset for one in commands)]
    assert sorted(seen) == [one.offset() for one in messages]
    assert log.held == 0


def test_a_command_between_two_ticks_is_of_the_one_that_its_time_says() -> None:
    log = spread([example(10), command(90), command(100), example(150), command(120), example(160)])
    (_, first, _), (_, second, _) = ticks_of_examples(log, 10, 2)
    assert (first, second) == ([1], [3, 6])  # the one at 100 answers the first tick


def test_a_command_of_the_wall_clock_is_passed_with_the_next_example() -> None:
    log = spread([example(10), command(10**12), example(150)])
    (_, first, _), (_, second, _) = ticks_of_examples(log, 10, 2)
    assert (first, second) == ([], [1])


def test_predictions_of_other_features_are_not_judged_and_are_counted() -> None:
    log = PredictionLog(Reader(spread([prediction(10), prediction(20, "former")]), 10), SHAPE)  # type: ignore[arg-type]
    columns = log.read(until_offset=None, timeout_s=0.0)
    assert columns is not None and columns.event_time.tolist() == [10, 20]
    found = log.cut(TICK, None)
    assert found is not None and found.event_time.tolist() == [10]


def test_predictions_in_any_order_are_of_the_tick_of_their_time() -> None:
    times = [10, 150, 20, 120, 90]
    log = PredictionLog(Reader(spread([prediction(time) for time in times]), 2), SHAPE)  # type: ignore[arg-type]
    read_all(log)
    found = [log.cut(end, None) for end in (TICK, 2 * TICK, 3 * TICK)]
    assert [None if one is None else one.event_time.tolist() for one in found] == [[10, 20, 90], [150, 120], None]
    assert log.position == 7  # behind the last of them, holes included
