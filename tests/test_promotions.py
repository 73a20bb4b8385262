"""Promotions and rollbacks while two workers are under load: the log alone tells who scored what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shop import Shop, a_shop

from tidemill.apps.commands import CommandWriter, promote, role_history
from tidemill.apps.folding import ExampleHistory
from tidemill.apps.models import booster_loader
from tidemill.apps.training import train
from tidemill.core.features import FeaturePlan
from tidemill.core.roles import INITIAL
from tidemill.io.kafka_reader import LogReader
from tidemill.io.model_snapshots import ModelSnapshots
from tidemill.io.wire import decode_examples
from tidemill.models.serving import Serving

pytestmark = pytest.mark.servers

CHANGES = 100
WORKERS = 2
TAUGHT = 800  # orders with labels before the first training


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path, more="learner: {snapshot_every: 500}\n") as made:
        yield made


class Load:
    """Orders, and returns half a second later, until it is stopped."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._shop.producer.flush()

    def _send(self) -> None:
        while not self._is_over.is_set():
            for _ in range(8):
                number = 100_000 + self.sent
                amount = float(number * 7 % 100)
                self._shop.send("event", str(number), 0, order=number, product=f"p{number % 5}", amount=amount)
                if self.sent >= 200:
                    late = number - 200
                    is_returned = late * 7 % 100 > 60
                    self._shop.send("label", str(late), 0, order=late, returned=is_returned)
                self.sent += 1
            self._shop.producer.poll(0)
            time.sleep(0.03)


@pytest.fixture
def workers(shop: Shop) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = []
    for slot in range(WORKERS):
        with (shop.folder / f"worker-{slot}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tidemill", "worker", str(shop.config), "--slot", str(slot)],
                    env={
                        **os.environ,
                        "TIDEMILL_BOOTSTRAP_SERVERS": shop.settings.bootstrap_servers or "",
                        "TIDEMILL_REDIS_URL": shop.settings.redis_url or "",
                        "TIDEMILL_DATA": str(shop.folder),
                    },
                    stderr=log,
                )
            )
    yield started
    for one in started:
        if one.poll() is None:
            one.kill()
            one.wait()


def test_a_hundred_promotions_and_rollbacks_under_load_leave_no_doubt_who_scored_what(
    shop: Shop, workers: list[subprocess.Popen[bytes]]
):
    with Load(shop) as load:
        shop.until(lambda now: now.published.get("example", 0) >= TAUGHT)
        versions = [
            train(replace(shop.settings, app=replace(shop.settings.app, booster=spec)), cause="a test").version
            for spec in (
                replace(shop.settings.app.booster, rounds=4, min_child_weight=1.0),
                replace(shop.settings.app.booster, rounds=9, min_child_weight=1.0),
            )
        ]
        order = [versions[0], versions[1], INITIAL]
        writer = CommandWriter(shop.settings)
        champion, lacking = INITIAL, []
        for change in range(CHANGES):
            version = order[change % len(order)]
            done = promote(
                shop.settings, version, cause=f"change {change}", writer=writer, expects=champion, load_timeout_s=10
            )
            champion = version
            lacking += done.lacking
        writer.close()
        until = load.sent + 400
        shop.until(lambda now: load.sent > until)
    shop.until(lambda now: now.published.get("prediction", 0) >= load.sent)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    assert [worker.wait(90) for worker in workers] == [0, 0]

    history = role_history(shop.settings)
    assert [command.kind for command, _ in history.obeyed] == ["prepare", "promote"] * CHANGES
    assert history.ignored == () and lacking == []
    predictions = shop.read("predictions")
    assert len(predictions) == len({row["id"] for row in predictions})
    disagreements = [row for row in predictions if row["model_version"] != history.at(row["n"]).champion]
    assert disagreements == []
    assert set(Counter(row["model_version"] for row in predictions)) == {INITIAL, *versions}
    assert not any("degraded" in row["flags"] for row in predictions if row["n"] > 0)
    for row in predictions:
        assert (row["booster"] is None) == (row["model_version"] == INITIAL)
    # Both workers came past the same multiples; who differed from the other's snapshot would have ended with exit 5.
    left = snapshots_left(shop)
    assert len(left) >= 3
    made = fresh_fold(shop)
    assert {n: digest for n, digest in made.items() if n in left} == left

    # What the command line tells of it.
    listed = models(shop, "ls")
    assert {row["version"]: row["role"] for row in listed["rows"]}[history.now.champion] == "champion"
    assert models(shop, "rollback", "--dry-run")["rows"][0]["version"] == history.now.parent
    one = next(row for row in predictions if row["booster"] is not None)
    told = models(shop, "explain", one["id"])
    assert told["prediction"]["model_version"] == one["model_version"]
    assert [row["column"] for row in told["contributions"]] != []
    assert {row["column"] for row in told["contributions"]} == {
        feature.name for group in shop.settings.app.groups for feature in group.features
    }


def snapshots_left(shop: Shop) -> dict[int, str]:
    """Digest by N of the newest snapshots."""
    store, digest = ModelSnapshots(shop.folder / "snapshots"), FeaturePlan(shop.settings.app).digest
    found: dict[int, str] = {}
    at_most: int | None = None
    while (snapshot := store.newest(shop.settings.app.name, at_most, digest)) is not None:
        found[snapshot.n] = snapshot.digest
        at_most = snapshot.n - 1
    return found


def fresh_fold(shop: Shop) -> dict[int, str]:
    """Digests at the multiples, of models that have seen the log, commands included, and nothing else."""
    app, plan = shop.settings.app, FeaturePlan(shop.settings.app)
    topic = f"{app.name}.examples.v1"
    serving = Serving(
        app,
        plan.numeric_names,
        plan.category_names,
        feature_digest=plan.digest,
        load=booster_loader(shop.settings, plan),
        history=ExampleHistory(shop.clients, topic),
    )
    reader = LogReader(shop.clients, topic, 0)
    end = reader.end_offset()
    reader.seek(0)
    messages = []
    while reader.position < end:
        messages += reader.read(until_offset=end, timeout_s=1.0, max_records=20_000)
    reader.close()
    examples, commands = decode_examples([m.value() for m in messages], [m.offset() for m in messages])
    return {snapshot.n: snapshot.digest for snapshot in serving.fold(examples, commands, end)}


def models(shop: Shop, verb: str, *arguments: str) -> dict:
    """What `tidemill models` prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "models", verb, str(shop.config), *arguments, "-o", "json", "--quiet"],
        env={
            **os.environ,
            "TIDEMILL_BOOTSTRAP_SERVERS": shop.settings.bootstrap_servers or "",
            "TIDEMILL_REDIS_URL": shop.settings.redis_url or "",
            "TIDEMILL_DATA": str(shop.folder),
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
