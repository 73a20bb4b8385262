"""Ticks and alerts on real Kafka: each once, in order, whatever happens to the monitor."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from monitored_logs import FIRST_DAY, MonitoredLogs
from shop import Shop, a_shop

from tidemill.apps.alerts import acknowledge, incidents_of, read_alerts
from tidemill.apps.monitor import Monitor, monitor_id
from tidemill.config import Settings
from tidemill.core.loop_spec import DAY_MS, RetrainSpec, TriggerSpec
from tidemill.core.records import Partition
from tidemill.core.topic_names import alerts_topic, drift_topic
from tidemill.errors import FencedError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogEnds, read_topic
from tidemill.io.loop_records import decode_ticks
from tidemill.io.telemetry import MonitorTelemetry

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        yield made


@pytest.fixture
def logs(shop: Shop) -> Iterator[MonitoredLogs]:
    made = MonitoredLogs(shop.settings)
    yield made
    made.close()


def run_once(settings: Settings, telemetry: MonitorTelemetry | None = None) -> list[str]:
    """Up to the ends of the logs; what the monitor reported."""
    said: list[str] = []
    monitor = Monitor(settings, telemetry=telemetry or MonitorTelemetry(), report=said.append)
    try:
        monitor.run(is_until_end=True, is_stopped=lambda: False)
    finally:
        monitor.close()
    return said


def records(shop: Shop, topic: str) -> list[tuple[bytes, bytes]]:
    return [(m.key(), m.value()) for messages in read_topic(shop.clients, topic) for m in messages]


def ticks_of(shop: Shop) -> list[tuple[bytes, bytes]]:
    return records(shop, drift_topic(shop.settings.app.name))


def alerts_of(shop: Shop) -> list[tuple[bytes, bytes]]:
    return records(shop, alerts_topic(shop.settings.app.name))


def end_of(day: int) -> int:
    return (FIRST_DAY + day + 1) * DAY_MS


def with_schedule(settings: Settings, **monitor: object) -> Settings:
    """A training is due every two days, so there are alert records."""
    retrain = RetrainSpec(any_of=(TriggerSpec(kind="schedule", every_ms=2 * DAY_MS),), examples_min=50, cooldown_ms=0)
    changed = dataclasses.replace(settings.app.monitor, **monitor)  # type: ignore[arg-type]
    return dataclasses.replace(settings, app=dataclasses.replace(settings.app, retrain=retrain, monitor=changed))


def test_each_tick_is_published_once_and_names_its_alerts(shop: Shop, logs: MonitoredLogs) -> None:
    settings = with_schedule(shop.settings)
    for day in range(3):
        logs.write_day(day)
    logs.write_day(3, is_committed=False)  # nobody knows yet whether this day is whole
    run_once(settings)
    alerts = read_alerts(settings)
    found = decode_ticks([value for _, value in ticks_of(shop)], alerts)
    assert [tick.time for tick in found] == [end_of(day) for day in range(3)]
    assert [key for key, _ in ticks_of(shop)] == [str(end_of(day)).encode() for day in range(3)]
    assert [(tick.events, tick.examples, tick.examples_total) for tick in found] == [
        (60, 60, 60 * n) for n in (1, 2, 3)
    ]
    assert [alert for tick in found for alert in tick.alerts] == alerts
    assert "trigger" in {alert.kind for alert in alerts}

    before = ticks_of(shop), alerts_of(shop)
    telemetry = MonitorTelemetry()
    assert run_once(settings, telemetry) == []  # the same ticks again: nothing is published, nothing differs
    assert (ticks_of(shop), alerts_of(shop)) == before
    assert telemetry.registry.get_sample_value("tidemill_ticks_total") == 0

    logs.commit(end_of(3))
    run_once(settings)
    assert len(ticks_of(shop)) == 4
    assert ticks_of(shop)[:3] == before[0]


def test_a_monitor_beside_the_worker_and_one_that_comes_later_publish_the_same_bytes(
    shop: Shop, logs: MonitoredLogs
) -> None:
    settings = with_schedule(shop.settings)
    said: list[str] = []
    monitor = Monitor(settings, telemetry=MonitorTelemetry(), report=said.append)
    looks = 0

    def is_stopped() -> bool:
        """Writes day after day, each once the tick before it is there, as a paced producer does."""
        nonlocal looks
        published = len(ticks_of(shop))
        if looks <= 5 and published == looks:
            if looks == 3:
                logs.command("prepare", "m0123456789ab", expects="initial", time=end_of(2))
            logs.write_day(looks)
            looks += 1
        return published == 6

    monitor.run(is_until_end=False, is_stopped=is_stopped)
    monitor.close()
    beside = ticks_of(shop), alerts_of(shop)
    challengers = [tick.challenger for tick in decode_ticks([value for _, value in beside[0]])]
    assert challengers == ["", "", "", *["m0123456789ab"] * 3]  # the answer to a tick is of the next one

    delete(shop, [alerts_topic(shop.settings.app.name), drift_topic(shop.settings.app.name)])
    run_once(settings)
    assert (ticks_of(shop), alerts_of(shop)) == beside


def delete(shop: Shop, topics: list[str]) -> None:
    """The monitor creates them anew."""
    admin = AdminClient(dict(shop.clients))
    for future in admin.delete_topics(topics).values():
        future.result()
    while any(topic in admin.list_topics(timeout=10).topics for topic in topics):
        pass


def test_a_late_record_belongs_to_the_tick_that_is_open_also_after_a_restart(shop: Shop, logs: MonitoredLogs) -> None:
    logs.write_day(0)
    logs.write_day(1)
    run_once(shop.settings)
    logs.write_day(1, count=7, is_committed=False)  # the second day is closed already
    logs.write_day(2)
    run_once(shop.settings)
    events = [tick.events for tick in decode_ticks([value for _, value in ticks_of(shop)])]
    assert events == [60, 60, 67]
    assert run_once(shop.settings) == []
    assert len(ticks_of(shop)) == 3


def test_changed_settings_leave_what_is_published_and_are_reported(shop: Shop, logs: MonitoredLogs) -> None:
    for day in range(3):
        logs.write_day(day)
    run_once(with_schedule(shop.settings))
    before = ticks_of(shop)
    logs.write_day(3)
    said = run_once(with_schedule(shop.settings, average_run_length=100))
    assert len(said) == 1 and "is now judged otherwise" in said[0] and str(end_of(0)) in said[0]
    assert ticks_of(shop)[:3] == before and len(ticks_of(shop)) == 4


def test_a_second_monitor_fences_the_first_which_publishes_no_tick(shop: Shop, logs: MonitoredLogs) -> None:
    older = Monitor(shop.settings, telemetry=MonitorTelemetry(), report=print)
    newer = Monitor(shop.settings, telemetry=MonitorTelemetry(), report=print)
    logs.write_day(0)
    with pytest.raises(FencedError, match="TM-4010"):
        older.run(is_until_end=True, is_stopped=lambda: False)
    assert ticks_of(shop) == []
    newer.run(is_until_end=True, is_stopped=lambda: False)
    for monitor in (older, newer):
        monitor.close()
    assert len(ticks_of(shop)) == 1


def test_positions_stand_in_the_transaction_of_the_tick(shop: Shop, logs: MonitoredLogs) -> None:
    logs.write_day(0)
    monitor = Monitor(shop.settings, telemetry=MonitorTelemetry(), report=print)
    while not ticks_of(shop):
        monitor.fold({}, lambda: False)
    monitor.close()
    examples = Partition(f"{shop.settings.app.name}.examples.v1", 0)
    found = kafka.committed_offsets(shop.clients, monitor_id(shop.settings.app), [examples])
    assert found[examples][0] == kafka.log_bounds(shop.clients, [examples])[examples][1]


def test_an_acknowledged_incident_is_not_repeated_also_not_by_a_restarted_monitor(
    shop: Shop, logs: MonitoredLogs
) -> None:
    """Half of the records are dead letters from the fourth day on; an incident is repeated after each cooldown."""
    settings = with_schedule(shop.settings, cooldown_ms=2 * DAY_MS, quiet_ms=4 * DAY_MS)
    for day in range(8):
        logs.write_day(day, dead_letters=60 if day > 3 else 0)
    run_once(settings)
    opened = next(one for one in incidents_of(read_alerts(settings)) if one.newest.kind == "operations")
    assert (opened.status, opened.told) == ("open", 2)
    record, is_written = acknowledge(settings, opened.newest.key, by="Ada")
    assert is_written and (record.event, record.by, record.id) == ("acknowledged", "Ada", opened.id)
    assert acknowledge(settings, opened.id, by="Ada") == (record, False)
    for day in range(8, 12):
        logs.write_day(day, dead_letters=60)
    run_once(settings)
    known = next(one for one in incidents_of(read_alerts(settings)) if one.id == opened.id)
    assert (known.status, known.told, known.by) == ("acknowledged", 2, "Ada")
    assert run_once(settings) == []


def test_the_end_of_a_log_lies_behind_open_transactions(shop: Shop) -> None:
    """A tick waits for the records of a transaction of which one marker is there and another is not."""
    examples = Partition(f"{shop.settings.app.name}.examples.v1", 0)
    producer = Producer({**shop.clients, "transactional.id": f"tests.{shop.settings.app.name}.open"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(examples.topic, b"value", b"key")
    producer.flush(30)
    ends = LogEnds(shop.clients, [examples])
    assert (ends.ask()[examples], kafka.log_bounds(shop.clients, [examples])[examples][1]) == (1, 0)
    producer.abort_transaction(30)
    deadline = time.monotonic() + 90
    while kafka.log_bounds(shop.clients, [examples])[examples][1] != ends.ask()[examples]:
        assert time.monotonic() < deadline  # the marker is a moment behind the answer
