"""An app on servers of a company: TLS, SCRAM and no right that docs/own-servers.md does not list."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType
from own_servers import GUIDE, PASSWORD, USER, grant, own_servers

from tidemill.apps.topics import loop_topics, output_topics
from tidemill.config import load_app
from tidemill.core.topic_names import metrics_topic
from tidemill.io.kafka import client_settings, ensure_topics
from tidemill.io.kafka_reader import read_topic

ROOT = Path(__file__).parents[1]
PAYMENTS = ROOT / "tests" / "streams" / "payments"
FILES = {
    "payments.presented": "payments.csv",
    "payments.settlements": "settlements.csv",
    "payments.cards": "card_statuses.csv",
}
PREDICTIONS = "payments.predictions.v1"
LINES = 300
KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "transactional-id": ResourceType.TRANSACTIONAL_ID}


def rights_of_the_guide(who: str) -> list[tuple[ResourceType, str, list[AclOperation]]]:
    """The rows of the guide's table of rights for one process: kind, prefix of the name, operations."""
    rows = re.findall(r"^\| ([a-z, ]+) \| ([a-z-]+) `([a-z.]+)` \| ([A-Za-z, ]+) \|", GUIDE.read_text(), re.MULTILINE)
    found = [
        (KINDS[kind], name, [AclOperation[word.strip().upper()] for word in words.split(",")])
        for whose, kind, name, words in rows
        if who in [one.strip() for one in whose.split(",")]
    ]
    assert found, f"{GUIDE} lists no rights of {who}"
    return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidemill", *arguments]


def environment_of(folder: Path, extra: dict[str, str]) -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT / "src"), "TIDEMILL_DATA": str(folder / "data")}
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL")} | ours | extra


def tidemill(folder: Path, extra: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = environment_of(folder, extra)
    return subprocess.run(command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.servers
@pytest.mark.timeout(240)
def test_app_runs_over_tls_with_the_rights_that_the_guide_lists(tmp_path: Path) -> None:
    app = tmp_path / "payments"
    shutil.copytree(PAYMENTS, app)
    for name in FILES.values():  # about a minute of payments: each two seconds are a transaction
        (app / name).write_text("".join((app / name).read_text().splitlines(keepends=True)[:LINES]))
    kafka_block = re.search(r"```yaml\n(kafka:.*?)```", GUIDE.read_text(), re.DOTALL)
    assert kafka_block is not None
    config = (app / "payments.yaml").read_text() + kafka_block[1]
    (app / "payments.yaml").write_text(config)
    with own_servers(tmp_path) as servers:
        environment = {
            "KAFKA_SERVERS": servers.bootstrap_servers,
            "KAFKA_CA": str(servers.certificate),
            "KAFKA_USER": USER,
            "KAFKA_PASSWORD": PASSWORD,
            "STORE_URL": servers.redis_url,
        }
        files = [word for topic, name in FILES.items() for word in ("--file", f"{topic}={name}")]

        for kind, name, operations in rights_of_the_guide("produce"):
            grant(servers.admin, kind, name, *operations)
        done = tidemill(app, environment, "produce", "payments.yaml", *files, "--end", "-o", "json")
        assert done.returncode == 0, done.stderr
        payments = json.loads(done.stdout)["records"]["payments.presented"]

        # An administrator has made the topics, so the worker needs no right to create any.
        declared = load_app(app / "payments.yaml")
        topics = output_topics(declared) | dict.fromkeys((*loop_topics(declared), metrics_topic(declared.name)), 1)
        ensure_topics({"bootstrap.servers": servers.admin_servers}, topics, {})
        for kind, name, operations in rights_of_the_guide("worker"):
            grant(servers.admin, kind, name, *(one for one in operations if one is not AclOperation.CREATE))
        worker = subprocess.Popen(
            command("worker", "payments.yaml", "--bounded"), cwd=app, env=environment_of(app, environment)
        )
        try:
            deadline = time.monotonic() + 90
            while count_of(PREDICTIONS, servers.admin_servers) < payments and time.monotonic() < deadline:
                assert worker.poll() is None
                time.sleep(0.2)
            worker.terminate()
            assert worker.wait(90) == 0
        finally:
            worker.kill()
            worker.wait()
        assert count_of(PREDICTIONS, servers.admin_servers) == payments
        for arguments in (("status", "payments.yaml"), ("monitor", "payments.yaml", "--until-end")):
            done = tidemill(app, environment, *arguments)
            assert done.returncode == 0, done.stderr


def count_of(topic: str, bootstrap_servers: str) -> int:
    """Committed records of a topic."""
    return sum(len(messages) for messages in read_topic(client_settings(bootstrap_servers), topic))
