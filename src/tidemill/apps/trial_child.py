"""What runs in the process that tries suspicious records: decode them or score them, and see who dies.

In: on stdin the settings, then one `TrialTask` after the other, a line of JSON each. Out: for each, one `TrialResult`
on stdout. Invariant: each try runs in a process of its own, forked from this one, which has no second thread and
decodes and scores nothing itself; so whatever a record does, this process lives and says so. It ends with its parent.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from tidemill.apps.handover import read_line, write_line
from tidemill.apps.models import booster_loader
from tidemill.apps.schema_lookup import open_schemas
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.io.model_snapshots import unpack_snapshot
from tidemill.io.trial_files import read_features, read_records, rows_of
from tidemill.io.wire import InputDecoder
from tidemill.models.serving import Serving

TRY_DEADLINE_S = 20.0  # a try takes milliseconds; one that hangs must not hold the stream for longer
LOOK_AGAIN_S = 0.002


@dataclass(frozen=True, slots=True)
class TrialTask:
    """One try. `file`: as `io.trial_files` writes it; `models`: a packed snapshot, for "score"."""

    what: Literal["decode", "score"]
    file: str
    positions: tuple[int, ...]
    models: str = ""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """signal: what ended the try, 0 = nothing. problem: why the try says nothing, "" = it does."""

    signal: int
    problem: str = ""


class Trials:
    """Prepares and runs the tries of one app."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plan = FeaturePlan(settings.app)
        self._decoder = InputDecoder(settings.app, schemas=open_schemas(settings, lambda _: None))
        self._serving: tuple[str, Serving] | None = None

    def run(self, task: TrialTask) -> TrialResult:
        """The try's end; a plain error of Python is no death: the worker will meet it too, and live."""
        try:
            return run_apart(self._decode(task) if task.what == "decode" else self._score(task))
        except Exception as error:
            return TrialResult(0, f"{type(error).__name__}: {error}")

    def _decode(self, task: TrialTask) -> Callable[[], object]:
        records = read_records(Path(task.file))
        chosen = [records[position] for position in task.positions]
        return lambda: self._decoder.decode(chosen, {})

    def _score(self, task: TrialTask) -> Callable[[], object]:
        features, ids = read_features(Path(task.file))
        chosen, chosen_ids = rows_of(features, task.positions), [ids[position] for position in task.positions]
        serving = self._serving_of(task.models)
        return lambda: serving.score(chosen, chosen_ids)

    def _serving_of(self, models: str) -> Serving:
        if self._serving is None or self._serving[0] != models:
            app, plan = self._settings.app, self._plan
            serving = Serving(
                app,
                plan.numeric_names,
                plan.category_names,
                feature_digest=plan.digest,
                load=booster_loader(self._settings, plan),
                history=_NoHistory(),
                snapshot=unpack_snapshot(Path(models).read_bytes(), models),
            )
            self._serving = (models, serving)
        return self._serving[1]


class _NoHistory:
    """A try folds nothing, so nothing is looked back at. Fulfils `models.replica.History`."""

    def first_offset(self) -> int:
        return 0

    def parts(self, start: int, end: int) -> tuple[()]:
        return ()


def run_apart(work: Callable[[], object]) -> TrialResult:
    """Do the work in a forked process; how that process ended."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # a death is an answer here, not news
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    deadline = time.monotonic() + TRY_DEADLINE_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return TrialResult(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return TrialResult(0, f"it did not end within {TRY_DEADLINE_S:.0f} s")
        time.sleep(LOOK_AGAIN_S)


def main() -> None:
    """Serve tasks until stdin ends; then delete the folders that are the arguments."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _serve(sys.stdin.buffer, answers)
    finally:  # the parent is gone, and with it who would delete the records that it left there
        for folder in sys.argv[1:]:
            shutil.rmtree(folder, ignore_errors=True)


def _serve(given: BinaryIO, answers: BinaryIO) -> None:
    trials: Trials | None = None
    for line in given:
        if trials is None:
            trials = Trials(read_line(Settings, line))
            continue
        answers.write(write_line(TrialResult, trials.run(read_line(TrialTask, line))))
        answers.flush()


if __name__ == "__main__":
    main()
