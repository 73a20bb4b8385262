"""A live worker on a stream of somebody else: no Python of the user, no punctuation, quiet partitions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import fastavro
import pytest
from confluent_kafka import Producer

from tidemill.apps.status import Status, read_status
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import Settings, load_settings
from tidemill.io import kafka
from tidemill.io.framing import header_of
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode

SHOP = Path(__file__).parent / "streams" / "shop" / "shop.yaml"

pytestmark = pytest.mark.servers


class Shop:
    """The shop's topics under a name of their own, and a worker on them."""

    def __init__(self, settings: Settings, config: Path, folder: Path) -> None:
        self.settings, self.config, self.folder = settings, config, folder
        self.clients = kafka.client_settings(settings.bootstrap_servers or "")
        self.producer = Producer({**self.clients, "partitioner": "murmur2_random"})
        self.names = {topic.role: topic.name for topic in settings.app.topics}
        self.schemas = {topic.role: topic.schema for topic in settings.app.topics}
        self.worker: subprocess.Popen[bytes] | None = None

    def send(self, role: str, key: str, seconds: float, **fields: object) -> None:
        """`seconds`: event time, from now."""
        body = BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(self.schemas[role]), fields)
        value = header_of(self.schemas[role]) + body.getvalue()
        self.producer.produce(self.names[role], value, key, timestamp=int((time.time() + seconds) * 1000))

    def start(self, *options: str) -> None:
        self.log = (self.folder / "worker.log").open("ab")
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "tidemill", "worker", str(self.config), *options],
            env={
                **os.environ,
                "TIDEMILL_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers or "",
                "TIDEMILL_REDIS_URL": self.settings.redis_url or "",
                "TIDEMILL_DATA": str(self.folder),
            },
            stderr=self.log,
        )

    def stop(self) -> int:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGTERM)
        return self.worker.wait(30)

    def until(self, is_so: object, deadline_s: float = 40.0) -> Status:
        deadline = time.monotonic() + deadline_s
        while True:
            status = read_status(self.settings)
            if is_so(status):  # type: ignore[operator]
                return status
            assert self.worker is None or self.worker.poll() is None, (self.folder / "worker.log").read_text()
            assert time.monotonic() < deadline, f"{status}\n{(self.folder / 'worker.log').read_text()}"
            time.sleep(0.3)


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    text = SHOP.read_text().replace("name: shop", f"name: {app_name}").replace("shop.", f"{app_name}.")
    text = text.replace("schema: ", f"schema: {SHOP.parent}/")
    config = tmp_path / "shop.yaml"
    config.write_text(text)
    settings = load_settings(
        config, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=tmp_path
    )
    ensure_app_topics(settings)
    made = Shop(settings, config, tmp_path)
    yield made
    if made.worker is not None and made.worker.poll() is None:
        made.worker.kill()
        made.worker.wait()


def test_a_stream_of_ones_own_needs_yaml_and_avro_only(shop: Shop):
    """200 orders, 150 of them labelled in time; the others expire although every topic has gone quiet."""
    shop.send("context", "tea", -31, product="tea", price=3.5)
    for order in range(200):
        shop.send("event", str(order), -30 + order / 100, order=order, product="tea", amount=float(order))
    for order in range(150):
        shop.send("label", str(order), -20 + order / 100, order=order, returned=order % 3 == 0)
    shop.send("event", "7", -15, order=7, product="tea", amount=7.0)  # a producer's retry
    shop.producer.flush()
    shop.start()
    status = shop.until(lambda now: now.published.get("example", 0) == 150)
    assert status.outcomes["prediction"] == 200 and status.outcomes["event_duplicate"] == 1

    # One record moves the orders' first partition on; the quiet partitions take its time, and what was due expires.
    for order in range(1000, 1008):
        shop.send("event", str(order), 0, order=order, product="tea", amount=1.0)
    shop.producer.flush()
    status = shop.until(lambda now: now.outcomes.get("expired", 0) == 50)
    assert all(balance.is_closed for balance in status.balances), status.balances
    assert status.open_rows["pending"] == 8
    assert shop.stop() == 0

    predictions = {}
    for messages in read_topic(shop.clients, f"{shop.settings.app.name}.predictions.v1"):
        for row in decode("prediction.v1", [m.value() for m in messages]).to_pylist():
            predictions[row["id"]] = row
    assert len(predictions) == 208
    first, last = predictions["0"], predictions["199"]
    assert first["numeric"] == [0.0, 0.0, 0.5, 3.5]  # amount, orders before it, prior of the return rate, price
    assert last["numeric"][:2] == [199.0, 199.0] and last["categories"] == ["tea"]
    # Every label is known by the eight last orders: (50 positives + 0.5 * 2) / (150 + 2).
    assert predictions["1000"]["numeric"][2] == pytest.approx(51 / 152)


def test_health_tells_of_a_running_worker(shop: Shop, unused_port: int):
    shop.start("--web-port", str(unused_port))
    shop.send("event", "1", 0, order=1, product="tea", amount=1.0)
    shop.producer.flush()
    shop.until(lambda now: now.published.get("prediction", 0) == 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/healthz") as answer:
        health = json.load(answer)
    assert health["is_stalled"] is False and health["records"] == 1 and health["partitions"] == 4
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as answer:
        assert b'outcome="prediction"' in answer.read()
    assert shop.stop() == 0
