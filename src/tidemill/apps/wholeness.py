"""Is the state of the app whole, or is a part of it still being rebuilt? Nobody scores from a hole in silence.

In: what the group had committed when this worker claimed, and the marks of all partitions. Out: a wait, or predictions
flagged `degraded`, as declared by `worker: {when_behind: ...}`. Invariant: state lacks something exactly while a
partition's store position is before the offset that the group committed for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tidemill.apps.patience import Patience
from tidemill.core.ports import Scorer
from tidemill.core.records import FeatureBatch, Mark, Partition, Scores
from tidemill.errors import FencedError, UnavailableError

WhenBehind = Literal["stop", "degraded"]
LOOK_EVERY_S = 0.05  # one small script
TELL_EVERY_S = 10.0
REBUILT_WITHIN_S = 600.0  # without progress; who rebuilds reads snapshots and whole logs before the first record


class Wholeness:
    """The compute thread owns it."""

    def __init__(self, when_behind: WhenBehind, report: Callable[[str], None]) -> None:
        self._when_behind = when_behind
        self._report = report
        self._behind: dict[Partition, int] = {}  # what each has to reach

    @property
    def is_whole(self) -> bool:
        return not self._behind

    def begin(self, committed: Mapping[Partition, int | None], marks: Mapping[Partition, Mark]) -> None:
        """After a claim; `committed` are the group's offsets of all partitions of the app, None = never."""
        self._behind = _behind({partition: at for partition, at in committed.items() if at}, marks)
        if self._behind:
            word = "waiting for them" if self._when_behind == "stop" else "going on, flagged degraded"
            self._report(f"{len(self._behind)} partitions of other workers are still being rebuilt: {word}")

    def see(self, marks: Mapping[Partition, Mark]) -> None:
        """Marks as of now; a partition that was whole once since the claim stays so."""
        if self._behind:
            self._behind = _behind(self._behind, marks)
            if not self._behind:
                self._report("the state of all partitions is whole again")

    def wait(self, marks: Callable[[], Mapping[Partition, Mark]], is_current: Callable[[], bool]) -> None:
        """With `stop`: come back when all is whole. With `degraded`: at once.

        Raises:
            FencedError: the group took partitions away meanwhile.
            UnavailableError: TM-3017 nobody rebuilds them.
        """
        told = time.monotonic()
        patience = Patience(REBUILT_WITHIN_S)
        while self._behind and self._when_behind == "stop":
            if not is_current():
                raise FencedError("TM-4002", "partitions were taken away while others were being rebuilt")
            if time.monotonic() > told + TELL_EVERY_S:
                told = time.monotonic()
                self._report(f"still waiting for {', '.join(map(str, sorted(self._behind)[:5]))} to be rebuilt")
            time.sleep(LOOK_EVERY_S)
            now = marks()
            self.see(now)
            if patience.is_over({partition: now[partition].applied for partition in self._behind if partition in now}):
                raise UnavailableError(
                    "TM-3017",
                    f"{', '.join(map(str, sorted(self._behind)[:5]))} have to be rebuilt and came no further in "
                    f"{REBUILT_WITHIN_S:g} s; does the worker that owns them run, and what does it say?",
                )


def _behind(goals: Mapping[Partition, int], marks: Mapping[Partition, Mark]) -> dict[Partition, int]:
    return {partition: at for partition, at in goals.items() if partition not in marks or marks[partition].applied < at}


class FlaggedScorer:
    """A scorer whose scores are flagged `degraded` while state is not whole. Fulfils `core.ports.Scorer`."""

    def __init__(self, scorer: Scorer, wholeness: Wholeness) -> None:
        self._scorer = scorer
        self._wholeness = wholeness

    @property
    def n(self) -> int:
        return self._scorer.n

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        scores = self._scorer.score(features, ids)
        return scores if self._wholeness.is_whole else replace(scores, is_degraded=True)
