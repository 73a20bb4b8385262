"""The compute side of a worker: everything that one thread owns, from claim to commit.

In: assignments and source batches. Out: commits in the store and in Kafka. Invariant: one thread calls it; between two
calls every partition is either claimed with applied == committed, or must be claimed again before its next batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidemill.apps.bisecting import Bisecting, TriedScorer, died_before
from tidemill.apps.claims import Claims
from tidemill.apps.clients import clients_of
from tidemill.apps.cycle import Cycle, CycleReport
from tidemill.apps.failpoints import failpoint
from tidemill.apps.models import make_models
from tidemill.apps.publishing import Publishing
from tidemill.apps.restoring import LastCut, NewestSnapshot
from tidemill.apps.roll_forward import RollForward
from tidemill.apps.schema_lookup import open_schemas
from tidemill.apps.topics import ensure_output_topics
from tidemill.apps.wholeness import FlaggedScorer, Wholeness
from tidemill.config import Settings, config_digest
from tidemill.core.batches import with_idle_partitions
from tidemill.core.feature_versions import declared_features
from tidemill.core.features import FeaturePlan
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.records import Batch, Mark, Partition
from tidemill.core.roles import Roles
from tidemill.io import kafka
from tidemill.io.codec import WireCodec
from tidemill.io.kafka_reader import LogReader
from tidemill.io.offered import punctuation_of
from tidemill.io.redis_store import RedisStore
from tidemill.io.source import SourceBatch
from tidemill.io.store_answers import fenced
from tidemill.io.telemetry import Telemetry
from tidemill.io.wire import InputDecoder

STORE_CHECK_EVERY_S = 1.0  # eviction may be turned on under a running worker; the question takes .3 ms
TRAILING_HOLES_MAX = 4  # markers of a producer's transactions behind the last record, and room for more
READS_MAX = 5  # of a second at most, until the few last records are there


def worker_group(app: str) -> str:
    """The consumer group of an app's workers."""
    return f"tidemill.{app}.worker"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the rest of the worker may know of the engine; read from other threads, replaced as a whole.

    group_limit: no record later than this event time may be taken now; None = no limit.
    """

    marks: Mapping[Partition, Mark]
    group_limit: int | None
    batches: int
    records: int
    n: int


class Engine:
    """Builds the objects of a worker and runs its cycles."""

    def __init__(self, settings: Settings, *, slot: int, report: Callable[[str], None]) -> None:
        assert settings.redis_url is not None and settings.bootstrap_servers is not None
        self._has_died = died_before(settings.data_folder / "slots" / f"crash-{slot}.txt")
        spec = settings.app
        self._spec = spec
        self._report = report
        self.telemetry = Telemetry(topic.name for topic in spec.topics)
        self.worker = f"tidemill.{spec.name}.worker.{slot}"
        clients = clients_of(settings)
        self._clients = clients
        if created := ensure_output_topics(settings):
            report(f"created topics {', '.join(created)}")
        self._schemas = schemas = open_schemas(settings, report)
        self._end_schemas: Callable[[], None] = lambda: None
        if schemas is not None and settings.schema_registry is not None:
            self.telemetry.watch_schema_registry(lambda: schemas.age_s)
            self._end_schemas = schemas.keep_fresh(settings.schema_registry.refresh_s)
        self._decoder = InputDecoder(spec, schemas=schemas)
        plan = FeaturePlan(spec)
        self._pipeline = Pipeline(spec, plan, WireCodec(spec, self._decoder))
        self._store = RedisStore(
            settings.redis_url,
            spec.name,
            owner_slot=str(slot),
            config_digest=config_digest(spec),
            features=declared_features(spec),
            failpoint=failpoint,
        )
        self._store.check_server()
        self._store_checked_at = time.monotonic()
        self._serving, self._fold = make_models(
            settings, self._pipeline, clients, on_roles=self._say_roles, report=report
        )
        self._bisecting = Bisecting(settings, report=report)
        self._publishing = Publishing(
            client_settings=clients,
            transactional_id=self.worker,
            examples_topic=self._pipeline.examples_topic,
            incarnation=lambda: self._store.incarnation or "",
            on_example=self._fold.expect,
        )
        self._claims = Claims(
            client_settings=clients,
            group=worker_group(spec.name),
            commits_topic=self._pipeline.commits_topic,
            partitions_of_app=self._partitions_of_app,
            store=self._store,
            publishing=self._publishing,
            roll_forward=RollForward(
                client_settings=clients,
                pipeline=self._pipeline,
                decoder=self._decoder,
                store=self._store,
                report=report,
                last_cut=LastCut(settings, self._store, report),
            ),
            report=report,
            restore=NewestSnapshot(settings, report),
            suspect=self._bisecting.suspect,
        )
        self._wholeness = Wholeness(settings.worker.when_behind, report)
        self._scorer = TriedScorer(self._serving, self._bisecting)
        self._cycle = Cycle(
            pipeline=self._pipeline,
            store=self._store,
            scorer=FlaggedScorer(self._scorer, self._wholeness),
            publisher=self._publishing,
            fold=self._fold,
            is_current=lambda: self._generation == self.current_generation,
            failpoint=failpoint,
        )
        self.current_generation = -1  # set by the main thread as soon as the group takes something away
        self._generation = -1
        self.epoch = -1  # of the batches to accept; the main thread sets it when reading begins anew
        self._is_bounded = settings.worker.is_bounded
        self.ended: frozenset[Partition] = frozenset()  # partitions claimed behind the end of their replay
        self._positions: dict[Partition, int] = {}
        self._moved_at: dict[Partition, float] = {}  # when the mark of a partition of the app was last seen to move
        self._partition_count = -1
        self._number = 0
        self._records = 0
        self.progress = Progress({}, None, 0, 0, self._serving.n)

    def claim(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> dict[Partition, int]:
        """Own exactly these partitions from now on; the offset that each starts from."""
        self._generation = generation
        self._publishing.group_metadata = group_metadata  # rows may fall due before the first batch comes
        self._positions = {}
        self._moved_at.update(dict.fromkeys(partitions, time.monotonic()))
        self._partition_count = len(self._partitions_of_app())
        self._bisecting.keep(partitions)
        if self._has_died and partitions:
            self._bisecting.suspect(partitions, kafka.log_bounds(self._clients, sorted(partitions)))
            self._has_died = False
        starts = self._claims.take(partitions, group_metadata) if partitions else {}
        self._wholeness.begin(self._claims.committed_of_app if partitions else {}, self._store.marks())
        self._wholeness.wait(
            lambda: _kept(self._store.marks(), starts), lambda: self._generation == self.current_generation
        )
        self._positions = starts
        self.ended = self._find_ended() if self._is_bounded else frozenset()
        self._show_first_records()
        self._fold.catch_up()
        self._see(self._store.marks())
        return dict(self._positions)

    @property
    def is_waiting_for_schema(self) -> bool:
        """A record's schema is not known and the registry is away; declared to wait for."""
        return self._schemas is not None and self._schemas.is_waiting

    @property
    def positions(self) -> Mapping[Partition, int]:
        """The next offset to commit of every partition owned; replaced, never changed in place."""
        return self._positions

    def process(self, source: SourceBatch) -> None:
        """One batch: decode, cycle, account."""
        if source.generation != self.current_generation or source.epoch != self.epoch:
            return  # taken away or claimed anew since: its records are read again
        self._publishing.group_metadata = source.group_metadata
        self._fold.enter(max(record.time for record in source.records))
        batch = self._decoder.decode(source.records, source.spans, self._bisecting.faults(source.records))
        self._scorer.batch = batch
        self._run(batch)
        self._bisecting.passed(source.records)

    @property
    def is_trying(self) -> bool:
        """Whether it waits for a child that tries suspicious records; that has a deadline of its own."""
        return self._bisecting.is_waiting

    def let_go(self, partitions: frozenset[Partition]) -> None:
        """Give these partitions back, so that their next owner knows that this one lives."""
        self._store.release(sorted(partitions))

    def own_watermark(self) -> int:
        """The smallest watermark of the partitions of this worker; -1 while one of them has shown nothing."""
        marks = self.progress.marks
        return min((marks[p].watermark if p in marks else -1 for p in self._positions), default=-1)

    def take_commands(self) -> None:
        """Fold what has arrived while no records come: commands wait for an answer."""
        if not self._is_bounded:
            self._fold.take_arrived()

    def settle(self) -> bool:
        """Settle rows that are due while no records come; True when there was something to settle."""
        if not self._positions or self._generation != self.current_generation:
            return False
        before = self._number
        self._run(self._decoder.decode([], {}))
        return self._number > before

    def pass_time(self, ends: Mapping[Partition, int], *, idle_after_s: float) -> None:
        """Own partitions without records for `idle_after_s` take the smallest watermark of those that are not idle.

        A quiet partition must not keep every open prediction from expiring. Live only: a replay has punctuation for it.
        Those of other workers are idle too when their marks do not move: two workers that waited for each other's
        quiet partitions would wait for ever.
        """
        if self._generation != self.current_generation:
            return
        self.look()
        idle_since = time.monotonic() - idle_after_s
        marks = self.progress.marks
        idle = {partition for partition in marks if self._moved_at[partition] < idle_since}
        idle -= {partition for partition, at in self._positions.items() if ends.get(partition, at) > at}
        idle -= {partition for partition, mark in marks.items() if partition not in self._positions and mark.is_lagging}
        others = [mark.watermark for partition, mark in marks.items() if partition not in idle]
        quiet = idle & set(self._positions)
        behind = [partition for partition in quiet if others and marks[partition].watermark < min(others)]
        if behind:
            self._store.touch({partition: Mark("", -1, -1, min(others), False) for partition in behind})
            self.look()

    def look(self) -> None:
        """Read the marks of the other workers again."""
        self._see(self._store.marks())

    def say_waiting(self, candidate_time: int) -> None:
        """Nothing earlier than `candidate_time` will come from this worker's partitions: others may go up to it."""
        self._store.touch(
            {
                partition: Mark("", -1, -1, candidate_time - 1, True)
                for partition in self._positions
                if self.progress.marks[partition].watermark < candidate_time - 1
            }
        )
        self.look()

    def close(self) -> None:
        self._store.release(sorted(self._positions))
        self._publishing.close()
        self._end_schemas()
        self._bisecting.close()
        self._report(
            f"stopped at N = {self._serving.n} after {self._records} records, model digest {self._serving.digest()}"
        )

    def _run(self, batch: Batch) -> None:
        whole = with_idle_partitions(batch, self._positions)
        turn = Turn(whole, self._group_watermark(), frozenset(self._positions), self.worker, self._number)
        for report in self._cycle.run(turn):
            if report.outcome.commit.spans:
                self._account(report)

    def _say_roles(self, roles: Roles) -> None:
        """A prepared version is at hand, or not: the issuer of its promotion waits for the answer."""
        self._report(f"N = {self._serving.n}: champion {roles.champion}, challenger {roles.challenger or 'none'}")
        if roles.challenger in self._serving.missing:
            self._report(f"challenger {roles.challenger} refused: {self._serving.missing[roles.challenger]}")
        elif roles.challenger:
            self._store.mark_loaded(roles.challenger)

    def _account(self, report: CycleReport) -> None:
        commit = report.outcome.commit
        self._number += 1
        self._records += report.records
        self._positions = {**self._positions, **{p: span.next for p, span in commit.spans.items()}}
        now = time.monotonic()
        self.telemetry.observe_cycle(
            records=report.records,
            outcomes=report.outcome.outcomes,
            dead_letter_codes=report.dead_letter_codes,
            seconds_by_stage=report.seconds_by_stage,
            watermarks={p: mark.watermark for p, mark in report.marks.items()},
            n=self._serving.n,
        )
        self.telemetry.set_snapshots_failed(self._fold.snapshots_failed)
        if now - self._store_checked_at > STORE_CHECK_EVERY_S:
            self._store_checked_at = now
            self._store.check_server()
        self._see(report.marks)

    def _see(self, marks: Mapping[Partition, Mark]) -> None:
        """Raises FencedError: the store has forgotten what this worker committed."""
        self._wholeness.see(_kept(marks, self._positions))
        before, now = self.progress.marks, time.monotonic()
        moved = [p for p, mark in marks.items() if p not in before or before[p].applied != mark.applied]
        self._moved_at.update(dict.fromkeys(moved, now))
        others = [mark.watermark for p, mark in marks.items() if p not in self._positions and mark.is_lagging]
        limit = min(others) + self._spec.max_skew_ms if others else None
        self.progress = Progress(marks, limit, self._number, self._records, self._serving.n)

    def _group_watermark(self) -> int:
        """The smallest watermark of all partitions of the app; -1 while one of them has shown nothing."""
        marks = self.progress.marks
        if len(marks) < self._partition_count:
            return -1
        return min((mark.watermark for mark in marks.values()), default=-1)

    def _show_first_records(self) -> None:
        """A claimed partition that has records but was never processed shows the time before its first record, so
        that other workers neither run away from it nor wait for it for ever."""
        marks = _kept(self._store.marks(), self._positions)
        unseen = [p for p in self._positions if marks[p].watermark < 0]
        bounds = kafka.log_bounds(self._clients, unseen) if unseen else {}
        first_times: dict[Partition, Mark] = {}
        for partition in unseen:
            if bounds[partition][1] <= self._positions[partition]:
                continue
            reader = LogReader(self._clients, partition.topic, partition.number)
            reader.seek(self._positions[partition])
            messages = reader.read(until_offset=None, timeout_s=1.0, max_records=1)
            reader.close()
            if messages:
                first_times[partition] = Mark("", -1, -1, messages[0].timestamp()[1] - 1, True)
        if first_times:
            self._store.touch(first_times)

    def _find_ended(self) -> frozenset[Partition]:
        """The partitions whose last record is processed and ended the replay: nothing else will come to say so."""
        bounds = kafka.log_bounds(self._clients, sorted(self._positions)) if self._positions else {}
        ended = set()
        for partition, at in self._positions.items():
            first, end = bounds[partition]
            if at <= first or end - at > TRAILING_HOLES_MAX:
                continue
            reader = LogReader(self._clients, partition.topic, partition.number)
            reader.seek(max(first, at - 1 - TRAILING_HOLES_MAX))
            last = None
            for _ in range(READS_MAX):
                messages = reader.read(until_offset=end, timeout_s=1.0, max_records=2 * TRAILING_HOLES_MAX + 2)
                last = messages[-1] if messages else last
                if reader.position >= end:
                    break
            reader.close()
            if last is not None and last.offset() < at and punctuation_of(last)[1]:
                ended.add(partition)
        return frozenset(ended)

    def _partitions_of_app(self) -> list[Partition]:
        return kafka.partitions_of(self._clients, [topic.name for topic in self._spec.topics])


def _kept(marks: Mapping[Partition, Mark], positions: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
    """The marks, of a store that has not forgotten these positions.

    Raises:
        FencedError: it was emptied, or is back at an older cut: nothing must be computed from it.
    """
    for partition, at in positions.items():
        applied = marks[partition].applied if partition in marks else -1
        if applied < at:
            raise fenced("position", partition, expected=str(at), found=str(applied))
    return marks
