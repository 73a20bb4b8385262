"""What a monitor beside it costs a worker: throughput of a bounded worker on preloaded topics, with and without one.

In: flights up to a day, published once. Out: records per second of each run, in the order without, with, with, without,
so that a machine that warms up or is shared favours neither; their ratio; CPU seconds of worker and monitor. Invariant:
every run reads the same records under an app name of its own, and its monitor publishes every tick of them.

Run: python -m benchmarks.monitor [--until 2013-03-01] [--rounds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from tidemill.apps.flights import run_producer
from tidemill.apps.following import CommitFollower
from tidemill.apps.topics import ensure_app_topics, ensure_loop_topics
from tidemill.config import Settings, load_settings
from tidemill.core.records import Partition
from tidemill.core.topic_names import drift_topic
from tidemill.io import kafka
from tidemill.io.embedded import Servers, start_servers

CONFIG = Path("config/flights.yaml")
LOOK_EVERY_S = 0.05
MONITOR_START_S = 8.0  # to load and to open its transaction, before the worker begins
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True)
class Run:
    """seconds: from the first to the last commit. CPU of the processes from start to end."""

    has_monitor: bool
    records: int
    seconds: float
    worker_cpu_s: float
    monitor_cpu_s: float
    ticks: int

    @property
    def records_per_s(self) -> float:
        return self.records / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--until", type=date.fromisoformat, default=date(2013, 3, 1), help="a day of 2013")
    parser.add_argument("--rounds", type=int, default=1, help="of four runs each")
    parser.add_argument("--json", type=Path, help="also write the runs here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder, start_servers(Path(folder)) as servers:
        settings = settings_of(Path(folder), "bench-load", servers)
        ensure_app_topics(settings)
        run_producer(servers.bootstrap_servers, app=settings.app, until=given.until, poison_count=0, kafka={})
        runs = []
        for number, has_monitor in enumerate([False, True, True, False] * given.rounds):
            runs.append(run(Path(folder), f"bench-{number}", servers, has_monitor=has_monitor))
            print(line_of(runs[-1]), flush=True)
    speeds = {kind: [one.records_per_s for one in runs if one.has_monitor is kind] for kind in (True, False)}
    ratio = statistics.fmean(speeds[True]) / statistics.fmean(speeds[False])
    print(f"with a monitor: {ratio:.3f} of the throughput without one ({1 - ratio:+.1%} lost, at most 5 % asked)")
    if given.json:
        given.json.write_text(json.dumps({"ratio": ratio, "runs": [asdict(one) for one in runs]}, indent=1))


def line_of(one: Run) -> str:
    beside = f"monitor beside, {one.ticks} ticks, CPU {one.monitor_cpu_s:.1f} s" if one.has_monitor else "no monitor"
    return (
        f"{one.records:,} records in {one.seconds:.1f} s: {one.records_per_s:,.0f} a second; worker CPU "
        f"{one.worker_cpu_s:.1f} s; {beside}"
    )


def settings_of(folder: Path, name: str, servers: Servers) -> Settings:
    """The flights app under another name: its own outputs, groups and state, the same inputs."""
    text = CONFIG.read_text().replace("name: flights", f"name: {name}", 1)
    config = folder / f"{name}.yaml"
    config.write_text(text.replace("schema: ", f"schema: {CONFIG.parent.resolve()}/"))
    return load_settings(
        config, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=folder / name
    )


def run(folder: Path, name: str, servers: Servers, *, has_monitor: bool) -> Run:
    settings = settings_of(folder, name, servers)
    ensure_app_topics(settings)
    ensure_loop_topics(settings)
    config, data = str(folder / f"{name}.yaml"), str(settings.data_folder)
    addresses = ["--bootstrap-servers", servers.bootstrap_servers, "--data", data]
    monitor = start("monitor", config, *addresses) if has_monitor else None
    if monitor is not None:
        time.sleep(MONITOR_START_S)
    worker = start("worker", config, "--bounded", "--redis-url", servers.redis_url, *addresses)
    records, seconds = follow(settings, worker)
    ticks = wait_for_ticks(settings, monitor) if monitor is not None else 0
    return Run(has_monitor, records, seconds, stop(worker), stop(monitor) if monitor is not None else 0.0, ticks)


def follow(settings: Settings, worker: subprocess.Popen[bytes]) -> tuple[int, float]:
    """(records, seconds between the first and the last commit), once all of the inputs are processed."""
    clients = kafka.client_settings(settings.bootstrap_servers or "")
    counts = kafka.partition_counts(clients, [topic.name for topic in settings.app.topics])
    inputs = [Partition(topic, number) for topic, count in counts.items() for number in range(count)]
    ends = {at: end for at, (start_, end) in kafka.log_bounds(clients, inputs).items() if end > start_}
    follower = CommitFollower(clients, settings.app.name)
    first_at = None
    deadline = time.monotonic() + PATIENCE_S
    while any(follower.positions.get(at, 0) < end for at, end in ends.items()):
        if follower.look() and first_at is None:
            first_at, first_records = follower.last_commit_at, follower.records
        if worker.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the worker ended with {worker.poll()} after {follower.records} records")
        time.sleep(LOOK_EVERY_S)
    assert first_at is not None and follower.last_commit_at is not None
    follower.close()
    return follower.records - first_records, follower.last_commit_at - first_at


def wait_for_ticks(settings: Settings, monitor: subprocess.Popen[bytes]) -> int:
    """How many ticks there are, once no more come."""
    clients = kafka.client_settings(settings.bootstrap_servers or "")
    at = Partition(drift_topic(settings.app.name), 0)
    end = -1
    while (newest := kafka.log_bounds(clients, [at])[at][1]) != end and monitor.poll() is None:
        end = newest
        time.sleep(3.0)
    return end // 2  # a record and a marker each


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tidemill", *arguments, "--quiet"])


def stop(process: subprocess.Popen[bytes]) -> float:
    """Its CPU seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
