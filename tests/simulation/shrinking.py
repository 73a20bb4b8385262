"""A failing seed made small: records and faults are left out while it still fails.

In: a seed that fails. Out: what can be left out, and how the rest fails. Invariant: the smaller run breaks the same
invariant (I1, I2, ...), so that one does not end with another failure than one began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.simulation.faults import a_plan
from tests.simulation.stream import a_stream
from tests.simulation.world import Left, Result

Run = Callable[[Left], Result]


def shrink(run: Run, first: Result, deadline_s: float) -> tuple[Left, Result]:
    """The smallest run found within `deadline_s` seconds."""
    ends_at = time.monotonic() + deadline_s
    records = [one.number for one in a_stream(first.seed) if one.kind != "end"]
    faults = list(range(len(a_plan(first.seed))))
    left, result = Left(), first

    def fails_without(more_records: Sequence[int], more_faults: Sequence[int]) -> bool:
        nonlocal left, result
        smaller = Left(left.records | set(more_records), left.faults | set(more_faults))
        found = run(smaller)
        if kind_of(found) != kind_of(first):
            return False
        left, result = smaller, found
        return True

    _leave_out(faults, lambda part: fails_without((), part), ends_at)
    _leave_out(records, lambda part: fails_without(part, ()), ends_at)
    _leave_out([one for one in faults if one not in left.faults], lambda part: fails_without((), part), ends_at)
    return left, result


def kind_of(result: Result) -> str | None:
    """The invariant that was broken."""
    return None if result.violation is None else result.violation.split()[0]


def _leave_out(numbers: Sequence[int], fails_without: Callable[[Sequence[int]], bool], ends_at: float) -> None:
    """Halves first, then smaller and smaller parts."""
    rest = list(numbers)
    size = len(rest)
    while size and rest:
        at = 0
        while at < len(rest):
            if time.monotonic() > ends_at:
                return
            part = rest[at : at + size]
            if fails_without(part):
                del rest[at : at + size]
            else:
                at += size
        size //= 2
