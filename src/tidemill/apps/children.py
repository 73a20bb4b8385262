"""Child processes of the demo, and how a child notices that its parent is gone.

In: the arguments of a `tidemill` command. Out: a running child with its log. Invariant: no child outlives the parent by
more than a few seconds, however the parent ends: the child's stdin is a pipe that only the parent holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_DEADLINE_S = 25.0  # a worker ends itself after 20 s
PARENT_GONE_GRACE_S = 3.0  # the parent's servers have gone with it, so a clean stop cannot succeed
LAST_LINES = 12
# The command line of a process is open to every user of its machine, its environment is not.
_SECRET_OPTIONS = {"--redis-url": "TIDEMILL_REDIS_URL"}


@dataclass(frozen=True, slots=True)
class Child:
    """A running `tidemill` command. stderr goes to `log`, stdout to `result`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    result: Path

    def last_lines(self) -> str:
        """The end of what it said on stderr."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])


class ChildFailed(Exception):
    """A child ended before its time."""

    def __init__(self, child: Child, code: int) -> None:
        super().__init__(child.name)
        self.child = child
        self.code = code


def start_child(name: str, arguments: Sequence[str], folder: Path) -> Child:
    """Start `tidemill <arguments>` with its output below `folder`; what may hold a password goes by the environment."""
    arguments, secrets = _without_secrets(arguments)
    log, result = folder / f"{name}.log", folder / f"{name}.out"
    with log.open("wb") as errors, result.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidemill", *arguments, "--with-parent"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env=os.environ | secrets,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent only, which then stops the children
        )
    return Child(name, process, log, result)


def _without_secrets(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the arguments without options that may hold a password, their values as variables of the environment)."""
    kept, secrets = list(arguments), {}
    for option, variable in _SECRET_OPTIONS.items():
        if option in kept:
            at = kept.index(option)
            secrets[variable] = kept[at + 1]
            del kept[at : at + 2]
    return kept, secrets


def stop_children(children: Sequence[Child]) -> dict[str, int]:
    """TERM to all that live, KILL after the deadline; exit codes by name."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    deadline = time.monotonic() + STOP_DEADLINE_S
    codes = {}
    for child in children:
        try:
            codes[child.name] = child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            codes[child.name] = child.process.wait()
        if child.process.stdin is not None:
            child.process.stdin.close()
    return codes


def end_with_parent() -> None:
    """Called in a child: end this process once the parent has closed our stdin, by dying or by intent."""
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PARENT_GONE_GRACE_S)
    os._exit(4)
