"""A worker on the shop's stream: a harness for tests on live servers.

In: the session's servers. Out: topics under a name of their own, a producer, a worker process. Invariant: the worker is
gone when the test ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Producer

from tidemill.apps.engine import worker_group
from tidemill.apps.status import Status, read_status
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import Settings, config_digest, load_settings
from tidemill.io import kafka
from tidemill.io.embedded import Servers
from tidemill.io.framing import header_of
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode, without_commands
from tidemill.io.redis_store import RedisStore

SHOP = Path(__file__).parent / "streams" / "shop" / "shop.yaml"


class Shop:
    """The shop's topics under a name of their own, and a worker on them."""

    def __init__(self, settings: Settings, config: Path, folder: Path) -> None:
        self.settings, self.config, self.folder = settings, config, folder
        self.clients = kafka.client_settings(settings.bootstrap_servers or "")
        self.producer = Producer({**self.clients, "partitioner": "murmur2_random"})
        self.names = {topic.role: topic.name for topic in settings.app.topics}
        self.schemas = {topic.role: topic.schema for topic in settings.app.topics}
        self.worker: subprocess.Popen[bytes] | None = None
        self.sixty_sent_at = 0.0

    def send(self, role: str, key: str, seconds: float, *, now: float | None = None, **fields: object) -> None:
        """`seconds`: event time, from `now`; one `now` for many keeps a slow machine out of what lies between them."""
        body = BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(self.schemas[role]), fields)
        value = header_of(self.schemas[role]) + body.getvalue()
        self.producer.produce(self.names[role], value, key, timestamp=int(((now or time.time()) + seconds) * 1000))

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
        return self.worker.wait(90)

    def kill(self) -> None:
        """The worker is gone afterwards, whatever it was doing."""
        if self.worker is not None and self.worker.poll() is None:
            self.worker.kill()
            self.worker.wait()

    def until(self, is_so: Callable[[Status], bool], deadline_s: float = 90.0) -> Status:
        deadline = time.monotonic() + deadline_s
        while True:
            asked_at = time.monotonic()
            status = read_status(self.settings)
            if is_so(status):
                return status
            assert self.worker is None or self.worker.poll() is None, self.log_text()
            assert time.monotonic() < deadline, f"{status}\n{(self.folder / 'worker.log').read_text()}"
            time.sleep(max(0.3, time.monotonic() - asked_at))  # half of the time is theirs

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All records of `predictions`, `examples` or `commits`."""
        topic, schema = f"{self.settings.app.name}.{kind}.v1", f"{kind.rstrip('s')}.v1"
        return [
            row
            for messages in read_topic(self.clients, topic)
            for row in decode(schema, without_commands([m.value() for m in messages])).to_pylist()
        ]

    def log_text(self) -> str:
        return (self.folder / "worker.log").read_text()

    def store(self) -> RedisStore:
        """A connection of a slot that no worker has."""
        app = self.settings.app
        return RedisStore(self.settings.redis_url or "", app.name, owner_slot="test", config_digest=config_digest(app))

    def wait_for_the_session_to_end(self) -> None:
        """A static member stays in the group for its session time-out after its process ended."""
        while kafka.living_members(self.clients, worker_group(self.settings.app.name)):
            time.sleep(0.2)

    def work_off_sixty_orders(self) -> None:
        """Forty of them are labelled; the worker has stopped when it returns."""
        self.sixty_sent_at = time.time()
        self.send("context", "tea", -11, product="tea", price=3.5)
        for order in range(60):
            self.send("event", str(order), -10 + order / 100, order=order, product="tea", amount=float(order))
        for order in range(40):
            self.send("label", str(order), -5 + order / 100, order=order, returned=order % 3 == 0)
        self.producer.flush()
        self.start()
        self.until(lambda now: now.published.get("example", 0) == 40 and now.published.get("prediction") == 60)
        assert self.stop() == 0


@contextmanager
def a_shop(servers: Servers, app_name: str, folder: Path, *, more: str = "", text: str | None = None) -> Iterator[Shop]:
    """`text`: its YAML, as in tests/streams if not given. `more`: what stands there besides."""
    text = (text or SHOP.read_text()).replace("name: shop", f"name: {app_name}").replace("shop.", f"{app_name}.")
    config = folder / "shop.yaml"
    config.write_text(text.replace("schema: ", f"schema: {SHOP.parent}/") + more)
    settings = load_settings(
        config, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=folder
    )
    ensure_app_topics(settings)
    made = Shop(settings, config, folder)
    yield made
    made.kill()
