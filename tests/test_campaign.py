"""Workers are killed in two weeks of flights: nothing is lost, nothing counted twice, every score can be recomputed."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests.campaign.campaign import Result, run
from tidemill.io.embedded import Servers

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

UNTIL = date(2013, 1, 15)
SNAPSHOT_EVERY = 1_000  # of 13,000 examples: a restarted worker resumes from a snapshot
KILLS = 3


@pytest.fixture(scope="module")
def undisturbed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same flights with one worker and no kill."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return run(servers, folder, name="calm", until=UNTIL, snapshot_every=SNAPSHOT_EVERY)


def test_undisturbed_run_holds_what_the_campaigns_are_compared_with(undisturbed: Result):
    assert undisturbed.is_ok, undisturbed.failed
    assert undisturbed.records > 30_000


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
        seed=workers,
        snapshot_every=SNAPSHOT_EVERY,
        undisturbed=undisturbed,
    )
    assert result.is_ok, result.failed
    assert len(result.kills) == KILLS
    assert {kill.how for kill in result.kills} == ({"restart"} if workers == 1 else {"restart", "take-over"})
