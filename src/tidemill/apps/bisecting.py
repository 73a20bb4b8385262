"""Records that end the process which decodes or scores them: found in a child, made dead letters.

In: what claims tell of earlier deaths, the batches that follow. Out: the faults of records that must not be touched
here. Invariant: while a partition is suspected nothing of it is decoded or scored in this process that a child did not
survive; and what the child says changes nothing about the other records.

A partition is suspected when the process before it in this slot died by a signal of its own, or when a second claim
finds it where the last one did. It is cleared by as many records as one batch can have, or by the last record that it
had when it was claimed: then the batch that killed has passed.
"""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tidemill.apps.trial_child import TrialTask
from tidemill.apps.trial_process import TrialProcess
from tidemill.config import Settings
from tidemill.core.bisection import CULPRITS_MAX, Bisection, find_culprits
from tidemill.core.records import Batch, FeatureBatch, Partition, Scores
from tidemill.errors import FencedError, TidemillError
from tidemill.io.dead_letters import Code
from tidemill.io.judge import Fault
from tidemill.io.model_snapshots import pack_snapshot
from tidemill.io.source import SourceRecord
from tidemill.io.trial_files import write_features, write_records
from tidemill.models.serving import Serving

UNUSED_S = 60.0  # a suspected partition may stay quiet for days; the process that would try it need not wait so long


class NativeLibraryError(TidemillError):
    """The operator: a native library dies whatever it is given; no record is to blame."""

    exit_code = 4


class Bisecting:
    """What one worker suspects; the compute thread owns it."""

    def __init__(self, settings: Settings, *, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report
        self._topics = tuple(topic.name for topic in settings.app.topics)
        # Suspected: how many of its records are still to be tried, and where it ended when it was claimed.
        self._left: dict[Partition, tuple[int, int]] = {}
        self._condemned: dict[tuple[Partition, int], Fault] = {}
        self._process: TrialProcess | None = None
        self._used_at = 0.0
        self.is_waiting = False  # for the answer of a trial, which has a deadline; read from other threads
        self._is_trial = False  # the batch in work has records of a suspected partition

    @property
    def is_trial(self) -> bool:
        """Whether the batch in work has to be tried before it is scored."""
        return self._is_trial

    def suspect(self, partitions: Collection[Partition], bounds: Mapping[Partition, tuple[int, int]]) -> None:
        """These partitions stood still while their worker died: try what they hold within their bounds [start, end)."""
        new = [partition for partition in partitions if partition not in self._left]
        self._left |= {partition: (self._settings.app.batch_records, bounds[partition][1]) for partition in partitions}
        if new:
            self._report(f"{len(new)} partitions stood still when their worker ended: trying their next records")
            self._trials()  # it starts while the claim goes on

    def keep(self, partitions: frozenset[Partition]) -> None:
        """Only these are ours: what becomes of the others is for others to find out."""
        self._left = {partition: left for partition, left in self._left.items() if partition in partitions}

    def faults(self, records: Sequence[SourceRecord]) -> dict[int, Fault]:
        """By position: the records of a batch that must not be decoded here.

        Raises:
            NativeLibraryError: TM-4035, too many of them.
        """
        self._is_trial = any(self._place(record)[0] in self._left for record in records) if self._left else False
        known = self._known(records)
        if not self._is_trial:
            return known
        file = self._trials().new_file()
        write_records(file, records)
        rest = [position for position in range(len(records)) if position not in known]
        found = self._search("decode", file, rest)
        for position, number in found.culprits:
            self._condemn(records[rest[position]], Code.KILLS_DECODING, "decoded", number)
        return self._known(records)

    def rows_that_kill(self, features: FeatureBatch, ids: Sequence[str], serving: Serving) -> dict[int, int]:
        """By row: the signal that ends a process which scores it."""
        file, models = self._trials().new_file(), self._trials().new_file()
        write_features(file, features, ids)
        models.write_bytes(pack_snapshot(serving.snapshot()))
        return dict(self._search("score", file, range(len(ids)), str(models)).culprits)

    def condemn_events(self, batch: Batch, signals: Mapping[str, int]) -> None:
        """The events with these ids kill whoever scores them: dead letters, once the batch is read again.

        Raises:
            FencedError: TM-4036, always: what was planned with these events is discarded.
        """
        topic = next(topic for topic in self._settings.app.topics if topic.role == "event")
        found = batch.records[topic.name]
        assert topic.id_field is not None
        ids = found.columns.column(topic.id_field).cast(pa.string()).to_pylist()
        for id_, number in signals.items():
            row = int(found.row_index[ids.index(id_)])
            partition = Partition(topic.name, int(batch.partition[row]))
            self._add(partition, int(batch.offset[row]), Code.KILLS_SCORING, "scored", number)
        raise FencedError("TM-4036", f"{len(signals)} events end the process that scores them; reading again without")

    def passed(self, records: Sequence[SourceRecord]) -> None:
        """These records are committed."""
        if not self._left and not self._condemned:
            return
        for record in records:
            partition, offset = self._place(record)
            self._condemned.pop((partition, offset), None)
            if partition in self._left:
                left, end = self._left.pop(partition)
                if left > 1 and offset + 1 < end:
                    self._left[partition] = (left - 1, end)
        self._is_trial = False
        if not self._left and self._process is not None:
            self._report("the records that were suspected have passed")
        if not self._left or time.monotonic() - self._used_at > UNUSED_S:
            self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _trials(self) -> TrialProcess:
        self._used_at = time.monotonic()
        if self._process is None:
            self._process = TrialProcess(self._settings, report=self._report)
        return self._process

    def _search(
        self, what: Literal["decode", "score"], file: Path, positions: Sequence[int], models: str = ""
    ) -> Bisection:
        process = self._trials()

        def die(chosen: Sequence[int]) -> int:
            if not chosen:
                return 0
            where = tuple(positions[each] for each in chosen)
            self.is_waiting = True
            try:
                return process.signal_of(TrialTask(what, str(file), where, models))
            finally:
                self.is_waiting = False

        found = find_culprits(len(positions), die)
        if found.is_too_many:
            raise NativeLibraryError(
                "TM-4035",
                f"more than {CULPRITS_MAX} records of one batch end the process that wants to {what} them (signal "
                f"{found.culprits[0][1]}): the library or this machine is broken rather than the records; compare "
                "`tidemill --version` with the last good worker, start it elsewhere; nothing was dead-lettered",
            )
        if not found.is_clean:
            self._report(f"a process that was to {what} {len(positions)} records died once and not again")
        return found

    def _condemn(self, record: SourceRecord, code: Code, done: str, number: int) -> None:
        self._add(*self._place(record), code, done, number)

    def _add(self, partition: Partition, offset: int, code: Code, done: str, number: int) -> None:
        name = signal.Signals(number).name
        what = f"ends a process in which it is {done}, by signal {number} ({name}); found by trying it apart"
        self._condemned[partition, offset] = Fault(code, what)
        self._report(f"{partition}@{offset} {what}: it becomes a dead letter")

    def _known(self, records: Sequence[SourceRecord]) -> dict[int, Fault]:
        if not self._condemned:
            return {}
        places = ((position, self._place(record)) for position, record in enumerate(records))
        return {position: self._condemned[place] for position, place in places if place in self._condemned}

    def _place(self, record: SourceRecord) -> tuple[Partition, int]:
        return Partition(self._topics[record.topic_index], record.partition), record.offset


class TriedScorer:
    """The models of a worker behind a trial, while there is something to try. Fulfils `core.ports.Scorer`."""

    def __init__(self, serving: Serving, bisecting: Bisecting) -> None:
        self._serving = serving
        self._bisecting = bisecting
        self.batch: Batch | None = None  # the one in work

    @property
    def n(self) -> int:
        return self._serving.n

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        """As the models do.

        Raises:
            FencedError: TM-4036, some of the events kill; they are known from now on, the batch is to be read again.
        """
        if self._bisecting.is_trial and ids:
            found = self._bisecting.rows_that_kill(features, ids, self._serving)
            if found:
                assert self.batch is not None
                self._bisecting.condemn_events(self.batch, {ids[row]: number for row, number in found.items()})
        return self._serving.score(features, ids)


def died_before(file: Path) -> bool:
    """Whether the process that last called this with `file` ended by a signal of its own (SIGSEGV, SIGABRT, SIGBUS,
    SIGFPE, SIGILL). From now on such an end of this process is written there, with the lines of Python that led to it.
    """
    had = file.exists() and file.stat().st_size > 0
    if had:
        file.replace(file.with_suffix(".last"))
    file.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.enable(file.open("w"))
    return had
