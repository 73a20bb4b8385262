"""The trainer on a real Kafka: killed at each stage, raced by a second one, flooded with triggers; people's words."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shop_log import DAY_MS, HOUR_MS, a_tick, a_trigger
from trainer_loop import COUNT, FIRST, Loop, a_loop, ticks, until

from tidemill.apps.commands import role_history
from tidemill.apps.rounds import RoundTask
from tidemill.apps.story import approve_version, demand_training
from tidemill.apps.training_process import TrainingProcess
from tidemill.core.roles import INITIAL

pytestmark = pytest.mark.servers

STAGES = ("before_training", "after_training", "before_commit", "after_commit")


@pytest.fixture
def loop(servers, app_name: str, tmp_path: Path) -> Iterator[Loop]:
    with a_loop(servers, app_name, tmp_path) as made:
        yield made


@pytest.fixture
def careful(servers, app_name: str, tmp_path: Path) -> Iterator[Loop]:
    """A person has to approve."""
    with a_loop(servers, app_name, tmp_path, needs_approval=True) as made:
        yield made


def test_a_trainer_killed_at_each_stage_trains_once_and_leaves_nothing_half(loop: Loop) -> None:
    """Each stage with a trigger of its own; a day later its version is prepared, and the day after it is dropped."""
    for number, stage in enumerate(STAGES):
        at, end = 10 * number, loop.end()
        versions, told, before = loop.versions(), loop.kinds(), loop.position()
        # On the third day somebody has taken the challenger away: the trainer drops it, and may train again.
        days = [*ticks(2, first=at, triggers=(at,), offset_next=end), *ticks(1, first=at + 2, offset_next=end + 1_000)]
        loop.tell(*days)
        assert loop.train(failpoint=f"trainer.{stage}:kill") == -signal.SIGKILL, loop.log()
        if stage == "after_commit":
            until(lambda: loop.kinds()[-2:] == ["triggered", "trained"], loop)
            assert loop.position() != before
        else:
            assert loop.kinds() == told and loop.position() == before
        registered = loop.versions()
        assert len(registered) == len(versions) + (stage != "before_training")
        if stage == "before_commit":  # once more, with the command of the next day sent and not committed
            assert loop.train(failpoint=f"trainer.{stage}:kill@2") == -signal.SIGKILL, loop.log()
            until(lambda: loop.kinds()[-2:] == ["triggered", "trained"], loop)
        assert loop.train() == 0, loop.log()
        until(lambda: loop.kinds() == [*told, "triggered", "trained", "shadow", "aborted"], loop)  # noqa: B023
        assert stage == "before_training" or loop.versions() == registered
        *_, trained, shadow, _ = loop.story()
        assert trained.version == shadow.version == loop.versions()[0]
        prepared = role_history(loop.settings).obeyed[-2][0]
        assert (prepared.offset, prepared.model_version) == (shadow.command_offset, shadow.version)
    assert loop.commands() == [f"prepare {INITIAL}", f"drop {INITIAL}"] * len(STAGES)
    assert len(loop.versions()) == len(STAGES)


def test_of_fifty_triggers_at_once_one_trains_and_a_second_trainer_fences_the_first(loop: Loop) -> None:
    first = loop.trainer(failpoint="trainer.after_training:hang")
    alerts = tuple(a_trigger(FIRST, f"reason{number}") for number in range(50))
    loop.tell(a_tick(FIRST, examples_total=COUNT, alerts=alerts))
    until(lambda: loop.versions() != [], loop)  # trained, and about to commit
    assert loop.train() == 0, loop.log()
    first.kill()
    first.wait()
    assert loop.kinds() == ["triggered", "trained", *["declined"] * 49]
    assert {event.cause for event in loop.story()} == {alert.id for alert in alerts}
    assert len(loop.versions()) == 1

    # Two that live: the older one ends by itself, with nothing written.
    starts, position = loop.log().count("goes on"), loop.position()
    older = loop.trainer()
    until(lambda: loop.log().count("goes on") == starts + 1, loop)
    newer = loop.trainer()
    until(lambda: loop.log().count("goes on") == starts + 2, loop)
    loop.tell(*ticks(1, first=1, triggers=()))
    until(lambda: loop.position() != position, loop)
    assert older.wait(90) == 4, loop.log()
    assert "TM-4010" in loop.log()
    newer.send_signal(signal.SIGTERM)
    assert newer.wait(90) == 0
    assert loop.kinds() == ["triggered", "trained", *["declined"] * 49, "shadow"]


def test_people_ask_and_approve_between_ticks(careful: Loop, unused_port: int) -> None:
    loop = careful
    demand_training(loop.settings, cause="asked too early", by="ada")
    loop.tell(*ticks(1, triggers=()))
    trainer = loop.trainer("--metrics-port", str(unused_port))
    until(lambda: "trained" in loop.kinds(), loop)
    triggered, trained = loop.story()
    assert triggered.verdict == "asked too early" and trained.due == trained.time + DAY_MS

    approve_version(loop.settings, "m000000000000", cause="a slip", by="ada")
    until(lambda: "declined" in loop.kinds(), loop)
    assert "cannot be approved" in loop.story()[-1].verdict
    demand_training(loop.settings, cause="impatient", by="ada")
    until(lambda: loop.kinds()[2:] == ["declined", "declined"], loop)
    loop.tell(*ticks(2, first=1, triggers=()))
    until(lambda: "approval_asked" in loop.kinds(), loop)
    approve_version(loop.settings, trained.version, cause="looks fine", by="ada")
    until(lambda: "shadow" in loop.kinds(), loop)
    assert loop.kinds()[4:] == ["approval_asked", "approved", "shadow"]
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as answer:
        text = answer.read().decode()
    for line in (
        'tidemill_retrains_total{outcome="trained",trigger="demand"} 1.0',
        'tidemill_gate_decisions_total{gate="gate",verdict="passed"} 1.0',
        'tidemill_model_info{role="champion",version="initial"} 1.0',
    ):
        assert line in text
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(90) == 0
    story, position = loop.kinds(), loop.position()
    assert loop.train() == 0  # a restart answers nobody twice
    assert loop.kinds() == story and loop.position() == position


def test_a_quiet_tick_is_answered_in_milliseconds(loop: Loop) -> None:
    count = 200
    loop.tell(*ticks(count, triggers=()))
    trainer = loop.trainer()
    until(lambda: (loop.position() or 0) > 0, loop)
    began, position = time.monotonic(), loop.position() or 0
    until(lambda: (loop.position() or 0) >= count, loop)
    per_tick = (time.monotonic() - began) / max(1, count - position)
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(90) == 0
    print(f"{per_tick * 1_000:.1f} ms a tick")
    assert per_tick < 0.1, per_tick  # 10 ms on an idle machine
    assert loop.kinds() == []


def test_a_training_that_is_too_slow_or_dies_is_told_as_failed_and_stops_with_its_parent(loop: Loop) -> None:
    task = RoundTask(time=FIRST, offset_next=COUNT, parent=INITIAL, cause="trigger/schedule@1", due=FIRST)
    process = TrainingProcess(loop.settings, is_stopped=lambda: False)
    (slow,) = process.train(task, timeout_s=0.01)
    assert slow.kind == "failed" and "timeout" in slow.verdict and loop.versions() == []
    (done,) = process.train(task, timeout_s=60)
    (again,) = process.train(task, timeout_s=60)
    assert done == again and done.kind == "trained" and loop.versions() == [done.version]
    (few,) = process.train(replace(task, time=20 * HOUR_MS // 10), timeout_s=60)
    assert few.kind == "failed" and "TM-5030" in few.verdict
    process.close()
    killed = TrainingProcess(loop.settings, is_stopped=lambda: [os.kill(one, signal.SIGKILL) for one in mine()] == [1])
    (dead,) = killed.train(task, timeout_s=60)
    assert dead.kind == "failed" and "SIGKILL" in dead.verdict
    killed.close()

    loop.tell(*ticks(1))
    trainer = loop.trainer(failpoint="trainer.after_training:hang")
    until(lambda: len(loop.versions()) == 2, loop)
    children = children_of(trainer.pid)
    assert len(children) == 1
    trainer.kill()
    trainer.wait()
    until(lambda: not is_running(children[0]), loop)


def mine() -> list[int]:
    """Trainings that this process has started."""
    return [one for one in children_of(os.getpid()) if b"trainer_child" in Path(f"/proc/{one}/cmdline").read_bytes()]


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = re.search(r"State:\s+(\w)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return False
    return state is not None and state[1] != "Z"
