"""A rebuild reads the inputs in the order of their time, whatever their times are: it always comes to their end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from in_memory import App

from tests.memory_kafka import kafka_in_memory
from tidemill.apps import roll_forward
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError

EVENTS = Partition("events", 0)
COUNT = 300
READ = 50  # records of a partition that are read ahead


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "time_of",
    [
        pytest.param(lambda number: 1_000 + number, id="spread"),
        pytest.param(lambda number: 1_000, id="one time, as of a nightly dump"),
        pytest.param(lambda number: 10**9 if number == 0 else 1_000 + number, id="the first one stamped far ahead"),
    ],
)
def test_every_record_comes_once_and_in_order(time_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roll_forward, "READ_RECORDS_MAX", READ)
    app = App()
    for number in range(COUNT):
        app.inputs.add("events", time_of(number), id=f"e{number}", shop="s", user=1, amount=1.0)
    app.inputs.add("readings", 500, shop="s", reading=1.0)
    readings = Partition("readings", 0)
    ranges = {EVENTS: (0, COUNT), readings: (0, 1)}
    with kafka_in_memory():
        batches = list(roll_forward.read_merged({"log": app.log}, app.spec, app.machinery.decoder, ranges))
    spans = [batch.spans[EVENTS] for batch in batches if EVENTS in batch.spans]
    assert [span.start for span in spans] == [0, *(span.next for span in spans[:-1])] and spans[-1].next == COUNT
    assert sum(len(batch) for batch in batches) == COUNT + 1


def test_an_input_that_cannot_be_read_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roll_forward, "READ_STILL_S", 0.02)
    app = App()
    app.inputs.add("events", 1_000, id="e", shop="s", user=1, amount=1.0)
    with kafka_in_memory():
        monkeypatch.setattr(roll_forward.LogReader, "read", lambda reader, **asked: [])  # the broker went away
        with pytest.raises(UnavailableError, match=r"TM-3018 .*events\[0\]@0: nothing came in 0.02 s"):
            list(roll_forward.read_merged({"log": app.log}, app.spec, app.machinery.decoder, {EVENTS: (0, 1)}))
