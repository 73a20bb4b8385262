"""A worker folds the examples log into its models.

In: the examples log, one partition. Out: the models at N, snapshots on the way. Invariant: every worker applies the
same records in the same order; N is the next offset to fold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from tidemill.apps.failpoints import failpoint
from tidemill.apps.patience import Patience
from tidemill.core.roles import Roles
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.spec import AppSpec
from tidemill.errors import UnavailableError
from tidemill.io.kafka_reader import LogReader
from tidemill.io.model_snapshots import ModelSnapshots
from tidemill.io.wire import FeatureShape, decode_examples
from tidemill.models.replica import LogPart
from tidemill.models.serving import Serving

READ_YOUR_WRITES_S = 0.05  # live: a later example is worth more than a late prediction
OWN_EXAMPLES_S = 30.0  # bounded replay: our own committed examples must come; a broker that keeps them longer is down
CATCH_UP_STILL_S = 60.0  # without a record, although the end is known: the broker is down
FOLD_RECORDS_MAX = 10_000  # bounds memory while catching up


def barrier_of(spec: AppSpec) -> int | None:
    """Where a bounded replay cuts its batches: at each tick, when the app has a loop that answers ticks."""
    return None if spec.retrain is None else spec.monitor.every_ms


class Message(Protocol):
    """What the log reader returns."""

    def value(self) -> bytes: ...

    def offset(self) -> int: ...


class ExampleHistory:
    """The log once more: what commands look back at. Fulfils `models.replica.History`."""

    def __init__(self, client_settings: Mapping[str, Any], topic: str, expected: FeatureShape | None = None) -> None:
        """`expected`: examples of other features are not learned."""
        self._client_settings = client_settings
        self._topic = topic
        self._expected = expected

    def first_offset(self) -> int:
        reader = LogReader(self._client_settings, self._topic, 0)
        try:
            return reader.first_offset()
        finally:
            reader.close()

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        """The records at offsets [start, end) that the log still holds."""
        reader = LogReader(self._client_settings, self._topic, 0)
        try:
            reader.seek(max(start, reader.first_offset()))
            while reader.position < end:
                messages: list[Message] = reader.read(until_offset=end, timeout_s=1.0, max_records=FOLD_RECORDS_MAX)
                values, offsets = [m.value() for m in messages], [m.offset() for m in messages]
                yield LogPart(*decode_examples(values, offsets, self._expected))
        finally:
            reader.close()


class ExampleFold:
    """Reads the log and folds it; one thread owns it."""

    def __init__(
        self,
        *,
        reader: LogReader,
        serving: Serving,
        snapshots: ModelSnapshots,
        app: str,
        is_bounded: bool,
        on_roles: Callable[[Roles], None],
        report: Callable[[str], None] = lambda message: None,
        expected: FeatureShape | None = None,
        barrier_ms: int | None = None,
    ) -> None:
        """`on_roles` hears the roles after every run of records with commands in it. `expected`: examples of other
        features are passed over. `barrier_ms`: where the batches of a bounded replay are cut, see `core/merge.py`."""
        self.reader = reader
        self._serving = serving
        self._snapshots = snapshots
        self._app = app
        self._is_bounded = is_bounded
        self._on_roles = on_roles
        self._report = report
        self.snapshots_failed = 0
        self._expected = expected
        self._barrier_ms = barrier_ms if is_bounded else None
        self._slice = -1  # between two barriers: that of the last batch
        self._own_next = 0  # the next offset after the last example that this worker published
        reader.seek(serving.n)

    def expect(self, offset: int) -> None:
        """This worker published an example at `offset`."""
        self._own_next = max(self._own_next, offset + 1)

    def enter(self, time: int) -> None:
        """A batch that ends at `time` is about to be processed: the first one behind a barrier folds the whole log.

        The producer held at the barrier until the loop had answered. So what the log holds now is the same in every
        run, and the commands in it are obeyed at the same offset.
        """
        if self._barrier_ms is not None and -(-time // self._barrier_ms) > self._slice:
            self._slice = -(-time // self._barrier_ms)
            self.catch_up()

    def catch_up(self) -> None:
        """Fold all that is in the log now (at start, after a claim, behind a barrier).

        Raises:
            UnavailableError: TM-3020, what the log holds cannot be read.
        """
        end, patience = self.reader.end_offset(), Patience(CATCH_UP_STILL_S)
        while self._serving.n < end:
            self._fold_next(end)
            if patience.is_over(self._serving.n):
                raise self._unreadable(end, CATCH_UP_STILL_S)

    def __call__(self) -> None:
        """Fold at least the examples that this worker published, and what else has arrived.

        A bounded replay waits for its own examples without compromise: its N must not depend on the clock.
        """
        if self._serving.n < self._own_next:
            self._fold_own()
        if not self._is_bounded:
            self.take_arrived()

    def take_arrived(self) -> None:
        """Fold what has arrived, without waiting."""
        messages = self.reader.read(until_offset=None, timeout_s=0.0, max_records=FOLD_RECORDS_MAX)
        self._fold(messages, self.reader.position)

    def _fold_own(self) -> None:
        """What this worker published; live only as far as it comes at once."""
        deadline_s = OWN_EXAMPLES_S if self._is_bounded else READ_YOUR_WRITES_S
        started = time.monotonic()
        while self._serving.n < self._own_next:
            self._fold_next(self._own_next)
            if self._serving.n < self._own_next and time.monotonic() - started > deadline_s:
                if self._is_bounded:
                    raise self._unreadable(self._own_next, deadline_s)
                return

    def _fold_next(self, until: int) -> None:
        messages = self.reader.read(until_offset=until, timeout_s=0.005, max_records=FOLD_RECORDS_MAX)
        # N stops exactly at the offset asked for, whatever markers the reader has already passed behind it.
        self._fold(messages, min(self.reader.position, until))

    def _unreadable(self, until: int, waited_s: float) -> UnavailableError:
        return UnavailableError(
            "TM-3020",
            f"examples log: offset {until} was committed but cannot be read after {waited_s:.0f} s "
            f"(read up to {self._serving.n}); check the broker, then start the worker again",
        )

    def _fold(self, messages: list[Message], offset_next: int) -> None:
        if offset_next <= self._serving.n:
            return
        values, offsets = [m.value() for m in messages], [m.offset() for m in messages]
        examples, commands = decode_examples(values, offsets, self._expected)
        for snapshot in self._serving.fold(examples, commands, offset_next):
            self._keep(snapshot)
        if commands:
            failpoint("F11")
            self._on_roles(self._serving.roles)

    def _keep(self, snapshot: ModelSnapshot) -> None:
        """Write it; a disk that is full costs the next start some time, and must not cost predictions now."""
        try:
            self._snapshots.put(self._app, snapshot)
        except UnavailableError as error:
            self.snapshots_failed += 1
            self._report(str(error))
