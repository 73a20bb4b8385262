"""The logs that the monitor folds: read ahead, and cut where a tick ends.

In: a partition of examples or of predictions. Out: pieces as they are read; of each tick what belongs to it, in log
order. Invariant: what belongs to a tick is a function of the log, or of the position that was written down when the
tick was made; everything else of the log stays for a later one.

Without a written position a tick reaches to its last record behind which LOOKAHEAD_RECORDS of later ticks follow, or
all that there is: a record that comes later than that belongs to the tick that is open then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.examples import chosen, joined, no_examples, rows
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float64s, Int64s
from tidemill.core.validation import PredictionColumns
from tidemill.io.kafka_reader import LogReader
from tidemill.io.monitored import monitored_examples, monitored_predictions
from tidemill.io.outputs import FeatureShape

READ_RECORDS_MAX = 10_000  # at once; bounds memory
LOOKAHEAD_RECORDS = 10_000


class ExamplesOfTick(NamedTuple):
    """Examples and commands in log order; offset_next: behind all of them."""

    examples: ExampleColumns
    commands: tuple[Command, ...]
    offset_next: int


class PredictionsOfTick(NamedTuple):
    """Those with the features of now; one entry each."""

    event_time: Int64s
    blend: Float64s
    is_degraded: npt.NDArray[np.bool_]
    features: FeatureBatch


class ExampleLog:
    """One thread owns it."""

    def __init__(self, reader: LogReader, expected: FeatureShape) -> None:
        self.reader = reader
        self._expected = expected
        self._examples: list[ExampleColumns] = []  # read, and of no closed tick
        self._commands: tuple[Command, ...] = ()
        self._next = reader.position

    def read(self, *, until_offset: int | None, timeout_s: float) -> ExampleColumns | None:
        """The next piece, as it was learned when it was served; None: nothing came."""
        messages = self.reader.read(until_offset=until_offset, timeout_s=timeout_s, max_records=READ_RECORDS_MAX)
        if not messages:
            return None
        values, offsets = [one.value() for one in messages], [one.offset() for one in messages]
        found = monitored_examples(values, offsets, self._expected)
        if len(found.ours):
            self._examples.append(found.ours)
        self._commands += found.commands
        return found.whole

    @property
    def held(self) -> int:
        return sum(map(len, self._examples))

    def first_time(self) -> int | None:
        """The smallest label time of a learned example that is held."""
        times = [part.label_time[part.is_learned] for part in self._examples]
        return min((int(part.min()) for part in times if len(part)), default=None)

    def is_read_beyond(self, end: int) -> bool:
        return _trailing([part.label_time for part in self._examples], end) >= LOOKAHEAD_RECORDS

    def cut(self, end: int, until_offset: int | None) -> ExamplesOfTick:
        """Take out what belongs to the tick; `until_offset` as it was written down, None: see above."""
        part = joined(self._examples) if self._examples else no_examples()
        is_member = _members(part.label_time, part.offset, end, until_offset)
        if until_offset is not None:
            self._next = max(self._next, until_offset)
        elif is_member.any():
            self._next = max(self._next, int(part.offset[is_member][-1]) + 1)
        if until_offset is None:
            self._pass_commands(end, part.offset[~is_member])
        commands = tuple(one for one in self._commands if one.offset < self._next)
        self._commands = self._commands[len(commands) :]
        found, rest = _split(part, is_member)
        self._examples = [rest] if len(rest) else []
        return ExamplesOfTick(found, commands, self._next)

    def _pass_commands(self, end: int, later: Int64s) -> None:
        """Commands that follow at once and are of the tick by their own time belong to it."""
        stop = int(later[later >= self._next].min()) if (later >= self._next).any() else None
        for command in self._commands:
            if command.offset >= self._next and (stop is None or command.offset < stop) and command.time < end:
                self._next = command.offset + 1
            elif command.offset >= self._next:
                return


class PredictionLog:
    """One partition; one thread owns it."""

    def __init__(self, reader: LogReader, expected: FeatureShape) -> None:
        self.reader = reader
        self._expected = expected
        self._parts: list[PredictionsOfTick] = []
        self._offsets: list[Int64s] = []
        self._next = reader.position

    def read(self, *, until_offset: int | None, timeout_s: float) -> PredictionColumns | None:
        """The next piece; None: nothing came."""
        messages = self.reader.read(until_offset=until_offset, timeout_s=timeout_s, max_records=READ_RECORDS_MAX)
        if not messages:
            return None
        values, offsets = [one.value() for one in messages], [one.offset() for one in messages]
        columns, at, offset, features = monitored_predictions(values, offsets, self._expected)
        if len(at):
            times, blend, is_degraded = columns.event_time[at], columns.blend[at], columns.is_degraded[at]
            self._parts.append(PredictionsOfTick(times, blend, is_degraded, features))
            self._offsets.append(offset)
        return columns

    @property
    def held(self) -> int:
        return sum(map(len, self._offsets))

    def first_time(self) -> int | None:
        """The smallest event time of a prediction that is held."""
        return min((int(part.event_time.min()) for part in self._parts), default=None)

    def is_read_beyond(self, end: int) -> bool:
        return _trailing([part.event_time for part in self._parts], end) >= LOOKAHEAD_RECORDS

    def cut(self, end: int, until_offset: int | None) -> PredictionsOfTick | None:
        """Take out what belongs to the tick; None: nothing does."""
        if not self._parts:
            self._next = max(self._next, until_offset or 0)
            return None
        part, offset = _together(self._parts), np.concatenate(self._offsets)
        is_member = _members(part.event_time, offset, end, until_offset)
        if until_offset is not None:
            self._next = max(self._next, until_offset)
        elif is_member.any():
            self._next = max(self._next, int(offset[is_member][-1]) + 1)
        self._parts = [] if is_member.all() else [_rows(part, ~is_member)]
        self._offsets = [] if is_member.all() else [offset[~is_member]]
        return _rows(part, is_member) if is_member.any() else None

    @property
    def position(self) -> int:
        """Behind all predictions of closed ticks."""
        return self._next


def together(parts: Iterable[ExampleColumns]) -> Iterator[ExampleColumns]:
    """Consecutive pieces as few: those of equally many features as one."""
    for _, alike in groupby(parts, lambda part: (part.features.numeric.shape[1], len(part.features.categories))):
        yield joined(list(alike))


def _split(part: ExampleColumns, is_member: npt.NDArray[np.bool_]) -> tuple[ExampleColumns, ExampleColumns]:
    """The members and the others; in order, as a rule, and then nothing is copied."""
    count = int(is_member.sum())
    if is_member[:count].all():
        return rows(part, 0, count), rows(part, count, len(part))
    return chosen(part, is_member), chosen(part, ~is_member)


def _members(time: Int64s, offset: Int64s, end: int, until_offset: int | None) -> npt.NDArray[np.bool_]:
    """Which of the records that no tick has taken belong to the one that ends at `end`."""
    is_member: npt.NDArray[np.bool_] = time < end
    if until_offset is not None:
        return is_member & (offset < until_offset)
    places = np.flatnonzero(is_member)
    gaps = np.flatnonzero(np.diff(places, prepend=-1) > LOOKAHEAD_RECORDS)
    if len(gaps):  # whoever reads no further than it has to does not see what is behind
        is_member[places[gaps[0]] :] = False
    return is_member


def _trailing(times: Sequence[Int64s], end: int) -> int:
    """How many records follow the last one before `end`."""
    count = 0
    for time in reversed(times):
        members = np.flatnonzero(time < end)
        if len(members):
            return count + len(time) - 1 - int(members[-1])
        count += len(time)
    return count


def _rows(part: PredictionsOfTick, at: npt.NDArray[np.bool_]) -> PredictionsOfTick:
    places = np.flatnonzero(at)
    first, last = int(places[0]), int(places[-1]) + 1
    if last - first == len(places):  # in order, as a rule: a slice copies no text
        columns = tuple(column[first:last] for column in part.features.categories)
        at = slice(first, last)  # type: ignore[assignment]
    else:
        columns = tuple(tuple(compress(column, at)) for column in part.features.categories)
    features = FeatureBatch(part.features.numeric[at], columns)
    return PredictionsOfTick(part.event_time[at], part.blend[at], part.is_degraded[at], features)


def _together(parts: Sequence[PredictionsOfTick]) -> PredictionsOfTick:
    if len(parts) == 1:
        return parts[0]
    categories = zip(*(part.features.categories for part in parts), strict=True)
    features = FeatureBatch(
        np.concatenate([part.features.numeric for part in parts]),
        tuple(tuple(value for column in pieces for value in column) for pieces in categories),
    )
    return PredictionsOfTick(
        np.concatenate([part.event_time for part in parts]),
        np.concatenate([part.blend for part in parts]),
        np.concatenate([part.is_degraded for part in parts]),
        features,
    )
