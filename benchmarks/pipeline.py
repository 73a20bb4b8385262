"""What a record costs: the cycle of one worker on real Kafka and Valkey with real flights, stage by stage.

In: flights up to a day. Out: microseconds per stage, per record and per pair (an event with its label), and the same
cycle without guarantees as a peer. Invariant: times are exclusive: the stages of a run add up to its total.

Run: python -m benchmarks.pipeline [--until 2013-03-01] [--json FILE] [--profile FILE]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.table import Table

from tidemill.apps import folding
from tidemill.apps.boosters import train_for
from tidemill.apps.commands import CommandWriter
from tidemill.apps.cycle import Cycle
from tidemill.apps.flights import run_producer
from tidemill.apps.models import make_models, registry_of, signing_key
from tidemill.apps.publishing import Publishing
from tidemill.apps.topics import ensure_app_topics
from tidemill.apps.training import read_training_examples
from tidemill.config import Settings, config_digest, load_settings
from tidemill.core.batches import with_idle_partitions
from tidemill.core.features import FeaturePlan
from tidemill.core.merge import Cut, Offered, TimeOrderedMerge
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Mark, Outcome, Output, Partition, Reads, Span, StateView
from tidemill.core.roles import INITIAL
from tidemill.io import kafka
from tidemill.io.codec import WireCodec
from tidemill.io.embedded import start_servers
from tidemill.io.kafka_reader import LogReader
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.offered import punctuation_of
from tidemill.io.redis_store import RedisStore
from tidemill.io.source import records_of, spans_of
from tidemill.io.wire import InputDecoder

Peer = Literal["store", "dictionaries"]
CONFIG = "config/flights.yaml"
STAGES = (
    "fetch", "merge", "decode", "read", "join", "features", "score", "encode", "step", "script", "transaction", "mark",
    "fold: read the log", "fold: decode", "fold: learn", "other",
)  # fmt: skip
FOLD_STAGES = tuple(stage for stage in STAGES if stage.startswith("fold"))
ASSIGNMENT_S = 30.0


class Laps:
    """Exclusive seconds by stage: while a stage runs within another, only the inner one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._stack: list[str] = []
        self._since = 0.0

    def start(self, stage: str) -> None:
        self._credit()
        self._stack.append(stage)

    def stop(self) -> None:
        self._credit()
        self._stack.pop()

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count every call of `owner.name` as `stage`."""
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.start(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.stop()

        setattr(owner, name, watched)

    def _credit(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


@dataclass(slots=True)
class Result:
    """One run: totals, and exclusive seconds by stage."""

    name: str
    records: int = 0
    pairs: int = 0
    batches: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process, all threads: servers are others
    feature_digest: str = ""
    by_stage: Mapping[str, float] = field(default_factory=dict)

    @property
    def fold_share(self) -> float:
        """Lambda: the part of a worker's time that more workers do not divide, for each of them folds everything."""
        return sum(self.by_stage[stage] for stage in FOLD_STAGES) / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "records": self.records,
            "pairs": self.pairs,
            "batches": self.batches,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "records_per_s": self.records / self.seconds,
            "us_per_record": self.seconds / self.records * 1e6,
            "us_per_pair": self.seconds / self.pairs * 1e6,
            "fold_share": self.fold_share,
            "feature_digest": self.feature_digest,
            "us_per_record_by_stage": {stage: s / self.records * 1e6 for stage, s in self.by_stage.items()},
        }


class PlainPublisher:
    """The peer's publisher: an idempotent producer. No offsets: a crash loses or doubles what was on its way."""

    def __init__(self, clients: Mapping[str, Any], examples_topic: str, on_example: Callable[[int], None]) -> None:
        self._producer = Producer({**clients, "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 1})
        self._examples_topic = examples_topic
        self._on_example = on_example

    def publish(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        spans: Mapping[Partition, Span],
        slices: Mapping[Partition, bytes],
    ) -> None:
        by_topic: dict[str, list[Output]] = {}
        for partition in sorted(outputs):
            for output in outputs[partition]:
                by_topic.setdefault(output.topic, []).append(output)
        for topic, of_topic in by_topic.items():
            self._producer.produce_batch(topic, [{"key": o.key, "value": o.value} for o in of_topic[:-1]])
            last = of_topic[-1]
            tell = self._delivered if topic == self._examples_topic else None
            self._producer.produce(topic, last.value, last.key, on_delivery=tell)
        self._producer.flush()

    def _delivered(self, error: object, message: Any) -> None:
        assert error is None, error
        self._on_example(message.offset())


class PlainStore:
    """The second peer's store: the same server and script, no outbox; what is applied counts as published."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._marks: Mapping[Partition, Mark] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, reads: Reads) -> StateView:
        view = self._store.read(reads)
        return replace(view, marks=published(view.marks))

    def commit(self, commit: Commit) -> Applied | Conflict:
        result = self._store.commit(replace(commit, slices={}))
        if isinstance(result, Applied):
            self._marks = published(result.marks)
            return Applied(self._marks)
        return result

    def mark_published(self, _positions: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        return self._marks


def published(marks: Mapping[Partition, Mark]) -> dict[Partition, Mark]:
    return {partition: mark._replace(committed=mark.applied) for partition, mark in marks.items()}


@dataclass(slots=True)
class Inputs:
    """All records of the input topics, merged and cut as a bounded worker would."""

    cuts: list[Cut]
    seconds: Mapping[str, float]


def read_inputs(settings: Settings, partitions: Sequence[Partition]) -> Inputs:
    topics = settings.app.topics
    index_of = {topic.name: index for index, topic in enumerate(topics)}
    clients = client_settings(settings)
    laps = Laps()
    merge = TimeOrderedMerge([topic.role for topic in topics], is_bounded=True)
    for partition in partitions:
        reader = LogReader(clients, partition.topic, partition.number)
        end = reader.end_offset()
        reader.seek(0)
        merge.add_partition(index_of[partition.topic], partition.number, 0)
        laps.start("fetch")
        messages: list[Any] = []
        while reader.position < end:
            messages += reader.read(until_offset=end, timeout_s=1.0, max_records=20_000)
        laps.stop()
        reader.close()
        laps.start("merge")
        merge.offer(index_of[partition.topic], partition.number, map(_offered, messages))
        laps.stop()
    cuts = []
    laps.start("merge")
    while (cut := merge.take(settings.app.batch_records, limit=None, lagging=set())) is not None:
        cuts.append(cut)
    laps.stop()
    return Inputs(cuts, laps.seconds)


def _offered(message: Any) -> Offered:
    if message.value() is None:
        time_, is_end = punctuation_of(message)
        if time_ is not None:
            return Offered(time_, message.offset(), message, True, is_end)
    return Offered(message.timestamp()[1], message.offset(), message)


def client_settings(settings: Settings) -> dict[str, Any]:
    assert settings.bootstrap_servers is not None
    return kafka.client_settings(settings.bootstrap_servers, settings.kafka)


def joined_group(clients: Mapping[str, Any], group: str, topics: Sequence[str]) -> Consumer:
    """A member of the group: transactions with offsets need its metadata."""
    consumer = Consumer({**clients, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.subscribe(list(topics))
    deadline = time.monotonic() + ASSIGNMENT_S
    while not consumer.assignment():
        assert time.monotonic() < deadline, f"group {group} assigned nothing within {ASSIGNMENT_S:.0f} s"
        consumer.poll(0.1)
    consumer.pause(consumer.assignment())
    return consumer


def promote_a_booster(trained_on: Settings, settings: Settings) -> None:
    """The first records of the app's examples log: a version, trained on what another run left, becomes champion."""
    plan = FeaturePlan(settings.app)
    trained = train_for(
        settings.app,
        plan,
        read_training_examples(trained_on, plan).rows(),
        parent=INITIAL,
        cause="benchmark",
        created=0,
        threads=os.cpu_count() or 1,
    )
    registry_of(settings).put(trained.manifest, trained.model, signing_key(settings))
    writer = CommandWriter(settings)
    for kind in ("prepare", "promote"):
        writer.write(kind, version=trained.manifest.version, expects=INITIAL, cause="benchmark")
    writer.close()


def run(
    settings: Settings,
    inputs: Inputs,
    partitions: Sequence[Partition],
    *,
    title: str,
    peer: Peer | None,
    profile: cProfile.Profile | None,
) -> Result:
    """All batches through one cycle. Peers publish without transactions; see the top of the README."""
    spec, clients = settings.app, client_settings(settings)
    laps = Laps()
    decoder = InputDecoder(spec)
    pipeline = Pipeline(spec, FeaturePlan(spec), WireCodec(spec, decoder))
    plan = pipeline.plan
    serving, fold = make_models(settings, pipeline, clients, on_roles=lambda roles: None, report=lambda line: None)
    reader = fold.reader
    consumer: Consumer | None = None
    store: Any
    publisher: Publishing | PlainPublisher
    assert settings.redis_url is not None
    if peer == "dictionaries":
        store = MemoryStore(MemoryBackend())
    else:
        store = RedisStore(settings.redis_url, spec.name, owner_slot="0", config_digest=config_digest(spec))
    if peer is not None:
        store = PlainStore(store) if peer == "store" else store
        publisher = PlainPublisher(clients, pipeline.examples_topic, fold.expect)
    else:
        publisher = Publishing(
            client_settings=clients,
            transactional_id=f"benchmark.{spec.name}",
            examples_topic=pipeline.examples_topic,
            incarnation=lambda: store.incarnation or "",
            on_example=fold.expect,
        )
        publisher.renew()
        consumer = joined_group(clients, f"benchmark.{spec.name}", [topic.name for topic in spec.topics])
        publisher.group_metadata = consumer.consumer_group_metadata()
    store.claim(partitions, may_create=True)
    for partition in partitions:
        store.set_start(partition, 0)
    cycle = Cycle(
        pipeline=pipeline,
        store=store,
        scorer=serving,
        publisher=publisher,
        fold=lambda: fold(),
        is_current=lambda: True,
        failpoint=lambda name: None,
    )
    for owner, name, stage in (
        (decoder, "decode", "decode"),
        (store, "read", "read"),
        (pipeline, "reads", "step"),
        (pipeline, "step", "step"),
        (pipeline, "_join", "join"),
        (plan, "compute", "features"),
        (plan, "entities", "features"),
        (plan, "state_keys", "features"),
        (serving, "score", "score"),
        *(
            (pipeline.codec, each, "encode")
            for each in ("encode", "encode_rows", "decode_rows", "pack_slice", "dead_letter")
        ),
        (store, "commit", "script"),
        (publisher, "publish", "transaction"),
        (store, "mark_published", "mark"),
        (reader, "read", "fold: read the log"),
        (serving, "fold", "fold: learn"),
    ):
        laps.watch(owner, name, stage)
    decode_examples = folding.decode_examples
    laps.watch(folding, "decode_examples", "fold: decode")
    names = [topic.name for topic in spec.topics]
    result = Result(title)
    owned = frozenset(partitions)
    positions = dict.fromkeys(partitions, 0)
    marks: Mapping[Partition, Mark] = store.marks()
    gc.collect()
    gc.freeze()  # the inputs wait in memory, which no worker would hold: keep the collector off them
    cpu = time.process_time()
    started = time.perf_counter()
    with profile or nullcontext():
        for number, cut in enumerate(inputs.cuts):
            laps.start("other")
            batch = with_idle_partitions(decoder.decode(records_of(cut), spans_of(cut, names)), positions)
            watermark = min(mark.watermark for mark in marks.values())
            for report in cycle.run(Turn(batch, watermark, owned, "benchmark", number)):
                marks = report.marks
                result.records += report.records
                for counter in report.outcome.outcomes.values():
                    result.pairs += counter[Outcome.EXAMPLE] + counter[Outcome.WAITING_JOINED]
            positions |= {p: span.next for p, span in batch.spans.items()}
            result.batches += 1
            laps.stop()
    result.seconds = time.perf_counter() - started
    result.cpu_seconds = time.process_time() - cpu
    folding.decode_examples = decode_examples
    for stage, seconds in inputs.seconds.items():  # read once, the same for both
        laps.seconds[stage] += seconds
    result.seconds += sum(inputs.seconds.values())
    result.by_stage = laps.seconds
    result.feature_digest = store.feature_digest()
    reader.close()
    if consumer is not None:
        consumer.close()
    return result


def show(results: Sequence[Result], console: Console) -> None:
    table = Table(title="microseconds by stage, exclusive")
    table.add_column("stage")
    for result in results:
        for column in (f"{result.name}: a record", "a pair"):
            table.add_column(column, justify="right")
    for stage in STAGES:
        cells = []
        for result in results:
            seconds = result.by_stage[stage]
            per_record, per_pair = seconds / result.records * 1e6, seconds / result.pairs * 1e6
            cells += [f"{per_record:.1f}", f"{per_pair:.1f}"]
        table.add_row(stage, *cells)
    totals = []
    for result in results:
        totals += [f"{result.seconds / result.records * 1e6:.1f}", f"{result.seconds / result.pairs * 1e6:.1f}"]
    table.add_section()
    table.add_row("total", *totals)
    console.print(table)
    by_name = {result.name: result.seconds / result.records for result in results}
    if "no outbox" in by_name:
        cost = by_name["no booster"] / by_name["no outbox"] - 1
        console.print(f"the guarantee costs {cost:+.1%}: transactions, outbox, offsets against an idempotent producer")
    for result in results:
        cpu_us = result.cpu_seconds / result.records * 1e6
        console.print(
            f"{result.name}: {result.records:,} records in {result.batches} batches, {result.pairs:,} pairs, "
            f"{result.records / result.seconds:,.0f} records/s, {cpu_us:.0f} us of CPU a record, "
            f"fold's share (lambda) {result.fold_share:.2f}, features {result.feature_digest}"
        )


def measure(folder: Path, options: argparse.Namespace, console: Console) -> list[Result]:
    """Own servers, real flights, one run after the other on the same records."""
    with start_servers(folder, report_progress=console.print) as servers:
        settings = load_settings(
            CONFIG,
            bootstrap_servers=servers.bootstrap_servers,
            redis_url=servers.redis_url,
            data_folder=folder,
            is_bounded=True,
        )
        plain, peer, full = (
            replace(settings, app=replace(settings.app, name=f"{settings.app.name}{end}"))
            for end in ("plain", "peer", "full")
        )
        for one in (settings, plain, peer, full):
            ensure_app_topics(one)
        run_producer(servers.bootstrap_servers, app=settings.app, until=options.until, poison_count=0)
        counts = {topic.name: topic.partitions for topic in settings.app.topics}
        partitions = [Partition(name, number) for name, count in counts.items() for number in range(count)]
        inputs = read_inputs(settings, partitions)
        console.print(f"{sum(len(cut.entries) for cut in inputs.cuts):,} records are in memory; running")
        profile = cProfile.Profile() if options.profile else None
        results = [run(settings, inputs, partitions, title="no booster", peer=None, profile=profile)]
        if profile is not None:
            profile.dump_stats(options.profile)
        if not options.no_peer:
            results.append(run(plain, inputs, partitions, title="no outbox", peer="store", profile=None))
            results.append(run(peer, inputs, partitions, title="in memory", peer="dictionaries", profile=None))
        promote_a_booster(settings, full)
        results.append(run(full, inputs, partitions, title="with booster", peer=None, profile=None))
        if len({result.feature_digest for result in results}) > 1:
            raise SystemExit("error: the runs computed different features")
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--until", type=date.fromisoformat, default=date(2013, 3, 1), help="flights before this day")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--profile", type=Path, help="write cProfile's statistics of the first run to this file")
    parser.add_argument("--no-peer", action="store_true", help="leave out the run without guarantees")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tidemill-benchmark-") as folder:
        results = measure(Path(folder), options, console)
    show(results, console)
    if options.json is not None:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
        found = {"schema_version": 1, "until": options.until.isoformat(), **machine}
        found["runs"] = [result.as_json() for result in results]
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
