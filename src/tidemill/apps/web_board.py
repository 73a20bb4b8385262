"""Where the thread that follows the topics and the threads that answer browsers meet.

In: changes of a `WebState`. Out: its JSON, numbered. Invariant: a number is given to a state once and only grows; a
document is made at most once per number, and only when somebody asks for it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TypeVar

from tidemill.apps.web_state import WebState

TROUBLE_CHARACTERS = 400
Value = TypeVar("Value")


class Board:
    """Safe for many threads."""

    def __init__(self, state: WebState) -> None:
        self._state = state
        self._changed = threading.Condition()
        self._number = 1
        self._made: tuple[int, bytes] = (0, b"")
        self._trouble = ""

    def change(self, fold: Callable[[WebState], object]) -> None:
        """Give the state to `fold`, and the state after it a new number."""
        with self._changed:
            fold(self._state)
            self._mark()

    def set_trouble(self, trouble: str) -> None:
        """Why what is shown may be old; empty = it is not."""
        with self._changed:
            if trouble[:TROUBLE_CHARACTERS] != self._trouble:
                self._trouble = trouble[:TROUBLE_CHARACTERS]
                self._mark()

    def read(self, of_state: Callable[[WebState], Value]) -> Value:
        """What `of_state` says while nobody changes it."""
        with self._changed:
            return of_state(self._state)

    def document(self) -> tuple[int, bytes]:
        """The newest state as JSON, and its number."""
        with self._changed:
            if self._made[0] != self._number:
                values = {"trouble": self._trouble, **self._state.as_json()}
                text = json.dumps(values, separators=(",", ":"), allow_nan=False)
                self._made = (self._number, text.encode())
            return self._made

    def wait_for_newer(self, number: int, timeout_s: float) -> bool:
        """Whether there is a state with a higher number, now or within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._number > number, timeout_s)

    def _mark(self) -> None:
        self._number += 1
        self._changed.notify_all()
