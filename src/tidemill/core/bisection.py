"""Find the records that end a process, when a try costs a process.

In: how many records there are, and a try that says whether some of them end their process. Out: the culprits, or that
there is none to name. Invariant: a record is named only when the records before it live and it dies with them, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CULPRITS_MAX = 16  # of one batch; where more die it is the library or the machine, not the records


@dataclass(frozen=True, slots=True)
class Bisection:
    """What a search came to.

    culprits: (position, signal) in the order in which they were found.
    is_clean: the rest was tried without them and lives; False: a death did not repeat, or there are too many culprits.
    """

    culprits: tuple[tuple[int, int], ...]
    is_clean: bool

    @property
    def is_too_many(self) -> bool:
        return len(self.culprits) >= CULPRITS_MAX and not self.is_clean


def find_culprits(count: int, die: Callable[[Sequence[int]], int]) -> Bisection:
    """Search the positions 0 to `count` - 1.

    Prefixes are tried, not halves: so a record that dies only in the company of an earlier one is found as well. Each
    culprit costs about log2(count) + 3 tries.

    Args:
        die: tries the records at these positions, in order; the signal that ended the process, 0 = it lived.
    """
    culprits: list[tuple[int, int]] = []
    left = list(range(count))
    while die(left):
        if len(culprits) == CULPRITS_MAX:
            return Bisection(tuple(culprits), False)
        living, dying = 0, len(left)  # the first `living` live, the first `dying` die
        while dying - living > 1:
            middle = (living + dying) // 2
            if die(left[:middle]):
                dying = middle
            else:
                living = middle
        signal = die(left[:dying])
        if not signal or die(left[: dying - 1]):
            return Bisection(tuple(culprits), False)
        culprits.append((left.pop(dying - 1), signal))
    return Bisection(tuple(culprits), True)
