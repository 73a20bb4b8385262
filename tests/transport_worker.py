"""A worker with nothing but the transport, for its tests: one output per record, one transaction per batch.

In: topics on a broker. Out: `<partition topic>:<number>:<offset>` of every record, exactly once, on one output topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tidemill.core.records import Output, Partition
from tidemill.core.spec import TopicSpec
from tidemill.errors import FencedError, TidemillError, UnavailableError
from tidemill.io import kafka
from tidemill.io.faust_transport import make_faust_app
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.source import SourceBatch


class TransportWorker:
    """Fulfils `WorkerHooks`. `output_topic` None: count the records and publish nothing."""

    def __init__(
        self,
        clients: Mapping[str, Any],
        topics: tuple[TopicSpec, ...],
        *,
        group: str,
        name: str,
        folder: Path,
        output_topic: str | None = None,
        batch_records: int = 500,
        is_bounded: bool = False,
        seconds_per_batch: float = 0.0,
        max_idle_s: float = 0.5,
    ) -> None:
        self.topics = topics
        self.client_settings = clients
        self.group_id = group
        self.group_instance_id = f"{group}.{name}"
        self.batch_records = batch_records
        self.batch_span_ms = None
        self.barrier_ms = None
        self.is_bounded = is_bounded
        self.max_idle_s = max_idle_s
        self.data_folder = folder
        self.seconds_per_batch = seconds_per_batch
        self.starts: dict[Partition, int] = {}  # instead of what the group committed
        self.batches: list[SourceBatch] = []
        self.record_count = 0
        self.discarded = 0
        self.assignments: list[frozenset[Partition]] = []
        self.revoked_while_working = 0
        self.error: BaseException | None = None
        self._output_topic = output_topic
        self._generation, self._epoch = -1, -1
        self._busy = asyncio.Lock()
        self._compute = ThreadPoolExecutor(max_workers=1)
        self._writer: TransactionalWriter | None = None

    async def __aenter__(self) -> TransportWorker:
        self._app, topic = make_faust_app(self, web_port=None)

        @self._app.agent(topic)
        async def publish(batches: Any) -> None:
            async for batch in batches:
                await self._process(batch)

        await self._app.start()
        self.consumer = self._app.consumer
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._app.stop()
        self._compute.shutdown()

    @property
    def partitions(self) -> frozenset[Partition]:
        return self.assignments[-1] if self.assignments else frozenset()

    async def until(self, is_so: Any, deadline_s: float = 90.0) -> None:
        """Wait for a condition; an error of the worker ends the wait."""
        async with asyncio.timeout(deadline_s):
            while not is_so():
                if self.error is not None:
                    raise self.error
                await asyncio.sleep(0.01)

    async def claim_again(self) -> None:
        """As after a refused script: what is read and not processed is read again."""
        async with self._busy:
            await self._claim(self.partitions, self._generation)

    # The hooks ---------------------------------------------------------------------------------------------------

    async def on_assigned(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        self._generation = generation
        await self._claim(partitions, generation)
        self.assignments.append(partitions)

    async def on_revoked(self, partitions: frozenset[Partition]) -> None:
        if self._busy.locked():
            self.revoked_while_working += 1
        async with self._busy:
            self._generation = -1

    def on_fatal(self, error: BaseException) -> None:
        self.error = self.error or error

    # The work ----------------------------------------------------------------------------------------------------

    async def _claim(self, partitions: frozenset[Partition], generation: int) -> None:
        starts = await asyncio.get_running_loop().run_in_executor(self._compute, self._find_starts, partitions)
        self._epoch = self.consumer.polling.begin(generation, starts)

    def _find_starts(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        if self._writer is not None:
            self._writer.abandon()
        if self._output_topic is not None:
            self._writer = TransactionalWriter(self.client_settings, self.group_instance_id)
            self._writer.open()
        committed = kafka.committed_offsets(self.client_settings, self.group_id, sorted(partitions))
        return {p: self.starts.get(p, committed[p][0] or 0) for p in partitions}

    async def _process(self, batch: SourceBatch) -> None:
        try:
            async with self._busy:
                if (batch.generation, batch.epoch) != (self._generation, self._epoch):
                    self.discarded += 1
                    return
                await asyncio.sleep(self.seconds_per_batch)
                await asyncio.get_running_loop().run_in_executor(self._compute, self._publish, batch)
        except (FencedError, UnavailableError):
            self.discarded += 1
            if batch.generation == self._generation:
                await self._claim(self.partitions, batch.generation)
        except TidemillError as error:
            self.on_fatal(error)
        finally:
            self.consumer.polling.batch_done()

    def _publish(self, batch: SourceBatch) -> None:
        """In a thread of its own: a batch in flight ends although its agent is cancelled, and is counted here."""
        if self._output_topic is not None:
            self._send(batch, self._output_topic)
            self.batches.append(batch)
        self.record_count += len(batch.records)

    def _send(self, batch: SourceBatch, topic: str) -> None:
        assert self._writer is not None
        seen = [f"{self.topics[r.topic_index].name}:{r.partition}:{r.offset}".encode() for r in batch.records]
        outputs = [Output(topic, None, value) for value in seen]
        self._writer.publish(outputs, {p: (span.next, "") for p, span in batch.spans.items()}, batch.group_metadata)
