"""`python -m tests.campaign`: the big campaign on servers of its own; exit 0 = everything holds, 1 = it does not.

In: a day, workers, kills, a seed. Out: a table, and JSON if asked for. Invariant: the servers are gone at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

from tests.campaign.campaign import Result, run
from tidemill.io.embedded import start_servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/campaign", description="Kill workers, then judge what they left.")
    parser.add_argument("--until", type=date.fromisoformat, help="flights before this day (UTC); the whole year")
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2, 3), help="worker processes (1)")
    parser.add_argument("--loop", action="store_true", help="monitor and trainer run too, and are killed too")
    parser.add_argument(
        "--max-skew", help="how far workers may be apart in event time; several workers are slow with 1h"
    )
    parser.add_argument("--kills", type=int, default=20, help="how often to kill -9 (20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the victims (1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep servers' data and logs there; must be new")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidemill-campaign-") as scratch:
        folder = given.data or Path(scratch)
        with start_servers(folder / "servers") as servers:
            say("undisturbed run")
            options = {"until": given.until, "seed": given.seed, "max_skew": given.max_skew, "report": say}
            calm = run(servers, folder / "undisturbed", name="undisturbed", **options)
            say(f"undisturbed run: {calm.seconds['run']} s; now {given.kills} kills")
            killed = run(
                servers,
                folder / "killed",
                name="killed",
                workers=given.workers,
                kills=given.kills,
                undisturbed=calm,
                has_loop=given.loop,
                **options,
            )
    print_table(calm, killed)
    if given.json:
        given.json.write_text(json.dumps({"undisturbed": calm.as_json(), "killed": killed.as_json()}, indent=1) + "\n")
    return 0 if calm.is_ok and killed.is_ok else 1


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def print_table(calm: Result, killed: Result) -> None:
    print(f"{'kill':>4} {'who':<8} {'at record':>10} {'how':<10} {'recovered':>9}")
    for kill in killed.kills:
        mark = "" if kill.is_in_time else "  too late"
        back = "at the end" if kill.recovered_s is None else f"{kill.recovered_s:>7.2f} s"
        print(f"{kill.number:>4} {kill.who:<8} {kill.at_record:>10,} {kill.how:<10} {back}{mark}")
    print()
    for result in (calm, killed):
        print(f"{result.name}: {result.records:,} records, {result.workers} workers, seconds {result.seconds}")
        for name, text in result.verdicts.items():
            print(f"  {name:<18} {text or 'ok'}")


if __name__ == "__main__":
    sys.exit(main())
