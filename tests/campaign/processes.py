"""Processes of a campaign: workers, monitor, trainer: started, killed, stopped; none outlives the campaign.

In: where the app runs, and a role. Out: a process and its log. Invariant: a process ends when this one does.
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
from typing import Any, Protocol

from tidemill.io.embedded import Servers

ROOT = Path(__file__).parent.parent.parent

STOP_DEADLINE_S = 90.0
_STOPPED = re.compile(r"stopped at N = (\d+) after \d+ records, model digest (\w+)")


class Site(Protocol):
    """Where workers of one app run."""

    @property
    def servers(self) -> Servers: ...
    @property
    def config(self) -> Path: ...
    @property
    def folder(self) -> Path: ...


class RoleProcess:
    """One process of the app; `restart` it after it was killed."""

    def __init__(
        self,
        site: Site,
        role: str,
        *options: str,
        name: str = "",
        data_folder: Path | None = None,
        program: Sequence[str] = ("-m", "tidemill"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`role`: the command. `program`: what Python runs, the command follows; `environment`: for the first start."""
        self.name = name or role
        self._site = site
        self._role, self._options = role, options
        self._data_folder = data_folder or site.folder
        self._log = site.folder / f"{self.name.replace(' ', '-')}{'-other' if data_folder else ''}.log"
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
        assert code is None, f"{self.name} ended by itself with {code}:\n{self.log()[-3000:]}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _open(self, program: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        servers = self._site.servers
        arguments = [self._role, str(self._site.config), *self._options, "--with-parent"]
        arguments += ["--bootstrap-servers", servers.bootstrap_servers, "--data", str(self._data_folder)]
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


class WorkerProcess(RoleProcess):
    """One worker in its slot."""

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
        self.slot = slot
        options = ["--slot", str(slot), "--redis-url", site.servers.redis_url, *(["--bounded"] if is_bounded else [])]
        super().__init__(
            site,
            "worker",
            *options,
            name=f"worker {slot}",
            data_folder=data_folder,
            program=program,
            environment=environment,
        )

    def said_at_stop(self) -> tuple[int, str] | None:
        """N and the learner's digest, as the last clean stop reported them."""
        found = _STOPPED.findall(self.log())
        return (int(found[-1][0]), found[-1][1]) if found else None


@contextmanager
def ended_at_exit() -> Iterator[list[Any]]:
    """A list for processes; whatever is in it is gone afterwards."""
    processes: list[RoleProcess] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.close()
