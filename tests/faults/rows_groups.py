"""Rows in which workers of one group get in each other's way: 3, 4, 28 to 30, 32.

In: a stage and its seed. Out: what the judge says. Invariant: when and whom a fault hits depends on the seed and on
committed progress alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from tests.campaign.campaign import TAKEOVER_BUDGET_S
from tests.campaign.processes import WorkerProcess
from tests.campaign.stream import Stream, committed, owned_by
from tests.faults.row import Row, RowResult
from tests.faults.stage import FOUR_DAYS, TWO_WEEKS, Stage, judgement_of
from tests.shop import Shop, a_shop
from tests.verify import verify
from tests.verify.avro import encode
from tidemill.config import config_digest
from tidemill.core.records import Partition
from tidemill.io.kafka_reader import read_topic
from tidemill.io.polling import SESSION_TIMEOUT_MS
from tidemill.io.redis_store import RedisStore

ZOMBIE_S = 2 * SESSION_TIMEOUT_MS / 1000 + 1
STORM_ROUNDS, STORM_EVERY_S = 4, 5.0
PROGRESS_BUDGET_S = 30.0  # a rebalance after another: a session time-out, a claim, and a start on a loaded machine


# --- 3 and 32: two who believe that they are the owner


def zombie(stage: Stage, seed: int) -> RowResult:
    """A worker sleeps for twice its session time-out, at a place that the seed names; odd: it comes back to its slot,
    even: somebody else has taken the slot meanwhile."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
    place = ("F2", "F4", "F6", "F1")[(seed - 1) // 2 % 4]
    sleeper = stage.worker(stream, 0, failpoint=f"{place}:stop@{stage.chance.randint(3, 12)}")
    other = stage.worker(stream, 1)
    stage.wait_for("sleeping worker", lambda: _is_stopped(sleeper), sleeper)
    slept = time.monotonic()
    owned = owned_by(stream.marks(), 0)
    heirs: list[WorkerProcess] = []
    if seed % 2 == 0:
        heirs.append(stage.worker(stream, 0, data_folder=stage.folder / "another-machine"))
    stage.wait_for_progress(stream, other, *heirs, partitions=owned)
    recovered = time.monotonic() - slept
    for heir in heirs:
        stage.wait_for("heir in the group", lambda heir=heir: "owns " in heir.log(), heir)
    time.sleep(max(0.0, ZOMBIE_S - (time.monotonic() - slept)))
    claims = sleeper.log().count("owns ")
    sleeper.process.send_signal(signal.SIGCONT)
    wrong = ""
    if heirs:
        # Both have one name in the group, which knows the heir by it. One of them has to go, and to say why.
        pair = [sleeper, *heirs]
        stage.wait_for("end of one of the two", lambda: any(one.process.poll() is not None for one in pair))
        loser = next(one for one in pair if one.process.poll() is not None)
        if loser.process.returncode == 0 or "TM-40" not in loser.log():
            wrong = f"one of the two ended with {loser.process.returncode} and no word: {loser.log()[-300:]}"
        pair.remove(loser)
    else:
        stage.wait_for("zombie in the group again", lambda: sleeper.log().count("owns ") > claims, sleeper)
    alive = [*(pair if heirs else [sleeper]), other]
    stage.finish(stream, *alive)
    wrong = wrong or stage.late("take-over", recovered, TAKEOVER_BUDGET_S)
    note = f"{place}, {'its slot was taken' if heirs else 'back in its slot'}"
    return stage.judge(stream).result(injected=1, recovered_s=recovered, note=note, wrong=wrong)


def two_in_one_slot(stage: Stage, seed: int) -> RowResult:
    """On one machine the second one is refused; on another machine the first one is fenced, says so and ends."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
    first = stage.worker(stream, 0)
    stage.wait_for_record(stream, stage.chance.uniform(0.1, 0.3), first)
    refused = stage.worker(stream, 0)
    stage.wait_for("refusal", lambda: refused.process.poll() is not None, first)
    wrong = "" if "TM-1041" in refused.log() else f"the second one was not refused: {refused.log()[-300:]}"
    started = time.monotonic()
    second = stage.worker(stream, 0, data_folder=stage.folder / "another-machine")
    stage.wait_for("end of the first", lambda: first.process.poll() is not None, second)
    code, said = first.process.returncode, first.log()
    if code == 0 or not any(word in said for word in ("fenced", "took over")):
        wrong = f"the first one ended with {code}: {said[-300:]}"
    stage.wait_for_progress(stream, second)
    recovered = time.monotonic() - started
    stage.finish(stream, second)
    return stage.judge(stream).result(injected=2, recovered_s=recovered, note=f"exit {code}", wrong=wrong)


def _is_stopped(worker: WorkerProcess) -> bool:
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# --- 4: rebalances


def rebalance_storm(stage: Stage, seed: int) -> RowResult:
    """A second worker comes and goes every 5 s, by TERM and by KILL in turns."""
    stream = stage.stream(until=TWO_WEEKS, batch_records=40)
    steady = stage.worker(stream, 0)
    stage.wait_for_record(stream, 0.01, steady)
    gaps = _Gaps(stream)
    guest: WorkerProcess | None = None
    rounds = 0
    with gaps:
        for number in range(STORM_ROUNDS):
            if stream.is_drained():
                break
            guest = stage.worker(stream, 1)
            time.sleep(STORM_EVERY_S + stage.chance.uniform(0, 1))
            if (number + seed) % 2:
                guest.kill()
            else:
                guest.stop()
            rounds += 1
            time.sleep(STORM_EVERY_S + stage.chance.uniform(0, 1))
            steady.check_alive()
        while not stream.is_drained():
            stage.wait_for_progress(stream, steady)
    stage.finish(stream, steady)
    late = stage.late("progress", gaps.longest_s, PROGRESS_BUDGET_S)
    return stage.judge(stream).result(injected=2 * rounds, recovered_s=gaps.longest_s, wrong=late)


class _Gaps:
    """The longest time without committed progress while it watches."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.longest_s = 0.0

    def __enter__(self) -> None:
        self._marks = self._another_connection()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _another_connection(self) -> Callable[[], int]:
        store = self._stream.another_store()
        return lambda: committed(store.marks())

    def _watch(self) -> None:
        moved_at, last = time.monotonic(), self._marks()
        while not self._is_over.wait(0.05):
            now = self._marks()
            if now != last:
                self.longest_s = max(self.longest_s, time.monotonic() - moved_at)
                moved_at, last = time.monotonic(), now


# --- 28: two versions in one group


def older_and_newer(stage: Stage, seed: int) -> RowResult:
    """Workers of another declaration join the group and are refused with a word; the others go on."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
    first = stage.worker(stream, 0)
    stage.wait_for_record(stream, 0.05, first)
    text = stream.config.read_text()
    others = {
        "another wait": text.replace("wait: 36h", "wait: 35h"),
        "another window": text.replace("window: 14d", "window: 15d"),
        "another skew": text.replace("max_skew: 1h", "max_skew: 2h"),
    }
    wrong = ""
    for slot, (what, changed) in enumerate(others.items(), 1):
        assert changed != text, what
        config = stage.folder / f"other-{slot}.yaml"
        config.write_text(changed)
        guest = stage.worker(replace(stage.site_of(config), folder=stream.folder), slot)
        stage.wait_for(f"refusal of {what}", lambda guest=guest: guest.process.poll() is not None, first)
        if guest.process.returncode == 0 or "error: TM-" not in guest.log():
            wrong = f"{what}: ended with {guest.process.returncode}: {guest.log()[-300:]}"
    twin = stage.worker(stream, len(others) + 1)  # the same declaration is welcome
    stage.finish(stream, first, twin)
    return stage.judge(stream).result(injected=len(others), recovered_s=None, wrong=wrong)


# --- 29: an event and its label at the same time


def race(stage: Stage, seed: int) -> RowResult:
    """A label's worker has read that there is no such event and is held there; the event is predicted meanwhile.

    Odd seeds; even ones hold the event's worker while its label comes.
    """
    stage.folder.mkdir(exist_ok=True)
    with a_shop(stage.servers, stage.name, stage.folder) as shop:
        program = ("-m", "tests.campaign.mutant_worker", "none", "F2:gate")
        site = stage.site_of(shop.config)
        folders = [shop.folder / str(slot) for slot in range(2)]
        workers = [
            stage.worker(site, slot, data_folder=folders[slot], program=program, is_bounded=False) for slot in range(2)
        ]
        digest = config_digest(shop.settings.app)
        store = RedisStore(stage.servers.redis_url, stage.name, owner_slot="row", config_digest=digest)
        stage.wait_for_owners(store, sum(topic.partitions for topic in shop.settings.app.topics), *workers)
        labels = Partition(shop.names["label"], 0)
        of_labels = next(slot for slot in range(2) if labels in owned_by(store.marks(), slot))
        others = sorted(owned_by(store.marks(), 1 - of_labels))
        orders = next(partition for partition in others if partition.topic == shop.names["event"])
        records = [
            (of_labels, "label", labels, {"order": 7, "returned": True}),
            (1 - of_labels, "event", orders, {"order": 7, "product": "tea", "amount": 7.0}),
        ]
        held, free = records if seed % 2 else records[::-1]
        gate = folders[held[0]]
        (gate / "gate.armed").touch()
        now = time.time()
        _send_to(shop, *held[1:], time_s=now - 4)
        stage.wait_for("record at the gate", (gate / "gate.reached").exists, *workers)
        _send_to(shop, *free[1:], time_s=now - 5 + 2 * (seed % 2 == 0))
        stage.wait_for("other record", lambda: store.marks()[free[2]].committed == 1, *workers)
        opened = time.monotonic()
        (gate / "gate.open").touch()
        stage.wait_for("held record", lambda: store.marks()[held[2]].committed == 1, *workers)
        recovered = time.monotonic() - opened
        codes = [worker.stop() for worker in workers]
        report = verify(stage.servers.bootstrap_servers, stage.name, shop.config, is_flights=False)
    wrong = f"exit codes {codes}" if any(codes) else ""
    if report.counts["examples"] != 1:
        wrong = f"{report.counts['examples']} examples of one event and its label"
    note = f"the {held[1]} was held"
    return judgement_of(report).result(injected=1, recovered_s=recovered, note=note, wrong=wrong)


def _send_to(shop: Shop, role: str, partition: Partition, fields: Mapping[str, object], *, time_s: float) -> None:
    """One record into exactly this partition; `time_s`: event time."""
    value = encode(shop.schemas[role], fields)
    key, time_ms = str(fields["order"]), int(time_s * 1000)
    shop.producer.produce(partition.topic, value, key, partition=partition.number, timestamp=time_ms)
    shop.producer.flush()


# --- 30: a slow worker


def slow_worker(stage: Stage, seed: int) -> RowResult:
    """One worker gets a tenth of the time; the other waits at the group watermark, nothing comes from further ahead."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=200)
    skew_ms = stream.settings.app.max_skew_ms
    workers = [stage.worker(stream, slot) for slot in range(2)]
    stage.wait_for_owners(stream.store, len(stream.partitions), *workers)
    worst, looks, pauses = 0, 0, 0
    times = _times_before(stream)
    with _slowed(workers[1]) as counts:
        deadline = time.monotonic() + 300
        while not stream.is_drained():
            for worker in workers:
                worker.check_alive()
            assert time.monotonic() < deadline, f"not at the end: {committed(stream.marks())} of {stream.total}"
            marks = stream.marks()
            # A worker that waits shows the time of what it waits for, so its marks do not tell how far it has come.
            slow = [mark.watermark for p, mark in marks.items() if p in owned_by(marks, 1) and mark.is_lagging]
            fast = [times[p][marks[p].applied] for p in owned_by(marks, 0) if marks[p].applied > 0]
            if slow and fast and min(slow) >= 0:
                worst, looks = max(worst, max(fast) - min(slow)), looks + 1
            time.sleep(0.005)
        pauses = counts[0]
    stage.finish(stream, *workers)
    wrong = f"{worst / 60_000:.0f} minutes ahead, allowed are {skew_ms / 60_000:.0f}" if worst > skew_ms else ""
    note = f"at most {worst / 60_000:.0f} minutes ahead in {looks} looks"
    return stage.judge(stream).result(injected=pauses, recovered_s=None, note=note, wrong=wrong)


def _times_before(stream: Stream) -> dict[Partition, list[int]]:
    """For each partition and offset the latest time of the records before it."""
    times: dict[Partition, list[int]] = {p: [0] * (end + 1) for p, end in stream.ends.items()}
    for topic in stream.settings.app.topics:
        for messages in read_topic(stream.clients, topic.name):
            for message in messages:
                if message.value() is not None:
                    times[Partition(topic.name, message.partition())][message.offset() + 1] = message.timestamp()[1]
    return {partition: list(accumulate(each, max)) for partition, each in times.items()}


@contextmanager
def _slowed(worker: WorkerProcess) -> Iterator[list[int]]:
    """STOP and CONT in turns; the pauses so far."""
    is_over = threading.Event()
    counts = [0]

    def slow() -> None:
        while worker.process.poll() is None:
            os.kill(worker.process.pid, signal.SIGSTOP)
            counts[0] += 1
            is_over.wait(0.45)
            os.kill(worker.process.pid, signal.SIGCONT)
            if is_over.wait(0.05):
                return

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()


ROWS: tuple[Row, ...] = (
    Row(3, "zombie", 4, zombie),
    Row(4, "rebalance storm", 1, rebalance_storm),
    Row(28, "older and newer worker", 1, older_and_newer),
    Row(29, "event and label at once", 2, race),
    Row(30, "one worker far behind", 1, slow_worker),
    Row(32, "two processes, one slot", 1, two_in_one_slot),
)
