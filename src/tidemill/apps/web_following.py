"""Follow an app's topics for the web page.

In: commits, metrics, alerts, ticks and the story of models, read committed, in no group. Out: changes of a `Board`.
Invariant: nothing is written to Kafka; a topic that does not exist yet is waited for; an unreachable broker is said on
the page, which keeps what it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.monitor_rows import METRICS_SCHEMA
from tidemill.apps.web_board import Board
from tidemill.apps.web_state import SHOWN_WINDOWS, WebState
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.core.topic_names import alerts_topic, commits_topic, drift_topic, metrics_topic, models_topic
from tidemill.errors import RecordError, StateLostError, TidemillError, UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogReader
from tidemill.io.loop_records import decode_alerts, decode_story, decode_ticks
from tidemill.io.telemetry import WebTelemetry
from tidemill.io.wire import decode

READ_RECORDS_MAX = 5_000  # of a topic at once; the page is drawn in between
LOOK_EVERY_S = 0.25
LAG_EVERY_S = 3.0  # thirteen requests to the broker
RETRY_S = 2.0
LIST_EVERY_S = 5.0  # while a topic is missing
NO_TOPIC = "TM-3011"

Fold = Callable[[WebState, Sequence[Any]], None]


class Follower:
    """A thread of its own; `close` ends it."""

    def __init__(self, settings: Settings, board: Board, telemetry: WebTelemetry) -> None:
        app = settings.app
        self._settings = settings
        self._clients = clients_of(settings)
        self._board = board
        self._telemetry = telemetry
        self._folds: dict[str, Fold] = {
            commits_topic(app.name): fold_commits,
            metrics_topic(app.name): fold_metrics,
            alerts_topic(app.name): fold_alerts,
            drift_topic(app.name): fold_ticks,
            models_topic(app.name): fold_story,
        }
        self._refused = ""  # why a record is not shown
        self._inputs: list[Partition] = []
        self._readers: dict[str, LogReader] = {}
        self._listed_at = self._lag_at = -LIST_EVERY_S
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="web follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    is_behind = self._look()
                    self._board.set_trouble(self._refused)
                    self._telemetry.set_following(True)
                except StateLostError:
                    # A topic was deleted or cut: what is shown is of a log that is gone.
                    self._close_readers()
                    self._board.change(WebState.forget)
                    continue
                except TidemillError as error:
                    self._board.set_trouble(str(error))
                    self._telemetry.set_following(False)
                    self._stopped.wait(RETRY_S)
                    continue
                if not is_behind:
                    self._stopped.wait(LOOK_EVERY_S)
        finally:
            self._close_readers()

    def _look(self) -> bool:
        """Take in what is new; True when a topic may hold more."""
        now = time.monotonic()
        if (len(self._readers) < len(self._folds) or not self._inputs) and now - self._listed_at >= LIST_EVERY_S:
            self._listed_at = now
            self._open_readers()
        is_behind = False
        for topic, reader in self._readers.items():
            messages = reader.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
            if messages:
                self._take_in(topic, messages)
                is_behind = is_behind or len(messages) == READ_RECORDS_MAX
        if not is_behind and now - self._lag_at >= LAG_EVERY_S and self._inputs:
            self._lag_at = now
            self._look_at_lag()
        return is_behind

    def _take_in(self, topic: str, messages: Sequence[Any]) -> None:
        """Fold the records; one that cannot be read is left out, and said."""
        fold = self._folds[topic]
        try:
            self._board.change(lambda state: fold(state, messages))
        except RecordError as error:
            if len(messages) > 1:
                for one in messages:
                    self._take_in(topic, [one])
            else:
                self._refused = f"{topic}@{messages[0].offset()} is left out: {error}"

    def _open_readers(self) -> None:
        """Follow the topics that exist by now, each from its first record."""
        if not self._inputs:
            inputs = {topic.name: self._partition_count(topic.name) for topic in self._settings.app.topics}
            self._inputs = [Partition(name, number) for name, count in inputs.items() for number in range(count)]
        for topic in self._folds:
            if topic not in self._readers and self._partition_count(topic):
                reader = LogReader(self._clients, topic, 0)
                try:
                    reader.seek(reader.first_offset())
                except TidemillError:
                    reader.close()
                    raise
                self._readers[topic] = reader

    def _partition_count(self, topic: str) -> int:
        """0: there is no such topic yet."""
        try:
            return kafka.partition_counts(self._clients, [topic])[topic]
        except UnavailableError as error:
            if error.code == NO_TOPIC:
                return 0
            raise

    def _look_at_lag(self) -> None:
        ends = {at: end for at, (_, end) in kafka.log_bounds(self._clients, self._inputs).items()}
        if self._board.read(lambda state: state.is_new_lag(ends)):
            self._board.change(lambda state: state.set_ends(ends))
        lag = self._board.read(WebState.lag_by_topic)
        self._telemetry.set_lag(lag)
        counts = self._board.read(lambda state: state.open_alerts)
        self._telemetry.set_open_alerts(counts)

    def _close_readers(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


def fold_commits(state: WebState, messages: Sequence[Any]) -> None:
    state.fold_commits(decode("commit.v1", [one.value() for one in messages]).to_pylist())


def fold_metrics(state: WebState, messages: Sequence[Any]) -> None:
    """A key is <series>/<window>/<window_start>/<slice>: most rows are of slices, and are not decoded."""
    newest = {one.key(): one.value() for one in messages if _is_shown(one.key())}
    values = [value for value in newest.values() if value is not None]
    rows = decode(METRICS_SCHEMA, values).to_pylist() if values else []
    for row in rows:
        state.fold_metric(row)
    for key in (key for key, value in newest.items() if value is None):
        series, window, start, _ = key.decode().split("/", 3)
        state.drop_metric(series, window, int(start))


def _is_shown(key: bytes) -> bool:
    _, window, _, slice_ = key.decode().split("/", 3)
    return not slice_ and window in SHOWN_WINDOWS


def fold_alerts(state: WebState, messages: Sequence[Any]) -> None:
    for alert in decode_alerts([one.value() for one in messages]):
        state.fold_alert(alert)


def fold_ticks(state: WebState, messages: Sequence[Any]) -> None:
    for tick in decode_ticks([one.value() for one in messages]):
        state.fold_tick(tick)


def fold_story(state: WebState, messages: Sequence[Any]) -> None:
    for event in decode_story([one.value() for one in messages]):
        state.fold_story(event)
