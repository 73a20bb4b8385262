"""Follow a running app from its topics, as any outsider could.

In: the commits and examples logs. Out: positions, watermarks, counts, and how good the predictions are so far.
Invariant: only committed records are seen, and each counts once; comparators know a label only from its time on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.apps.results import Quality
from tidemill.core.metrics import RunningMetrics, auc, constant_at_delay, log_loss, no_change_at_delay
from tidemill.core.records import Float64s, Outcome, Partition
from tidemill.core.topic_names import commits_topic, examples_topic
from tidemill.io.kafka_reader import FOLLOW_WAIT_MS, LogReader
from tidemill.io.wire import decode, without_commands

READ_RECORDS_MAX = 20_000  # per look and log: a view that is behind catches up within some looks
DAY_MS = 86_400_000
BLEND, LEARNER, CONSTANT, NO_CHANGE = "blend", "learner", "constant", "no-change"
# Outcomes that resolve an earlier record rather than count one of their own.
_LATER = {Outcome.EXPIRED.name.lower(), Outcome.WAITING_JOINED.name.lower(), Outcome.WAITING_ORPHANED.name.lower()}


class CommitFollower:
    """What the commits log says. One thread owns it."""

    def __init__(self, clients: Mapping[str, Any], app: str) -> None:
        self._reader = LogReader(clients, commits_topic(app), 0, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._reader.seek(0)
        self.positions: dict[Partition, int] = {}
        self.watermarks: dict[Partition, int] = {}
        self.group_watermark = -1
        self.outcomes: Counter[str] = Counter()
        self.n = 0
        self.first_prediction_at: float | None = None  # on time.monotonic
        self.last_commit_at: float | None = None

    @property
    def records(self) -> int:
        """Input records processed."""
        return sum(count for name, count in self.outcomes.items() if name not in _LATER)

    @property
    def dead_letters(self) -> int:
        return sum(count for name, count in self.outcomes.items() if name.endswith("dead_letter"))

    @property
    def waiting(self) -> int:
        """Labels that still wait for their event."""
        return self.outcomes["waiting"] - self.outcomes["waiting_joined"] - self.outcomes["waiting_orphaned"]

    def look(self) -> bool:
        """Take in what is new; False when there was nothing."""
        messages = self._reader.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
        if not messages:
            return False
        for row in decode("commit.v1", _values(messages)).to_pylist():
            partition = Partition(row["topic"], row["partition"])
            self.positions[partition] = row["next"]
            self.watermarks[partition] = max(row["watermark"], self.watermarks.get(partition, -1))
            self.group_watermark = max(row["group_watermark"], self.group_watermark)
            self.n = max(row["n"], self.n)
            self.outcomes.update(dict(row["outcomes"]))
        self.last_commit_at = time.monotonic()
        if self.first_prediction_at is None and self.outcomes["prediction"]:
            self.first_prediction_at = self.last_commit_at
        return True

    def close(self) -> None:
        self._reader.close()


class ExampleFollower:
    """What the examples log says: labels beside the probabilities that were served. One thread owns it."""

    def __init__(self, clients: Mapping[str, Any], app: str) -> None:
        self._reader = LogReader(clients, examples_topic(app), 0, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._reader.seek(0)
        self._event_times = _Column(np.int64)
        self._label_times = _Column(np.int64)
        self._labels = _Column(np.int8)
        self._blend = _Column(np.float64)
        self._learner = _Column(np.float64)
        self._judged = 0  # how many of the rows are in `_running`
        self._running = {name: RunningMetrics.empty() for name in (BLEND, LEARNER, CONSTANT, NO_CHANGE)}
        self._by_day: dict[int, RunningMetrics] = {}
        self.examples = 0

    def look(self) -> bool:
        """Take in what is new; False when there was nothing."""
        messages = self._reader.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
        if not messages:
            return False
        columns = decode("example.v1", without_commands(_values(messages)))
        columns = columns.filter(pc.equal(columns.column("kind"), "example"))
        self.examples += columns.num_rows
        # A label that came before its own event is no measure of a prediction.
        columns = columns.filter(pc.greater_equal(columns.column("label_time"), columns.column("event_time")))
        self._event_times.add(columns.column("event_time"))
        self._label_times.add(columns.column("label_time"))
        self._labels.add(columns.column("label"))
        self._blend.add(columns.column("blend"))
        self._learner.add(pc.coalesce(columns.column("learner"), columns.column("blend")))
        return True

    def judge(self) -> dict[str, Quality]:
        """Quality so far, AUC from a sketch; the cost grows with what is new, and little with what was."""
        new = slice(self._judged, None)
        if len(self._labels.values[new]):
            label = self._labels.values[new]
            for name, probability in self._experts(new).items():
                self._running[name] += RunningMetrics.of(probability, label)
            days = self._label_times.values[new] // DAY_MS
            for day in np.unique(days).tolist():
                of_day = RunningMetrics.of(self._blend.values[new][days == day], label[days == day])
                self._by_day[day] = self._by_day.get(day, RunningMetrics.empty()) + of_day
            self._judged = len(self._labels.values)
        return {name: Quality(one.log_loss, one.auc) for name, one in self._running.items() if one.count}

    def judge_exactly(self) -> dict[str, Quality]:
        """Quality over all examples, computed at once without a sketch."""
        label = self._labels.values
        experts = self._experts(slice(None)).items()
        return {name: Quality(log_loss(probability, label), auc(probability, label)) for name, probability in experts}

    def losses_by_day(self) -> list[float]:
        """The blend's log loss by day of event time, in order."""
        return [metrics.log_loss for _, metrics in sorted(self._by_day.items())]

    def label_delay_s(self, share: float) -> float | None:
        """The quantile of the time from event to label; None without examples."""
        delays = self._label_times.values - self._event_times.values
        return float(np.quantile(delays, share)) / 1000 if len(delays) else None

    def close(self) -> None:
        self._reader.close()

    def _experts(self, rows: slice) -> dict[str, Float64s]:
        events = self._event_times.values[rows]
        times, labels = self._label_times.values, self._labels.values
        return {
            BLEND: self._blend.values[rows],
            LEARNER: self._learner.values[rows],
            CONSTANT: constant_at_delay(events, times, labels),
            NO_CHANGE: no_change_at_delay(events, times, labels),
        }


def _values(messages: Sequence[Any]) -> list[bytes]:
    return [message.value() for message in messages]


class _Column:
    """A column that grows; appending is cheap, `values` is a view."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._room = np.empty(1 << 14, dtype=kind)
        self._count = 0

    @property
    def values(self) -> np.ndarray[Any, Any]:
        return self._room[: self._count]

    def add(self, column: pa.Array) -> None:
        end = self._count + len(column)
        if end > len(self._room):
            grown = np.empty(max(end, 2 * len(self._room)), dtype=self._room.dtype)
            grown[: self._count] = self.values
            self._room = grown
        self._room[self._count : end] = column.to_numpy(zero_copy_only=False)
        self._count = end
