"""How long until a lost store is whole again: from a snapshot and the log behind it, and from the log alone.

In: a made-up stream, real Kafka and Valkey, one worker. Out: seconds until it is whole.
Invariant: both ways end with the same feature digest, or there is no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import fastavro
from confluent_kafka import Producer

from tidemill.apps.store_snapshots import take_snapshot
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import Settings, config_digest, load_settings
from tidemill.io import kafka
from tidemill.io.embedded import start_servers
from tidemill.io.framing import header_of
from tidemill.io.redis_store import RedisStore

SHOP = Path(__file__).parents[1] / "tests" / "streams" / "shop"
PRODUCTS, ORDER_MS, RETURN_MS = 500, 10, 5_000


def send(settings: Settings, first: int, last: int, epoch_ms: int) -> None:
    """Orders [first, last), each with its return five seconds later."""
    producer = Producer({**kafka.client_settings(settings.bootstrap_servers or ""), "linger.ms": 20})
    topics = {topic.role: (topic.name, fastavro.parse_schema(topic.schema)) for topic in settings.app.topics}
    headers = {topic.role: header_of(topic.schema) for topic in settings.app.topics}

    def put(role: str, key: int, at: int, **fields: object) -> None:
        body = BytesIO()
        name, schema = topics[role]
        fastavro.schemaless_writer(body, schema, fields)
        producer.produce(name, headers[role] + body.getvalue(), str(key), timestamp=epoch_ms + at)
        producer.poll(0)

    for order in range(first, last):
        put("event", order, order * ORDER_MS, order=order, product=f"p{order % PRODUCTS}", amount=float(order % 97))
        if order * ORDER_MS >= RETURN_MS:
            known = order - RETURN_MS // ORDER_MS
            put("label", known, order * ORDER_MS, order=known, returned=known % 3 == 0)
    producer.flush()


class Worker:
    """A worker process and the moments of what it says."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self._store = store_of(settings)
        self._environment = {
            **os.environ,
            "TIDEMILL_BOOTSTRAP_SERVERS": settings.bootstrap_servers or "",
            "TIDEMILL_REDIS_URL": settings.redis_url or "",
            "TIDEMILL_DATA": str(settings.data_folder),
        }
        self._config = config

    def run(self, goal: int) -> float:
        """Until `goal` records are applied; seconds from the word that the store is lost until it is whole again."""
        command = [sys.executable, "-m", "tidemill", "worker", str(self._config)]
        process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        began = whole = 0.0
        for line in process.stderr:
            if re.search("rebuilding it from the log|restoring the store", line):
                began = time.monotonic()
            elif "applied again" in line:
                whole = time.monotonic()
            elif "owns " in line:
                break
        while sum(max(0, mark.applied) for mark in self._store.marks().values()) < goal:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        process.wait()
        return whole - began


def store_of(settings: Settings) -> RedisStore:
    digest = config_digest(settings.app)
    return RedisStore(settings.redis_url or "", settings.app.name, owner_slot="bench", config_digest=digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--behind", type=float, default=0.05, help="the share of them that came after the snapshot")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, start_servers(Path(name) / "servers") as servers:
        folder = Path(name)
        config = folder / "shop.yaml"
        config.write_text((SHOP / "shop.yaml").read_text().replace("schema: ", f"schema: {SHOP}/"))
        settings = load_settings(
            config, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=folder
        )
        ensure_app_topics(settings)
        orders, late = arguments.orders, int(arguments.orders * (1 - arguments.behind))
        epoch_ms = int(time.time() * 1000) - orders * ORDER_MS - 60_000
        worker, store = Worker(settings, config), store_of(settings)
        pairs = RETURN_MS // ORDER_MS
        send(settings, 0, late, epoch_ms)
        worker.run(2 * late - pairs)
        taken = time.monotonic()
        snapshot = take_snapshot(settings, kept=1, report=print)
        taken = time.monotonic() - taken
        send(settings, late, orders, epoch_ms)
        goal = 2 * orders - pairs
        worker.run(goal)
        digest, seconds = store.feature_digest(), {}
        for way in ("snapshot and log", "log alone"):
            if way == "log alone":
                for manifest in (folder / "stores").rglob("manifest.json"):
                    manifest.unlink()
            store.wipe()
            seconds[way] = round(worker.run(goal), 1)
            assert store.feature_digest() == digest, f"{way}: another digest"
        figures = {
            "records": goal,
            "records_behind": goal - 2 * late + pairs,
            "keys": snapshot.keys,
            "snapshot_mb": round(snapshot.size / 1e6, 1),
            "snapshot_s": round(taken, 2),
            "rebuild_s": seconds,
        }
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
