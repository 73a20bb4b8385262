"""Has the relation between features and labels changed?

In: of each tick the mean of (log loss - the loss that the probabilities themselves expect, -p log p - (1-p) log(1-p)):
about 0 while they are calibrated, however hard the day. Out: an e-value against the setting. Invariant: a function of
the blocks in their order.

It is an e-detector (Shin, Ramdas, Rinaldo 2022, in the form of Shiryaev and Roberts): each bet multiplies M + 1 by a
factor whose mean is at most 1 while blocks are no worse than before; the mean of several bets is one again. It fires
at M >= A: M less the number of ticks is a supermartingale, so the average number of ticks to a false alarm is at least
A, whatever law the blocks have. What theory takes as known, their mean, is estimated here: the allowance is for that
and for what lingers from tick to tick. `python -m benchmarks.detectors` measures both.
"""

from __future__ import annotations

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
MAD_TO_SD = 1.4826  # of a normal law


class ConceptState(NamedTuple):
    """After a block. It starts anew at 0 behind a block that fires."""

    e_value: float
    threshold: float
    is_firing: bool


class ConceptDetector:
    """Watches one stream of blocks, through changes of the model."""

    def __init__(self, spec: MonitorSpec) -> None:
        self._spec = spec
        self._reference: list[float] = []
        self._scale: tuple[Float64s, Float64s] | None = None
        self._capital = np.zeros(len(BETS))

    def restart(self) -> None:
        """Another model serves: the bets begin anew, by the old scale until the new one has enough blocks of its own.

        Excess is about 0 for every calibrated model, so the old scale is no bad one; without it a loop that retrains
        every month would never look.
        """
        self._reference = []
        self._capital = np.zeros(len(BETS))

    def add(self, excess: float) -> ConceptState:
        """One block, nats; what is not finite changes nothing."""
        threshold = float(self._spec.average_run_length)
        if not np.isfinite(excess):
            return ConceptState(float(self._capital.mean()), threshold, False)
        e_value = 0.0
        if self._scale is not None:
            level, spread = self._scale
            self._capital = played(self._capital, (excess - level) / spread)
            e_value = float(self._capital.mean())
        if e_value >= threshold:
            self.restart()  # what is wrong now must not become the measure
            return ConceptState(e_value, threshold, True)
        self._take_as_reference(excess)
        return ConceptState(e_value, threshold, False)

    def _take_as_reference(self, excess: float) -> None:
        if len(self._reference) == self._spec.reference_ticks:
            return
        self._reference.append(excess)
        if len(self._reference) == self._spec.reference_ticks:
            self._scale = scale_of(np.array(self._reference))


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
