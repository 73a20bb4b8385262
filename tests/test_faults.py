"""The short form of the fault matrix: the riskiest rows, one seed each; `scripts/faults` plays all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.processes import ROOT
from tests.faults.__main__ import all_rows, play
from tests.faults.proxy import END_TXN, CutError, Proxy
from tests.faults.row import Played, Row, RowResult, table
from tests.faults.stage import House, Stage, judgement_of
from tests.verify import Report
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka_writer

# Row and seed. Seed 28 of row 1 is a reply that is lost at F7.
SHORT = ((1, 28), (6, 2), (29, 1))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Servers whose Kafka can be reached through a proxy too."""
    with House(tmp_path_factory.mktemp("faults"), patience=2.0) as opened:  # other tests may run beside
        yield opened


@pytest.mark.servers
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("number", "seed"), SHORT)
def test_row_of_the_matrix_holds(house: House, number: int, seed: int):
    played = play(house, all_rows()[number], seed)
    assert played.result.is_ok, f"scripts/faults --rows {number} --seed {seed} --seeds 1\n{played.result}"


@pytest.mark.servers
@pytest.mark.timeout(240)
def test_a_guard_that_is_taken_away_turns_a_row_red(house: House):
    """The worker dies after the script, and its successor believes that what was applied is published."""

    def run(stage: Stage, seed: int) -> RowResult:
        stream = stage.stream(batch_records=250)
        victim = stage.worker(stream, 0, failpoint="F4:kill@3")
        stage.wait_for("death", lambda: victim.process.poll() is not None)
        heir = stage.worker(stream, 0, program=("-m", "tests.campaign.mutant_worker", "outbox", "none"))
        stage.finish(stream, heir)
        return stage.judge(stream, has_undisturbed=False).result(injected=1)

    result = play(house, Row(99, "without an outbox", 1, run), 1).result
    assert not result.is_ok
    assert result.missing > 0, result


def test_every_row_of_the_matrix_is_played():
    assert set(all_rows()) == set(range(1, 34))


def test_a_row_that_injected_nothing_has_shown_nothing():
    assert RowResult(1, None, 0, 0, "ok").is_ok
    for result in (
        RowResult(0, None, 0, 0, "ok"),
        RowResult(1, None, 1, 0, "ok"),
        RowResult(1, None, 0, 1, "ok"),
        RowResult(1, None, 0, 0, "late"),
    ):
        assert not result.is_ok


def test_row_that_raises_is_a_verdict_and_the_next_one_is_played(tmp_path: Path):
    def run(stage: Stage, seed: int) -> RowResult:
        raise AssertionError("a worker ended")

    class NoHouse(House):
        def _open_shared(self):  # type: ignore[no-untyped-def]
            raise OSError("no servers here")

    played = [play(NoHouse(tmp_path), Row(7, "a fault", 2, run), seed) for seed in (1, 2)]
    text = table([*played, Played(Row(8, "another", 1, run), 1, 0.1, RowResult(2, 1.25, 0, 0, "ok"))])
    assert "seed 1: OSError: no servers here" in text
    assert text.splitlines()[2].split() == ["8", "another", "1", "2", "1.2", "0", "0", "ok"]


def test_what_the_verifier_finds_is_missing_duplicated_or_wrong():
    report = Report()
    report.check("predictions missing").add("a", 2)
    report.check("predictions duplicate").add("b")
    report.check("outcome counts").add("c")
    found = judgement_of(report)
    assert (found.missing, found.duplicated, len(found.wrong)) == (2, 1, 3)
    assert judgement_of(Report()).result(injected=1).is_ok


def test_offsets_that_are_never_answered_end_in_time(monkeypatch: pytest.MonkeyPatch):
    """librdkafka overlooks the time-out of this one call; the result is unknown then, and the worker claims anew."""
    monkeypatch.setattr(kafka_writer, "OFFSETS_TIMEOUT_S", 0.2)
    is_over = threading.Event()

    class Hanging:
        def begin_transaction(self) -> None:
            """It is open."""

        def flush(self) -> None:
            """Nothing was produced."""

        def send_offsets_to_transaction(self, *_: object) -> None:
            is_over.wait(10)

    writer = kafka_writer.TransactionalWriter({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, "x")
    writer._producer = Hanging()  # type: ignore[assignment]
    with pytest.raises(UnavailableError, match="send offsets: no answer"):
        writer.publish([], {Partition("t", 0): (1, "")}, None)
    is_over.set()


# --- failpoints


@pytest.mark.parametrize(
    ("variable", "passes", "code", "said"),
    [
        ("", 3, 0, "111"),
        ("F4:kill@2", 3, -signal.SIGKILL, "1"),
        ("F4:kill", 1, -signal.SIGKILL, ""),
        ("F40:kill", 3, 0, "111"),
        ("F4:error@2", 3, 0, "1e1"),
    ],
)
def test_failpoint_fires_once_at_its_pass_and_only_where_it_is_named(variable: str, passes: int, code: int, said: str):
    program = f"""
import os, sys
from tidemill.apps.failpoints import failpoint
from tidemill.errors import UnavailableError
for _ in range({passes}):
    try:
        failpoint("F4", lambda: os.write(2, b"b"))
        sys.stdout.write("1")
    except UnavailableError:
        sys.stdout.write("e")
    sys.stdout.flush()
"""
    environment = {**os.environ, "TIDEMILL_FAILPOINT": variable}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
    assert done.stderr == ("" if variable in ("", "F40:kill") else "b")


# --- the proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while piece := connection.recv(1 << 16):
                    connection.sendall(piece)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def said_back(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(data)
        return connection.recv(1 << 16)


def test_proxy_passes_cuts_holds_and_heals(echo: int):
    with Proxy(echo) as proxy:
        assert said_back(proxy.port, b"hello") == b"hello"
        proxy.cut()
        with pytest.raises(OSError):
            if said_back(proxy.port, b"hello") == b"":
                raise ConnectionResetError
        proxy.heal()
        assert said_back(proxy.port, b"again") == b"again"
        proxy.hold()
        with pytest.raises(TimeoutError):
            said_back(proxy.port, b"hello")
        proxy.heal()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=2) as connection:
            connection.sendall(b"x")
            assert connection.recv(10) == b"x"
            proxy.reset()
            with pytest.raises(OSError):
                connection.sendall(b"y")
                if connection.recv(10) == b"":
                    raise ConnectionResetError


def test_proxy_loses_the_answer_to_one_kind_of_request(echo: int):
    """The request has passed: whoever asked does not know what became of it."""

    def frame(api_key: int, correlation: int) -> bytes:
        # What comes back is read as an answer, whose first word is its correlation id.
        body = api_key.to_bytes(2) + correlation.to_bytes(2) + (api_key << 16 | correlation).to_bytes(4)
        return len(body).to_bytes(4) + body

    def lose() -> None:
        raise CutError

    with Proxy(echo, is_kafka=True) as proxy:
        proxy.on_response(END_TXN, lose)
        assert said_back(proxy.port, frame(3, 1)) == frame(3, 1)
        with pytest.raises(OSError):
            if said_back(proxy.port, frame(END_TXN, 2)) == b"":
                raise ConnectionResetError
        proxy.heal()
        assert said_back(proxy.port, frame(END_TXN, 3)) == frame(END_TXN, 3)
