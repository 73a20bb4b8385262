"""What runs in the trainer's subprocess: read the examples log, train, judge by the gate, register.

In: on stdin the settings, then one `RoundTask` after the other, a line of JSON each. Out: for each, one line of JSON on
stdout. Invariant: nothing is written but a finished version in the registry, so it may be killed at any time; it ends
when its parent closes stdin or dies. The columns of the log are kept between tasks: the second training reads only what
is new.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import Any, BinaryIO

from tidemill.apps.handover import read_line
from tidemill.apps.models import booster_loader, registry_of, signing_key
from tidemill.apps.rounds import RoundTask, story_of_failure, story_of_round, train_and_gate
from tidemill.apps.training import ExamplesSoFar
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.roles import INITIAL
from tidemill.core.story import StoryEvent
from tidemill.errors import ModelRefusedError, TidemillError
from tidemill.models.booster import Booster

PARENT_GONE = 4


class Rounds:
    """The trainings of one app, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plan = FeaturePlan(settings.app)
        self._log = ExamplesSoFar(settings, self._plan)
        self._load = booster_loader(settings, self._plan)

    def run(self, task: RoundTask) -> tuple[StoryEvent, ...]:
        """What is to be told of the training; the version is in the registry then.

        Raises:
            TidemillError: Kafka or the registry does not answer, or the log lost its beginning.
        """
        self._log.read(offset_next=task.offset_next)
        try:
            done = train_and_gate(
                self._settings.app,
                self._plan,
                self._log.examples,
                task,
                excised=self._log.excised(offset_next=task.offset_next),
                champion=self._champion(task.parent),
                threads=os.cpu_count() or 1,
            )
        except ModelRefusedError as error:
            return (story_of_failure(str(error), task),)
        trained = done.trained
        registry_of(self._settings).put(trained.manifest, trained.model, signing_key(self._settings))
        return story_of_round(done, task)

    def _champion(self, version: str) -> Booster | None:
        """None where no worker can load it either: then the constant is what is to be beaten."""
        if version in ("", INITIAL):
            return None
        try:
            return self._load(version)
        except ModelRefusedError as error:
            print(f"champion {version} is not compared with: {error}", file=sys.stderr, flush=True)
            return None


def answer_of(rounds: Rounds, task: RoundTask) -> dict[str, Any]:
    """{"events": [...]}, or {"error": [class, code, message]} of what only another try can mend."""
    try:
        return {"events": [asdict(event) for event in rounds.run(task)]}
    except TidemillError as error:
        return {"error": [type(error).__name__, error.code, error.message]}


def main() -> None:
    """Serve tasks until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    given: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, given), name="parent", daemon=True).start()
    rounds = Rounds(read_line(Settings, given.get()))
    while True:
        print(json.dumps(answer_of(rounds, read_line(RoundTask, given.get()))), file=answers, flush=True)


def _receive(pipe: BinaryIO, given: queue.SimpleQueue[bytes]) -> None:
    """Only the parent holds the other end: when it is gone, so are we, in the midst of a training too."""
    for line in pipe:
        given.put(line)
    os._exit(PARENT_GONE)


if __name__ == "__main__":
    main()
