"""Workers are killed in eleven days of flights: nothing is lost or counted twice, every score can be recomputed."""

from __future__ import annotations

import signal
import time
from datetime import date
from pathlib import Path

import pytest

from tests.campaign.campaign import Result, run
from tests.campaign.judging import verify_stream
from tests.campaign.processes import WorkerProcess, ended_at_exit
from tests.campaign.stream import Stream
from tidemill.io.embedded import Servers

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

UNTIL = date(2013, 1, 12)
SNAPSHOT_EVERY = 1_000  # of 10,000 examples: a restarted worker resumes from a snapshot
MAX_SKEW = "6h"  # with the hour of the YAML, two workers on two cores take thrice as long as one
KILLS = 2
KILLS_TO = 0.5  # the other half takes seconds: a busy machine that kills late must not find the work done


@pytest.fixture(scope="module")
def undisturbed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same flights with one worker and no kill."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return run(servers, folder, name="calm", until=UNTIL, snapshot_every=SNAPSHOT_EVERY, max_skew=MAX_SKEW)


def test_undisturbed_run_holds_what_the_campaigns_are_compared_with(undisturbed: Result):
    assert undisturbed.is_ok, undisturbed.failed
    assert undisturbed.records > 25_000


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_leave_what_an_undisturbed_one_leaves(
    servers: Servers, app_name: str, tmp_path: Path, undisturbed: Result, workers: int
):
    """Exactly once by the verifier, features (D1), learner (D2), every score of the run (D3), recovery in time."""
    result = run(
        servers,
        tmp_path / "run",
        name=app_name,
        until=UNTIL,
        workers=workers,
        kills=KILLS,
        kills_to=KILLS_TO,
        seed=workers,
        snapshot_every=SNAPSHOT_EVERY,
        max_skew=MAX_SKEW,
        undisturbed=undisturbed,
    )
    assert result.is_ok, result.failed
    assert len(result.kills) == KILLS
    assert {kill.how for kill in result.kills} == ({"restart"} if workers == 1 else {"restart", "take-over"})


def test_worker_killed_between_the_ends_of_partitions_finishes_the_replay(
    servers: Servers, app_name: str, tmp_path: Path
):
    """Nothing more comes from a partition whose end is processed: the others must not wait for it."""
    stream = Stream(servers, app_name, tmp_path / "run", until=date(2013, 1, 2), batch_records=500)
    ends = len(stream.partitions)
    size = next(size for size in range(300, 600) if 2 <= stream.total % size <= ends - 2)  # the last batch: some ends
    stream.config.write_text(stream.config.read_text().replace("batch_records: 500", f"batch_records: {size}"))
    with ended_at_exit() as workers:
        accident = {"TIDEMILL_FAILPOINT": f"F2:kill@{stream.total // size + 1}"}
        worker = WorkerProcess(stream, 0, environment=accident)
        workers.append(worker)
        assert worker.process.wait(60) == -signal.SIGKILL, worker.log()
        marks = stream.marks()
        drained = [partition for partition, end in stream.ends.items() if marks[partition].committed == end]
        assert 0 < len(drained) < ends
        worker.restart()
        deadline = time.monotonic() + 90
        while not stream.is_drained() and time.monotonic() < deadline:
            worker.check_alive()
            time.sleep(0.1)
        assert stream.is_drained(), worker.log()
        stream.wait_until_settled()
        assert worker.stop() == 0
    report = verify_stream(stream)
    assert report.is_ok, str(report)
