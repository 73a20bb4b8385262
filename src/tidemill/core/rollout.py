"""Is the other model better than the one that serves? A comparison that may be looked at as often as one likes.

In: pairs of probabilities for the same events, with labels. Out: the mean difference of loss with its interval and a
verdict. Invariant: what is counted at a look is every paired event whose wait for a label is over, in order of event
time; neither a label's delay nor the cut of calls changes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.loop_spec import DAY_MS, RolloutSpec
from tidemill.core.metrics import LOSS_UNIT, PROBABILITY_MIN, loss_units
from tidemill.core.records import Float64s, Int64s
from tidemill.core.ticks import RolloutState, Verdict
from tidemill.errors import InvariantError

LOSS_MAX = -math.log(PROBABILITY_MIN)  # nats: a difference of losses is within this and its negative
DIFFERENCE_UNIT = 2.0**-20  # nats: what is summed is an integer; 1e-6 is far below any gain that matters
# Rows of one hour share what the features do not say, so their differences are no independent draws. The variance is
# therefore also measured between blocks of so many neighbours, and the largest counts: where 240 neighbours shared half
# of the errors' variance, 3 % of 200 equal models were promoted at alpha .05 (`benchmarks/rollouts.py`).
BLOCK_ROWS = (1, 16, 64, 256)
BLOCKS_MIN = 10  # fewer say too little; each costs power, as the largest of several estimates is too large
# A stage without one pair is given up after two waits for labels and so long: in any week a stream that could ever fill
# a stage (50 examples at least) has an event, its label takes a wait at most, and as much again is for what is late.
SILENT_MS = 7 * DAY_MS
NEVER = -(2**63)


class Interval(NamedTuple):
    """Of the mean difference of loss, nats."""

    mean: float
    lower: float
    upper: float


class PairedDifferences:
    """Differences of loss in a fixed order, added up in integers; `add` may be cut anywhere."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0
        self._scales = tuple(_Scale(rows) for rows in BLOCK_ROWS)

    @property
    def count(self) -> int:
        return self._count

    def add(self, differences: Int64s) -> None:
        """differences: in DIFFERENCE_UNIT, in the order in which all looks count them."""
        self._count += len(differences)
        self._sum += int(differences.sum())
        for scale in self._scales:
            scale.add(differences)

    def interval(self, *, alpha: float, count_best: float) -> Interval:
        """A confidence sequence of the mean: at all counts at once it holds with probability 1 - alpha, asymptotically.

        With t rows, their mean m and standard deviation s, each side is at

            m -+ s sqrt(2 (t r + 1) / (t^2 r) * log(1 + sqrt(t r + 1) / alpha)),

        the one-sided bound at alpha / 2 of Robbins' mixture over half-normal effects of variance r (rho^2), with the
        running variance in the place of a known one: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central
        limit theory and asymptotic confidence sequences, Annals of Statistics 52 (2024). Of two equal models the other
        one is found better with probability alpha / 2 at most, and worse with as much.

        count_best: the count t at which it is narrowest, by r = (-2 log alpha + log(1 - 2 log alpha)) / t.
        Within the bounds of the loss where fewer than two rows are known.
        """
        if self._count < 2:
            return Interval(self._mean, -LOSS_MAX, LOSS_MAX)
        of_level = -2 * math.log(alpha)
        mixing = (of_level + math.log1p(of_level)) / count_best  # rho^2
        spread = self._count * mixing + 1
        squared_width = 2 * spread / (self._count**2 * mixing) * math.log1p(math.sqrt(spread) / alpha)
        width = math.sqrt(max(scale.variance for scale in self._scales) * squared_width) * DIFFERENCE_UNIT
        mean = self._mean
        return Interval(mean, max(mean - width, -LOSS_MAX), min(mean + width, LOSS_MAX))

    @property
    def _mean(self) -> float:
        return self._sum / self._count * DIFFERENCE_UNIT if self._count else 0.0


class _Scale:
    """Sums of whole blocks of `rows` neighbours, and the rows of the one that is not whole."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._open = np.empty(0, dtype=np.int64)
        self._blocks = 0
        self._sum = 0
        self._squares = 0

    def add(self, differences: Int64s) -> None:
        rows = np.concatenate((self._open, differences))
        whole = len(rows) // self._rows * self._rows
        self._open = rows[whole:]
        sums = rows[:whole].reshape(-1, self._rows).sum(axis=1).tolist()  # integers of Python: squares do not overflow
        self._blocks += len(sums)
        self._sum += sum(sums)
        self._squares += sum(value * value for value in sums)

    @property
    def variance(self) -> float:
        """Of a row, as the spread of blocks tells it; 0 while there are too few of them."""
        if self._blocks < (2 if self._rows == 1 else BLOCKS_MIN):
            return 0.0
        squares = self._squares * self._blocks - self._sum * self._sum  # exact
        return squares / (self._blocks * (self._blocks - 1) * self._rows)


class RolloutWatch:
    """The comparison of one stage at a time: shadow, canary or probation."""

    def __init__(self, spec: RolloutSpec, wait_ms: int) -> None:
        """wait_ms: LabelSpec.wait_ms, after which no label comes any more."""
        self._spec = spec
        self._wait_ms = wait_ms
        self.end()

    def begin(self, other: str, stage_start: int, examples_max: int, *, since: int = NEVER) -> None:
        """A stage begins at the offset `stage_start` of its command; what was counted before is forgotten.

        since: from when on events are of this stage, ms; pairs of earlier ones belong to the stage before and are left
        out. Without it a stage in which nothing is counted has no end.
        """
        self.end()
        self._other = other
        self._stage_start = stage_start
        self._examples_max = examples_max
        self._since = since

    def end(self) -> None:
        """No stage: pairs are left out and `look` returns None."""
        self._other = ""
        self._stage_start = -1
        self._examples_max = 0
        self._since = NEVER
        self._horizon = NEVER  # every earlier event is counted, or never will be
        self._waiting = np.empty((3, 0), dtype=np.int64)  # event time, offset, difference
        self._counted = PairedDifferences()

    def add(
        self, event_time: Int64s, champion: Float64s, other: Float64s, label: npt.ArrayLike, offset: Int64s
    ) -> None:
        """Pairs of the stage, one row per example; rows whose `other` is NaN are left out.

        champion, other: the probabilities of the model that is champion in this stage and of the other one, whichever
        of them served the event. offset: of the example, distinct. A label that came after its wait is left out too:
        a row may not depend on when it is looked at.

        Raises:
            InvariantError: TM-9701, a probability of a pair is not within 0 and 1.
        """
        chosen = ~np.isnan(other) & (event_time >= max(self._since, self._horizon)) & bool(self._other)
        served, beside = champion[chosen], other[chosen]
        if not ((served >= 0) & (served <= 1) & (beside >= 0) & (beside <= 1)).all():
            raise InvariantError("TM-9701", "rollout: a probability is not within 0 and 1; this is a bug")
        is_positive = np.asarray(label)[chosen] == 1
        units = loss_units(served, is_positive) - loss_units(beside, is_positive)
        difference = np.rint(units * (LOSS_UNIT / DIFFERENCE_UNIT)).astype(np.int64)
        self._waiting = np.hstack((self._waiting, np.stack((event_time[chosen], offset[chosen], difference))))

    def look(self, end: int) -> RolloutState | None:
        """What is known at the end of a tick, all examples with label_time < end being added; None without a stage."""
        if not self._other:
            return None
        self._count_until(end - self._wait_ms)
        count_best = math.sqrt(max(self._spec.examples_min, 1) * max(self._examples_max, 1))
        interval = self._counted.interval(alpha=self._spec.alpha, count_best=count_best)
        return RolloutState(
            other=self._other,
            stage_start=self._stage_start,
            examples=self._counted.count,
            mean=interval.mean,
            lower=interval.lower,
            upper=interval.upper,
            verdict="undecided" if self._is_silent(end) else self._verdict(interval),
        )

    def _count_until(self, horizon: int) -> None:
        """Count the events before the horizon, ordered by (event time, offset)."""
        if horizon <= self._horizon:
            return
        self._horizon = horizon
        event_time, offset, difference = self._waiting
        order = np.lexsort((offset, event_time))
        due = int(np.searchsorted(event_time[order], horizon))
        self._counted.add(difference[order[:due]])
        self._waiting = self._waiting[:, order[due:]]

    def _is_silent(self, end: int) -> bool:
        """Nothing was counted for so long that nothing will be: no worker scores both, or no labels come."""
        is_due = self._since != NEVER and end - self._since >= 2 * self._wait_ms + SILENT_MS
        return is_due and self._counted.count == 0

    def _verdict(self, interval: Interval) -> Verdict:
        """better: certainly not worse than the margin, so without a margin certainly better; worse: certainly worse."""
        count, margin = self._counted.count, self._spec.margin
        if count < min(self._spec.examples_min, self._examples_max):
            return "open"
        if interval.lower > -margin:
            return "better"
        if interval.upper < -margin:
            return "worse"
        return "undecided" if count >= self._examples_max else "open"
