"""The transport on a real broker: nothing lost, nothing doubled, in the order of time, whatever the group does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from transport_worker import TransportWorker

from tidemill.core.records import Partition
from tidemill.core.spec import TopicSpec
from tidemill.errors import FencedError, StateLostError
from tidemill.io import kafka, polling
from tidemill.io.embedded import Servers
from tidemill.io.kafka_reader import read_topic
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER

pytestmark = pytest.mark.servers

START = 1_000_000_000_000  # event time of the first record


@pytest.fixture
def clients(servers: Servers) -> dict[str, Any]:
    return kafka.client_settings(servers.bootstrap_servers)


class Input:
    """An input topic, and what was written to it."""

    def __init__(self, clients: Mapping[str, Any], name: str, role: str = "event", *, partitions: int = 4) -> None:
        kafka.ensure_topics(clients, {name: partitions}, {"retention.ms": "-1"})
        self._partitions = partitions
        self.name = name
        self.spec = TopicSpec(name=name, role=role, schema={})  # type: ignore[arg-type]
        self.count = 0
        self._producer = Producer({**clients, "linger.ms": 5})

    def write(self, count: int, *, value: bytes = b"v") -> None:
        """One record per millisecond of event time, round the partitions."""
        for number in range(self.count, self.count + count):
            self._producer.produce(
                self.name, value, b"k", partition=number % self._partitions, timestamp=START + number
            )
        self.count += count
        self._producer.flush(20)

    def punctuate(self, time: int, *, is_end: bool) -> None:
        headers = [(PUNCTUATION_HEADER, b"%d" % time), *([(END_HEADER, b"")] if is_end else [])]
        for partition in range(self._partitions):
            self._producer.produce(self.name, None, None, partition=partition, timestamp=time, headers=headers)
        self._producer.flush(20)


@pytest.fixture
def events(clients: dict[str, Any], app_name: str) -> Input:
    return Input(clients, f"{app_name}.events")


@pytest.fixture
def output(clients: dict[str, Any], app_name: str) -> str:
    kafka.ensure_topics(clients, {f"{app_name}.out": 1}, {})
    return f"{app_name}.out"


def published(clients: Mapping[str, Any], topic: str) -> Counter[bytes]:
    return Counter(message.value() for messages in read_topic(clients, topic) for message in messages)


def expected(events: Input) -> Counter[bytes]:
    return Counter(f"{events.name}:{number % 4}:{number // 4}".encode() for number in range(events.count))


def assert_tiled(workers: list[TransportWorker]) -> None:
    spans: dict[Partition, list[tuple[int, int]]] = {}
    for worker in workers:
        for batch in worker.batches:
            for partition, span in batch.spans.items():
                spans.setdefault(partition, []).append((span.start, span.next))
    for each in spans.values():
        each.sort()
        assert [start for start, _ in each] == [0, *(next_ for _, next_ in each[:-1])]


def test_batches_are_in_the_order_of_time_over_all_partitions(
    clients: dict[str, Any], events: Input, output: str, app_name: str, tmp_path: Path
) -> None:
    labels = Input(clients, f"{app_name}.labels", "label")
    events.write(4_000)
    labels.write(4_000)

    async def run() -> TransportWorker:
        async with TransportWorker(
            clients,
            (events.spec, labels.spec),
            group=app_name,
            name="a",
            folder=tmp_path,
            output_topic=output,
            max_idle_s=20.0,  # a busy machine may take long to deliver a partition, and is waited for
        ) as worker:
            await worker.until(lambda: worker.record_count == 8_000)
            assert worker.consumer.polling.out_of_order == 0
            return worker

    worker = asyncio.run(run())
    records = [record for batch in worker.batches for record in batch.records]
    assert [record.time - START for record in records] == [time for time in range(4_000) for _ in range(2)]
    assert [record.topic_index for record in records] == [1, 0] * 4_000  # a label before an event of its time
    assert_tiled([worker])


def test_nothing_is_lost_or_doubled_while_workers_join_and_leave(
    clients: dict[str, Any], events: Input, output: str, app_name: str, tmp_path: Path
) -> None:
    events.write(8_000)

    def worker(name: str) -> TransportWorker:
        return TransportWorker(
            clients, (events.spec,), group=app_name, name=name, folder=tmp_path / name, output_topic=output,
            batch_records=100, seconds_per_batch=0.02,
        )  # fmt: skip

    async def run() -> list[TransportWorker]:
        first, second, again = worker("a"), worker("b"), worker("a")
        async with second:
            async with first:
                await first.until(lambda: first.record_count > 300)
                await second.until(lambda: second.record_count > 300)
                await second.until(lambda: len(first.partitions) == len(second.partitions) == 2)
                await asyncio.to_thread(events.write, 8_000)
            async with again:  # a new process in the slot of the first: the others keep their partitions
                await again.until(lambda: again.record_count > 300)
                assert again.partitions == first.partitions
                await asyncio.to_thread(events.write, 4_000)
            await second.until(lambda: len(second.partitions) == 4)  # the first does not come back
            workers = [first, second, again]
            await second.until(lambda: sum(w.record_count for w in workers) >= events.count, 60)
        return workers

    workers = asyncio.run(run())
    assert published(clients, output) == expected(events)
    assert_tiled(workers)
    assert sum(worker.revoked_while_working for worker in workers) > 0


def test_slow_worker_stays_in_the_group_and_its_memory_is_bounded(
    clients: dict[str, Any], app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "PAUSE_ABOVE_RECORDS", 1_000)
    monkeypatch.setattr(polling, "RESUME_BELOW_RECORDS", 500)
    monkeypatch.setattr(polling, "POLL_RECORDS_MAX", 500)
    events = Input(clients, f"{app_name}.single", partitions=1)  # the merge always waits for a single partition
    events.write(20_000)

    async def run() -> TransportWorker:
        async with TransportWorker(
            clients, (events.spec,), group=app_name, name="a", folder=tmp_path, seconds_per_batch=7.0
        ) as worker:
            await worker.until(lambda: worker.partitions)
            await asyncio.sleep(3.0)
            assert 0 < worker.consumer.polling._merge.buffered_total() <= 1_500
            worker.seconds_per_batch = 0.0  # of the batches after this one
            await worker.until(lambda: worker.record_count > 0)  # longer than the session time-out
            await worker.until(lambda: worker.record_count == 20_000)
            assert worker.consumer.polling.out_of_order == 0
            return worker

    worker = asyncio.run(run())
    assert len(worker.assignments) == 1 and worker.discarded == 0


def test_new_claim_reads_partitions_again_that_were_paused(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "PAUSE_ABOVE_RECORDS", 100)
    monkeypatch.setattr(polling, "RESUME_BELOW_RECORDS", 50)
    events.write(4_000)

    async def run() -> None:
        async with TransportWorker(
            clients, (events.spec,), group=app_name, name="a", folder=tmp_path, seconds_per_batch=1.0
        ) as worker:
            await worker.until(lambda: worker.partitions and len(worker.consumer.polling._paused) == 4)
            await worker.claim_again()
            worker.seconds_per_batch = 0.0
            counted = worker.record_count
            await worker.until(lambda: worker.record_count - counted == 4_000)  # from the first record: none committed

    asyncio.run(run())


def test_large_records_are_bounded_by_their_bytes(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "PAUSE_ABOVE_BYTES", 1_000_000)
    monkeypatch.setattr(polling, "POLL_RECORDS_MAX", 10)
    events.write(400, value=bytes(20_000))

    async def run() -> None:
        async with TransportWorker(
            clients, (events.spec,), group=app_name, name="a", folder=tmp_path, batch_records=10, seconds_per_batch=1.0
        ) as worker:
            await worker.until(lambda: worker.record_count > 0)
            assert worker.consumer.polling._bytes < 2_000_000
            worker.seconds_per_batch = 0.0
            await worker.until(lambda: worker.record_count == 400)
            assert worker.consumer.polling.out_of_order == 0
            assert worker.consumer.polling._bytes == 0

    asyncio.run(run())


def test_bounded_replay_cuts_the_same_batches_again_and_ends(
    clients: dict[str, Any], events: Input, app_name: str, output: str, tmp_path: Path
) -> None:
    async def run(name: str, *, writes_meanwhile: bool) -> list[list[int]]:
        async with TransportWorker(
            clients, (events.spec,), group=f"{app_name}.{name}", name="a", folder=tmp_path / name, output_topic=output,
            batch_records=300, is_bounded=True,
        ) as worker:  # fmt: skip
            if writes_meanwhile:
                for _ in range(5):
                    await asyncio.to_thread(events.write, 500)
                    await asyncio.to_thread(events.punctuate, START + events.count - 1, is_end=False)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(events.punctuate, START + 10_000, is_end=True)
            await worker.until(lambda: worker.record_count == 2_500 + 6 * 4)
            return [[record.offset * 4 + record.partition for record in batch.records] for batch in worker.batches]

    first = asyncio.run(run("first", writes_meanwhile=True))
    assert asyncio.run(run("second", writes_meanwhile=False)) == first
    assert [len(batch) for batch in first] == [300] * 8 + [124]


def test_group_limit_holds_later_records_back(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path
) -> None:
    events.write(1_000)

    async def run() -> None:
        worker = TransportWorker(clients, (events.spec,), group=app_name, name="a", folder=tmp_path)
        async with worker:
            await worker.until(lambda: worker.consumer.polling is not None)
            polling = worker.consumer.polling
            polling.set_limit(START + 99)
            await worker.until(lambda: polling.candidate_time == START + 100)
            await worker.until(lambda: worker.record_count >= 100)
            assert worker.record_count == 100
            polling.set_limit(None)
            await worker.until(lambda: worker.record_count == 1_000)

    asyncio.run(run())


def test_others_are_told_of_the_next_record_only_when_no_batch_is_out(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path
) -> None:
    """Else this worker's watermark passes records that it has yet to process, and their labels become orphans."""
    events.write(1_000)

    async def run() -> None:
        worker = TransportWorker(clients, (events.spec,), group=app_name, name="a", folder=tmp_path)
        worker.seconds_per_batch = 0.3
        async with worker:
            await worker.until(lambda: worker.consumer.polling is not None)
            polling = worker.consumer.polling
            polling.set_limit(START + 99)
            await worker.until(lambda: polling.candidate_time == START + 100)
            assert worker.record_count == 100

    asyncio.run(run())


def test_offset_that_is_gone_stops_the_worker(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path
) -> None:
    events.write(100)

    async def run() -> None:
        worker = TransportWorker(clients, (events.spec,), group=app_name, name="a", folder=tmp_path)
        worker.starts = {Partition(events.name, 2): 999}
        async with worker:
            await worker.until(lambda: worker.record_count < 0)

    with pytest.raises(StateLostError, match=r"TM-4021 .*events\[2\]@999 is not in the log"):
        asyncio.run(run())


def test_second_process_in_a_slot_ends_the_first(
    clients: dict[str, Any], events: Input, app_name: str, tmp_path: Path
) -> None:
    events.write(100)

    async def run() -> None:
        older, newer = (
            TransportWorker(clients, (events.spec,), group=app_name, name="a", folder=tmp_path / name) for name in "on"
        )
        async with older:
            await older.until(lambda: older.record_count == 100)
            async with newer:
                await newer.until(lambda: len(newer.partitions) == 4)
                await older.until(lambda: False)

    with pytest.raises(FencedError, match="TM-4011"):
        asyncio.run(run())


def test_ends_do_not_count_markers(
    clients: dict[str, Any], events: Input, output: str, app_name: str, tmp_path: Path
) -> None:
    """Else a quiet topic of a transactional producer would look like one that is never read to its end."""

    async def run() -> None:
        upstream = TransportWorker(
            clients, (events.spec,), group=app_name, name="a", folder=tmp_path / "a", output_topic=output
        )
        events.write(400)
        async with upstream:
            await upstream.until(lambda: upstream.record_count == 400)
        last = len(upstream.batches) + 400 - 1  # a marker after each batch
        spec = TopicSpec(name=output, role="event", schema={})
        async with TransportWorker(clients, (spec,), group=f"{app_name}.next", name="a", folder=tmp_path) as worker:
            await worker.until(lambda: worker.record_count == 400)
            await worker.until(lambda: worker.consumer.polling.ends == {Partition(output, 0): last}, 3)
            assert worker.consumer.polling.blocked_by() is None

    asyncio.run(run())
