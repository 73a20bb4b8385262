"""Actors that take turns: threads of which one runs at a time, in an order that the seed alone decides.

In: functions to run. Out: one step of one of them at a time. Invariant: between two steps every thread waits, so that
what happens is a function of the order of the steps and of nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

STEP_DEADLINE_S = 60.0  # of real time: an actor that does not give the turn back is a bug of the simulation


class Killed(BaseException):
    """The process ends here: no line of it runs any more."""


class Actor:
    """One process. `frozen_until`: the step before which it does not run."""

    def __init__(self, name: str, body: Callable[[Actor], None]) -> None:
        self.name = name
        self.frozen_until = 0
        self.is_done = False
        self.error: BaseException | None = None
        self._is_killed = False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._body = body
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def step(self) -> None:
        """Let it run until it pauses or ends; called by the simulation."""
        self._mine.release()
        if not self._theirs.acquire(timeout=STEP_DEADLINE_S):
            raise TimeoutError(f"{self.name} did not give its turn back within {STEP_DEADLINE_S:.0f} s")

    def pause(self) -> None:
        """The end of a step; called by the actor itself."""
        self._theirs.release()
        self._mine.acquire()
        if self._is_killed:
            raise Killed

    def kill(self) -> None:
        """It ends where it waits."""
        if not self.is_done:
            self._is_killed = True
            self.step()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self._is_killed:
                self._body(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._theirs.release()
