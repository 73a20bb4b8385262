"""The newest trigger that no training has answered: it was declined, or its training failed.

In: the story. Out: the event that told so. Invariant: a fold of the story. A training that ends with a version answers
every trigger up to its tick, whatever the gate says of it; people who are declined ask again themselves.
"""

from __future__ import annotations

from tidemill.core.story import PEOPLES_KEYS, StoryEvent


class Unanswered:
    """`tell` it every story event, in the order of the topic."""

    def __init__(self) -> None:
        self._newest: StoryEvent | None = None
        self._answered_until: int | None = None  # time of the last training that ended with a version

    def tell(self, event: StoryEvent) -> None:
        """Fold one story event."""
        if event.kind in ("trained", "gated"):
            self._answered_until = event.time
        elif event.kind in ("declined", "failed") and event.cause.rpartition("@")[0] not in PEOPLES_KEYS:
            is_newer = self._newest is None or event.time > self._newest.time
            # Of one tick the first counts: the others were declined for its sake.
            self._newest = event if is_newer else self._newest

    @property
    def newest(self) -> StoryEvent | None:
        """How it was declined or failed; None: every trigger is answered."""
        newest, until = self._newest, self._answered_until
        return None if newest is None or (until is not None and newest.time <= until) else newest
