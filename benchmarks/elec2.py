"""Elec2, prequential: 45,312 half-hours of an electricity market, labels at once and a day late.

In: the path of `elec2.csv` (columns period, nswprice, nswdemand, vicprice, vicdemand, transfer, class). Out: the event
and label files of the apps in `tests/streams/elec2`, and their results with each delay of the labels. Invariant:
the row of an event holds nothing of its own label.

    python benchmarks/elec2.py PATH/elec2.csv [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

STREAM = Path(__file__).parents[1] / "tests" / "streams" / "elec2"
FIRST_MS = round(datetime(1996, 5, 7, tzinfo=UTC).timestamp() * 1_000)
HALF_HOUR_MS = 30 * 60_000
FIELDS = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
SLOTS = 48  # of a day


class Run(NamedTuple):
    """delay_ms: of a label after its event."""

    delay_ms: int
    config: Path


RUNS = {
    "immediate": Run(1, STREAM / "elec2.yaml"),
    "48_rows_late": Run(SLOTS * HALF_HOUR_MS, STREAM / "elec2_late.yaml"),
}


def write_files(source: Path, folder: Path, delay_ms: int) -> dict[str, Path]:
    """Write the app's files into `folder`; their paths by topic. A label comes `delay_ms` after its event."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"elec2.moves": folder / "moves.csv", "elec2.periods": folder / "periods.csv"}
    with (
        source.open(newline="") as rows,
        paths["elec2.periods"].open("w", newline="") as periods,
        paths["elec2.moves"].open("w", newline="") as moves,
    ):
        events, labels = csv.writer(periods), csv.writer(moves)
        events.writerow(["_time", "row", "slot", *FIELDS])
        labels.writerow(["_time", "row", "is_up"])
        for at, row in enumerate(csv.DictReader(rows)):
            time = FIRST_MS + at * HALF_HOUR_MS
            events.writerow([time, at, at % SLOTS, *(row[name] for name in FIELDS)])
            labels.writerow([time + delay_ms, at, "true" if row["class"] == "1" else "false"])
    return paths


def backtest(source: Path, folder: Path, run: Run) -> Path:
    """A backtest of the run's app in `folder`; the path of its results."""
    files = write_files(source, folder, run.delay_ms)
    options = [part for topic, path in files.items() for part in ("--file", f"{topic}={path}")]
    command = [sys.executable, "-m", "tidemill", "backtest", str(run.config), *options, "--out", str(folder)]
    subprocess.run(command, check=True)
    return folder / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Elec2 with labels at once and 48 rows late.")
    parser.add_argument("source", type=Path, help="elec2.csv")
    parser.add_argument("--out", type=Path, help="keep files and results there")
    parser.add_argument("--delay", choices=RUNS, action="append", help="only this delay; may be repeated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidemill-elec2-") as scratch:
        for name in options.delay or RUNS:
            print(f"labels {name.replace('_', ' ')}", flush=True)
            backtest(options.source, (options.out or Path(scratch)) / name, RUNS[name])


if __name__ == "__main__":
    main()
