"""An app's past as its topics would hold it, for audits: every log in memory, the models on disk.

In: a folder. Out: settings, logs whose records a test can change. Invariant: what nobody changed is what the product's
own cycle, learner and booster made; commits, predictions and examples of a batch stand in one transaction with a marker
behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from in_memory import HOUR_MS
from in_memory import a_shop as an_app

from tests.memory_kafka import Inputs, Message
from tidemill.apps.backtest_run import BacktestRun
from tidemill.apps.boosters import train_for
from tidemill.apps.models import booster_loader, registry_of, signing_key, store_place
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.loop_spec import RetrainSpec, RolloutSpec
from tidemill.core.records import Command, ExampleColumns, Output, Partition, Span
from tidemill.core.spec import BoosterSpec, LearnerSpec
from tidemill.io.model_snapshots import ModelSnapshots
from tidemill.io.offered import offered
from tidemill.io.outputs import Encoder, decode
from tidemill.models.training_examples import TrainingExamples

DAY_MS = 24 * HOUR_MS
EVENTS = 400
TRAINED_AT = DAY_MS + 250 * HOUR_MS
CANARY_AT, PROMOTED_AT = TRAINED_AT + 40 * HOUR_MS, TRAINED_AT + 80 * HOUR_MS
APP = "shop"
ARGUMENTS = "--loss_function logistic --link logistic -b 12 -l 0.3 --interactions mc"


class MemoryLogs:
    """Fulfils `apps.audit_logs.Logs`: records by partition, in the order of their offsets."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self.lanes: dict[Partition, list[Message]] = {
            Partition(topic, number): [] for topic, count in partitions.items() for number in range(count)
        }
        self.next: dict[Partition, int] = dict.fromkeys(self.lanes, 0)

    def append(self, partition: Partition, output: Output) -> int:
        offset = self.next[partition]
        self.lanes[partition].append(Message(output.key, output.value, output.headers, output.timestamp or 0, offset))
        self.next[partition] = offset + 1
        return offset

    def partitions(self, topic: str) -> list[Partition]:
        return [partition for partition in self.lanes if partition.topic == topic]

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return 0, self.next[partition]

    def ends(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return {partition: self.next[partition] for partition in partitions}

    def read(self, partition: Partition, start: int, end: int, chunk: int = 50) -> Iterator[list[Message]]:
        found = [message for message in self.lanes[partition] if start <= message.offset() < end]
        for at in range(0, len(found), chunk):
            yield found[at : at + chunk]

    # What a test does to them ------------------------------------------------------------------------------------

    def change(self, topic: str, at: int, change: Callable[[bytes], bytes], number: int = 0) -> None:
        """Another value in the record at position `at`."""
        lane = self.lanes[Partition(topic, number)]
        old = lane[at]
        lane[at] = Message(old.key(), change(old.value() or b""), old.headers(), old.timestamp()[1], old.offset())

    def drop(self, topic: str, at: int, number: int = 0) -> None:
        """A hole where a record was."""
        del self.lanes[Partition(topic, number)][at]

    def repeat(self, topic: str, at: int, number: int = 0) -> None:
        """A record once more at the end."""
        place = Partition(topic, number)
        old = self.lanes[place][at]
        self.append(place, Output(place.topic, old.key(), old.value(), tuple(old.headers()), old.timestamp()[1]))


def edited(schema: str, **changes: object) -> Callable[[bytes], bytes]:
    """Change fields of a record; a callable is applied to the present value."""

    def change(value: bytes) -> bytes:
        columns = decode(schema, [value])
        row = columns.to_pylist()[0]
        if "outcomes" in row:
            row["outcomes"] = dict(row["outcomes"])
        for name, new in changes.items():
            row[name] = new(row[name]) if callable(new) else new
        return Encoder(schema).encode(pa.RecordBatch.from_pylist([row], schema=columns.schema))[0]

    return change


class AuditedPast:
    """400 orders in two partitions: labels, duplicates, amendments, orphans, labels before events, poison; a booster on
    trial, serving a share, promoted."""

    def __init__(self, folder: Path) -> None:
        label = {"wait_ms": 12 * HOUR_MS, "allowed_lateness_ms": HOUR_MS, "dedup_window_ms": 2 * DAY_MS}
        self.spec = replace(
            an_app(**label),
            booster=BoosterSpec(rounds=5, min_child_weight=1.0, leaf_trees=2),
            batch_records=40,
            retrain=RetrainSpec(rollout=RolloutSpec(canary_share=0.5)),
        )
        self.spec = replace(self.spec, learner=LearnerSpec(arguments=ARGUMENTS, snapshot_every=100, warm_offsets=100))
        self.settings = Settings(
            app=self.spec, kafka={}, data_folder=folder, bootstrap_servers="none:1", redis_url=None
        )
        self.plan = FeaturePlan(self.spec)
        topics = {topic.name: 2 for topic in self.spec.topics} | {f"{topic.name}.dlq": 1 for topic in self.spec.topics}
        outputs = {f"{APP}.predictions.v1": 1, f"{APP}.examples.v1": 1, f"{APP}.commits.v1": 1}
        self.logs = MemoryLogs(topics | outputs)
        self._training = TrainingExamples(self.plan.numeric_names, self.plan.category_names)
        self.run = BacktestRun(
            self.spec,
            load=booster_loader(self.settings, self.plan),
            on_examples=self._training.append,
            on_outputs=lambda topic, values: None,
            keeps_log=True,
        )
        self._snapshots = ModelSnapshots(store_place(self.settings, "snapshots"))
        self._publish = self.run.log.publish
        self.run.log.publish = self._keep  # type: ignore[method-assign]
        self._fold = self.run.serving.fold
        self.run.serving.fold = self._fold_and_keep  # type: ignore[method-assign]
        self.run.at(TRAINED_AT, self._train)
        self.run.at(CANARY_AT, lambda: self._command("canary"))
        self.run.at(PROMOTED_AT, lambda: self._command("promote"))
        inputs = _inputs(self.spec)
        self.run.run(
            {place: iter([[offered(r.message, r.offset) for r in lane]]) for place, lane in inputs.lanes.items()}
        )
        for place, lane in inputs.lanes.items():
            self.logs.lanes[place] = [record.message for record in lane]
            self.logs.next[place] = inputs.end(place)

    def _keep(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        spans: Mapping[Partition, Span],
        slices: Mapping[Partition, bytes],
    ) -> None:
        examples = Partition(f"{APP}.examples.v1", 0)
        self.logs.next[examples] = self.run.log.next_offset
        written = set()
        for partition in sorted(outputs):
            for output in outputs[partition]:
                place = Partition(output.topic, 0)
                self.logs.append(place, output)
                written.add(place)
        for place in written:
            self.logs.next[place] += 1  # the marker
        self._publish(outputs, spans, slices)
        assert self.logs.next[examples] == self.run.log.next_offset or examples not in written

    def _fold_and_keep(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> object:
        for snapshot in self._fold(examples, commands, offset_next):
            self._snapshots.put(APP, snapshot)
        return ()

    def _train(self) -> None:
        trained = train_for(
            self.spec, self.plan, self._training.rows(), parent="initial", cause="a test", created=TRAINED_AT, threads=1
        )
        self.version = trained.manifest.version
        registry_of(self.settings).put(trained.manifest, trained.model, signing_key(self.settings))
        self._command("prepare")

    def _command(self, kind: str) -> None:
        command = self.run.log.command(
            kind, version=self.version, expects="initial", cause="a test", time=self.run.progress.time
        )
        row = command._asdict()
        offset = row.pop("offset")
        place = Partition(f"{APP}.examples.v1", 0)
        self.logs.next[place] = offset
        value = Encoder("command.v1").encode({name: [value] for name, value in row.items()})[0]
        self.logs.append(place, Output(place.topic, b"c", value))
        self.logs.next[place] += 1


def _inputs(spec: object) -> Inputs:
    inputs = Inputs(spec, partitions=2)  # type: ignore[arg-type]
    for hour in range(EVENTS):
        time, number = DAY_MS + hour * HOUR_MS, hour % 2
        inputs.add("readings", time + 1, partition=number, shop="a", reading=float(hour))
        if hour % 50 == 7:  # the label is there before its event
            inputs.add("outcomes", time + 1, partition=number, id=str(hour), outcome=hour % 3)
        event = {"id": str(hour), "shop": "abc"[hour % 3], "user": hour, "amount": float(hour * 7 % 11)}
        inputs.add("events", time + 2, partition=number, **event)
        if hour % 60 == 9:
            inputs.add("events", time + 3, partition=number, **event)
            inputs.send("events", time + 3, b"broken", partition=number)
            inputs.skip("events", 2, partition=number)
        if hour >= 2 and hour % 50 != 9 and hour % 20 != 3:
            outcome = int((hour - 2) * 7 % 11 > 5)
            inputs.add("outcomes", time + 3, partition=number, id=str(hour - 2), outcome=outcome)
            if hour % 40 == 14:
                inputs.add("outcomes", time + 4, partition=number, id=str(hour - 2), outcome=outcome)
            if hour % 40 == 12:
                inputs.add("outcomes", time + 4, partition=number, id=str(hour - 2), outcome=1 - outcome)
        if hour % 100 == 50:
            inputs.add("outcomes", time + 5, partition=number, id=str(hour - 29), outcome=1)  # too late
    return inputs
