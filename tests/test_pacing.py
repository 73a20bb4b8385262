"""A paced worker and the loop: what it may take before the trainer has answered, and how long it is patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from shop_log import DAY_MS
from trainer_loop import Loop, a_loop, ticks

from tidemill.apps.pacing import TickPacer
from tidemill.core.records import Output
from tidemill.errors import UnavailableError
from tidemill.io.embedded import Servers
from tidemill.io.kafka_writer import TransactionalWriter

pytestmark = pytest.mark.servers


@pytest.fixture
def loop(servers: Servers, app_name: str, tmp_path: Path) -> Iterator[Loop]:
    with a_loop(servers, app_name, tmp_path) as made:
        yield made


def predict(loop: Loop, time: int) -> None:
    """A prediction for an event of this time stands in the log; only its time is looked at."""
    topic = f"{loop.settings.app.name}.predictions.v1"
    writer = TransactionalWriter(loop.clients, f"predicts.{loop.settings.app.name}")
    writer.open()
    writer.publish([Output(topic, b"k", str(time).encode())], {}, None)


@pytest.fixture(autouse=True)
def _times_instead_of_predictions() -> Iterator[None]:
    def columns(_schema: str, values: list[bytes]) -> pa.RecordBatch:
        return pa.record_batch({"event_time": [int(value) for value in values]})

    with mock.patch("tidemill.apps.pacing.decode", columns):
        yield


def test_before_the_first_event_nothing_is_waited_for(loop: Loop) -> None:
    with closing(TickPacer(loop.settings)) as pacer:
        assert pacer.limit == -1
        pacer.look(candidate=5 * DAY_MS + 1, watermark=5 * DAY_MS)
        assert (pacer.limit, pacer.is_waiting) == (6 * DAY_MS, False)


def test_the_next_tick_begins_once_the_trainer_has_answered_the_last_one(loop: Loop) -> None:
    (tick,) = ticks(1, triggers=())
    day = tick.time // DAY_MS * DAY_MS
    predict(loop, day - DAY_MS // 2)
    with closing(TickPacer(loop.settings)) as pacer:
        pacer.look(candidate=day - 100, watermark=day - DAY_MS)  # a tick without an event has no answer
        assert (pacer.limit, pacer.is_waiting) == (day, False)
        pacer.look(candidate=day + 1, watermark=day)
        assert (pacer.limit, pacer.is_waiting) == (day, True), "the monitor has not judged it yet"
        loop.tell(tick)
        pacer.look(candidate=day + 1, watermark=day)
        assert (pacer.limit, pacer.is_waiting) == (day, True), "the trainer has not answered it yet"
        assert loop.train() == 0
        pacer.look(candidate=day + 1, watermark=day)
        assert (pacer.limit, pacer.is_waiting) == (day + DAY_MS, False)


def test_what_no_record_is_there_of_is_not_waited_for(loop: Loop) -> None:
    """Days without records, and the punctuation that ends the stream: their ticks come once they are passed."""
    predict(loop, 3 * DAY_MS + 7)
    with closing(TickPacer(loop.settings)) as pacer:
        pacer.look(candidate=9 * DAY_MS + 5, watermark=3 * DAY_MS + 100)
        assert (pacer.limit, pacer.is_waiting) == (10 * DAY_MS, False)


def test_a_loop_that_never_answers_is_named(loop: Loop) -> None:
    predict(loop, 0)
    with closing(TickPacer(loop.settings)) as pacer, mock.patch("tidemill.apps.pacing.time") as clock:
        clock.monotonic.return_value = 1_000.0
        pacer.look(candidate=DAY_MS + 1, watermark=DAY_MS)
        clock.monotonic.return_value = 2_000.0
        with pytest.raises(UnavailableError, match=r"TM-4034.*do `tidemill monitor` and `tidemill trainer`"):
            pacer.look(candidate=DAY_MS + 1, watermark=DAY_MS)
