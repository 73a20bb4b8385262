"""The trainer's side of its subprocess: hand over a task, wait with a limit, end it when it must end.

In: a training's task. Out: the story events of it. Invariant: whatever becomes of the subprocess, there is an answer: a
version, the reason why there is none, or an error that only another try can mend.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tidemill import errors
from tidemill.apps.handover import end_child, lines_of, write_line
from tidemill.apps.rounds import RoundTask, story_of_failure
from tidemill.config import Settings
from tidemill.core.story import StoryEvent

LOOK_AGAIN_S = 0.05


class TrainingStopped(Exception):
    """The trainer was told to stop while it trained: the tick stays unanswered and comes again."""


class TrainingProcess:
    """Started at the first task, kept for the next ones; one thread owns it, `close` it."""

    def __init__(self, settings: Settings, *, is_stopped: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_stopped = is_stopped
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def train(self, task: RoundTask, *, timeout_s: float) -> tuple[StoryEvent, ...]:
        """What is to be told of a training.

        Raises:
            TrainingStopped: the trainer is to end.
            TidemillError: the subprocess could not reach Kafka or the registry, or the log lost its beginning.
        """
        deadline = time.monotonic() + timeout_s
        child = self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(write_line(RoundTask, task))
            child.stdin.flush()
        except BrokenPipeError:
            return self._ended(child, task)
        while True:
            line = self._answer(LOOK_AGAIN_S)
            if line:
                return _told(json.loads(line))
            if line is not None:
                return self._ended(child, task)
            if self._is_stopped():
                self.close()
                raise TrainingStopped
            if time.monotonic() > deadline:
                self.close()
                return (story_of_failure(f"stopped: it took longer than {timeout_s:g} s (timeout)", task),)

    def close(self) -> None:
        """Kill the subprocess; what it had not finished is nowhere."""
        child, self._child = self._child, None
        if child is not None:
            end_child(child)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it ended between two tasks
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tidemill.apps.trainer_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal reaches the trainer only
            )
            self._answers = lines_of(self._child)
            assert self._child.stdin is not None
            self._child.stdin.write(write_line(Settings, self._settings))
        return self._child

    def _answer(self, timeout_s: float) -> bytes | None:
        """A line; b"" once there is no more; None = nothing yet."""
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _ended(self, child: subprocess.Popen[bytes], task: RoundTask) -> tuple[StoryEvent, ...]:
        code = child.wait()
        self.close()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return (story_of_failure(f"the training process ended {how}; its stderr says more", task),)


def _told(answer: dict[str, Any]) -> tuple[StoryEvent, ...]:
    if "error" in answer:
        name, code, message = answer["error"]
        raise getattr(errors, name)(code, message)
    return tuple(StoryEvent(**event) for event in answer["events"])
