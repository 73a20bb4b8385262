"""The monitor: folds predictions and examples into metrics and publishes what has changed.

In: `<app>.examples.v1` and `<app>.predictions.v1`, read committed. Out: rows in `<app>.metrics.v1`, with the positions
of the group `tidemill.<app>.monitor` in the same transaction. Invariant: the rows of the topic are those of the logs up
to the committed positions (slices: up to a minute older); a second monitor of an app fences the first.

A restarted monitor folds the logs again from their start and comes to the same rows, so it publishes only what is new.
That takes some 25 s per million examples and predictions (and the training of declared boosters); nothing is published
meanwhile.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.apps.monitor_rows import PublishedRows
from tidemill.apps.topics import ensure_metrics_topic, ensure_output_topics, metrics_topic
from tidemill.config import Settings
from tidemill.core.comparators import Training
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Partition
from tidemill.core.spec import AppSpec
from tidemill.core.validation import PredictionColumns, Validation
from tidemill.core.validation_rows import PREDICTIONS, Row
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogReader, read_topic
from tidemill.io.kafka_writer import TransactionalWriter, group_metadata
from tidemill.io.telemetry import MonitorTelemetry
from tidemill.io.wire import decode, decode_examples

READ_RECORDS_MAX = 10_000  # of a partition at once; bounds memory
PUBLISH_EVERY_S = 1.0
SLICES_EVERY_S = 60.0  # a thousand rows change with every example
WAIT_S = 0.1  # for a first example, when there is none
DELAYS = {"0.5": "label_delay_p50_ms", "0.95": "label_delay_p95_ms"}


def monitor_id(app: AppSpec) -> str:
    """The group and the transactional id of an app's monitor."""
    return f"tidemill.{app.name}.monitor"


class Monitor:
    """One thread owns it; `close` it."""

    def __init__(self, settings: Settings, *, telemetry: MonitorTelemetry, report: Callable[[str], None]) -> None:
        app = settings.app
        self._clients = kafka.client_settings(settings.bootstrap_servers or "", settings.kafka)
        ensure_output_topics(settings)
        ensure_metrics_topic(settings)
        plan = FeaturePlan(app)
        self._validation = Validation(app, plan.category_names, _training(app, plan, report))
        self._telemetry = telemetry
        self._newest: dict[str, int] = {}  # by window kind: the start of the newest that the telemetry shows

        # The writer comes first: a predecessor's transaction is over before its rows and positions are read.
        self._writer = TransactionalWriter(self._clients, monitor_id(app))
        self._writer.open()
        self._group = group_metadata(self._clients, monitor_id(app))
        topic = metrics_topic(app)
        self._published = PublishedRows(topic)
        self._published.load((m.key(), m.value()) for messages in read_topic(self._clients, topic) for m in messages)

        self._examples = Partition(f"{app.name}.examples.v1", 0)
        predictions = f"{app.name}.predictions.v1"
        count = kafka.partition_counts(self._clients, [predictions])[predictions]
        parts = [Partition(predictions, number) for number in range(count)]
        self._readers = {at: LogReader(self._clients, at.topic, at.number) for at in (self._examples, *parts)}
        for reader in self._readers.values():
            reader.seek(reader.first_offset())
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
            self.fold(ends)
        if is_stopped():
            return
        self.publish(with_slices=True)
        published_at = slices_at = time.monotonic()
        while not is_until_end and not is_stopped():
            self.fold({})
            now = time.monotonic()
            if now - published_at >= PUBLISH_EVERY_S:
                with_slices = now - slices_at >= SLICES_EVERY_S
                self.publish(with_slices=with_slices)
                published_at, slices_at = now, now if with_slices else slices_at
        if not is_until_end:
            self.publish(with_slices=True)

    def fold(self, ends: dict[Partition, int]) -> None:
        """Take in some of what is new, before `ends` where they are given."""
        for at, reader in self._readers.items():
            wait_s = WAIT_S if at == self._examples else 0.0
            messages = reader.read(until_offset=ends.get(at), timeout_s=wait_s, max_records=READ_RECORDS_MAX)
            if not messages:
                continue
            values = [message.value() for message in messages]
            if at == self._examples:
                self._validation.fold(decode_examples(values, [message.offset() for message in messages])[0])
            else:
                self._validation.fold_predictions(prediction_columns(decode("prediction.v1", values)))

    def publish(self, *, with_slices: bool) -> int:
        """Rows that have changed and the positions, in one transaction; how many rows. Nothing new writes nothing."""
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
        for reader in self._readers.values():
            reader.close()

    def _show(self, row: Row) -> None:
        """Tell the telemetry of a row without slices, unless a newer window is shown."""
        window, start = row["window"], row["window_start"]
        if row["series"] == PREDICTIONS or start < self._newest.get(window, 0):
            return
        self._newest[window] = start
        self._telemetry.set_loss(model=row["series"], window=window, log_loss=row["log_loss"])
        for quantile, name in DELAYS.items():
            self._telemetry.set_label_delay(window=window, quantile=quantile, seconds=row[name] / 1_000)


def prediction_columns(columns: pa.RecordBatch) -> PredictionColumns:
    """What the validation needs of prediction.v1."""
    flags = columns.column("flags")
    return PredictionColumns(
        event_time=columns.column("event_time").to_numpy(),
        blend=columns.column("blend").to_numpy(),
        is_alarm=columns.column("decision").to_numpy(zero_copy_only=False),
        is_degraded=_has(flags, "degraded"),
        is_outlier=_has(flags, "outlier"),
    )


def _has(flags: pa.ListArray, flag: str) -> npt.NDArray[np.bool_]:
    """Which lists hold the flag."""
    found = np.zeros(len(flags), dtype=np.bool_)
    at = pc.list_parent_indices(flags).filter(pc.equal(pc.list_flatten(flags), flag))
    found[at.to_numpy(zero_copy_only=False)] = True
    return found


def _training(app: AppSpec, plan: FeaturePlan, report: Callable[[str], None]) -> Training | None:
    if all(comparator.kind != "booster" for comparator in app.comparators):
        return None
    from tidemill.apps.monitor_training import ComparatorTraining  # XGBoost is loaded only where it trains

    return ComparatorTraining(app, plan, threads=os.cpu_count() or 1, report=report)


def run_monitor(
    settings: Settings, *, is_until_end: bool, metrics_port: int | None, report: Callable[[str], None]
) -> int:
    """Run the monitor until TERM, Ctrl-C or the end that was asked for; the exit code."""
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
