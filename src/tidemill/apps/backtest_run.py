"""One app in memory, from its first record to its last: the same cycle as a worker's, without servers.

In: lanes of records, one per partition; a plan of actions at event times. Out: calls to those who watch. Invariant: a
function of the records, the declaration and the plan: no clock, no thread; every batch goes through `apps.cycle`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from tidemill.apps.backtest_log import BacktestLog, OnExamples, OnOutputs
from tidemill.apps.cycle import Cycle, CycleReport
from tidemill.apps.folding import barrier_of
from tidemill.core.batches import with_idle_partitions
from tidemill.core.features import FeaturePlan
from tidemill.core.merge import Cut, Offered, TimeOrderedMerge
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.records import Batch, Command, Outcome, Partition, Span
from tidemill.core.spec import AppSpec
from tidemill.io.codec import WireCodec
from tidemill.io.input_topic import Schemas
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.source import records_of, spans_of
from tidemill.io.wire import InputDecoder
from tidemill.models.replica import LoadBooster
from tidemill.models.serving import Serving

WORKER = "backtest"
BUFFERED_RECORDS = 5_000  # per partition: more than a batch takes of one

Lanes = Mapping[Partition, Iterable[list[Offered]]]


class Action(NamedTuple):
    """Something to do before the first record later than `time`."""

    time: int
    order: int
    do: Callable[[], None]


class GivenCut(NamedTuple):
    """A batch as another run cut it: its spans, its group watermark and the N it was scored with."""

    spans: Mapping[Partition, Span]
    group_watermark: int
    n: int


@dataclass(slots=True)
class Progress:
    """How far a run is. time: of the last record, ms."""

    records: int = 0
    batches: int = 0
    time: int = -1
    outcomes: Counter[Outcome] = field(default_factory=Counter)


class BacktestRun:
    """Runs lanes through the cycle; `serving` and `log` are for actions to use."""

    def __init__(
        self,
        spec: AppSpec,
        *,
        load: LoadBooster,
        on_examples: OnExamples,
        on_outputs: OnOutputs,
        keeps_log: bool = False,
        schemas: Schemas | None = None,
    ) -> None:
        """`keeps_log`: hold all examples in memory, as `excise` needs them (TM-5005 without). `schemas`: of writers
        that are not declared."""
        self.spec = spec
        self.plan = FeaturePlan(spec)
        self._decoder = InputDecoder(spec, schemas=schemas)
        self.pipeline = Pipeline(spec, self.plan, WireCodec(spec, self._decoder))
        self.log = BacktestLog(
            self.pipeline.examples_topic,
            kept_offsets=None if keeps_log else spec.learner.warm_offsets,
            on_examples=on_examples,
            on_outputs=on_outputs,
        )
        self.serving = Serving(
            spec,
            self.plan.numeric_names,
            self.plan.category_names,
            feature_digest=self.plan.digest,
            load=load,
            history=self.log,
        )
        self._store = MemoryStore(MemoryBackend(), spec.name, owner_slot=WORKER)
        self._fold_until: int | None = None
        self._cycle = Cycle(
            pipeline=self.pipeline,
            store=self._store,
            scorer=self.serving,
            publisher=self.log,
            fold=self.catch_up,
            is_current=lambda: True,
            failpoint=lambda name: None,
        )
        self._actions: list[Action] = []
        self._order = count()
        self._positions: dict[Partition, int] = {}
        self.progress = Progress()

    def at(self, time: int, do: Callable[[], None]) -> None:
        """Do something once every record up to `time` is processed; in the order of times, then of calls."""
        heapq.heappush(self._actions, Action(time, next(self._order), do))

    def catch_up(self) -> None:
        """Fold what is in the log, as every batch does before it is scored."""
        until = self.log.own_next if self._fold_until is None else self._fold_until
        if until <= self.serving.n:
            return
        self.serving.fold(*self.log.take(until), until)

    def run(self, lanes: Lanes, *, on_batch: Callable[[Progress], None] = lambda progress: None) -> None:
        """Every record of the lanes in merged order, in batches as the declaration bounds them; then what is due."""
        sources = self._open(lanes)
        merge = self._merge(sources, is_bounded=True)
        index_of = {topic.name: index for index, topic in enumerate(self.spec.topics)}
        while True:
            for partition in list(sources):
                place = (index_of[partition.topic], partition.number)
                while partition in sources and merge.buffered(place) < BUFFERED_RECORDS:
                    offered = next(sources[partition], None)
                    if offered is None:
                        merge.end_partition(*place)
                        del sources[partition]
                    else:
                        merge.offer(*place, offered)
            limit = self._actions[0].time if self._actions else None
            cut = merge.take(self.spec.batch_records, limit=limit, lagging=set())
            if cut is not None:
                # The merge has shown every partition up to here, whether it holds records or not.
                self._process(cut, group_watermark=self.progress.time)
                on_batch(self.progress)
            elif merge.next_time() is not None and self._actions:
                heapq.heappop(self._actions).do()
            elif not sources:
                break
        self._settle()

    def replay(
        self,
        lanes: Lanes,
        cuts: Iterable[GivenCut],
        *,
        commands: Iterable[Command] = (),
        on_batch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """The batches that another run cut, each with the group watermark and the N that it had.

        `commands`: all of that run's examples log, in its order.
        """
        self.log.give(commands)
        sources = self._open(lanes)
        merge = self._merge(sources, is_bounded=False)
        index_of = {topic.name: index for index, topic in enumerate(self.spec.topics)}
        held = {partition: _Held(source) for partition, source in sources.items()}
        for given in cuts:
            offered_count = 0
            for partition, span in given.spans.items():
                offered = held[partition].before(span.next)
                offered_count += len(offered)
                merge.offer(index_of[partition.topic], partition.number, offered)
            self._fold_until = given.n
            cut = merge.take(offered_count, limit=None, lagging=set()) if offered_count else Cut([], {})
            assert cut is not None
            self._process(cut, group_watermark=given.group_watermark, spans=given.spans)
            on_batch(self.progress)

    def _open(self, lanes: Lanes) -> dict[Partition, Iterator[list[Offered]]]:
        self._positions = dict.fromkeys(lanes, 0)
        self._store.claim(sorted(lanes), may_create=True)
        for partition in lanes:
            self._store.set_start(partition, 0)
        return {partition: iter(source) for partition, source in lanes.items()}

    def _merge(self, sources: Iterable[Partition], *, is_bounded: bool) -> TimeOrderedMerge:
        roles = [topic.role for topic in self.spec.topics]
        spec = self.spec
        merge = TimeOrderedMerge(
            roles,
            is_bounded=is_bounded,
            span_ms=spec.batch_span_ms if is_bounded else None,
            barrier_ms=barrier_of(spec) if is_bounded else None,
        )
        index_of = {topic.name: index for index, topic in enumerate(self.spec.topics)}
        for partition in sources:
            merge.add_partition(index_of[partition.topic], partition.number, 0)
        return merge

    def _process(self, cut: Cut, *, group_watermark: int, spans: Mapping[Partition, Span] | None = None) -> None:
        records, found = records_of(cut), spans_of(cut, self.pipeline.topic_names)
        if spans is not None:  # a recorded span may hold holes at its ends, or nothing else
            silent = Span(-1, -1, -1, False)
            found = {p: found.get(p, silent)._replace(start=s.start, next=s.next) for p, s in spans.items()}
        self._turn(self._decoder.decode(records, found), group_watermark)
        if records:
            self.progress.time = max(self.progress.time, records[-1].time)

    def _turn(self, batch: Batch, group_watermark: int) -> bool:
        """Whether a row was settled."""
        whole = with_idle_partitions(batch, self._positions)
        owned = frozenset(self._positions)
        reports = self._cycle.run(Turn(whole, group_watermark, owned, WORKER, self.progress.batches))
        for report in reports:
            self._account(report)
        return any(report.outcome.commit.due_remove for report in reports)

    def _account(self, report: CycleReport) -> None:
        self._positions.update({p: span.next for p, span in report.outcome.commit.spans.items()})
        progress = self.progress
        progress.batches += 1
        progress.records += report.records
        for counts in report.outcome.outcomes.values():
            progress.outcomes.update(counts)

    def _settle(self) -> None:
        """Every wait is over: what has no label has none."""
        label = self.spec.label
        over = self.progress.time + label.wait_ms + label.allowed_lateness_ms + 1
        while self._turn(self._decoder.decode([], {}), over):
            pass


class _Held:
    """A source that gives its records up to an offset."""

    def __init__(self, source: Iterator[list[Offered]]) -> None:
        self._source = source
        self._rest: list[Offered] = []

    def before(self, offset: int) -> list[Offered]:
        """The records before `offset` that were not given yet."""
        found: list[Offered] = []
        while True:
            taken = next((at for at, each in enumerate(self._rest) if each.offset >= offset), len(self._rest))
            found += self._rest[:taken]
            self._rest = self._rest[taken:]
            if self._rest:
                return found
            more = next(self._source, None)
            if more is None:
                return found
            self._rest = more
