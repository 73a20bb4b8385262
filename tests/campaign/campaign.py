"""One campaign: produce, start workers, kill them at random moments, wait for the end, judge.

In: servers, a day, the number of workers and kills, a seed. Out: a `Result`. Invariant: the moments of the kills depend
on the seed and on committed progress alone; what the workers must leave behind depends on the inputs alone.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tests.campaign.judging import examples_end, fresh_models, read_examples, read_predictions, replay, verify_stream
from tests.campaign.loop import LoopEnd, judge_loop
from tests.campaign.processes import RoleProcess, WorkerProcess, ended_at_exit
from tests.campaign.stream import Stream, applied, committed, owned_by
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Partition
from tidemill.io.embedded import Servers
from tidemill.io.model_snapshots import ModelSnapshots

RESTART_BUDGET_S = 15.0  # committed progress again, restarted in its slot
TAKEOVER_BUDGET_S = 25.0  # another worker's committed progress on the dead one's partitions
KILLS_FROM, KILLS_TO = 0.02, 0.85  # share of the records; a kill needs some left to recover with
LOOK_S = 0.004
JITTER_S = 0.08  # about a cycle: the kill falls anywhere in it
STALL_S = 90.0
LOOP_S = 600.0  # after the last record: a monitor and a trainer that were killed late fold a year and train


@dataclass(slots=True)
class Kill:
    """One kill -9. `how`: restarted in its slot, or taken over by another worker first; monitor and trainer fold the
    log again and are only waited for at the end, while they may be killed once more."""

    number: int
    who: str
    at_record: int
    how: str
    recovered_s: float | None  # None: not waited for

    @property
    def is_in_time(self) -> bool:
        budget = RESTART_BUDGET_S if self.how == "restart" else TAKEOVER_BUDGET_S
        return self.recovered_s is None or self.recovered_s <= budget


@dataclass(slots=True)
class Result:
    """What a run left. Texts are empty when nothing is wrong."""

    name: str
    workers: int
    records: int
    kills: list[Kill] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    feature_digest: str = ""
    learner_digest: str = ""  # of a fresh fold of the whole examples log
    stopped: list[tuple[int, str]] = field(default_factory=list)  # N and digest of each worker as it said itself
    verdicts: dict[str, str] = field(default_factory=dict)  # by check; "" = holds
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_ok(self) -> bool:
        return not any(self.verdicts.values())

    @property
    def failed(self) -> dict[str, str]:
        return {name: text for name, text in self.verdicts.items() if text}

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.is_ok}


def run(
    servers: Servers,
    folder: Path,
    *,
    name: str,
    until: date | None,
    workers: int = 1,
    kills: int = 0,
    seed: int = 1,
    kills_to: float = KILLS_TO,
    snapshot_every: int = 20_000,
    max_skew: str | None = None,
    undisturbed: Result | None = None,
    has_loop: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Result:
    """A whole campaign.

    Args:
        kills_to: share of the records after which no kill is planned; the fewer records there are, the earlier.
        max_skew: of the app; None = as the flights' YAML says, which makes workers that share two cores slow.
        has_loop: monitor and trainer run as well and are killed as well; the workers do not wait for them, so what
            models learned depends on the moment, and only a fresh fold of this run's log can judge it.
        folder: does not exist yet; the app's YAML, slots, snapshots and logs go there.
        undisturbed: a run of the same flights with one worker and no kill, to compare digests with.
    """
    started = time.monotonic()
    stream = Stream(
        servers, name, folder, until=until, snapshot_every=snapshot_every, max_skew=max_skew, has_loop=has_loop
    )
    result = Result(name, workers, stream.total)
    _lap(result, "produce", started)
    started = time.monotonic()
    with ended_at_exit() as processes:
        team = [WorkerProcess(stream, slot) for slot in range(workers)]
        processes += team
        loop = [RoleProcess(stream, "monitor"), RoleProcess(stream, "trainer")] if has_loop else []
        processes += loop
        _kill_some(stream, team, loop, _plan(stream.total, kills, kills_to, seed), seed, result, report)
        _wait(stream, processes, stream.is_drained, "the end")
        # One that was restarted last may still be starting, and would die of TERM rather than stop.
        _wait(stream, processes, lambda: len(_owners(stream, team)) == workers, "all workers in the group")
        stream.wait_until_settled()
        _lap(result, "run", started)
        if has_loop:
            started = time.monotonic()
            _wait_for_loop(stream, processes)
            _lap(result, "loop", started)
        result.exit_codes = [process.stop() for process in processes]
        result.stopped = [found for worker in team if (found := worker.said_at_stop())]
    started = time.monotonic()
    _judge(stream, result, undisturbed)
    if has_loop:
        result.verdicts |= judge_loop(stream)
        said = [line for process in loop for line in process.log().splitlines() if "judged otherwise" in line]
        result.verdicts["ticks judged again"] = said[0] if said else ""
    _lap(result, "judge", started)
    return result


def _plan(total: int, kills: int, kills_to: float, seed: int) -> list[int]:
    """The record counts after which to kill."""
    places = random.Random(seed)
    return sorted(int(total * places.uniform(KILLS_FROM, kills_to)) for _ in range(kills))


def _kill_some(
    stream: Stream,
    processes: list[WorkerProcess],
    loop: list[RoleProcess],
    places: list[int],
    seed: int,
    result: Result,
    report: Callable[[str], None],
) -> None:
    chance = random.Random(seed + 1)
    for number, place in enumerate(places, 1):
        _wait(stream, [*processes, *loop], lambda place=place: committed(stream.marks()) >= place, f"record {place}")
        _wait(stream, processes, lambda: bool(_owners(stream, processes)), "an owner")
        victim = chance.choice([*_owners(stream, processes), *loop])
        time.sleep(chance.uniform(0, JITTER_S))
        if not isinstance(victim, WorkerProcess):
            victim.kill()
            victim.restart()
            result.kills.append(Kill(number, victim.name, committed(stream.marks()), "restart", None))
            report(f"kill {number} of the {victim.name} at record {result.kills[-1].at_record}")
            continue
        victim.kill()
        killed = time.monotonic()
        marks = stream.marks()
        assert not stream.is_drained(), f"kill {number} came too late: everything was processed"
        owned = owned_by(marks, victim.slot)
        behind = applied(marks, owned)
        is_takeover = len(processes) > 1 and number % 2 == 1
        if not is_takeover:
            victim.restart()

        alive = [worker for worker in processes if worker is not victim] if is_takeover else processes
        _wait(stream, alive, functools.partial(_has_moved, stream, owned, behind), "recovery")
        recovered = time.monotonic() - killed
        if is_takeover:
            victim.restart()
        how = "take-over" if is_takeover else "restart"
        kill = Kill(number, victim.name, committed(marks), how, round(recovered, 2))
        result.kills.append(kill)
        report(f"kill {number} of {kill.who} at record {kill.at_record}: {how} in {kill.recovered_s} s")


def _owners(stream: Stream, processes: list[WorkerProcess]) -> list[WorkerProcess]:
    marks = stream.marks()
    return [worker for worker in processes if owned_by(marks, worker.slot)]


def _has_moved(stream: Stream, partitions: frozenset[Partition], behind: int) -> bool:
    """Records beyond those that the dead worker had applied are committed, or none were left."""
    return committed(stream.marks(), partitions) > behind or stream.is_drained()


def _wait_for_loop(stream: Stream, processes: Sequence[RoleProcess]) -> None:
    """Until the trainer has answered the last tick of the stream."""
    end = LoopEnd(stream)
    deadline = time.monotonic() + LOOP_S
    while not end.is_reached():
        for process in processes:
            process.check_alive()
        assert time.monotonic() < deadline, f"the loop is not done after {LOOP_S:.0f} s"
        time.sleep(0.1)
    end.close()


def _wait(stream: Stream, alive: Sequence[RoleProcess], is_so: Callable[[], bool], what: str) -> None:
    """Until `is_so`, as long as there is progress and these workers live."""
    moved_at, last = time.monotonic(), -1
    while not is_so():
        for worker in alive:
            worker.check_alive()
        now = applied(stream.marks())
        if now != last:
            moved_at, last = time.monotonic(), now
        if time.monotonic() - moved_at > STALL_S:
            logs = "\n".join(worker.log()[-2000:] for worker in alive)
            raise AssertionError(f"no progress for {STALL_S:.0f} s at record {last}, waiting for {what}:\n{logs}")
        time.sleep(LOOK_S)


def _judge(stream: Stream, result: Result, undisturbed: Result | None) -> None:
    verdicts = result.verdicts
    verdicts["exit codes"] = "" if set(result.exit_codes) == {0} else str(result.exit_codes)
    late = [f"kill {kill.number}: {kill.how} in {kill.recovered_s} s" for kill in result.kills if not kill.is_in_time]
    verdicts["recovered in time"] = ", ".join(late)
    found = verify_stream(stream)
    verdicts["exactly once"] = ", ".join(
        f"{name} {finding.count}: {finding.texts[0]}" for name, finding in found.failed.items()
    )
    result.feature_digest = stream.store.feature_digest()
    predictions = read_predictions(stream)
    snapshots = snapshot_digests(stream)
    # A worker that stops soon after its last batch has not folded its examples: only the whole log can be compared
    # with another run's.
    end = examples_end(stream)
    at = {*snapshots, *(n for n, _ in result.stopped), end}
    again = replay(fresh_models(stream), read_examples(stream), predictions, digests_at=at)
    result.learner_digest = again.digests[end]
    wrong = [
        f"N = {n}: {digest}, a fresh fold has {again.digests[n]}"
        for n, digest in [*snapshots.items(), *result.stopped]
        if digest != again.digests[n]
    ]
    if len(result.stopped) != result.workers:
        wrong.append(f"only {len(result.stopped)} workers told their digest")
    verdicts["D2 learner"] = ", ".join(wrong)
    verdicts["D3 scores"] = f"{again.scores_wrong} differ: {'; '.join(again.scores)}" if again.scores else ""
    if again.scores_compared != len(predictions) or not again.scores_compared:
        verdicts["D3 scores"] += f" only {again.scores_compared} of {len(predictions)} compared"
    if undisturbed is not None:
        same = result.feature_digest == undisturbed.feature_digest
        verdicts["D1 features"] = "" if same else f"{result.feature_digest}, undisturbed {undisturbed.feature_digest}"
        if result.workers == 1:
            ours, theirs = result.learner_digest, undisturbed.learner_digest
            verdicts["D2 undisturbed"] = "" if ours == theirs else f"{ours}, undisturbed {theirs}"


def snapshot_digests(stream: Stream) -> dict[int, str]:
    """Digest by N of the snapshots that the workers left; each was checked against its bytes when it was read."""
    app = stream.settings.app
    store = ModelSnapshots(stream.folder / "snapshots")
    digests: dict[int, str] = {}
    at_most: int | None = None
    while (found := store.newest(app.name, at_most, FeaturePlan(app).digest)) is not None:
        digests[found.n] = found.digest
        at_most = found.n - 1
    return digests


def _lap(result: Result, name: str, started: float) -> None:
    result.seconds[name] = round(time.monotonic() - started, 1)
