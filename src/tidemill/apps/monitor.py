"""The monitor: folds predictions and examples into metrics, ticks and alerts, and publishes what is new.

In: `<app>.examples.v1`, `<app>.predictions.v1` and `<app>.commits.v1`, read committed. Out: rows in
`<app>.metrics.v1`, alerts in `<app>.alerts.v1`, ticks in `<app>.drift.v1`, each with the positions of the group
`tidemill.<app>.monitor` in the same transaction; one transaction a tick. Invariant: the topics hold what the logs up
to the committed positions say (rows of metrics up to seconds, slices up to a minute older); a second monitor of an app
fences the first.

A restarted monitor folds the logs again from their start and comes to the same rows and ticks, so it publishes only
what is new. That takes some 30 s per million examples and predictions (and the training of declared boosters);
nothing is published meanwhile.

A bounded replay waits for each tick, so a tick goes first: metrics are measured and published once it is out.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from tidemill.apps.clients import clients_of
from tidemill.apps.models import feature_shape, registry_of, trusted_keys
from tidemill.apps.monitor_logs import LOOKAHEAD_RECORDS, ExampleLog, PredictionLog, together
from tidemill.apps.monitor_rows import PublishedRows
from tidemill.apps.monitor_ticks import ClosedTick, TickMaker, read_published
from tidemill.apps.topics import ensure_loop_topics, ensure_metrics_topic, ensure_output_topics
from tidemill.config import Settings
from tidemill.core.comparators import Training
from tidemill.core.drift.reference import Reference
from tidemill.core.features import FeaturePlan
from tidemill.core.records import ExampleColumns, Partition
from tidemill.core.roles import INITIAL
from tidemill.core.spec import AppSpec
from tidemill.core.surveillance import ShownDetectors, Surveillance
from tidemill.core.topic_names import alerts_topic, commits_topic, examples_topic, metrics_topic, predictions_topic
from tidemill.core.validation import PredictionColumns, Validation
from tidemill.core.validation_rows import PREDICTIONS, Row
from tidemill.errors import ModelRefusedError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogEnds, LogReader, read_topic
from tidemill.io.kafka_writer import TransactionalWriter, group_metadata
from tidemill.io.telemetry import MonitorTelemetry

PUBLISH_EVERY_S = 1.0
PUBLISH_AT_LATEST_S = 3.0  # where somebody always waits for a tick
SLICES_EVERY_S = 60.0  # a thousand rows change with every example
WAIT_S = 0.05  # for a first commit, when there is none
FETCH_WAIT_MS = 10  # an end of a log shows only in an answer without records: longer waits delay every tick of a replay
UNMEASURED_MAX = 20_000  # rows that are read and not in the figures yet; bounds memory
HELD_MAX = 2 * LOOKAHEAD_RECORDS  # of a log that is read ahead of the commits
NICENESS = 15  # who serves goes first
DELAYS = {"0.5": "label_delay_p50_ms", "0.95": "label_delay_p95_ms"}


def monitor_id(app: AppSpec) -> str:
    """The group and the transactional id of an app's monitor."""
    return f"tidemill.{app.name}.monitor"


class Monitor:
    """One thread owns it; `close` it."""

    def __init__(self, settings: Settings, *, telemetry: MonitorTelemetry, report: Callable[[str], None]) -> None:
        app = settings.app
        self._clients = clients_of(settings)
        ensure_output_topics(settings)
        ensure_metrics_topic(settings)
        ensure_loop_topics(settings)
        plan = FeaturePlan(app)
        self._validation = Validation(app, plan.category_names, _training(app, plan, report))
        self._unmeasured: list[ExampleColumns | PredictionColumns] = []  # read, and not in the validation yet
        self._telemetry = telemetry
        self._newest: dict[str, int] = {}  # by window kind: the start of the newest that the telemetry shows

        # The writer comes first: a predecessor's transaction is over before its rows and positions are read.
        self._writer = TransactionalWriter(self._clients, monitor_id(app))
        self._writer.open()
        self._group = group_metadata(self._clients, monitor_id(app))
        topic = metrics_topic(app.name)
        self._published = PublishedRows(topic)
        self._published.load((m.key(), m.value()) for messages in read_topic(self._clients, topic) for m in messages)

        examples, predictions = examples_topic(app.name), predictions_topic(app.name)
        inputs = [each.name for each in app.topics]
        counts = kafka.partition_counts(self._clients, [predictions, *inputs])
        served = [Partition(predictions, number) for number in range(counts[predictions])]
        shape = feature_shape(plan)
        self._commits = Partition(commits_topic(app.name), 0)
        self._readers = {
            at: LogReader(self._clients, *at, fetch_wait_ms=FETCH_WAIT_MS)
            for at in (Partition(examples, 0), *served, self._commits)
        }
        alarms = LogReader(self._clients, alerts_topic(app.name), 0, fetch_wait_ms=FETCH_WAIT_MS)
        self._opened = [*self._readers.values(), alarms]
        for reader in self._opened:
            reader.seek(reader.first_offset())
        logs: dict[Partition, ExampleLog | PredictionLog] = {
            Partition(examples, 0): ExampleLog(self._readers[Partition(examples, 0)], shape)
        }
        logs |= {at: PredictionLog(self._readers[at], shape) for at in served}
        self._ticks = TickMaker(
            settings,
            Surveillance(
                app,
                plan.numeric_names,
                plan.category_names,
                reference_of=reference_reader(settings, report),
                make_baselines=_baselines(),
            ),
            partitions=[Partition(name, number) for name in inputs for number in range(counts[name])],
            logs=logs,
            commits=self._readers[self._commits],
            alarms=alarms,
            ends=LogEnds(self._clients, list(logs)),
            published=read_published(self._clients, app, report),
            on_examples=self._unmeasured.append,
            on_predictions=self._unmeasured.append,
        )
        found = kafka.committed_offsets(self._clients, monitor_id(app), list(self._readers))
        self._committed = {at: offset for at, (offset, _) in found.items() if offset is not None}

    def run(self, *, is_until_end: bool, is_stopped: Callable[[], bool]) -> None:
        """Fold what is there, publish, and go on until told to stop, or until the ends of the logs at the start.

        Raises:
            FencedError: another monitor of this app has started.
            UnavailableError: Kafka did not answer, or the fate of a transaction is unknown; start again.
        """
        ends = {at: reader.end_offset() for at, reader in self._readers.items()}
        while not is_stopped() and any(self._readers[at].position < end for at, end in ends.items()):
            self.fold(ends, is_stopped)
        if is_stopped():
            return
        self.publish(with_slices=True)
        published_at = slices_at = time.monotonic()
        while not is_until_end and not is_stopped():
            is_quiet = self.fold({}, is_stopped)
            now = time.monotonic()
            if now - published_at >= (PUBLISH_EVERY_S if is_quiet else PUBLISH_AT_LATEST_S):
                with_slices = now - slices_at >= SLICES_EVERY_S
                self.publish(with_slices=with_slices)
                published_at, slices_at = now, now if with_slices else slices_at
        if not is_until_end:
            self.publish(with_slices=True)

    def fold(self, ends: Mapping[Partition, int], is_stopped: Callable[[], bool]) -> bool:
        """Take in some of what is new, examples and predictions before `ends` where they are given; publish ticks.

        Returns:
            Whether nobody waits for the next tick now: one has just been closed, or nothing is new.
        """
        has_commits, has_closed = self._ticks.take_commits(WAIT_S), False
        began = time.perf_counter()
        while not is_stopped() and (closed := self._ticks.close_next()) is not None:
            self._publish_tick(closed)
            self._telemetry.show_tick(closed.tick, seconds=time.perf_counter() - began, is_new=bool(closed.outputs))
            self._measure(UNMEASURED_MAX)
            has_closed, began = True, time.perf_counter()
        self._ticks.read_some(ends, held_max=HELD_MAX if has_commits else None)
        self._measure(UNMEASURED_MAX)
        return has_closed or not has_commits

    def publish(self, *, with_slices: bool) -> int:
        """Rows that have changed and the positions, in one transaction; how many rows. Nothing new writes nothing."""
        self._measure(0)
        outputs, rows = self._published.changes(self._validation, with_slices=with_slices)
        positions = {at: reader.position for at, reader in self._readers.items()}
        if outputs or positions != self._committed:
            offsets = {at: (position, "") for at, position in positions.items()}
            self._writer.publish(outputs, offsets, self._group)
            self._committed = positions
        for row in rows:
            self._show(row)
        return len(outputs)

    def close(self) -> None:
        self._writer.abandon()
        for reader in self._opened:
            reader.close()

    def _publish_tick(self, closed: ClosedTick) -> None:
        if closed.outputs:
            positions = {at: reader.position for at, reader in self._readers.items()}
            self._writer.publish(closed.outputs, {at: (next_, "") for at, next_ in positions.items()}, self._group)
            self._committed = positions

    def _measure(self, unmeasured_max: int) -> None:
        """Fold what was read into the figures, if it is more than so many rows: few large pieces are cheaper."""
        if sum(map(_count, self._unmeasured)) <= unmeasured_max:
            return
        for examples in together(one for one in self._unmeasured if isinstance(one, ExampleColumns)):
            self._validation.fold(examples)
        for predictions in self._unmeasured:
            if isinstance(predictions, PredictionColumns):
                self._validation.fold_predictions(predictions)
        self._unmeasured.clear()

    def _show(self, row: Row) -> None:
        """Tell the telemetry of a row without slices, unless a newer window is shown."""
        window, start = row["window"], row["window_start"]
        if row["series"] == PREDICTIONS or start < self._newest.get(window, 0):
            return
        self._newest[window] = start
        self._telemetry.set_loss(model=row["series"], window=window, log_loss=row["log_loss"])
        for quantile, name in DELAYS.items():
            self._telemetry.set_label_delay(window=window, quantile=quantile, seconds=row[name] / 1_000)


def reference_reader(settings: Settings, report: Callable[[str], None]) -> Callable[[str], Reference | None]:
    """What a model version was trained on, from the registry; a version that cannot be read has no reference."""
    registry, keys = registry_of(settings), trusted_keys(settings)

    def reference_of(version: str) -> Reference | None:
        if version == INITIAL:
            return None
        try:
            content = registry.load(settings.app.name, version, keys)[0].reference
        except ModelRefusedError as error:
            report(f"warning: shifts against {version} are not judged: {error}")
            return None
        return None if content is None else Reference.from_json(content)

    return reference_of


def _training(app: AppSpec, plan: FeaturePlan, report: Callable[[str], None]) -> Training | None:
    if all(comparator.kind != "booster" for comparator in app.comparators):
        return None
    from tidemill.apps.monitor_training import ComparatorTraining  # XGBoost is loaded only where it trains

    return ComparatorTraining(app, plan, threads=os.cpu_count() or 1, report=report)


def _count(columns: ExampleColumns | PredictionColumns) -> int:
    return len(columns.event_time)


def _baselines() -> Callable[[], ShownDetectors]:
    from tidemill.models.drift_baselines import DriftBaselines  # river takes a second to load

    return DriftBaselines


def run_monitor(
    settings: Settings, *, is_until_end: bool, metrics_port: int | None, report: Callable[[str], None]
) -> int:
    """Run the monitor until TERM, Ctrl-C or the end that was asked for; the exit code."""
    with suppress(OSError):
        os.nice(NICENESS)
    stopped = threading.Event()
    former = {one: signal.signal(one, lambda *_: stopped.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    telemetry = MonitorTelemetry()
    monitor: Monitor | None = None
    end_serving = telemetry.serve(metrics_port) if metrics_port else lambda: None
    try:
        monitor = Monitor(settings, telemetry=telemetry, report=report)
        monitor.run(is_until_end=is_until_end, is_stopped=stopped.is_set)
    finally:
        if monitor is not None:
            monitor.close()
        end_serving()
        for one, handler in former.items():
            signal.signal(one, handler)
    return 0
