"""Ticks from the logs: when one is complete, what belongs to it, and whether it is published already.

In: commits, examples, predictions, people's acknowledgements; the ticks that are published. Out: closed ticks in order.
Invariant: a tick is a function of the logs up to the positions that its record carries, so a restarted monitor makes
the same ticks and publishes none of them again. Incidents and triggers go on from what is published: after a change of
settings or code the same logs may tell of others, which nobody has heard of.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.apps.alerts import alert_output
from tidemill.apps.monitor_logs import ExampleLog, PredictionLog
from tidemill.config import Settings
from tidemill.core.alerts import Alert
from tidemill.core.records import Outcome, Output, Partition
from tidemill.core.spec import AppSpec
from tidemill.core.surveillance import Surveillance
from tidemill.core.ticks import Tick
from tidemill.core.topic_names import alerts_topic, commits_topic, drift_topic
from tidemill.errors import UnavailableError
from tidemill.io.kafka_reader import LogEnds, LogReader, read_topic
from tidemill.io.loop_records import decode_alerts, decode_ticks, encode_alerts, encode_ticks
from tidemill.io.source import read_headers
from tidemill.io.wire import decode

POSITIONS_HEADER = "tidemill.positions"  # of a tick's record: the next offset of each log that it is made of
COMMITS_AT_ONCE = 5_000
ACKNOWLEDGEMENTS_AT_ONCE = 1_000
PATIENCE_S = 120.0  # a dead worker's transaction is ended after its time-out of 10 s
WAIT_S = 0.005  # for records of a transaction that is being ended
# No input records of their own, or none of a producer.
_NOT_COUNTED = {
    one.name.lower() for one in (Outcome.EXPIRED, Outcome.WAITING_JOINED, Outcome.WAITING_ORPHANED, Outcome.PUNCTUATION)
}

Positions = Mapping[str, int]  # by partition as text


class ClosedTick(NamedTuple):
    """A tick and its records in the order in which they are published; () when they are published already."""

    tick: Tick
    outputs: tuple[Output, ...]


class _Published(NamedTuple):
    """A tick of the topic. positions: None where its record has none."""

    tick: Tick
    positions: Positions | None


class PublishedTicks:
    """What `drift.v1` and `alerts.v1` hold when the monitor starts."""

    def __init__(
        self, ticks: Sequence[_Published], alarms: Sequence[tuple[int, Alert]], report: Callable[[str], None]
    ) -> None:
        """
        Args:
            alarms: (offset, record) of the alarm topic, in its order.
        """
        self._by_time = {one.tick.time: one for one in ticks}
        named = {alert.id for one in ticks for alert in one.tick.alerts}  # people's demands are no monitor's records
        self._alarms = [one for one in alarms if one[1].id in named]
        self._report = report
        self.first = ticks[0].tick.time if ticks else None
        self.last = ticks[-1].tick.time if ticks else None
        self.count = len(ticks)
        self.differing = 0

    def positions(self, end: int) -> Positions | None:
        """Up to where the logs were read for the tick that ends then; None: it is not published, or says nothing."""
        found = self._by_time.get(end)
        return None if found is None else found.positions

    def records(self, offset_next: int) -> list[Alert]:
        """What the ticks have told, with people's answers before this offset of the alarm topic."""
        return [alert for offset, alert in self._alarms if alert.event != "acknowledged" or offset < offset_next]

    def holds(self, tick: Tick) -> bool:
        """Whether nothing of this tick is to be published; a difference from what is published is reported."""
        if self.last is None or tick.time > self.last:
            return False
        found = self._by_time.get(tick.time)
        if found is None or _bytes_of(found.tick) != _bytes_of(tick):
            self.differing += 1
            if self.differing == 1:
                self._report(
                    f"warning: the tick that ended at {tick.time} is now judged otherwise than when it was published: "
                    "settings, references or code have changed since; what is published stays, open incidents among "
                    f"it, and the ticks behind {self.last} are judged as of now"
                )
        return True


def read_published(clients: Mapping[str, Any], app: AppSpec, report: Callable[[str], None]) -> PublishedTicks:
    """Read both topics; the transactional id must be the caller's already."""
    alarms: list[tuple[int, Alert]] = []
    for messages in read_topic(clients, alerts_topic(app.name)):
        offsets = [message.offset() for message in messages]
        alarms += zip(offsets, decode_alerts([message.value() for message in messages]), strict=True)
    alerts = [alert for _, alert in alarms]
    found: list[_Published] = []
    for messages in read_topic(clients, drift_topic(app.name)):
        ticks = decode_ticks([message.value() for message in messages], alerts)
        positions = [_positions_of(read_headers(message)) for message in messages]
        found += map(_Published, ticks, positions)
    return PublishedTicks(found, alarms, report)


class TickMaker:
    """One thread owns it.

    Args:
        partitions: of the inputs; a tick is complete once the watermarks of all of them are past its end.
        logs: examples and predictions by partition.
        readers: of commits and of the alarm topic, at their starts.
    """

    def __init__(
        self,
        settings: Settings,
        surveillance: Surveillance,
        *,
        partitions: Sequence[Partition],
        logs: Mapping[Partition, ExampleLog | PredictionLog],
        commits: LogReader,
        alarms: LogReader,
        ends: LogEnds,
        published: PublishedTicks,
        on_examples: Callable[[Any], None],
        on_predictions: Callable[[Any], None],
    ) -> None:
        app = settings.app
        self._app = app
        self._every_ms = app.monitor.every_ms
        self._surveillance = surveillance
        self._logs = logs
        self._commits, self._alarms, self._ends = commits, alarms, ends
        self._published = published
        self._on_examples, self._on_predictions = on_examples, on_predictions
        self._watermarks = dict.fromkeys(partitions, -1)
        self._group_watermark = -1
        self._rows: deque[Mapping[str, Any]] = deque()  # of commits, not looked at yet
        self._commits_position = commits.position
        self._records: Counter[str] = Counter()  # of the open tick
        self._dead_letters = 0
        self._has_outputs = False
        self._acknowledged: deque[tuple[int, Alert]] = deque()  # (offset, record), not taken in yet
        self._alarms_position = alarms.position
        self._open_end: int | None = None  # the end of the open tick, once the first one is closed
        self._last_published = published.last  # None once a tick behind it is closed

    def take_commits(self, timeout_s: float) -> bool:
        """Read what is new of the commits log; False when nothing came."""
        messages = self._commits.read(until_offset=None, timeout_s=timeout_s, max_records=COMMITS_AT_ONCE)
        offsets = [message.offset() for message in messages]
        rows = decode("commit.v1", [message.value() for message in messages]).to_pylist()
        self._rows += [row | {"at": offset} for row, offset in zip(rows, offsets, strict=True)]
        return bool(messages)

    def close_next(self) -> ClosedTick | None:
        """The next tick, if it is complete."""
        while True:
            if (end := self._complete_end()) is not None:
                return self._close(end)
            if not self._rows:
                return None
            self._take_row(self._rows.popleft())

    # Watermarks ---------------------------------------------------------------------------------------------------

    def _take_row(self, row: Mapping[str, Any]) -> None:
        partition = Partition(row["topic"], row["partition"])
        self._watermarks[partition] = max(row["watermark"], self._watermarks.get(partition, -1))
        # What the store said; it knows of partitions that are idle.
        self._group_watermark = max(row["group_watermark"], min(self._watermarks.values()), self._group_watermark)
        for outcome, count in row["outcomes"]:
            if outcome not in _NOT_COUNTED:
                self._records[partition.topic] += count
                self._dead_letters += count if outcome.endswith("dead_letter") else 0
                self._has_outputs = True
        self._commits_position = row["at"] + 1

    def _complete_end(self) -> int | None:
        """The end of the open tick, when the group's watermark has reached it."""
        if self._group_watermark < 0:
            return None
        if self._open_end is not None:
            return self._open_end if self._group_watermark >= self._open_end else None
        end = self._first_end()
        if end is None or self._group_watermark < end:
            return None
        if self._published.first is None:
            self._read_up_to(end)  # an earlier record may come to light
            end = self._first_end()
        return end

    def _first_end(self) -> int | None:
        """The end of the first tick: as it was published, else that of the first record."""
        if self._published.first is not None and self._published.first % self._every_ms == 0:
            return self._published.first
        if not self._has_outputs:
            return None
        times = self._first_times()
        if not times:
            self._read_up_to(0)
            times = self._first_times()
        return (min(times) // self._every_ms + 1) * self._every_ms if times else None

    def _first_times(self) -> list[int]:
        found = (log.first_time() for log in self._logs.values())
        return [one for one in found if one is not None]

    # Closing ------------------------------------------------------------------------------------------------------

    def _close(self, end: int) -> ClosedTick:
        if self._last_published is not None and end > self._last_published:
            self._surveillance.take_over(self._published.records(self._alarms_position))
            self._last_published = None
        positions = self._published.positions(end)
        self._read_up_to(end, positions)
        cut: dict[str, int] = {}
        for partition, log in self._logs.items():
            until = None if positions is None else positions.get(str(partition))
            if isinstance(log, ExampleLog):
                examples, commands, offset_next = log.cut(end, until)
                self._surveillance.fold_examples(examples, commands, offset_next)
                cut[str(partition)] = offset_next
            else:
                found = log.cut(end, until)
                if found is not None:
                    self._surveillance.fold_predictions(*found)
                cut[str(partition)] = log.position
        self._surveillance.fold_records(self._records, self._dead_letters)
        self._records, self._dead_letters = Counter(), 0
        alarms = f"{alerts_topic(self._app.name)}[0]"
        self._acknowledge(end, None if positions is None else positions.get(alarms))
        tick = self._surveillance.close(end)
        self._open_end = end + self._every_ms
        cut |= {f"{commits_topic(self._app.name)}[0]": self._commits_position, alarms: self._alarms_position}
        return ClosedTick(tick, () if self._published.holds(tick) else self._outputs(tick, cut))

    def _outputs(self, tick: Tick, positions: Positions) -> tuple[Output, ...]:
        """The alerts, then the tick that names them."""
        header = json.dumps(positions, sort_keys=True, separators=(",", ":")).encode()
        record = Output(
            drift_topic(self._app.name), str(tick.time).encode(), encode_ticks([tick])[0], ((POSITIONS_HEADER, header),)
        )
        return (*(alert_output(self._app, alert) for alert in tick.alerts), record)

    def _acknowledge(self, end: int, until_offset: int | None) -> None:
        """What people have said so far, or had said when the tick was made."""
        while until_offset is None or self._alarms.position < until_offset:
            timeout_s = 0.0 if until_offset is None else WAIT_S
            messages = self._alarms.read(
                until_offset=until_offset, timeout_s=timeout_s, max_records=ACKNOWLEDGEMENTS_AT_ONCE
            )
            alerts = decode_alerts([message.value() for message in messages])
            self._acknowledged += [
                (message.offset(), alert)
                for message, alert in zip(messages, alerts, strict=True)
                if alert.event == "acknowledged"
            ]
            if until_offset is None and not messages:
                break
        self._alarms_position = self._alarms.position if until_offset is None else until_offset
        while self._acknowledged and self._acknowledged[0][0] < self._alarms_position:
            alert = self._acknowledged.popleft()[1]
            self._surveillance.acknowledge(alert.id, alert.by, end - 1)

    # Reading ------------------------------------------------------------------------------------------------------

    def read_some(self, limits: Mapping[Partition, int], *, held_max: int | None) -> bool:
        """What is there of examples and predictions, a piece of each; logs that hold `held_max` are left alone."""
        has_some = False
        for partition, log in self._logs.items():
            if held_max is None or log.held < held_max:
                has_some = self._read(partition, limits.get(partition), 0.0) or has_some
        return has_some

    def _read_up_to(self, end: int, positions: Positions | None = None) -> None:
        """Read until everything of the tick is held, and not much more."""
        ends: Mapping[Partition, int] | None = None
        deadline = time.monotonic() + PATIENCE_S
        for partition, log in self._logs.items():
            until = None if positions is None else positions.get(str(partition))
            while until is not None and log.reader.position < until:
                self._read(partition, until, WAIT_S)
            while until is None and not log.is_read_beyond(end):
                if ends is None:
                    ends = self._ends.ask()
                if log.reader.position >= ends[partition]:
                    break
                self._read(partition, None, WAIT_S)
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        "TM-3042",
                        f"{partition} could not be read up to {ends[partition]} within {PATIENCE_S:.0f} s: a "
                        f"transaction is open there at {log.reader.position}, or its broker is gone; start again",
                    )

    def _read(self, partition: Partition, until_offset: int | None, timeout_s: float) -> bool:
        log = self._logs[partition]
        if isinstance(log, ExampleLog):
            examples = log.read(until_offset=until_offset, timeout_s=timeout_s)
            if examples is not None:
                self._on_examples(examples)
            return examples is not None
        predictions = log.read(until_offset=until_offset, timeout_s=timeout_s)
        if predictions is not None:
            self._on_predictions(predictions)
        return predictions is not None


def _positions_of(headers: Sequence[tuple[str, bytes | None]] | None) -> Positions | None:
    for name, value in headers or ():
        if name == POSITIONS_HEADER and value:
            found: dict[str, int] = json.loads(value)
            return found
    return None


def _bytes_of(tick: Tick) -> tuple[bytes, ...]:
    return (*encode_alerts(tick.alerts), *encode_ticks([tick]))
