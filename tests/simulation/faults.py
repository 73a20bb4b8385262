"""What goes wrong in a run, drawn beforehand: so a fault can be left out while all others stay.

In: a seed. Out: faults in the order of their steps. Invariant: a fault meets the first request of its sort at or after
its step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

REQUEST_FAULTS = (
    "crash before", "crash after",  # the process dies before the request takes effect, or after it
    "request lost", "answer lost",  # the caller cannot tell one from the other
    "delayed", "delayed and crash",  # it takes effect later, when the caller has given up, or is dead
    "asleep",  # the process stops, and goes on when others may have taken over
    "twin",  # it stops, and another process is started in its slot
)  # fmt: skip
STORE_FAULTS = ("store back", "store emptied")
# Most faults wait for one of the requests that a batch consists of; the others take whatever comes.
REQUESTS = ("store read", "store commit", "kafka produce", "kafka offsets", "kafka end", "store mark")
RARE_REQUESTS = ("store claim", "store start", "kafka init", "kafka committed", "kafka fetch", "store touch", "")
LAST_STEP = 260


@dataclass(frozen=True)
class Fault:
    """at: the request that it waits for, "" = any. length: how many steps it lasts, or how far the store goes back."""

    step: int
    kind: str
    at: str
    length: int


def a_plan(seed: int) -> list[Fault]:
    chance = random.Random(f"faults {seed}")
    count = chance.choice([0, 1, 2, 3, 4, 6, 9, 14])
    kinds = chance.sample(REQUEST_FAULTS, chance.randint(1, len(REQUEST_FAULTS)))
    plan = [
        Fault(
            chance.randrange(LAST_STEP),
            chance.choice(kinds),
            chance.choice(REQUESTS if chance.random() < 0.75 else RARE_REQUESTS),
            chance.choice([2, 8, 30, 70]),
        )
        for _ in range(count)
    ]
    if chance.random() < 0.25:
        step, kind = chance.randrange(20, LAST_STEP), chance.choice(STORE_FAULTS)
        plan.append(Fault(step, kind, "", chance.choice([1, 5, 20, 60])))
    return sorted(plan, key=lambda fault: fault.step)
