"""Worker processes of a campaign: started, killed, stopped; none outlives the campaign.

In: where the app runs, and a slot. Out: a process and its log. Invariant: a worker ends when this process does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tidemill.io.embedded import Servers

ROOT = Path(__file__).parent.parent.parent

STOP_DEADLINE_S = 30.0
_STOPPED = re.compile(r"stopped at N = (\d+) after \d+ records, model digest (\w+)")


class Site(Protocol):
    """Where workers of one app run."""

    @property
    def servers(self) -> Servers: ...
    @property
    def config(self) -> Path: ...
    @property
    def folder(self) -> Path: ...


class WorkerProcess:
    """One worker in its slot; `restart` it after it was killed."""

    def __init__(
        self,
        site: Site,
        slot: int,
        *,
        is_bounded: bool = True,
        data_folder: Path | None = None,
        program: Sequence[str] = ("-m", "tidemill"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`program`: what Python runs, the command `worker` follows; `environment`: for the first start only."""
        self.slot = slot
        self._site = site
        self._options = ("--bounded",) if is_bounded else ()
        self._data_folder = data_folder or site.folder
        self._log = site.folder / f"worker-{slot}{'-other' if data_folder else ''}.log"
        self.process = self._open(program, environment or {})

    def restart(self, program: Sequence[str] = ("-m", "tidemill")) -> None:
        assert self.process.poll() is not None, "it is still alive"
        self._drop_pipe()
        self.process = self._open(program, {})

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(STOP_DEADLINE_S)

    def stop(self) -> int:
        """TERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_DEADLINE_S)
        self._drop_pipe()

    def check_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"worker {self.slot} ended by itself with {code}:\n{self.log()[-3000:]}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def said_at_stop(self) -> tuple[int, str] | None:
        """N and the learner's digest, as the last clean stop reported them."""
        found = _STOPPED.findall(self.log())
        return (int(found[-1][0]), found[-1][1]) if found else None

    def _open(self, program: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        servers = self._site.servers
        arguments = ["worker", str(self._site.config), *self._options, "--slot", str(self.slot), "--with-parent"]
        arguments += ["--bootstrap-servers", servers.bootstrap_servers, "--redis-url", servers.redis_url]
        arguments += ["--data", str(self._data_folder)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _drop_pipe(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()


@contextmanager
def ended_at_exit() -> Iterator[list[WorkerProcess]]:
    """A list for workers; whatever is in it is gone afterwards."""
    workers: list[WorkerProcess] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()
