"""Why a worker does not move: its servers are asked, its compute thread is looked at.

In: a stall. Out: the cause in words, with the server, the transaction or the function by name. Invariant: nothing is
changed, and no answer is waited for longer than a few seconds; any thread but the one that is looked at may call it.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import StableEnds
from tidemill.io.redis_connection import RedisConnection

ASK_EVERY_S = 5.0  # an idle worker asks about open transactions; so often is enough to see a stall of a minute
ANSWER_S = 3.0  # a server that lives answers within milliseconds
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the worker itself knows of why it waits.

    is_busy: one call keeps the compute thread. thread: its ident. group_limit: the event time that a slower worker
    holds this one to; None = it does not. blocked_by: the partition that a bounded replay waits for.
    """

    is_busy: bool
    thread: int
    group_limit: int | None = None
    blocked_by: Partition | None = None


class InHand:
    """How long the compute thread has been in one call. A call of a moment is no block, and a worker that waits makes
    one every now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None  # the newest call that has not returned

    @contextmanager
    def call(self) -> Iterator[None]:
        began = self._began = self._clock()
        try:
            yield
        finally:
            if self._began == began:
                self._began = None

    def lasts(self, seconds: float) -> bool:
        began = self._began
        return began is not None and self._clock() - began >= seconds


class Causes:
    """Finds the cause of a stall."""

    def __init__(self, client_settings: Mapping[str, Any], redis_url: str | None) -> None:
        self._clients = client_settings
        self._redis_url = redis_url
        self._stable_ends: StableEnds | None = None
        self._hidden: Mapping[Partition, tuple[int, int]] = {}
        self._asked_at = -ASK_EVERY_S

    def hidden(self, partitions: Sequence[Partition]) -> Mapping[Partition, tuple[int, int]]:
        """Partitions with a transaction that is open: (where it hides records from, the end); none when unknown.

        What the broker said last is said again for `ASK_EVERY_S`.
        """
        if time.monotonic() - self._asked_at < ASK_EVERY_S:
            return {at: found for at, found in self._hidden.items() if at in partitions}
        if self._stable_ends is None:
            self._stable_ends = StableEnds(self._clients, ANSWER_S)
        try:
            self._hidden = self._stable_ends.hidden(partitions)
        except UnavailableError:
            self._hidden = {}  # a broker that does not answer is told of once its silence has become a stall
        self._asked_at = time.monotonic()
        return self._hidden

    def find(self, waiting: Waiting, partitions: Sequence[Partition]) -> str:
        """The most telling cause that can be seen now."""
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="stall") as both:
            silent = [text for text in both.map(lambda ask: ask(), (self._silent_broker, self._silent_store)) if text]
        if silent:
            return " and ".join(silent)
        if waiting.is_busy:
            return f"broker and store answer, and the compute thread is blocked in {where(waiting.thread)}"
        if waiting.group_limit is not None:
            return f"a slower worker holds back the group (limit {waiting.group_limit})"
        self._asked_at = -ASK_EVERY_S  # what was hidden a while ago may be the answer to another question
        for partition, (start, end) in self.hidden(partitions).items():
            return (
                f"a transaction that is still open hides {partition} from offset {start} to {end}; end its producer, "
                "or wait for its transaction.timeout.ms"
            )
        if waiting.blocked_by is not None:
            return (
                f"a bounded replay waits for a record or a punctuation in {waiting.blocked_by}; does its producer "
                "still run?"
            )
        return "broker and store answer, but the broker delivers no records"

    def _silent_broker(self) -> str:
        address = self._clients["bootstrap.servers"]
        return "" if kafka.is_answering(self._clients, ANSWER_S) else f"the broker at {address} does not answer"

    def _silent_store(self) -> str:
        if self._redis_url is None:
            return ""
        store = RedisConnection(self._redis_url, (), answer_deadline_s=ANSWER_S)
        try:
            store.run(("PING",))
        except UnavailableError:
            return f"the store at {store.address} does not answer"
        finally:
            store.close()
        return ""


def where(thread: int) -> str:
    """The function of ours that a thread is in, and what it calls there, with file and line."""
    frame: FrameType | None = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    stack = traceback.extract_stack(frame)
    ours = [each for each in stack if Path(each.filename).is_relative_to(PACKAGE)]
    inner = stack[-1]
    named = ours[-1] if ours else inner
    text = f"{named.name} ({Path(named.filename).name}:{named.lineno})"
    return text if named is inner else f"{text}, calling {inner.name} ({Path(inner.filename).name}:{inner.lineno})"
