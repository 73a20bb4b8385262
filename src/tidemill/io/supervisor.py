"""The process that outlives its parent just long enough to take the embedded servers down with it.

In: one JSON request per line on standard input. Out: one JSON state per request on standard output.
Invariant: no server outlives the supervisor's parent by 5 s, however the parent ends (kill -9 too).
Two signs tell that the parent is gone: end of file on standard input, and another parent id. The second one holds even
where a forked child of the parent keeps our pipe open.

The lock file of the data folder is held by the supervisor and inherited by every server, so it is free exactly when
nothing writes to the folder any more. Only the standard library is imported: this file runs as an isolated script.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ORPHAN_GRACE_S = 3.0  # TERM to KILL once the parent is gone; with the poll below every server is gone in 5 s
STOP_GRACE_S = 10.0  # TERM to KILL when asked to stop: a broker with many segments needs a while to close them
POLL_S = 0.2  # how soon the death of the parent or of a server is noticed
LOCK_FILE = "lock"


class Supervisor:
    """Starts, ends and watches named child processes; state is what `state()` returns."""

    def __init__(self, lock_descriptor: int) -> None:
        self._lock_descriptor = lock_descriptor
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def state(self) -> dict[str, Any]:
        """Process ids of the servers that live and exit codes of those that do not (negative: by that signal)."""
        codes = {name: process.poll() for name, process in self._processes.items()}
        return {
            "pids": {name: self._processes[name].pid for name, code in codes.items() if code is None},
            "exited": {name: code for name, code in codes.items() if code is not None},
        }

    def start(self, name: str, command: list[str], log: str) -> None:
        with Path(log).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=Path(log).parent,
                pass_fds=(self._lock_descriptor,),
            )
        self._write_lock_file()

    def end(self, names: list[str], signal_number: int, grace_s: float) -> None:
        """Send the signal to all, wait together, and kill what is left after the grace."""
        ending = [self._processes[name] for name in names if self._processes[name].poll() is None]
        for process in ending:
            process.send_signal(signal_number)
            # A stopped process acts on nothing but KILL until it is continued.
            process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + grace_s
        for process in ending:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end_all(self, grace_s: float) -> None:
        self.end(list(self._processes), signal.SIGTERM, grace_s)

    def _write_lock_file(self) -> None:
        owner = {"supervisor": os.getpid(), **self.state()["pids"]}
        os.ftruncate(self._lock_descriptor, 0)
        os.pwrite(self._lock_descriptor, json.dumps(owner).encode(), 0)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "start":
                self.start(request["name"], request["command"], request["log"])
            case "end":
                self.end([request["name"]], request["signal"], STOP_GRACE_S)
            case "stop":
                self.end_all(STOP_GRACE_S)
        return self.state()


def take_lock(data_folder: Path) -> int | None:
    """The descriptor of the locked file, or None when another supervisor or one of its servers holds it."""
    descriptor = os.open(data_folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def serve(supervisor: Supervisor, parent_pid: int) -> None:
    """Answer requests until "stop", end of file, TERM, or the death of the parent."""
    pending = b""
    while os.getppid() == parent_pid:
        if not select.select([0], [], [], POLL_S)[0]:
            supervisor.state()  # reaps a server that died by itself
            continue
        received = os.read(0, 65536)
        if not received:
            return
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            try:
                answer = supervisor.handle(request)
            except OSError as error:
                answer = {**supervisor.state(), "error": str(error), "errno": error.errno}
            print(json.dumps(answer), flush=True)
            if request["do"] == "stop":
                return


def _leave(_signal_number: int, _frame: object) -> None:
    raise SystemExit(0)


def main(data_folder: str, parent_pid: str) -> None:
    """Hold the lock of `data_folder` and serve the process `parent_pid`."""
    try:
        lock_descriptor = take_lock(Path(data_folder))
    except OSError as error:
        print(json.dumps({"error": str(error), "errno": error.errno}), flush=True)
        return
    if lock_descriptor is None:
        print(json.dumps({"locked_by": (Path(data_folder) / LOCK_FILE).read_text()}), flush=True)
        return
    supervisor = Supervisor(lock_descriptor)
    signal.signal(signal.SIGTERM, _leave)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        print(json.dumps(supervisor.state()), flush=True)
        serve(supervisor, int(parent_pid))
    except BrokenPipeError:
        pass  # nobody reads the answer any more: the parent is gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second TERM must not leave the ending half done
        supervisor.end_all(ORPHAN_GRACE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
