"""Rows in which processes die, sleep, come and go, and the broker with them: 1 to 5, 8, 28 to 30, 32.

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
from datetime import date
from itertools import accumulate
from pathlib import Path

from tests.campaign.campaign import RESTART_BUDGET_S, TAKEOVER_BUDGET_S
from tests.campaign.processes import WorkerProcess
from tests.campaign.stream import Stream, committed, owned_by
from tests.faults.row import Row, RowResult
from tests.faults.stage import TWO_WEEKS, Stage, judgement_of
from tests.shop import Shop, a_shop
from tests.verify import verify
from tests.verify.avro import encode
from tidemill.apps.commands import CommandWriter
from tidemill.apps.training import train
from tidemill.config import config_digest
from tidemill.core.records import Partition
from tidemill.core.roles import INITIAL
from tidemill.io.kafka_reader import LogEnds, LogReader, read_topic
from tidemill.io.polling import SESSION_TIMEOUT_MS
from tidemill.io.redis_store import RedisStore

DAYS = date(2013, 1, 4)  # some 6,000 records
PLACES = tuple(f"F{number}" for number in range(1, 13))
ZOMBIE_S = 2 * SESSION_TIMEOUT_MS / 1000 + 1
STOP_BUDGET_S = 20.0
BROKER_DOWN_S = 60.0
BROKER_BUDGET_S = 60.0
READERS_BUDGET_S = 15.0
STORM_ROUNDS, STORM_EVERY_S = 4, 5.0
PROGRESS_BUDGET_S = 30.0  # a rebalance after another: a session time-out, a claim, and a start on a loaded machine


# --- 1: kill -9 at a named place


def kill_at(place: str, *, is_takeover: bool) -> Callable[[Stage, int], RowResult]:
    """A worker dies at a place; it is restarted in its slot, or another one takes over first."""

    def run(stage: Stage, seed: int) -> RowResult:
        # A revoke comes when the second worker has started: the first one must not be at the end by then.
        stream = stage.stream(until=DAYS, batch_records=15 if place == "F12" else 60)
        # An outbox is replayed only where somebody died before; one kill brings about the other.
        places = ["F4", "F9"] if place == "F9" else [place]
        version = _train_on_a_part(stage, stream) if place == "F11" else ""
        dies_with = f"{places[0]}:kill@{_pass_of(stage, places[0])}"
        victim = stage.worker(stream, 0, failpoint=dies_with)
        other: WorkerProcess | None = None
        if version:
            _change_models(stage, stream, victim, version)
        elif place == "F12":
            stage.wait_for("owner", lambda: "owns " in victim.log(), victim)
        if is_takeover or place == "F12":
            heirs_fate = "F9:kill@1" if place == "F9" else ""
            other = stage.worker(stream, 1, failpoint=heirs_fate)
        injected, recovered = 0, 0.0
        for step, name in enumerate(places):
            dying = other if step and other is not None else victim
            stage.wait_for(f"death at {name}", lambda dying=dying: dying.process.poll() is not None)
            code = dying.process.returncode
            assert code == -signal.SIGKILL, f"ended with {code} instead of at {name}:\n{dying.log()[-2000:]}"
            injected += 1
            if name != places[-1]:
                if other is None:
                    victim = stage.worker(stream, 0, failpoint=f"{places[step + 1]}:kill@1")
                continue
            assert not stream.is_drained(), f"{name} came too late: everything was processed"
            behind = owned_by(stream.marks(), dying.slot) or None
            started = time.monotonic()
            if is_takeover and other is not None and dying is victim:
                stage.wait_for_progress(stream, other, partitions=behind)
                recovered = time.monotonic() - started
                victim = stage.worker(stream, 0)
            else:
                victim = stage.worker(stream, 0)
                if dying is other:
                    other = stage.worker(stream, 1)
                stage.wait_for_progress(stream, victim, partitions=behind)
                recovered = time.monotonic() - started
        stage.finish(stream, *filter(None, [victim, other]))
        late = stage.late("progress", recovered, RESTART_BUDGET_S if other is None else TAKEOVER_BUDGET_S)
        how = "taken over" if is_takeover else "restarted"
        return stage.judge(stream).result(
            injected=injected, recovered_s=recovered, note=f"{' and '.join(places)}, {how}", wrong=late
        )

    return run


UNKNOWN = ("F3", "F5", "F6", "F7")


def lose_reply_at(place: str) -> Callable[[Stage, int], RowResult]:
    """A server's answer is lost: the worker lives, does not know what became of its request, and claims anew."""

    def run(stage: Stage, seed: int) -> RowResult:
        stream = stage.stream(until=DAYS, batch_records=60)
        worker = stage.worker(stream, 0, failpoint=f"{place}:error@{_pass_of(stage, place)}")
        stage.wait_for("lost answer", lambda: "TM-3199" in worker.log(), worker)
        recovered = stage.wait_for_progress(stream, worker)
        stage.finish(stream, worker)
        late = stage.late("progress", recovered, RESTART_BUDGET_S)
        return stage.judge(stream).result(injected=1, recovered_s=recovered, note=f"{place}, reply lost", wrong=late)

    return run


DEATHS: tuple[Callable[[Stage, int], RowResult], ...] = (
    *(kill_at(place, is_takeover=False) for place in PLACES),
    *(kill_at(place, is_takeover=True) for place in PLACES),
    *(lose_reply_at(place) for place in UNKNOWN),
)


def kill_anywhere(stage: Stage, seed: int) -> RowResult:
    """The seed names the place: 1 to 12 restarted in the slot, 13 to 24 taken over, 25 to 28 a reply is lost; then the
    same places again with other passes."""
    return DEATHS[(seed - 1) % len(DEATHS)](stage, seed)


def _pass_of(stage: Stage, place: str) -> int:
    """Which pass of the place is the last one of the worker's life."""
    if place in ("F9", "F11", "F12"):
        return 1
    return stage.chance.randint(1, 3) if place == "F10" else stage.chance.randint(3, 25)


def _train_on_a_part(stage: Stage, stream: Stream) -> str:
    """A version, trained on what a worker has left after a part of the stream."""
    worker = stage.worker(stream, 0)
    stage.wait_for_record(stream, 0.3, worker)
    assert worker.stop() == 0
    small = replace(stream.settings.app.booster, rounds=4, min_child_weight=1.0)
    settings = replace(stream.settings, app=replace(stream.settings.app, booster=small))
    return train(settings, cause="a row").version


def _change_models(stage: Stage, stream: Stream, worker: WorkerProcess, version: str) -> None:
    """Prepare it, promote it, go back, while the worker is at work; each is a command in the log."""
    writer = CommandWriter(stream.settings)
    try:
        stage.wait_for_progress(stream, worker)
        writer.write("prepare", version=version, expects=INITIAL, cause="a row")
        writer.write("promote", version=version, expects=INITIAL, cause="a row")
        writer.write("promote", version=INITIAL, expects=version, cause="a row")
    finally:
        writer.close()


# --- 2: TERM


def stop_in_mid_batch(stage: Stage, seed: int) -> RowResult:
    """Each stop ends with 0 in time and leaves nothing applied that is not published."""
    stream = stage.stream(until=DAYS, batch_records=60)
    shares = sorted(stage.chance.uniform(0.02, 0.8) for _ in range(4))
    wrong, longest = "", 0.0
    worker = stage.worker(stream, 0)
    for share in shares:
        stage.wait_for_record(stream, share, worker)
        time.sleep(stage.chance.uniform(0, 0.08))
        started = time.monotonic()
        code, took = worker.stop(), time.monotonic() - started
        wrong = wrong or stage.late("stop", took, STOP_BUDGET_S)
        if code:
            wrong = f"TERM ended it with {code}"
        unsent = {p: mark for p, mark in stream.marks().items() if mark.applied != mark.committed}
        if unsent:
            wrong = f"applied, not published: {unsent}"
        started = time.monotonic()
        worker = stage.worker(stream, 0)
        stage.wait_for_progress(stream, worker)
        longest = max(longest, time.monotonic() - started)
    stage.finish(stream, worker)
    if "applied before the last stop" in worker.log():
        wrong = "a stop left work to its successor"
    return stage.judge(stream).result(injected=len(shares), recovered_s=longest, wrong=wrong)


# --- 3 and 32: two who believe that they are the owner


def zombie(stage: Stage, seed: int) -> RowResult:
    """A worker sleeps for twice its session time-out, at a place that the seed names; odd: it comes back to its slot,
    even: somebody else has taken the slot meanwhile."""
    stream = stage.stream(until=DAYS, batch_records=60)
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
    stream = stage.stream(until=DAYS, batch_records=60)
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


# --- 5 and 8: the broker, and what a dead producer leaves there


def broker_down(stage: Stage, seed: int) -> RowResult:
    """Killed for a minute (other seeds than the first: for less); nobody ends, and all goes on once it is back."""
    stream = stage.stream(until=DAYS, batch_records=60)
    workers = [stage.worker(stream, slot) for slot in range(2)]
    stage.wait_for_record(stream, stage.chance.uniform(0.1, 0.4), *workers)
    down_s = BROKER_DOWN_S if seed == 1 else stage.chance.uniform(3, 20)
    stage.servers.kill("kafka")
    ends = time.monotonic() + down_s
    while time.monotonic() < ends:
        for worker in workers:
            worker.check_alive()
        time.sleep(0.5)
    stage.servers.restart("kafka")
    recovered = stage.wait_for_progress(stream, *workers)
    stage.finish(stream, *workers)
    late = stage.late("progress", recovered, BROKER_BUDGET_S)
    return stage.judge(stream).result(injected=1, recovered_s=recovered, note=f"down {down_s:.0f} s", wrong=late)


def hanging_transaction(stage: Stage, seed: int) -> RowResult:
    """Dead between produce and commit, and nobody restarts it: its transaction holds up readers until it times out."""
    stream = stage.stream(until=DAYS, batch_records=60)
    place = ("F6", "F5")[seed % 2]
    victim = stage.worker(stream, 0, failpoint=f"{place}:kill@{stage.chance.randint(3, 20)}")
    other = stage.worker(stream, 1)
    stage.wait_for("death", lambda: victim.process.poll() is not None, other)
    died = time.monotonic()
    assert victim.process.returncode == -signal.SIGKILL, victim.log()[-2000:]
    owned = owned_by(stream.marks(), 0)
    topic = Partition(f"{stage.name}.commits.v1", 0)
    hidden = LogEnds(stream.clients, [topic]).ask()[topic]
    reader = LogReader(stream.clients, topic.topic, topic.number)
    assert reader.end_offset() < hidden or time.monotonic() - died > READERS_BUDGET_S / 3, "nothing was left open"
    stage.wait_for("readers", lambda: reader.end_offset() >= hidden, other)
    readers_s = time.monotonic() - died
    reader.close()
    stage.wait_for_progress(stream, other, partitions=owned)
    recovered = time.monotonic() - died
    stage.finish(stream, other)
    late = stage.late("readers", readers_s, READERS_BUDGET_S) or stage.late("take-over", recovered, TAKEOVER_BUDGET_S)
    note = f"{place}, readers went on after {readers_s:.1f} s"
    return stage.judge(stream).result(injected=1, recovered_s=recovered, note=note, wrong=late)


# --- 28: two versions in one group


def older_and_newer(stage: Stage, seed: int) -> RowResult:
    """Workers of another declaration join the group and are refused with a word; the others go on."""
    stream = stage.stream(until=DAYS, batch_records=60)
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
    stream = stage.stream(until=DAYS, batch_records=200)
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
    Row(1, "kill -9 at F1..F12", len(DEATHS), kill_anywhere),
    Row(2, "TERM in mid-batch", 2, stop_in_mid_batch),
    Row(3, "zombie", 4, zombie),
    Row(4, "rebalance storm", 1, rebalance_storm),
    Row(5, "broker killed, restarted", 2, broker_down, has_own_servers=True),
    Row(8, "hanging transaction", 2, hanging_transaction),
    Row(28, "older and newer worker", 1, older_and_newer),
    Row(29, "event and label at once", 2, race),
    Row(30, "one worker far behind", 1, slow_worker),
    Row(32, "two processes, one slot", 1, two_in_one_slot),
)
