"""Has the relation between features and labels changed?

In: of each tick the sum of (log loss - the loss that the probabilities themselves expect, -p log p - (1-p) log(1-p)):
about 0 while they are calibrated, however hard the day. Out: an e-value against the setting. Invariant: a function of
the ticks in their order.

A block is a tick, or as many in a row as its mean needs to be comparable with the others': the spread of a mean goes
with the root of its labels, and of a few rare positives it is no spread at all.

It is an e-detector (Shin, Ramdas, Rinaldo 2022, in the form of Shiryaev and Roberts): each bet multiplies M + 1 by a
factor whose mean is at most 1 while blocks are no worse than before; the mean of several bets is one again. It fires
at M >= A: M less the number of blocks is a supermartingale, so the average number of blocks, and of ticks, to a false
alarm is at least A, if the mean and the spread are known. Here both are estimated from a few blocks: the allowance is
for that and for what lingers from tick to tick, and it holds as far as it was measured, for blocks that are alike but
for their labels: `python -m benchmarks.detectors` has normal and skewed, correlated ones, the tests uneven days.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.records import Float64s

BETS = np.array([0.25, 0.5, 1.0, 2.0])  # shares of a spread to bet on: small ones see slow drift, large ones are quick
ALLOWANCE = 0.5  # spreads above the old mean that are no drift yet
ALLOWANCE_FEW = 2.65  # the same over the root of the reference's length: what its mean may be wrong by
SPREADS_MAX = 20.0  # what one block may count at most: alone it does not reach 365 unless M was at 24 before
OUTLIER = 3.0  # spreads; blocks of the reference beyond are pulled in
SPREAD_MIN = 1e-3  # nats
# Squared errors, summed, that a block has at least; about its positives where they are rare. With fewer the reference
# is mostly blocks without a positive, and each with one an outlier: without drift one alarm in 16 to 120 ticks, with 2
# to 6 one in 2,000 or more. Errors that it expects would not do: a model that is wrongly certain expects none.
ERRORS_MIN = 4.0
LABELS_SHARE_MIN = 0.5  # labels of a block to those of the reference's median one: its spread is 1.4 of theirs at most
MAD_TO_SD = 1.4826  # of a normal law


class ConceptState(NamedTuple):
    """After a block; it starts anew at 0 behind one that fires. excess: the block's mean, nats. ticks: that it has."""

    e_value: float
    threshold: float
    is_firing: bool
    excess: float = 0.0
    ticks: int = 0


class ConceptDetector:
    """Watches one stream of blocks, through changes of the model."""

    def __init__(self, spec: MonitorSpec) -> None:
        self._spec = spec
        self._scale: tuple[Float64s, Float64s] | None = None
        self._labels_min = 0.0  # labels of a block
        self.restart()

    def restart(self) -> None:
        """Another model serves: the bets begin anew, by the old scale until the new one has enough blocks of its own.

        Excess is about 0 for every calibrated model, so the old scale is no bad one; without it a loop that retrains
        every month would never look.
        """
        self._reference: list[tuple[float, int]] = []  # excess and labels of each block
        self._capital = np.zeros(len(BETS))
        self._pool = _NOTHING

    def add(self, excess_sum: float, labels: int, squared_error: float) -> ConceptState | None:
        """One tick: its labels, and over them the sums of the excess (nats) and of the blend's squared errors.

        Returns:
            None: the labels since the last block are too few to be one; they wait for those of the next tick.
        """
        if not np.isfinite(excess_sum):
            return None
        pool = self._pool = self._pool.with_tick(excess_sum, labels, squared_error)
        if pool.squared_error < ERRORS_MIN or pool.labels < max(1, self._labels_min):
            return None
        self._pool = _NOTHING
        return self._judged(pool.excess_sum / pool.labels, pool.labels, pool.ticks)

    def _judged(self, excess: float, labels: int, ticks: int) -> ConceptState:
        threshold = float(self._spec.average_run_length)
        e_value = 0.0
        if self._scale is not None:
            level, spread = self._scale
            self._capital = played(self._capital, (excess - level) / spread)
            e_value = float(self._capital.mean())
        if e_value >= threshold:
            self.restart()  # what is wrong now must not become the measure
            return ConceptState(e_value, threshold, True, excess, ticks)
        self._take_as_reference(excess, labels)
        return ConceptState(e_value, threshold, False, excess, ticks)

    def _take_as_reference(self, excess: float, labels: int) -> None:
        if len(self._reference) == self._spec.reference_ticks:
            return
        self._reference.append((excess, labels))
        if len(self._reference) == self._spec.reference_ticks:
            blocks, labels_of_blocks = zip(*self._reference, strict=True)
            self._scale = scale_of(np.array(blocks))
            self._labels_min = LABELS_SHARE_MIN * median(labels_of_blocks)


class _Pool(NamedTuple):
    """Sums over the ticks behind the last block."""

    excess_sum: float
    labels: int
    squared_error: float
    ticks: int

    def with_tick(self, excess_sum: float, labels: int, squared_error: float) -> _Pool:
        return _Pool(
            self.excess_sum + excess_sum, self.labels + labels, self.squared_error + squared_error, self.ticks + 1
        )


_NOTHING = _Pool(0.0, 0, 0.0, 0)


def scale_of(blocks: Float64s) -> tuple[Float64s, Float64s]:
    """What counts as no worse, and the spread around it, of reference blocks (..., n); both shape (...)."""
    count = blocks.shape[-1]
    middle = np.median(blocks, axis=-1, keepdims=True)
    reach = OUTLIER * MAD_TO_SD * np.median(np.abs(blocks - middle), axis=-1, keepdims=True)
    inner = np.clip(blocks, middle - reach, middle + reach)
    robust = np.maximum(inner.std(axis=-1, ddof=min(1, count - 1)), reach[..., 0] / OUTLIER)
    spread = np.maximum(SPREAD_MIN, robust * (1 + 0.5 / count**0.5))
    allowance = max(ALLOWANCE, ALLOWANCE_FEW / count**0.5)
    return np.asarray(inner.mean(axis=-1) + allowance * spread), np.asarray(spread)


def played(capital: Float64s, spreads: npt.ArrayLike) -> Float64s:
    """M of each bet (..., bets) after a block that was so many spreads (...) worse; a bet loses all at most."""
    stakes = np.maximum(0.0, 1 + BETS * np.minimum(SPREADS_MAX, np.asarray(spreads))[..., None])
    return np.asarray((capital + 1) * stakes)
