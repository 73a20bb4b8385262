"""Live and backtest are one: six weeks of flights through a worker, and again from its commits log in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

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


def test_six_weeks_live_and_in_a_backtest_with_the_same_cuts_give_the_same_bytes(tmp_path: Path):
    with start_servers(tmp_path / "servers") as servers:
        demo = subprocess.run(
            [
                sys.executable, "-m", "tidemill", "demo", "--until", UNTIL.isoformat(), "--poison", "50", "--quiet",
                "--data", str(tmp_path / "demo"), "--bootstrap-servers", servers.bootstrap_servers,
                "--redis-url", servers.redis_url,
            ],
            env={**os.environ}, timeout=REPLAY_S, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert demo.returncode == 0, demo.stderr
        settings = load_settings(FLIGHTS, bootstrap_servers=servers.bootstrap_servers, data_folder=tmp_path / "demo")
        live = predictions_of(settings)

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
