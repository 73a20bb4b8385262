"""The command line without servers: what it says, where, and with which exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidemill.apps import cli, reset
from tidemill.apps.children import ChildFailed, start_child, stop_children
from tidemill.apps.cli_options import Voice
from tidemill.apps.dead_letter_listing import group_letters
from tidemill.apps.demo import _empty_folder
from tidemill.apps.demo_view import SilentView
from tidemill.apps.publishing import offset_metadata
from tidemill.apps.reset import RefusedError, follow, refuse_living_members
from tidemill.config import load_settings
from tidemill.core.records import Output, Partition
from tidemill.errors import ConfigError, StateLostError, UnavailableError
from tidemill.io.redis_store import ClaimedPartition
from tidemill.io.slices import pack_slice
from tidemill.io.supervisor import LOCK_FILE, take_lock

CONFIG = str(Path(__file__).parents[1] / "config" / "flights.yaml")
EVENTS, LABELS = Partition("events", 0), Partition("labels", 0)
COMMANDS = ("demo", "worker", "produce", "status", "dlq", "reset")


@pytest.fixture(autouse=True)
def no_servers_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEMILL_BOOTSTRAP_SERVERS", "TIDEMILL_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Voice, "is_quiet", False)
    monkeypatch.setattr(Voice, "is_verbose", False)


def test_help_names_every_command_and_shows_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0

    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert "tidemill demo --until" in text
    first_words = [line.strip("│ ").split(" ")[0] for line in text.splitlines()]
    assert first_words.index("demo") < first_words.index("worker") < first_words.index("status")


@pytest.mark.parametrize("command", [["demo"], ["worker"], ["produce"], ["status"], ["dlq", "ls"], ["reset"]])
def test_help_of_each_command_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--help"]) == 0
    assert "Example" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["demmo"], "demo"),
        (["dlq", "lss"], "ls"),
        (["demo", "--untill", "2013-02-01"], "--until"),
        (["status", CONFIG, "-o", "jsn"], "json"),
        (["reset", CONFIG, "--to", "aplied"], "applied"),
    ],
)
def test_unknown_name_is_a_usage_error_with_the_nearest_one(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: TM-1053 ")
    assert nearest in printed.err
    assert "--help" in printed.err


@pytest.mark.parametrize("arguments", [[], ["--to", "applied", "--config"]])
def test_reset_wants_exactly_one_target(arguments: list[str]) -> None:
    assert cli.run(["reset", CONFIG, *arguments]) == 2


def test_missing_file_is_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["worker", "no-such.yaml"]) == 3

    printed = capsys.readouterr()
    assert printed.err.startswith("error: TM-1001 no-such.yaml")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["worker", CONFIG], "TM-1050"),
        (["dlq", "ls", CONFIG], "TM-1050"),
        (["status", CONFIG, "--bootstrap-servers", "127.0.0.1:1"], "TM-1051"),
    ],
)
def test_address_that_is_missing_is_named(arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 3
    assert code in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("TM-1", "a"), 3),
        (UnavailableError("TM-2", "b"), 4),
        (StateLostError("TM-3", "c"), 4),
        (RefusedError("TM-4", "d"), 5),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("e"), 70),
    ],
)
def test_exit_code_says_who_must_act(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "settings_with_servers", fail)

    assert cli.run(["status", CONFIG]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: TM-") or (code == 130 and said == "interrupted\n")


def test_bug_asks_for_a_report_and_shows_its_traceback_only_when_verbose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "settings_with_servers", lambda *_, **__: 1 / 0)

    assert cli.run(["status", CONFIG, "-v"]) == 70
    printed = capsys.readouterr().err
    assert "TM-9000" in printed and "report" in printed and "ZeroDivisionError" in printed
    assert "Traceback" in printed


def test_nothing_is_reset_without_consent_when_nobody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = []
    monkeypatch.setattr(reset, "accept_configuration", changed.append)
    servers = ["--bootstrap-servers", "127.0.0.1:1", "--redis-url", "redis://127.0.0.1:1/0"]

    assert cli.run(["reset", CONFIG, "--config", *servers]) == 5
    assert not changed
    assert "TM-1052" in capsys.readouterr().err
    assert cli.run(["reset", CONFIG, "--config", "--dry-run", *servers]) == 0
    assert not changed and "tidemill snapshot" not in capsys.readouterr().err
    assert cli.run(["reset", CONFIG, "--config", "--yes", *servers]) == 0
    assert len(changed) == 1
    assert f"`tidemill snapshot {CONFIG}`" in capsys.readouterr().err


def test_reset_refuses_while_workers_live() -> None:
    refuse_living_members(0, "g")
    with pytest.raises(RefusedError, match="TM-4301 group g has 2 living members") as refused:
        refuse_living_members(2, "g")
    assert refused.value.exit_code == 5


def a_slice(commit: bytes) -> bytes:
    return pack_slice([Output("app.predictions.v1", b"k", b"p"), Output("app.commits.v1", None, commit)])


def test_reset_follows_the_store_up_to_what_the_log_proves() -> None:
    first, second = a_slice(b"c1"), a_slice(b"c2")
    found = ClaimedPartition(30, 10, ((10, 20, first), (20, 30, second)))

    def where(*published: bytes) -> tuple[int, str]:
        end = max((20, 30)[values == b"c2"] for values in published) if published else 10
        return follow(found, incarnation="i", published=frozenset(published), end=end, commits_topic="app.commits.v1")

    assert where() == (10, "i")
    assert where(b"c1") == (20, "i")
    assert where(b"c1", b"c2") == (30, "i")


def test_reset_knows_a_published_slice_that_moves_no_offset() -> None:
    packed = a_slice(b"c3")
    found = ClaimedPartition(30, 30, ((30, 30, packed),))

    assert follow(found, incarnation="i", published=frozenset({b"c3"}), end=30, commits_topic="app.commits.v1") == (
        30,
        offset_metadata("i", 30, 30, packed),
    )
    assert follow(found, incarnation="i", published=frozenset(), end=30, commits_topic="app.commits.v1") == (30, "i")


def test_reset_does_not_publish_again_what_a_store_has_lost() -> None:
    """It stands at 30, and outputs up to 45 are in Kafka: the worker goes forward to there without outputs."""
    found = ClaimedPartition(30, 30)
    assert follow(found, incarnation="i", published=frozenset(), end=45, commits_topic="app.commits.v1") == (45, "i")


@pytest.mark.parametrize(
    ("known", "begins_at", "has_snapshot", "refusal"),
    [
        ({EVENTS: (7, "store"), LABELS: (None, "")}, 0, False, None),
        ({EVENTS: (7, "store"), LABELS: (None, "")}, 3, True, None),
        ({EVENTS: (7, "store"), LABELS: (None, "")}, 3, False, r"TM-4306 events\[0\] begins at 3"),
        ({EVENTS: (None, ""), LABELS: (None, "")}, 0, False, "TM-4305 .* has committed no offset"),
        ({EVENTS: (7, "store"), LABELS: (2, "")}, 0, False, r"TM-4305 .* labels\[0\] was set by hand"),
    ],
)
def test_a_store_is_given_up_only_for_a_log_that_can_fill_it(
    known: dict[Partition, tuple[int | None, str]],
    begins_at: int,
    has_snapshot: bool,
    refusal: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reset, "newest_fit", lambda *_: object() if has_snapshot else None)
    starts = {EVENTS: begins_at, LABELS: 9}
    if refusal is None:
        reset._need_log(load_settings(Path(CONFIG)), known, starts)
    else:
        with pytest.raises(StateLostError, match=refusal):
            reset._need_log(load_settings(Path(CONFIG)), known, starts)


class Letter:
    def __init__(self, topic: str, offset: int, code: str | None) -> None:
        self._topic, self._offset, self._code = topic, offset, code

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 0, 0

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        if self._code is None:
            return None
        return [
            ("__streams.errors.exception", b"tidemill.errors.RecordError"),
            ("tidemill.dlq.code", self._code.encode()),
            ("__streams.errors.message", f"m{self._offset}".encode()),
        ]


def test_dead_letters_are_counted_by_topic_and_code_and_foreign_ones_too() -> None:
    letters = [Letter("a.dlq", 0, "TM-2001"), Letter("a.dlq", 3, "TM-2001"), Letter("a.dlq", 5, None)]

    found = group_letters(letters, "shop")

    assert [(one.code, one.count, one.first, one.last, one.example) for one in found] == [
        ("TM-2001", 2, "[0]@0", "[0]@3", "m0"),
        ("unknown", 1, "[0]@5", "[0]@5", ""),
    ]


def test_demo_never_empties_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")

    with pytest.raises(ConfigError, match="TM-1310"):
        _empty_folder(tmp_path, SilentView())
    assert (tmp_path / "thesis.txt").exists()


def test_demo_begins_anew_in_its_own_folder(tmp_path: Path) -> None:
    os.close(_empty_folder(tmp_path, SilentView()))
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "log").write_text("old")

    os.close(_empty_folder(tmp_path, SilentView()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", LOCK_FILE, "logs"]


def test_demo_refuses_a_folder_in_which_another_one_runs(tmp_path: Path) -> None:
    os.close(_empty_folder(tmp_path, SilentView()))
    (tmp_path / "kafka").mkdir()
    held = take_lock(tmp_path)
    assert held is not None

    with pytest.raises(ConfigError, match="TM-1302"):
        _empty_folder(tmp_path, SilentView())
    assert (tmp_path / "kafka").exists()
    os.close(held)


def test_child_tells_its_last_lines_and_its_exit_code(tmp_path: Path) -> None:
    child = start_child("worker-0", ["worker", "no-such.yaml"], tmp_path)

    assert child.process.wait(90) == 3
    assert "TM-1001" in child.last_lines()
    assert stop_children([child]) == {"worker-0": 3}
    assert ChildFailed(child, 3).code == 3


def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    # The child reads its configuration from a pipe that stays empty, so it only ends because its parent has.
    fifo = tmp_path / "app.yaml"
    os.mkfifo(fifo)
    code = (
        "import sys, time; from pathlib import Path; from tidemill.apps.children import start_child; "
        f"child = start_child('w', ['worker', {str(fifo)!r}], Path({str(tmp_path)!r})); "
        "print(child.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    time.sleep(1.0)
    os.kill(child_pid, 0)

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 90
    while _is_alive(child_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(child_pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")
