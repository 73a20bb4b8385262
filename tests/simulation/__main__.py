"""`scripts/simulate`: many seeds, one line for each that fails, and how to run it alone.

In: how many seeds, from which one on, a mutant or none. Out: exit 0 = all seeds hold (with a mutant: one does not),
1 = not so. Invariant: a seed says the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.process import Workshop
from tests.simulation.shrinking import shrink
from tests.simulation.world import Result

FAILURES_MAX = 5  # shown; more say nothing new


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Simulate an app under fire.")
    parser.add_argument("--seeds", type=int, default=500, help="how many (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="take this guard away: then a seed must fail")
    parser.add_argument("--no-shrink", action="store_true", help="show a failing seed as it is")
    parser.add_argument("--shrink-s", type=float, default=60.0, metavar="S", help="seconds at most (%(default)s)")
    given = parser.parse_args()
    workshop, began = Workshop(), time.monotonic()
    failed: list[Result] = []
    outcomes: Counter[str] = Counter()
    faults = steps = done = 0
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        with mutated(given.mutant):
            result = workshop.run(seed)
        done += 1
        faults, steps = faults + len(result.happened), steps + result.steps
        outcomes.update(result.counts)
        if result.violation is None:
            continue
        failed.append(result)
        print(f"seed {seed}: {result.violation}")
        if not given.no_shrink:
            show_smallest(workshop, result, given.mutant, given.shrink_s)
        print(command_for(seed, given.mutant))
        if given.mutant or len(failed) == FAILURES_MAX:
            break
    print(f"{done} seeds, {steps:,} steps, {faults:,} faults, {time.monotonic() - began:.0f} s: {len(failed)} failed")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items())))
    return int(bool(failed) != bool(given.mutant))


def show_smallest(workshop: Workshop, result: Result, mutant: str | None, deadline_s: float) -> None:
    with mutated(mutant):
        left, smallest = shrink(lambda less: workshop.run(result.seed, less), result, deadline_s)
        records = workshop.records_of(result.seed, left)
    print(f"  smallest: {smallest.violation}")
    for happened in smallest.happened:
        print(f"    {happened}")
    for record in records:
        print(f"    {record}")


def command_for(seed: int, mutant: str | None) -> str:
    """Runs one seed again."""
    return f"  again: scripts/simulate --seeds 1 --first-seed {seed}" + (f" --mutant {mutant}" if mutant else "")


if __name__ == "__main__":
    sys.exit(main())
