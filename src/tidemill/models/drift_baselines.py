"""River's drift detectors, shown beside our own.

In: the mean loss of each tick. Out: how often ADWIN and Page-Hinkley have called so far. Invariant: nothing is decided
by them; they are what readers know, on the same numbers.
"""

from __future__ import annotations

from river.drift import ADWIN, PageHinkley

# River is built for single examples: 30 blocks are as many as it wants before it speaks, and a block's loss varies by
# hundredths, not by ones.
CLOCK = 1  # blocks between ADWIN's looks
PAGE_HINKLEY_DELTA = (
    0.01  # nats a block that are no drift; with the threshold: a false alarm in 393 blocks of spread .06
)
PAGE_HINKLEY_THRESHOLD = 0.5  # nats in sum


class DriftBaselines:
    """Alarms so far; each detector starts anew behind its own."""

    def __init__(self) -> None:
        self._adwin = ADWIN(clock=CLOCK)  # type: ignore[no-untyped-call, unused-ignore]
        self._page_hinkley = PageHinkley(
            min_instances=30, delta=PAGE_HINKLEY_DELTA, threshold=PAGE_HINKLEY_THRESHOLD, alpha=1.0, mode="up"
        )
        self.adwin = 0
        self.page_hinkley = 0

    def add(self, loss: float) -> None:
        """The mean log loss of a tick, nats."""
        self._adwin.update(loss)  # type: ignore[no-untyped-call, unused-ignore]
        self._page_hinkley.update(loss)  # type: ignore[no-untyped-call, unused-ignore]
        self.adwin += bool(self._adwin.drift_detected)
        self.page_hinkley += bool(self._page_hinkley.drift_detected)
