"""The worker's side of the process that tries suspicious records.

In: what to try. Out: the signal that ended the try, or 0. Invariant: whatever becomes of the process there is an answer
within the deadline; "nobody can say" counts as alive, so that no record is condemned by a broken trial.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tidemill.apps.handover import end_child, lines_of, read_line, write_line
from tidemill.apps.trial_child import TrialResult, TrialTask
from tidemill.config import Settings

ANSWER_DEADLINE_S = 60.0  # the first answer waits for the imports, on a loaded machine too


class TrialProcess:
    """Runs from its making until `close`; one thread owns it."""

    def __init__(self, settings: Settings, *, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report
        self._folder = tempfile.TemporaryDirectory(prefix="tidemill-trial-")  # readable by its owner only
        self._files = 0
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tidemill.apps.trial_child", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches the worker only
            # One thread each: a library that has made threads cannot be forked.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._answers = lines_of(self._child)
        self._send(write_line(Settings, settings))

    def new_file(self) -> Path:
        """A path for the records or features of a task; it goes with this object."""
        self._files += 1
        return Path(self._folder.name) / str(self._files)

    def signal_of(self, task: TrialTask) -> int:
        """The signal that ends a process which does this; 0 = it lives, or nobody can say (which is reported)."""
        if self._child.poll() is None:
            self._send(write_line(TrialTask, task))
        try:
            line = self._answers.get(timeout=ANSWER_DEADLINE_S)
        except queue.Empty:
            line = b""
        if not line:
            self._child.kill()  # an answer that came later would be taken for that of another task
            self._answers.put(b"")
            self._report(f"a trial of {len(task.positions)} records ({task.what}) gave no answer; going on without")
            return 0
        result = read_line(TrialResult, line)
        if result.problem:
            self._report(f"a trial of {len(task.positions)} records ({task.what}) says nothing: {result.problem}")
        return result.signal

    def close(self) -> None:
        """Kill the process, delete its files."""
        end_child(self._child)
        self._folder.cleanup()

    def _send(self, line: bytes) -> None:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # then the answer is missing, which is told
            self._child.stdin.write(line)
            self._child.stdin.flush()
