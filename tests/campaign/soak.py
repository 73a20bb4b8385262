"""`python -m tests.campaign.soak`: years of flights one after the other, a kill every minute; does anything grow?

In: how many years, how often to kill. Out: a table of what the worker and the store take, year by year; exit 1 if a
balance is open, a record is missing or something grew. Invariant: a year is the flights of 2013, 53 weeks later than
the one before, so weekdays stay and ids come again long after `dedup_window`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from tests.campaign.processes import WorkerProcess, ended_at_exit
from tests.campaign.stream import Stream, committed
from tidemill.apps import flights
from tidemill.apps.flights_data import Records, flight_records
from tidemill.apps.status import read_status
from tidemill.io.embedded import start_servers

YEAR_MS = 371 * 86_400_000
# Of the last year over the second: the first one fills windows and keys. The append-only file of a store of 8 MB is
# rewritten when it has doubled and has 16 MB at least; meanwhile the rewritten one stands beside it.
GROWTH_MAX = {"rss": 1.1, "keys": 1.1, "store_memory": 1.1, "store_disk": 3.5, "folder_disk": 1.1}
LOOK_S = 0.25
STALL_S = 120.0
TIMES = ("scheduled_departure",)  # fields of the records that are moments


@dataclass(frozen=True, slots=True)
class Year:
    """At the end of a year: bytes, counts, seconds. rss: the largest that a worker had in it."""

    number: int
    records: int
    seconds: float
    kills: int
    rss: int
    keys: int
    store_memory: int
    store_disk: int
    folder_disk: int
    kafka_disk: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--years", type=int, default=5, help="how many (5)")
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="S", help="seconds between two kills (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-soak-") as scratch,
        start_servers(Path(scratch) / "servers") as one,
    ):
        with _years_of_flights(given.years):
            stream = Stream(one, "soak", Path(scratch) / "run", until=None)
        say(f"{stream.total:,} records are in Kafka")
        years = list(_soak(stream, given.years, given.kill_every))
        status = read_status(stream.settings)
    _print(years)
    wrong = [balance.name for balance in status.balances if not balance.is_closed]
    wrong += [f"lag of {lag} in {partition}" for partition, lag in status.lag.items() if lag]
    wrong += _growth(years)
    print("ok" if not wrong else "; ".join(wrong))
    if given.json:
        given.json.write_text(json.dumps({"years": [asdict(year) for year in years], "wrong": wrong}, indent=1) + "\n")
    return 1 if wrong else 0


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _years_of_flights(count: int) -> Iterator[None]:
    def records(until: object = None) -> dict[str, Records]:
        return {kind: _repeated(found, count) for kind, found in flight_records(None).items()}

    with mock.patch.object(flights, "flight_records", records):
        yield


def _repeated(found: Records, count: int) -> Records:
    times = np.concatenate([found.time + number * YEAR_MS for number in range(count)])
    batches = [_shifted(found.columns, number * YEAR_MS) for number in range(count)]
    columns = pa.Table.from_batches(batches).combine_chunks().to_batches()
    assert len(columns) == 1
    return Records(found.kind, times, columns[0])


def _shifted(columns: pa.RecordBatch, by_ms: int) -> pa.RecordBatch:
    for at, field in enumerate(columns.schema):
        if field.name in TIMES:
            moved = pc.add(columns.column(at).cast(pa.int64()), by_ms).cast(field.type)
            columns = columns.set_column(at, field, moved)
    return columns


def _soak(stream: Stream, count: int, kill_every_s: float) -> Iterator[Year]:
    """A year ends once its share of the records is committed."""
    ends = [stream.total * number // count for number in range(1, count + 1)]
    store = redis.Redis.from_url(stream.servers.redis_url)
    with ended_at_exit() as processes:
        worker = WorkerProcess(stream, 0)
        processes.append(worker)
        started = killed_at = moved_at = time.monotonic()
        last, rss, kills = 0, 0, 0
        for number, end in enumerate(ends, 1):
            while (now := committed(stream.marks())) < end:
                worker.check_alive()
                rss = max(rss, _rss(worker.process.pid))
                moment = time.monotonic()
                if now > last:
                    last, moved_at = now, moment
                assert moment - moved_at < STALL_S, f"no progress at record {now}:\n{worker.log()[-2000:]}"
                if moment - killed_at >= kill_every_s:
                    worker.kill()
                    worker.restart()
                    kills, killed_at = kills + 1, moment
                time.sleep(LOOK_S)
            yield Year(
                number=number,
                records=now,
                seconds=round(time.monotonic() - started, 1),
                kills=kills,
                rss=rss,
                keys=int(store.dbsize()),
                store_memory=int(store.info("memory")["used_memory"]),
                store_disk=_disk(stream.servers.data_folder / "valkey"),
                folder_disk=_disk(stream.folder),
                kafka_disk=_disk(stream.servers.data_folder / "kafka"),
            )
            say(f"year {number}: {now:,} records in {time.monotonic() - started:.0f} s, {kills} kills")
            rss = 0
        stream.wait_until_settled()
        assert worker.stop() == 0, worker.log()[-2000:]


def _growth(years: list[Year]) -> list[str]:
    """What the last year has more of than the second one. Kafka keeps everything: its logs grow with the records."""
    if len(years) < 3:
        return []
    second, last = years[1], years[-1]
    ratios = {name: getattr(last, name) / getattr(second, name) for name in GROWTH_MAX}
    return [
        f"{name} grew {ratio:.2f}-fold since the second year"
        for name, ratio in ratios.items()
        if ratio > GROWTH_MAX[name]
    ]


def _print(years: list[Year]) -> None:
    heads = f"{'RSS':>7} {'keys':>9} {'store':>7} {'AOF':>7} {'folder':>7} {'Kafka':>8}"
    print(f"{'year':>4} {'records':>10} {'s':>6} {'kills':>5} {heads}")
    for year in years:
        sizes = (year.store_memory, year.store_disk, year.folder_disk, year.kafka_disk)
        store, aof, folder, kafka = (f"{size / 1e6:,.0f} MB" for size in sizes)
        print(
            f"{year.number:>4} {year.records:>10,} {year.seconds:>6.0f} {year.kills:>5} {year.rss / 1e6:>4,.0f} MB "
            f"{year.keys:>9,} {store:>7} {aof:>7} {folder:>7} {kafka:>8}"
        )


def _rss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS")), 0)


def _disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
