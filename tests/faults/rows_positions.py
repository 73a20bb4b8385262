"""Rows of the matrix in which Kafka's positions are not where they were: 26, 27, 31.

In: a stage. Out: a `RowResult` per seed. Invariant: a worker that cannot go on from where it stood says so and ends,
and nothing is passed over without a word.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.campaign.processes import ROOT, WorkerProcess
from tests.campaign.stream import applied, committed
from tests.faults.orders import DEDUP_MS, FIRST_MS, HOUR_MS, PARTITIONS, SPAN_MS, Orders, made_stream
from tests.faults.row import Row, RowResult
from tests.faults.stage import Stage
from tests.faults.watching import Verdict, finish, judge, result_of, running, wait, wait_for_share, workers_of
from tidemill.apps.engine import worker_group
from tidemill.core.records import Partition
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode

EXIT_DEADLINE_S = 60.0
LIVE = {"idle_after": "1s", "max_idle": "300ms", "stall_after": "60s"}


# 26 ------------------------------------------------------------------------------------------------------------


def offsets_out_of_range(stage: Stage, seed: int) -> RowResult:
    """Records are deleted that nobody has processed: odd seeds before a start, even ones under a worker that lags."""
    records = made_stream(seed)
    cut = int(len(records) * random.Random(seed).uniform(0.2, 0.8))
    site = Orders(
        stage.servers, stage.name, stage.folder / "run", records[:cut], is_bounded=False, more={"worker": LIVE}
    )
    found = Verdict()
    with running(site, 1, is_bounded=False) as workers:
        worker = workers[0]
        wait(site, workers, site.is_drained, "the first part")
        if seed % 2:
            worker.kill()
        else:
            worker.process.send_signal(signal.SIGSTOP)  # so that it cannot fetch what is deleted then
        site.send(records[cut:])
        victim = next(p for p in site.partitions if p.topic.endswith("orders"))
        delete_until(site, victim, site.ends[victim] - 1)
        if seed % 2:
            wait_for_the_session_to_end(site)
            worker.restart()
        else:
            worker.process.send_signal(signal.SIGCONT)
        code = wait_for_exit(worker)
        told = [name for name in ("TM-4021", "TM-4206", "TM-4203") if name in worker.log()]
        found.expect(code == 4 and bool(told), f"exit {code}: {worker.log()[-300:]}")
        if not seed % 2 and "TM-4021" in told:
            before = outputs_end(site)
            wait_for_the_session_to_end(site)
            worker.restart()
            found.expect(wait_for_exit(worker) == 4, "a second start did not stop")
            found.expect(outputs_end(site) == before, "a second start published")
        expect_tiles(site, found)
    how = "before a start" if seed % 2 else "under a worker"
    return result_of(found, 1, f"{how}: {', '.join(told)}")


def delete_until(site: Orders, partition: Partition, offset: int) -> None:
    admin = AdminClient(site.clients)  # held by name: a client that is collected never answers
    for future in admin.delete_records([TopicPartition(partition.topic, partition.number, offset)]).values():
        future.result(20)


def wait_for_exit(worker: WorkerProcess) -> int:
    return worker.process.wait(EXIT_DEADLINE_S)


def wait_for_the_session_to_end(site: Orders) -> None:
    """A static member stays in the group for its session time-out after its process ended."""
    deadline = time.monotonic() + 30
    while kafka.living_members(site.clients, worker_group(site.name)):
        assert time.monotonic() < deadline, "the group still has members"
        time.sleep(0.2)


def outputs_end(site: Orders) -> dict[Partition, int]:
    """The ends of what is published, by partition."""
    names = [f"{site.name}.{kind}.v1" for kind in ("predictions", "examples", "commits")]
    counts = kafka.partition_counts(site.clients, names)
    partitions = [Partition(name, number) for name, count in counts.items() for number in range(count)]
    return {partition: end for partition, (_, end) in kafka.log_bounds(site.clients, partitions).items()}


def expect_tiles(site: Orders, found: Verdict) -> None:
    """Commits follow on each other without a jump, whatever the log still holds."""
    spans: dict[Partition, list[tuple[int, int]]] = defaultdict(list)
    for messages in read_topic(site.clients, f"{site.name}.commits.v1"):
        for row in decode("commit.v1", [m.value() for m in messages]).to_pylist():
            spans[Partition(row["topic"], row["partition"])].append((row["start"], row["next"]))
    for partition, listed in spans.items():
        for (_, end), (start, _) in pairwise(listed):
            if start > end:
                found.missing += start - end
                found.wrong.append(f"{partition}: a silent jump from {end} to {start}")
            if start < end:
                found.duplicated += end - start
                found.wrong.append(f"{partition}: [{start}, {end}) was committed twice")


# 27 ------------------------------------------------------------------------------------------------------------


def partitions_added(stage: Stage, seed: int) -> RowResult:
    """The events' topic grows from two partitions to four under running workers; ids keep their rows and entities."""
    few = {**PARTITIONS, "orders": 2}
    records = [replace(one, partition=one.partition % 2) if one.topic == "orders" else one for one in made_stream(seed)]
    middle = FIRST_MS + SPAN_MS // 2
    early, late = ([one for one in records if (one.time < middle) == is_early] for is_early in (True, False))
    spread = [replace(one, partition=n % 4) if one.topic == "orders" else one for n, one in enumerate(late)]
    site = Orders(
        stage.servers, stage.name, stage.folder / "run", early, partitions=few, is_bounded=False,
        more={"worker": LIVE},
    )  # fmt: skip
    with running(site, workers_of(seed), is_bounded=False) as workers:
        wait(site, workers, site.is_drained, "the first half")
        admin = AdminClient(site.clients)
        for future in admin.create_partitions([NewPartitions(f"{site.name}.orders", 4)]).values():
            future.result(20)
        site.partition_counts["orders"] = 4
        site.renew_producer()
        began = time.monotonic()
        # No longer than labels wait: a partition that nobody has seen yet holds back no watermark.
        site.send([one for one in spread if one.time < middle + HOUR_MS])
        wait(site, workers, site.is_drained, "the new partitions")
        recovered = time.monotonic() - began
        site.send([one for one in spread if one.time >= middle + HOUR_MS])
        wait(site, workers, site.is_drained, "the rest")
        site.end_partitions(max(one.time for one in records) + DEDUP_MS + 1)
        codes = finish(site, workers)
        found = judge(site, workers, codes, is_total_order=False)
    return result_of(found, 1, f"{len(workers)} workers, live", recovered)


# 31 ------------------------------------------------------------------------------------------------------------


def offsets_reset_or_expired(stage: Stage, seed: int) -> RowResult:
    """The group's offsets are moved by hand, or are gone; exit 4, nothing published; `tidemill reset` makes peace."""
    draw = random.Random(seed)
    site = Orders(stage.servers, stage.name, stage.folder / "run", made_stream(seed))
    group = worker_group(site.name)
    with running(site, 1) as workers:
        worker = workers[0]
        wait_for_share(site, workers, draw.uniform(0.2, 0.7))
        worker.kill()
        wait_for_the_session_to_end(site)
        before = outputs_end(site)
        if seed % 2:
            admin = AdminClient(site.clients)
            for future in admin.delete_consumer_groups([group]).values():
                future.result(20)
        else:
            orders = [p for p in site.partitions if p.topic.endswith("orders")]
            kafka.set_committed_offsets(site.clients, group, dict.fromkeys(orders, draw.randrange(1, 20)), "")
        worker.restart()
        code = wait_for_exit(worker)
        told = [name for name in ("TM-4202", "TM-4204") if name in worker.log()]
        found = Verdict()
        found.expect(code == 4 and bool(told), f"exit {code}: {worker.log()[-300:]}")
        found.expect("tidemill reset" in worker.log(), "the message does not say what to do")
        found.expect(outputs_end(site) == before, "it published something")
        wait_for_the_session_to_end(site)
        reset = [sys.executable, "-m", "tidemill", "reset", str(site.config), "--to", "applied", "--yes"]
        reset += ["--bootstrap-servers", site.servers.bootstrap_servers, "--redis-url", site.servers.redis_url]
        done = subprocess.run(reset, cwd=ROOT, timeout=60, capture_output=True, text=True)
        found.expect(done.returncode == 0, f"reset: {done.stderr}")
        began = time.monotonic()
        at = applied(site.marks())
        worker.restart()
        wait(site, workers, lambda: committed(site.marks()) > at or site.is_drained(), "progress")
        recovered = time.monotonic() - began
        codes = finish(site, workers)
        later = judge(site, workers, codes)
        later.wrong = [*found.wrong, *later.wrong]
    how = "expired" if seed % 2 else "moved by hand"
    return result_of(later, 1, f"{how}: {', '.join(told)}", recovered)


ROWS: tuple[Row, ...] = (
    Row(26, "offsets out of range", 2, offsets_out_of_range),
    Row(27, "partitions added", 2, partitions_added),
    Row(31, "offsets reset by hand, expired", 2, offsets_reset_or_expired),
)
