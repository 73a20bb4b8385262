"""Rows in which a worker or the broker is killed or stopped: 1, 2, 5, 8.

In: a stage and its seed. Out: what the judge says. Invariant: when and whom a fault hits depends on the seed and on
committed progress alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace

from tests.campaign.campaign import RESTART_BUDGET_S, TAKEOVER_BUDGET_S
from tests.campaign.processes import WorkerProcess
from tests.campaign.stream import Stream, owned_by
from tests.faults.row import Row, RowResult
from tests.faults.stage import FOUR_DAYS, Stage
from tidemill.apps.commands import CommandWriter
from tidemill.apps.training import train
from tidemill.core.records import Partition
from tidemill.core.roles import INITIAL
from tidemill.io.kafka_reader import LogEnds, LogReader

PLACES = tuple(f"F{number}" for number in range(1, 13))
STOP_BUDGET_S = 20.0
BROKER_DOWN_S = 60.0
BROKER_BUDGET_S = 60.0
READERS_BUDGET_S = 15.0


# --- 1: kill -9 at a named place


def kill_at(place: str, *, is_takeover: bool) -> Callable[[Stage, int], RowResult]:
    """A worker dies at a place; it is restarted in its slot, or another one takes over first."""

    def run(stage: Stage, seed: int) -> RowResult:
        # A revoke comes when the second worker has started: the first one must not be at the end by then.
        stream = stage.stream(until=FOUR_DAYS, batch_records=15 if place == "F12" else 60)
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
        stream = stage.stream(until=FOUR_DAYS, batch_records=60)
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
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
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


# --- 5 and 8: the broker, and what a dead producer leaves there


def broker_down(stage: Stage, seed: int) -> RowResult:
    """Killed for a minute (other seeds than the first: for less); nobody ends, and all goes on once it is back."""
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
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
    stream = stage.stream(until=FOUR_DAYS, batch_records=60)
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


ROWS: tuple[Row, ...] = (
    Row(1, "kill -9 at F1..F12", len(DEATHS), kill_anywhere),
    Row(2, "TERM in mid-batch", 2, stop_in_mid_batch),
    Row(5, "broker killed, restarted", 2, broker_down, has_own_servers=True),
    Row(8, "hanging transaction", 2, hanging_transaction),
)
