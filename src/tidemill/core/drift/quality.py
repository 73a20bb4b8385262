"""Is what comes in still whole: values there, in range and known, labels of both classes, as many events as usual?

In: served features, labels and counts of records, tick by tick. Out: findings about the tick that ended. Invariant:
counts only; within a tick only labels need their order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from statistics import median
from typing import NamedTuple

import numpy as np

from tidemill.core.drift.laws import TICK_EVENTS_MIN
from tidemill.core.drift.reference import Reference
from tidemill.core.loop_spec import DAY_MS, MonitorSpec
from tidemill.core.records import FeatureBatch, Float32s, Float64s, Int64s

NOISE = 3.0  # standard deviations of a share that are chance, on top of the rise that is allowed
PAST_TICKS = 90  # of a column's own past that tell what is usual; the highest of them counts
SPAN_MARGIN = 0.5  # of the width of what training saw, on either side: a longer history has larger extremes
WEEKS = 4  # whose same weekday is compared; two are needed
SHORT_WEEKS_MAX = 13  # a volume that is too small for a quarter of a year is no outage: then it is usual
FRESH_TICKS = 7  # a topic that spoke in each of so many is expected to speak, until it does
VALUES_MAX = 10_000  # of a column that are remembered where there is no reference; from then on nothing is unseen
RUN_CHANCE = 1e-9  # a run of one class that is likelier than this is luck: rare positives make long runs


class Finding(NamedTuple):
    """subject: what, as "missing/amount" or "volume". value is beyond limit. text: one clause for operators."""

    subject: str
    value: float
    limit: float
    text: str


class QualityJudge:
    """Judges a tick against the reference, and columns against their own past where there is none."""

    def __init__(
        self, spec: MonitorSpec, numeric_names: Sequence[str], category_names: Sequence[str], topics: Sequence[str]
    ) -> None:
        self._spec = spec
        self._numeric = tuple(numeric_names)
        self._categories = tuple(category_names)
        few = spec.reference_ticks
        self._missing = _Shares("missing", (*self._numeric, *self._categories), "is missing", ticks_min=few)
        self._outside = _Shares("range", self._numeric, "is far outside of what training saw", ticks_min=few)
        self._unseen = _Shares("unseen", self._categories, "are values that are not known", ticks_min=few)
        self._seen: tuple[set[str], ...] = tuple(set() for _ in self._categories)
        self._open: dict[int, _TickCounts] = {}
        self._week = max(1, round(7 * DAY_MS / spec.every_ms))  # ticks
        self._events: dict[int, deque[int | None]] = {}  # by place in the week, oldest first; None = too few
        self._records: dict[str, deque[int]] = {topic: deque(maxlen=FRESH_TICKS) for topic in topics}
        self._run_class, self._run_length = -1, 0
        self.set_reference(None)

    def set_reference(self, reference: Reference | None) -> None:
        """What is normal from now on; None = what the columns showed before."""
        low, high = np.full(len(self._numeric), -np.inf), np.full(len(self._numeric), np.inf)
        missing, unseen = np.full(len(self._numeric + self._categories), np.nan), np.full(len(self._categories), np.nan)
        values: list[frozenset[str] | None] = [None] * len(self._categories)
        for at, name in enumerate(self._numeric):
            column = None if reference is None else reference.numeric.get(name)
            if column is None:
                continue
            missing[at] = column.missing_high
            if column.span is not None:
                margin = SPAN_MARGIN * (column.span[1] - column.span[0])
                low[at], high[at] = column.span[0] - margin, column.span[1] + margin
        for at, name in enumerate(self._categories):
            known = None if reference is None else reference.categories.get(name)
            if known is None:
                continue
            values[at] = frozenset(known.values)
            unseen[at], missing[len(self._numeric) + at] = known.other_high, known.missing_high
        self._low, self._high, self._values = low[:, None], high[:, None], values
        self._missing.usual, self._unseen.usual = missing, unseen
        self._outside.usual = np.zeros(len(self._numeric))
        self._run_limit = _run_limit(self._spec, None if reference is None else reference.label.share)

    def add(self, tick: int, features: FeatureBatch) -> None:
        """Served features of a tick, in any order and in any number of calls."""
        counts = self._of(tick)
        counts.events += len(features)
        numeric = np.ascontiguousarray(features.numeric.T)
        columns = [Counter(column) for column in features.categories]
        empty = np.array([column.pop("", 0) for column in columns], dtype=np.int64)
        counts.missing += np.concatenate([np.isnan(numeric).sum(axis=1), empty])
        counts.outside += ((numeric < self._low) | (numeric > self._high)).sum(axis=1)
        for total, column in zip(counts.values, columns, strict=True):
            total.update(column)

    def add_labels(self, tick: int, label: Float32s) -> None:
        """Labels that came in a tick, in the order of the log."""
        if not len(label):
            return
        is_positive = label > 0.5
        starts = np.flatnonzero(np.diff(is_positive, prepend=not is_positive[0]))
        lengths = np.diff(starts, append=len(label))
        if is_positive[0] == self._run_class:
            lengths[0] += self._run_length
        self._run_class, self._run_length = int(is_positive[-1]), int(lengths[-1])
        counts = self._of(tick)
        for one_class in (0, 1):
            of_class = lengths[is_positive[starts] == one_class]
            counts.runs[one_class] = max(counts.runs[one_class], int(of_class.max(initial=0)))

    def add_records(self, tick: int, topic: str, count: int) -> None:
        """Records of an input topic that came in a tick."""
        self._of(tick).records[topic] += count
        self._records.setdefault(topic, deque(maxlen=FRESH_TICKS))

    def judge(self, tick: int) -> tuple[Finding, ...]:
        """What is wrong with the tick, now that it has ended; to be called once for each tick, in order."""
        counts = self._open.pop(tick, None) or self._nothing()
        rise, events = self._spec.missing, counts.events
        return (
            *self._missing.findings(counts.missing, events, rise),
            *self._outside.findings(counts.outside, events, rise),
            *self._unseen.findings(self._unseen_counts(counts), events, rise),
            *self._runs(counts),
            *self._volume(tick, events),
            *self._freshness(counts),
        )

    def _of(self, tick: int) -> _TickCounts:
        return self._open.setdefault(tick, self._nothing())

    def _nothing(self) -> _TickCounts:
        numeric, categories = len(self._numeric), len(self._categories)
        return _TickCounts(
            np.zeros(numeric + categories, dtype=np.int64),
            np.zeros(numeric, dtype=np.int64),
            tuple(Counter() for _ in range(categories)),
        )

    def _unseen_counts(self, counts: _TickCounts) -> Int64s:
        """Of values that neither the reference nor, without one, an earlier tick knows."""
        unseen = []
        for found, values, seen in zip(counts.values, self._values, self._seen, strict=True):
            known = seen if values is None else values
            is_unknown = values is None and (not seen or len(seen) >= VALUES_MAX)  # the first tick has only new ones
            unseen.append(0 if is_unknown else sum(count for value, count in found.items() if value not in known))
            if len(seen) < VALUES_MAX:
                seen.update(found)
        return np.array(unseen, dtype=np.int64)

    def _runs(self, counts: _TickCounts) -> Iterator[Finding]:
        length = max(counts.runs)
        one_class = counts.runs.index(length)
        if length >= self._run_limit[one_class]:
            name = ("negative", "positive")[one_class]
            text = f"{length} labels in a row were {name}"
            yield Finding("run_of_one_class", float(length), float(self._run_limit[one_class]), text)

    def _volume(self, tick: int, events: int) -> Iterator[Finding]:
        earlier = self._events.setdefault(tick % self._week, deque(maxlen=SHORT_WEEKS_MAX))
        whole = [count for count in earlier if count is not None][-WEEKS:]
        # Of two the smaller: after one swollen day of an app's first every usual one would be too small.
        usual = median(whole) if len(whole) > 2 else min(whole) if len(whole) == 2 else 0
        is_short = usual >= TICK_EVENTS_MIN and events < self._spec.volume * usual
        earlier.append(None if is_short else events)  # an outage that lasts is an outage to its end
        if is_short:
            text = f"{events} events came, {usual:.0f} are usual for this day of the week"
            yield Finding("volume", float(events), self._spec.volume * usual, text)

    def _freshness(self, counts: _TickCounts) -> Iterator[Finding]:
        for topic, before in self._records.items():
            count = counts.records[topic]
            if not count and len(before) == FRESH_TICKS and min(before) > 0:
                text = f"nothing came on {topic}, {median(before):.0f} records are usual"
                yield Finding(f"fresh/{topic}", 0.0, 1.0, text)
            else:  # a silence that was told is no past: the topic is dead until a record comes
                before.append(count)


@dataclass(slots=True)
class _TickCounts:
    """What a tick that is open held so far; `runs`: the longest of negatives and of positives."""

    missing: Int64s
    outside: Int64s
    values: tuple[Counter[str], ...]
    events: int = 0
    runs: list[int] = field(default_factory=lambda: [0, 0])
    records: Counter[str] = field(default_factory=Counter)


class _Shares:
    """Shares of the rows of a tick by column, against what is still usual: what training saw, or the highest of the
    column's own past, once that is long enough. usual: of training; NaN = it does not know the column."""

    def __init__(self, what: str, names: Sequence[str], verb: str, *, ticks_min: int) -> None:
        self._what, self._names, self._verb, self._ticks_min = what, names, verb, ticks_min
        self._past: deque[Float64s] = deque(maxlen=PAST_TICKS)  # shares of earlier ticks, NaN where they were too high
        self.usual: Float64s = np.full(len(names), np.nan)

    def findings(self, counts: Int64s, events: int, rise: float) -> Iterator[Finding]:
        """Columns whose share has risen by more than `rise` and chance; then the tick is past, too."""
        if events < TICK_EVENTS_MIN or not len(counts):
            return
        share = counts / events
        own = np.ones(len(counts))
        if len(self._past) >= self._ticks_min:
            own = np.fmax.reduce([np.zeros(len(counts)), *self._past])
        usual = np.fmax(self.usual, own) if len(self._past) >= self._ticks_min else np.fmin(self.usual, own)
        limit = usual + rise + NOISE * np.sqrt(usual * (1 - usual) / events)
        self._past.append(np.where(share > limit, np.nan, share))
        for at in np.flatnonzero(share > limit).tolist():
            text = f"{share[at]:.0%} of {self._names[at]} {self._verb}, usual is at most {usual[at]:.0%}"
            yield Finding(f"{self._what}/{self._names[at]}", float(share[at]), float(limit[at]), text)


def _run_limit(spec: MonitorSpec, share: float | None) -> tuple[int, int]:
    """Of negatives and of positives: as declared, or what luck gives where one class is rare."""
    if share is None or not 0 < share < 1:
        return spec.run_of_one_class, spec.run_of_one_class
    negatives, positives = (
        max(spec.run_of_one_class, round(log(RUN_CHANCE) / log(each))) for each in (1 - share, share)
    )
    return negatives, positives
