"""A worker folds the examples log into its learner.

In: the examples log, one partition. Out: the learner at N, snapshots on the way. Invariant: every worker applies the
same records in the same order; N is the next offset to fold.
"""

from __future__ import annotations

import time
from typing import Protocol

from tidemill.errors import UnavailableError
from tidemill.io.kafka_reader import LogReader
from tidemill.io.snapshots import SnapshotStore
from tidemill.io.wire import decode_examples
from tidemill.models.learner import Learner

READ_YOUR_WRITES_S = 0.05  # live: a later example is worth more than a late prediction
OWN_EXAMPLES_S = 30.0  # bounded replay: our own committed examples must come; a broker that keeps them longer is down
FOLD_RECORDS_MAX = 10_000  # bounds memory while catching up


class Message(Protocol):
    """What the log reader returns."""

    def value(self) -> bytes: ...

    def offset(self) -> int: ...


class ExampleFold:
    """Reads the log and folds it; one thread owns it."""

    def __init__(
        self, *, reader: LogReader, learner: Learner, snapshots: SnapshotStore, app: str, is_bounded: bool
    ) -> None:
        self._reader = reader
        self._learner = learner
        self._snapshots = snapshots
        self._app = app
        self._is_bounded = is_bounded
        self._own_next = 0  # the next offset after the last example that this worker published
        reader.seek(learner.n)

    def expect(self, offset: int) -> None:
        """This worker published an example at `offset`."""
        self._own_next = max(self._own_next, offset + 1)

    def catch_up(self) -> None:
        """Fold all that is in the log now (at start and after a claim)."""
        self._fold_until(self._reader.end_offset(), deadline_s=None)

    def __call__(self) -> None:
        """Fold at least the examples that this worker published, and what else has arrived.

        A bounded replay waits for its own examples without compromise: its N must not depend on the clock.
        """
        if self._learner.n < self._own_next:
            self._fold_until(self._own_next, OWN_EXAMPLES_S if self._is_bounded else READ_YOUR_WRITES_S)
        if not self._is_bounded:
            messages = self._reader.read(until_offset=None, timeout_s=0.0, max_records=FOLD_RECORDS_MAX)
            self._fold(messages, self._reader.position)

    def _fold_until(self, offset: int, deadline_s: float | None) -> None:
        started = time.monotonic()
        while self._learner.n < offset:
            messages = self._reader.read(until_offset=offset, timeout_s=0.005, max_records=FOLD_RECORDS_MAX)
            # N stops exactly at the offset asked for, whatever markers the reader has already passed behind it.
            self._fold(messages, min(self._reader.position, offset))
            if deadline_s is not None and self._learner.n < offset and time.monotonic() - started > deadline_s:
                if self._is_bounded:
                    raise UnavailableError(
                        "TM-3020",
                        f"examples log: offset {offset} was committed but cannot be read after {deadline_s:.0f} s "
                        f"(read up to {self._learner.n}); check the broker, then start the worker again",
                    )
                return

    def _fold(self, messages: list[Message], offset_next: int) -> None:
        if offset_next <= self._learner.n:
            return
        examples, _commands = decode_examples([m.value() for m in messages], [m.offset() for m in messages])
        for snapshot in self._learner.fold(examples, offset_next):
            self._snapshots.put(self._app, "learner", snapshot)
