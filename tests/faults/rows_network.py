"""Rows in which connections are slow, cut or reset, or the store is slow or full: 6, 7, 12, 13.

In: a stage and its seed. Out: what the judge says. Invariant: each fault is brought about at least once, and counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from tests.campaign.campaign import RESTART_BUDGET_S
from tests.campaign.stream import applied
from tests.faults.proxy import END_TXN, TXN_OFFSET_COMMIT, CutError
from tests.faults.row import Row, RowResult
from tests.faults.stage import FOUR_DAYS, Stage

DELAY_S = 0.02  # of each piece in either direction: a request takes 40 ms more
CUT_S = 3.0
NETWORK_BUDGET_S = 30.0  # a cut of both ends: the client's backoff, a new claim, maybe a rebalance
RESETS, HOLD_S = 3, 0.3
PAUSE_MS = 10_000
FULL_S = 5.0


class _Once:
    """A handler of a proxy that acts at one pass and lets all others through."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._left = at
        self._act = act
        self._mutex = threading.Lock()
        self.has_happened = threading.Event()

    def __call__(self) -> None:
        with self._mutex:
            self._left -= 1
            is_now = self._left == 0
        if is_now:
            self.has_happened.set()
            self._act()


def _cut() -> None:
    raise CutError


# --- 6: slow, cut, reset


def broken_connections(stage: Stage, seed: int) -> RowResult:
    """Slow for a while; cut for 3 s; reset before and after a commit reached the broker, and whatever the store was
    about to answer: results are unknown."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=50)
    with stage.proxy("kafka") as proxy, stage.proxy("valkey") as store_proxy:
        site = stage.site_of(stream.config, kafka=proxy, valkey=store_proxy)
        workers = [stage.worker(site, slot) for slot in range(1 + seed % 2)]
        stage.wait_for_record(stream, 0.05, *workers)
        injected, longest = 0, 0.0

        proxy.delay_s = DELAY_S
        stage.wait_for_record(stream, 0.15, *workers)
        proxy.delay_s = 0.0
        injected += 1

        proxy.cut()
        time.sleep(CUT_S)
        proxy.heal()
        longest = max(longest, stage.wait_for_progress(stream, *workers))
        injected += 1

        faults = [("response", END_TXN), ("request", END_TXN), ("response", TXN_OFFSET_COMMIT), ("response", END_TXN)]
        for side, api_key in faults:
            if stream.is_drained():
                break
            fault = _Once(stage.chance.randint(1, 4), _cut)
            proxy.handlers[side, api_key] = fault
            stage.wait_for("reset", lambda fault=fault: fault.has_happened.is_set() or stream.is_drained(), *workers)
            del proxy.handlers[side, api_key]
            injected += fault.has_happened.is_set()
            longest = max(longest, stage.wait_for_progress(stream, *workers))
        for _ in range(RESETS):
            if stream.is_drained():
                break
            time.sleep(stage.chance.uniform(0, 0.3))
            store_proxy.hold()  # what is asked now happens, and is never answered
            time.sleep(HOLD_S)
            store_proxy.reset()
            store_proxy.heal()
            injected += 1
            longest = max(longest, stage.wait_for_progress(stream, *workers))
        stage.finish(stream, *workers)
    late = stage.late("progress", longest, NETWORK_BUDGET_S)
    note = f"{len(workers)} workers"
    return stage.judge(stream).result(injected=injected, recovered_s=longest, note=note, wrong=late)


# --- 7: the coordinator answers late


def late_coordinator(stage: Stage, seed: int) -> RowResult:
    """EndTxn, or its answer, is held: for some seconds, and for longer than the transaction's time-out."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=100)
    with stage.proxy("kafka") as proxy:
        site = stage.site_of(stream.config, kafka=proxy)
        workers = [stage.worker(site, slot) for slot in range(1 + seed % 2)]
        stage.wait_for_record(stream, 0.05, *workers)
        injected, longest = 0, 0.0
        held_s = [stage.chance.uniform(2, 8), stage.chance.uniform(12, 15)]
        for number, seconds in enumerate(held_s):
            side = ("response", "request")[(number + seed) % 2]
            fault = _Once(stage.chance.randint(1, 4), lambda seconds=seconds: time.sleep(seconds))
            proxy.handlers[side, END_TXN] = fault
            stage.wait_for("late answer", fault.has_happened.is_set, *workers)
            del proxy.handlers[side, END_TXN]
            injected += 1
            time.sleep(seconds)
            longest = max(longest, stage.wait_for_progress(stream, *workers))
        stage.finish(stream, *workers)
    late = stage.late("progress", longest, NETWORK_BUDGET_S)
    note = "held for " + ", ".join(f"{seconds:.0f} s" for seconds in held_s)
    return stage.judge(stream).result(injected=injected, recovered_s=longest, note=note, wrong=late)


# --- 12 and 13: the store


def slow_store(stage: Stage, seed: int) -> RowResult:
    """CLIENT PAUSE of 10 s: the workers wait, keep their partitions and go on. Even seeds: one dies in the pause, and
    its script may come when another one has claimed."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
    workers = [stage.worker(stream, slot) for slot in range(2)]
    stage.wait_for_owners(stream.store, len(stream.partitions), *workers)
    stage.wait_for_record(stream, stage.chance.uniform(0.1, 0.4), *workers)
    claims = [worker.log().count("owns ") for worker in workers]
    with _valkey(stage) as client:
        client.execute_command("CLIENT", "PAUSE", PAUSE_MS, "ALL")
        started = time.monotonic()
        if seed % 2 == 0:
            time.sleep(stage.chance.uniform(0.1, 2))
            workers[0].kill()
            workers[0].restart()
        time.sleep(max(0.0, PAUSE_MS / 1000 - (time.monotonic() - started)))
    recovered = stage.wait_for_progress(stream, *workers)
    again = [worker.log().count("owns ") for worker in workers]
    wrong = f"a rebalance: claims {claims}, then {again}" if seed % 2 and again != claims else ""
    stage.finish(stream, *workers)
    wrong = wrong or stage.late("progress", recovered, RESTART_BUDGET_S)
    note = "a worker died in the pause" if seed % 2 == 0 else ""
    return stage.judge(stream).result(injected=1, recovered_s=recovered, note=note, wrong=wrong)


def full_store(stage: Stage, seed: int) -> RowResult:
    """maxmemory is reached: commits fail as a whole; once there is room again, the workers go on by themselves."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
    workers = [stage.worker(stream, slot) for slot in range(2)]
    stage.wait_for_record(stream, stage.chance.uniform(0.1, 0.4), *workers)
    with _valkey(stage) as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", max(1, used - 65_536))
        try:
            stage.wait_for("full store", lambda: any("TM-3102" in worker.log() for worker in workers), *workers)
            before = applied(stream.marks())
            time.sleep(FULL_S)
            moved = applied(stream.marks()) - before
        finally:
            client.config_set("maxmemory", 0)
    recovered = stage.wait_for_progress(stream, *workers)
    stage.finish(stream, *workers)
    late = stage.late("progress", recovered, RESTART_BUDGET_S)
    note = f"{moved} records were applied while it was full"
    return stage.judge(stream).result(injected=1, recovered_s=recovered, note=note, wrong=late)


@contextmanager
def _valkey(stage: Stage) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(stage.servers.redis_url)
    try:
        yield client
    finally:
        client.close()


ROWS: tuple[Row, ...] = (
    Row(6, "broker slow, cut, reset", 2, broken_connections),
    Row(7, "coordinator answers late", 2, late_coordinator),
    Row(12, "store slow", 2, slow_store),
    Row(13, "store full", 1, full_store),
)
