"""Six weeks of flights with the whole loop: again from the commits log in memory, and again from the start, live."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tidemill.apps.backtest_run import BacktestRun
from tidemill.apps.backtest_sources import kafka_lanes, kafka_ranges, recorded_cuts
from tidemill.apps.commands import role_history
from tidemill.apps.models import booster_loader
from tidemill.config import Settings, load_settings
from tidemill.core.features import FeaturePlan
from tidemill.io import kafka
from tidemill.io.embedded import start_servers
from tidemill.io.kafka_reader import read_topic

pytestmark = pytest.mark.servers

UNTIL = date(2013, 2, 12)  # six weeks
REPLAY_S = 200
FLIGHTS = Path(__file__).parents[1] / "config" / "flights.yaml"


def predictions_of(settings: Settings) -> dict[bytes, bytes]:
    """The published values by event id."""
    clients = kafka.client_settings(settings.bootstrap_servers or "", settings.kafka)
    topic = f"{settings.app.name}.predictions.v1"
    return {m.key(): m.value() for messages in read_topic(clients, topic) for m in messages}


class Replay(NamedTuple):
    """Six weeks of the example with the whole loop, on servers that still run."""

    settings: Settings
    predictions: dict[bytes, bytes]
    results: dict[str, Any]


@contextmanager
def replayed(folder: Path) -> Iterator[Replay]:
    with start_servers(folder / "servers") as servers:
        demo = subprocess.run(
            [
                sys.executable, "-m", "tidemill", "demo", "--until", UNTIL.isoformat(), "--poison", "50", "--quiet",
                "--data", str(folder / "demo"), "--bootstrap-servers", servers.bootstrap_servers,
                "--redis-url", servers.redis_url, "--json", str(folder / "results.json"),
            ],
            env={**os.environ}, timeout=REPLAY_S, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert demo.returncode == 0, demo.stderr
        settings = load_settings(FLIGHTS, bootstrap_servers=servers.bootstrap_servers, data_folder=folder / "demo")
        yield Replay(settings, predictions_of(settings), json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    with replayed(tmp_path_factory.mktemp("replay")) as found:
        yield found


def test_six_weeks_live_and_in_a_backtest_with_the_same_cuts_give_the_same_bytes(replay: Replay):
    settings, live, _ = replay
    values: list[bytes] = []
    run = BacktestRun(
        settings.app,
        load=booster_loader(settings, FeaturePlan(settings.app)),
        on_examples=lambda examples: None,
        on_outputs=lambda topic, some: values.extend(some) if topic.endswith(".predictions.v1") else None,
    )
    history = role_history(settings)
    commands = sorted([*(command for command, _ in history.obeyed), *history.ignored])
    run.replay(kafka_lanes(settings, kafka_ranges(settings)), recorded_cuts(settings), commands=commands)

    assert len(live) > 30_000
    assert len(values) == len(live)
    again = set(values)
    different = [key for key, value in live.items() if value not in again]
    assert different == []


def test_two_runs_with_the_loop_tell_the_same_story_and_serve_the_same_bytes(replay: Replay, tmp_path: Path):
    with replayed(tmp_path) as other:
        assert other.results["timeline"] == replay.results["timeline"]
        assert other.results["compared"] == replay.results["compared"]
        assert other.predictions == replay.predictions
    steps = " ".join(replay.results["timeline"])
    for step in ("training begins", "trained m", "in shadow beside initial", "serves, initial stays beside"):
        assert step in steps, "six weeks hold a whole round of the loop"
