"""On servers with TLS, SCRAM and rights: the doctor sees what is missing, and the password is nowhere to be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_servers import GUIDE, USER, OwnServers, grant, own_servers
from test_own_servers import (
    FILES,
    PAYMENTS,
    PREDICTIONS,
    command,
    count_of,
    environment_of,
    rights_of_the_guide,
    tidemill,
)

from tidemill.apps.topics import loop_topics, output_topics
from tidemill.config import load_app
from tidemill.core.topic_names import metrics_topic
from tidemill.io.kafka import client_settings, ensure_topics
from tidemill.io.kafka_reader import read_topic

CANARY = "c4n4ryOfTheServers"
LINES = 80
PAGES = ("/metrics", "/healthz", "/", "/tables/", "/router/", "/stats/", "/assignment/", "/no-such-page")


class Stage:
    """An app on servers of its own, and everything that was printed about it."""

    def __init__(self, folder: Path, servers: OwnServers) -> None:
        self.servers = servers
        self.app = folder / "payments"
        shutil.copytree(PAYMENTS, self.app)
        for name in FILES.values():
            (self.app / name).write_text("".join((self.app / name).read_text().splitlines(keepends=True)[:LINES]))
        block = re.search(r"```yaml\n(kafka:.*?)```", GUIDE.read_text(), re.DOTALL)
        assert block is not None
        (self.app / "payments.yaml").write_text((self.app / "payments.yaml").read_text() + block[1])
        self.environment = {
            "KAFKA_SERVERS": servers.bootstrap_servers,
            "KAFKA_CA": str(servers.certificate),
            "KAFKA_USER": USER,
            "KAFKA_PASSWORD": CANARY,
            "STORE_URL": servers.redis_url,
        }
        self.said: dict[str, str] = {}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = tidemill(self.app, self.environment | environment, *arguments)
        self.said[f"{' '.join(arguments)} {sorted(environment)}"] = done.stdout + done.stderr
        return done

    def rights(self, *roles: str) -> tuple[int, dict[str, str]]:
        """(exit code, what is lacking by thing) as the doctor says it."""
        done = self.run("doctor", "payments.yaml", "--acls", "-o", "json", *(w for r in roles for w in ("--role", r)))
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)["rows"]
        return done.returncode, {one["what"]: one["found"] for one in found if one["verdict"] == "missing"}

    def grant(self, role: str) -> None:
        for kind, name, operations in rights_of_the_guide(role):
            grant(self.servers.admin, kind, name, *operations)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("security")
    with own_servers(folder, password=CANARY) as servers:
        yield Stage(folder, servers)


@pytest.mark.servers
@pytest.mark.timeout(480)
def test_doctor_sees_each_right_that_is_missing_and_none_that_is_there(stage: Stage) -> None:
    first = stage.run("status", "payments.yaml")  # the first question of all to a new broker: it once ended in SIGSEGV
    assert first.returncode == 4, first.stderr
    code, missing = stage.rights("worker")
    assert code == 1
    assert missing["transactional-id tidemill.payments.doctor: Describe, Write"] == "lacks Describe, Write"
    assert missing["group tidemill.payments.worker: Describe, Read"] == "lacks Describe, Read"
    assert missing["topic payments.presented: Describe, Read, Write"] == "lacks Describe, Read, Write"
    assert not [one for one in missing if one.startswith("store ")]  # the ACL of the guide suffices
    stage.grant("status")
    code, missing = stage.rights("status")
    assert (code, missing) == (0, {})
    assert stage.rights("worker")[0] == 1  # who may look may not write
    stage.grant("worker")
    assert stage.rights("worker", "monitor", "trainer", "status", "web") == (0, {})
    doctor = stage.run("doctor", "payments.yaml")
    assert doctor.returncode == 1 and "payments.presented" in doctor.stdout  # its producer has not been there yet


@pytest.mark.servers
@pytest.mark.timeout(480)
def test_password_is_in_no_output_no_page_no_topic_and_no_file(stage: Stage, tmp_path: Path) -> None:
    stage.grant("worker")
    stage.grant("produce")
    files = [word for topic, name in FILES.items() for word in ("--file", f"{topic}={name}")]
    produced = stage.run("produce", "payments.yaml", *files, "--end", "-o", "json", "-v")
    assert produced.returncode == 0, produced.stderr
    payments = json.loads(produced.stdout)["records"]["payments.presented"]

    # An administrator has made the topics, as many do.
    declared = load_app(stage.app / "payments.yaml")
    topics = output_topics(declared) | dict.fromkeys((*loop_topics(declared), metrics_topic(declared.name)), 1)
    ensure_topics({"bootstrap.servers": stage.servers.admin_servers}, topics, {})
    port, page_port = _free_ports(2)
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        environment = environment_of(stage.app, stage.environment)
        worker = subprocess.Popen(
            command("worker", "payments.yaml", "--bounded", "-v", "--web-port", str(port)),
            cwd=stage.app,
            env=environment,
            stdout=file,
            stderr=file,
        )
        web = subprocess.Popen(
            command("web", "payments.yaml", "-v", "--port", str(page_port)),
            cwd=stage.app,
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 90
        while count_of(PREDICTIONS, stage.servers.admin_servers) < payments and time.monotonic() < deadline:
            assert worker.poll() is None, log.read_text()
            time.sleep(0.5)
        for page in PAGES:
            stage.said[f"worker {page}"] = _page(port, page)
        for page in ("/", "/state", "/metrics", "/health/live", "/page.js"):
            stage.said[f"web {page}"] = _page(page_port, page)
        assert "tidemill" in stage.said["worker /metrics"] and stage.said["web /state"].endswith("}")
        for process in (worker, web):
            assert {address for address, _ in _listening(process.pid)} == {"127.0.0.1"}
            assert CANARY not in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        for process in (worker, web):
            process.send_signal(signal.SIGTERM)
        for process in (worker, web):
            process.wait(90)
    stage.said["worker and web"] = log.read_text()

    for words in (("monitor", "--until-end"), ("trainer", "--until-end"), ("alerts", "ls")):
        done = stage.run("-v", *words, "payments.yaml")
        assert done.returncode in (0, 1, 3), done.stderr  # an app without `retrain:` has no trainer, and is told so
    stage.run("-v", "status", "payments.yaml")
    stage.run("-v", "config", "check", "payments.yaml")
    # A password that is refused, a server that is away, a store that refuses.
    refused = stage.run("status", "payments.yaml", "-v", KAFKA_PASSWORD=f"{CANARY}wrong")
    assert refused.returncode == 4, refused.stderr
    assert "TM-3010" in refused.stderr and "correct the mechanism, user name and password" in refused.stderr
    wrong_store = stage.servers.redis_url.replace(CANARY, f"{CANARY}wrong")
    assert stage.run("status", "payments.yaml", "-v", STORE_URL=wrong_store).returncode == 4
    unreadable = stage.run("status", "payments.yaml", "-v", STORE_URL=f"redis://user:{CANARY}/x@host:1/0")
    assert unreadable.returncode == 3, unreadable.stderr

    leaks = [name for name, text in stage.said.items() if CANARY in text]
    leaks += [str(path) for path in stage.app.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    clients = client_settings(stage.servers.admin_servers)
    for topic in topics:
        for messages in read_topic(clients, topic):
            for one in messages:
                whole = (one.key() or b"") + (one.value() or b"") + repr(one.headers()).encode()
                leaks += [topic] if CANARY.encode() in whole else []
    assert leaks == []


def _page(port: int, path: str) -> str:
    deadline = time.monotonic() + 90
    while not _is_open(port) and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return str(answer.headers) + answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return str(error.headers) + error.read().decode(errors="replace")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _listening(pid: int) -> set[tuple[str, int]]:
    """(address, port) of each TCP socket on which a process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
        inodes |= {found[1]} if found else set()
    result = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                address, port = columns[1].split(":")
                text = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if name == "tcp" else address
                result.add((text, int(port, 16)))
    return result


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
