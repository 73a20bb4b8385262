"""`python -m tests.faults`: rows of the fault matrix; exit 0 = every row is ok, 1 = one is not, 2 = nothing played.

In: rows, a first seed. Out: a line per seed while it runs, the table, JSON if asked for. Invariant: servers and workers
are gone at the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.faults.row import Played, Row, failed, table
from tests.faults.stage import House

MODULES = ("rows_deaths", "rows_groups", "rows_network", "rows_store", "rows_data", "rows_positions")


def all_rows() -> dict[int, Row]:
    """Every row, by number."""
    rows: dict[int, Row] = {}
    for module in MODULES:
        for row in importlib.import_module(f"tests.faults.{module}").ROWS:
            assert row.number not in rows, f"two rows have the number {row.number}"
            rows[row.number] = row
    return dict(sorted(rows.items()))


def play(house: House, row: Row, seed: int, *, is_loud: bool = False) -> Played:
    """One seed of one row; what it raises is its verdict."""
    started = time.monotonic()
    try:
        with house.stage(row.number, seed, has_own_servers=row.has_own_servers) as stage:
            result = row.run(stage, seed)
    except Exception as error:
        if is_loud:
            traceback.print_exception(error, file=sys.stderr)
        result = failed(error)
    return Played(row, seed, time.monotonic() - started, result)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Play rows of the fault matrix.")
    parser.add_argument("--rows", help="numbers, such as 1,5,9; all of them if not given")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--seeds", type=int, help="how many seeds of each row; as the row says if not given")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="N", help="multiply the times allowed, on a busy machine (1)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep logs and servers' data there; must be new")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    given = parser.parse_args(words)
    rows = all_rows()
    try:
        wanted = [rows[int(word)] for word in given.rows.split(",")] if given.rows else list(rows.values())
    except (KeyError, ValueError):
        print(f"--rows {given.rows}: there are rows {', '.join(map(str, rows))}", file=sys.stderr)
        return 2
    played: list[Played] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-faults-") as scratch, ExitStack() as stack:
        house = stack.enter_context(House(given.data or Path(scratch), given.patience))
        for row in wanted:
            for seed in range(given.seed, given.seed + (given.seeds or row.seeds)):
                one = play(house, row, seed, is_loud=True)
                played.append(one)
                state = "ok" if one.result.is_ok else f"NOT OK: {one.result.verdict}"
                took = "" if one.result.recovered_s is None else f", recovered in {one.result.recovered_s} s"
                again = f"scripts/faults --rows {row.number} --seed {seed} --seeds 1"
                print(
                    f"{again}: {one.seconds:.0f} s, {one.result.injected} injected{took}, {one.result.note}: {state}",
                    file=sys.stderr,
                    flush=True,
                )
                if given.json:  # after each: an interrupted run has its results
                    given.json.write_text(json.dumps([each.as_json() for each in played], indent=1) + "\n")
    print(table(played))
    return 0 if all(one.result.is_ok for one in played) else 1


if __name__ == "__main__":
    sys.exit(main())
