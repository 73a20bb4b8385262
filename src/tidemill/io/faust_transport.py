"""Faust's transport for Tidemill: a batch of many partitions is one Faust event.

In: a `WorkerHooks` on the Faust app. Out: `SourceBatch` values in an agent's stream. Invariant: Faust sees one
synthetic partition that is assigned once; the real assignments, offsets and rebalances live in `io.polling`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import faust
from faust.transport.base import Transport as FaustTransport
from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP, ConsumerMessage

from tidemill.core.records import Partition
from tidemill.core.spec import TopicSpec
from tidemill.errors import TidemillError
from tidemill.io.polling import Polling
from tidemill.io.source import SourceBatch

BATCHES = TP("tidemill.batches", 0)  # exists in Faust only
GENERATION = 1  # of the synthetic partition; streams skip messages of another one without a word
REVOKE_DEADLINE_S = 4.0  # shorter than the session time-out: a batch that takes longer is discarded by its fences
STOP_DEADLINE_S = 10.0


class WorkerHooks(Protocol):
    """What a worker gives to the transport; the coroutines run on the main loop."""

    topics: tuple[TopicSpec, ...]
    client_settings: Mapping[str, Any]
    group_id: str
    group_instance_id: str
    batch_records: int
    is_bounded: bool
    batch_span_ms: int | None
    barrier_ms: int | None
    max_idle_s: float
    data_folder: Path

    async def on_assigned(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        """Claim, then tell the polling thread to begin."""
        ...

    async def on_revoked(self, partitions: frozenset[Partition]) -> None: ...

    def on_fatal(self, error: BaseException) -> None: ...


class Consumer(FaustConsumer):  # type: ignore[misc]
    """Feeds the stream from the polling thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._queue: asyncio.Queue[SourceBatch] = asyncio.Queue()
        self._number = 0
        self.polling: Polling | None = None

    async def subscribe(self, topics: Iterable[str]) -> None:
        if self.polling is not None:
            return
        self._main = asyncio.get_running_loop()
        hooks: WorkerHooks = self.app.tidemill
        self._hooks = hooks
        self.polling = Polling(
            settings=hooks.client_settings,
            group_id=hooks.group_id,
            group_instance_id=hooks.group_instance_id,
            topics=hooks.topics,
            batch_records=hooks.batch_records,
            is_bounded=hooks.is_bounded,
            batch_span_ms=hooks.batch_span_ms,
            barrier_ms=hooks.barrier_ms,
            max_idle_s=hooks.max_idle_s,
            hooks=self,
        )
        # Not awaited: Faust ends an assignment only after `subscribe` has returned.
        self.add_future(self._assign_batches())
        self.polling.start()

    async def _assign_batches(self) -> None:
        self.app.on_rebalance_start()
        self.app.consumer_generation_id = GENERATION
        await self.on_partitions_assigned({BATCHES}, GENERATION)

    # Called by the polling thread ------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        asyncio.run_coroutine_threadsafe(self._claim(partitions, generation, group_metadata), self._main)

    def revoked(self, partitions: frozenset[Partition]) -> None:
        done = asyncio.run_coroutine_threadsafe(self._release(partitions), self._main)
        try:
            done.result(REVOKE_DEADLINE_S)
        except TimeoutError:
            done.cancel()

    def batch(self, batch: SourceBatch) -> None:
        self._main.call_soon_threadsafe(self._queue.put_nowait, batch)

    def fatal(self, error: TidemillError) -> None:
        self._main.call_soon_threadsafe(self._hooks.on_fatal, error)

    # On the main loop ------------------------------------------------------------------------------------------

    async def _claim(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        try:
            await self._hooks.on_assigned(partitions, generation, group_metadata)
        except Exception as error:
            self._hooks.on_fatal(error)

    async def _release(self, partitions: frozenset[Partition]) -> None:
        await self._hooks.on_revoked(partitions)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[SourceBatch]]:
        try:
            return {BATCHES: [await asyncio.wait_for(self._queue.get(), timeout)]}
        except TimeoutError:
            return {}

    def _to_message(self, tp: TP, batch: SourceBatch) -> ConsumerMessage:
        self._number += 1
        return ConsumerMessage(
            tp.topic, tp.partition, self._number, 0.0, 0, [], None, batch, None, 0, 0, tp, generation_id=GENERATION
        )

    async def on_stop(self) -> None:
        if self.polling is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.polling.stop, STOP_DEADLINE_S)
        await super().on_stop()

    # What Faust asks of a consumer and a synthetic partition answers -----------------------------------------------

    async def wait_empty(self) -> None:
        """Nothing to wait for: offsets travel in the worker's transactions, never in Faust's acknowledgements."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return True

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Holes lie inside spans."""

    def on_buffer_full(self, tp: TP) -> None:
        """Back-pressure is the polling thread's: it pauses partitions and keeps polling."""

    def on_buffer_drop(self, tp: TP) -> None:
        """See `on_buffer_full`."""

    async def perform_seek(self) -> None:
        """Positions come from claims."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {}

    async def _seek(self, partition: TP, offset: int) -> None:
        """Positions come from claims."""

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Positions come from claims."""

    async def position(self, tp: TP) -> int | None:
        return self._number

    def assignment(self) -> set[TP]:
        return {BATCHES}

    def highwater(self, tp: TP) -> int:
        return self._number

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, self._number)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    def topic_partitions(self, topic: str) -> int | None:
        return 1

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition or 0

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """The synthetic topic exists nowhere."""


class Transport(FaustTransport):  # type: ignore[misc]
    """Faust's entry point for `tidemill://`; agents publish nothing through Faust, so its producer only stands by."""

    Consumer = Consumer
    driver_version = "tidemill"


class PassThrough(faust.Schema):  # type: ignore[misc]
    """A message's value is the batch itself."""

    def compile(self, app: Any, **_: Any) -> Any:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return faust.Event(app, None, message.value, [], message)

        return decode


def make_faust_app(hooks: WorkerHooks, *, web_port: int | None) -> tuple[Any, Any]:
    """The Faust app of a worker and its topic of batches: one agent on that topic gets every `SourceBatch`."""
    folder = hooks.data_folder / "faust"
    folder.mkdir(parents=True, exist_ok=True)  # Faust makes only the last part of the path
    app = faust.App(
        hooks.group_id,
        broker="tidemill://",
        store="memory://",
        datadir=str(folder),
        web_enabled=web_port is not None,
        web_bind="127.0.0.1",
        web_port=web_port or 6066,
        topic_disable_leader=True,
        topic_allow_declare=False,
        value_serializer="raw",
        key_serializer="raw",
        processing_guarantee="at_least_once",
    )
    app.tidemill = hooks
    app.transport = Transport(app.conf.broker, app)
    return app, app.topic(BATCHES.topic, schema=PassThrough(), acks=False)
