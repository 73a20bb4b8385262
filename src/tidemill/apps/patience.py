"""How long one waits for what others do: as long as it goes on.

In: what has been reached, again and again. Out: whether it has stood still for too long. Invariant: whatever moves in
time is waited for, however long the whole takes.
"""

from __future__ import annotations

import time


class Patience:
    """Of one wait; its clock is the wall's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reached: object = None
        self._since = time.monotonic()

    def is_over(self, reached: object) -> bool:
        """Whether `reached` is what it was for longer than the seconds given."""
        now = time.monotonic()
        if reached != self._reached:
            self._reached, self._since = reached, now
        return now - self._since > self._seconds
