"""The polling thread: it alone touches the group consumer, and it never blocks.

In: the group's assignments, messages, commands from the main thread. Out: batches in merged order, one at a time, with
the group's metadata of that moment. Invariant: no batch of an older generation leaves after a revoke; when the worker
is slow, partitions are paused and the polling goes on.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tidemill.core.merge import Cut, Offered, Place, TimeOrderedMerge
from tidemill.core.records import Partition
from tidemill.core.spec import TopicSpec
from tidemill.errors import FencedError, InvariantError, StateLostError, TidemillError, UnavailableError
from tidemill.io.offered import punctuation_of
from tidemill.io.source import SourceBatch, records_of

SESSION_TIMEOUT_MS = 6_000  # a dead worker's partitions move within this
POLL_RECORDS_MAX = 5_000
POLL_S = 0.02  # also how soon a command is served
POLL_FULL_S = 0.003  # while the worker is behind or held: how soon it gets the next batch once it may
PAUSE_ABOVE_RECORDS = 20_000  # per partition: a few batches
RESUME_BELOW_RECORDS = 10_000  # covers the .2 s that a resumed fetch takes to bring records again
PAUSE_ABOVE_BYTES = 64 * 1024 * 1024  # over all partitions: large records must not fill the memory
BATCHES_OUT_MAX = 2  # one in work, one waiting
FETCH_START_S = 2.0  # a fetch that begins anew looks for its leader first: until then nothing is known of the partition
WAKE_UP_S = 0.05  # the answer does not matter
REPORT_EVERY_S = 0.25  # how often `ends` and `blocked_by` are renewed

_FATAL = {KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID, KafkaError._FENCED}  # the first in place of the others
_LOST = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET}
_REFUSED = {KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED}  # tried again for ever


class PollingHooks(Protocol):
    """What the thread tells the rest of the worker; called in the polling thread."""

    def assigned(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        """Must not wait."""

    def revoked(self, partitions: frozenset[Partition]) -> None:
        """Returns once the batch in flight has ended or its deadline is over."""

    def batch(self, batch: SourceBatch) -> None: ...

    def fatal(self, error: TidemillError) -> None: ...


class Polling:
    """Runs the group consumer and the time-ordered merge.

    For other threads to read, each replaced as a whole by the polling thread:
        candidate_time: the time of the next record when only the group's limit holds it back and no batch is out.
        epoch: of the claim whose records `candidate_time` speaks of; read it first.
        ends: behind the last record of each partition as far as is known; markers at the end do not count.
        last_error: what the client last complained about and tries again by itself.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        group_id: str,
        group_instance_id: str,
        topics: Sequence[TopicSpec],
        batch_records: int,
        is_bounded: bool,
        batch_span_ms: int | None,
        barrier_ms: int | None,
        max_idle_s: float,
        hooks: PollingHooks,
    ) -> None:
        self._topics = topics
        self._index_of = {topic.name: index for index, topic in enumerate(topics)}
        self._batch_records = batch_records
        self._is_bounded = is_bounded
        self._max_idle_s = max_idle_s
        self._hooks = hooks
        self._merge = TimeOrderedMerge(
            [topic.role for topic in topics], is_bounded=is_bounded, span_ms=batch_span_ms, barrier_ms=barrier_ms
        )
        self._settings = {
            **settings,
            "group.id": group_id,
            "group.instance.id": group_instance_id,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",  # never a silent jump: starts come from the claim
            "partition.assignment.strategy": "range",
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": SESSION_TIMEOUT_MS // 3,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 20_000,
            "queued.max.messages.kbytes": 32 * 1024,
        }
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)
        self._generation = 0
        self.epoch, self._last_epoch = 0, 0  # of the batches that leave; as promised to the main thread
        self._next: dict[Place, int] = {}  # the next offset to receive; empty until the claim is done
        self._received: dict[Place, int] = {}  # behind the last record that came
        self._seen_end: dict[Place, int] = {}  # where the client last found nothing more to read
        self._waited_until: dict[Place, float] = {}  # live: a partition that lags is not waited for after this
        self._bytes = 0
        self._paused: set[Place] = set()
        self._batches_out = 0
        self._is_starved, self._is_held = False, False  # room for a batch: none to be had; one that the limit holds
        self._limit: int | None = None
        self._reported_at = 0.0
        self.candidate_time: int | None = None
        self.ends: Mapping[Partition, int] = {}
        self._blocked_by: Partition | None = None
        self.last_error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Leave the group; returns when the thread has ended or the deadline is over."""
        self._stopping.set()
        self._thread.join(deadline_s)

    # Commands of other threads ---------------------------------------------------------------------------------

    def begin(self, generation: int, starts: Mapping[Partition, int], ended: Container[Partition] = ()) -> int:
        """The claim is done: read from these offsets, dropping whatever was buffered. Returns the epoch that batches
        from now on carry; those of an earlier one must be thrown away. `ended`: a replay of them is over already."""
        self._last_epoch += 1
        epoch = self._last_epoch
        self._commands.put(lambda: self._begin(generation, epoch, starts, ended))
        return epoch

    def batch_done(self) -> None:
        """Every batch that was handed over needs it once, whatever became of it."""
        self._commands.put(self._batch_done)

    def set_limit(self, limit: int | None) -> None:
        """No record later than this event time may leave."""
        self._limit = limit  # replaced as a whole

    def blocked_by(self) -> Partition | None:
        """The partition that the merge waited for most, a moment ago."""
        return self._blocked_by

    @property
    def out_of_order(self) -> int:
        return self._merge.out_of_order

    # The thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._consumer = Consumer({**self._settings, "error_cb": self._on_error})
            self._consumer.subscribe(
                [topic.name for topic in self._topics],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )
            while not self._stopping.is_set():
                self._poll_once()
            self._consumer.close()
        except TidemillError as error:
            self._hooks.fatal(error)
        except KafkaException as error:
            self._hooks.fatal(_wrapped(error.args[0]))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._hooks.fatal(
                InvariantError("TM-9011", f"polling failed in {where.name}, line {where.lineno}: {error!r}; report it")
            )

    def _poll_once(self) -> None:
        while True:
            try:
                self._commands.get_nowait()()
            except Empty:
                break
        has_work = self._hand_over()
        is_full = self._batches_out >= BATCHES_OUT_MAX
        # `consume` alone waits for the whole count or the whole time; `poll` returns with the first message.
        first = self._consumer.poll(0.0 if has_work else POLL_FULL_S if is_full or self._is_held else POLL_S)
        if first is not None:
            self._take([first, *self._consumer.consume(POLL_RECORDS_MAX - 1, 0.0)])
        self._pause_or_resume()
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._report()

    def _take(self, messages: Iterable[Message]) -> None:
        lanes: dict[Place, list[Offered]] = {}
        index_of, expected = self._index_of, self._next
        for message in messages:
            place = (index_of.get(message.topic(), -1), message.partition())
            if (error := message.error()) is not None:
                self._take_error(message, error, place)
                continue
            if place not in expected:
                continue  # fetched before the claim was done
            offset = message.offset()
            expected[place] = offset + 1
            stamp = message.timestamp()[1]
            if (size := len(message)) or message.value() is not None:
                self._bytes += size
                offered = Offered(stamp, offset, message)
            else:
                punctuation, is_end = punctuation_of(message)
                offered = Offered(
                    stamp if punctuation is None else punctuation, offset, message, punctuation is not None, is_end
                )
            lanes.setdefault(place, []).append(offered)
        for place, records in lanes.items():
            self._received[place] = records[-1].offset + 1
            self._wait_for(place, self._max_idle_s)
            self._merge.offer(*place, records)

    def _take_error(self, message: Message, error: KafkaError, place: Place) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            if place in self._next:
                self._seen_end[place] = message.offset()
                self._next[place] = max(self._next[place], message.offset())
        elif error.code() in _LOST:
            raise StateLostError(
                "TM-4021",
                f"{message.topic()}[{message.partition()}]@{self._next.get(place, '?')} is not in the log any more: "
                "records were deleted before they were read; restore the topic, or accept it with `tidemill reset`",
            )
        elif error.fatal() or error.code() in _FATAL | _REFUSED:
            raise _wrapped(error)
        else:  # broker down, leader moved: the client tries again by itself, the watchdog watches progress
            self.last_error = error.str()

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error.str()

    def _hand_over(self) -> bool:
        """Send a batch if there is one and room for it; True when there may be another at once."""
        candidate: int | None = None
        cut: Cut | None = None
        has_room = bool(self._next) and self._batches_out < BATCHES_OUT_MAX
        if has_room:
            cut = self._merge.take(self._batch_records, limit=self._limit, lagging=self._lagging())
            if cut is not None:
                self._batches_out += 1
                self._hooks.batch(self._source_batch(cut))
            elif self._limit is not None:
                next_time = self._merge.next_time()
                candidate = next_time if next_time is not None and next_time > self._limit else None
        self._is_held = candidate is not None
        self._is_starved = has_room and cut is None and candidate is None
        self.candidate_time = None if self._batches_out else candidate  # a batch that is out holds earlier records
        return cut is not None

    def _source_batch(self, cut: Cut) -> SourceBatch:
        self._bytes -= sum(len(entry.payload) for entry in cut.entries)
        spans = {self._partition(place): span for place, span in cut.spans.items()}
        # Metadata of this moment, not of the commit: a batch that outlives its generation is refused by the group.
        return SourceBatch(
            records_of(cut), spans, self._generation, self.epoch, self._consumer.consumer_group_metadata()
        )

    def _lagging(self) -> set[Place]:
        """Partitions with more records in Kafka; live: only those that have given something within `max_idle_s`, or
        could not, because they were full."""
        now = time.monotonic()
        lagging = set()
        for place, at in self._next.items():
            if self._seen_end.get(place, -1) >= at or 0 <= self._high(place) <= at:
                continue
            if place in self._paused or self._merge.is_waiting(place):
                self._wait_for(place, self._max_idle_s)
            if self._is_bounded or now <= self._waited_until[place]:
                lagging.add(place)
        return lagging

    def _wait_for(self, place: Place, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._waited_until[place] = max(until, self._waited_until.get(place, until))

    def _high(self, place: Place) -> int:
        """The end of the partition, markers included, as of the last fetch; negative before the first one."""
        try:
            return int(self._consumer.get_watermark_offsets(*self._at([place]), cached=True)[1])
        except (KafkaException, TypeError):
            return -1

    def _pause_or_resume(self) -> None:
        # The partition that keeps the merge from a batch is read on, however much is buffered of it.
        needed = self._merge.blocking(set(self._next)) if self._is_starved else None
        is_full = self._bytes > PAUSE_ABOVE_BYTES
        pause, resume = [], []
        for place in self._next:
            count = self._merge.buffered(place)
            if place in self._paused:
                if place == needed or (count < RESUME_BELOW_RECORDS and not is_full):
                    resume.append(place)
            elif place != needed and (count > PAUSE_ABOVE_RECORDS or (is_full and count > 0)):
                pause.append(place)
        if pause:
            self._consumer.pause(self._at(pause))
            self._paused.update(pause)
        if resume:
            self._consumer.resume(self._at(resume))
            if len(self._paused) == len(self._next):
                self._wake_up(resume[0])
            self._paused.difference_update(resume)
            for place in resume:
                self._seen_end.pop(place, None)
                self._wait_for(place, max(FETCH_START_S, self._max_idle_s))

    def _wake_up(self, place: Place) -> None:
        """A client without any fetch in flight sees that it may fetch again only after up to a second; a request that
        goes to the broker makes it look at once."""
        with suppress(KafkaException):
            self._consumer.get_watermark_offsets(*self._at([place]), timeout=WAKE_UP_S)

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        ends = {}
        for place, at in self._next.items():
            high = self._high(place)
            ends[self._partition(place)] = high if high > at else self._received[place]
        self.ends = ends
        blocking = self._merge.blocking(self._lagging())
        self._blocked_by = None if blocking is None else self._partition(blocking)

    # Rebalances, in the polling thread, inside `poll` and `consume` ------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget()
        consumer.assign([])  # nothing is fetched until the claim says from where
        self._hooks.assigned(
            frozenset(Partition(p.topic, p.partition) for p in partitions),
            self._generation,
            consumer.consumer_group_metadata(),
        )

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget()
        self._hooks.revoked(frozenset(Partition(p.topic, p.partition) for p in partitions))
        consumer.unassign()

    def _forget(self) -> None:
        self._generation += 1
        self._clear({})
        self._report()

    def _begin(self, generation: int, epoch: int, starts: Mapping[Partition, int], ended: Container[Partition]) -> None:
        if generation != self._generation:
            return  # a newer assignment is being claimed
        self.candidate_time = None  # what waited in other partitions
        self.epoch = epoch
        self._clear({(self._index_of[p.topic], p.number): offset for p, offset in starts.items()})
        for place, offset in self._next.items():
            self._merge.add_partition(*place, offset, is_ended=self._partition(place) in ended)
            self._wait_for(place, max(FETCH_START_S, self._max_idle_s))
        self._consumer.assign([TopicPartition(p.topic, p.number, offset) for p, offset in starts.items()])
        self._consumer.resume(self._at(self._next))  # the client keeps a partition paused through a new assignment

    def _clear(self, positions: dict[Place, int]) -> None:
        """Forget what was read; `positions` is what is read from now on."""
        self._merge.clear()
        self._next = positions
        self._received = dict(positions)
        self._seen_end.clear()
        self._waited_until.clear()
        self._paused.clear()
        self._bytes = 0

    def _batch_done(self) -> None:
        self._batches_out -= 1

    def _partition(self, place: Place) -> Partition:
        return Partition(self._topics[place[0]].name, place[1])

    def _at(self, places: Iterable[Place]) -> list[TopicPartition]:
        return [TopicPartition(self._topics[index].name, number) for index, number in places]


def _wrapped(error: KafkaError) -> TidemillError:
    if "fenced" in error.str().lower():
        return FencedError(
            "TM-4011",
            "the group consumer was fenced: another process runs with the same slot; give each worker its own --slot",
        )
    return UnavailableError(
        "TM-3015",
        f"the group consumer failed: {error.str()}; check the broker and the `kafka:` settings, then start it again",
    )
