"""One cycle: fold, read, step, commit, publish. The order is the guarantee; everything else is elsewhere.

In: a batch of one worker. Out: the effects in the store, then in Kafka, once. Invariant: nothing is published that the
store has not applied, and nothing the store applied is forgotten: its outputs stay in the outbox until Kafka has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tidemill.core.batches import split_batch
from tidemill.core.pipeline import Pipeline, StepOutcome, Turn
from tidemill.core.ports import Conflict, Scorer, Store
from tidemill.core.records import Mark, Output, Partition, Span
from tidemill.errors import FencedError

CONFLICTS_MAX = 3  # another worker touched the same ids; three in a row mean contention, so the batch is cut
BLOCKED_POLL_S = 0.005  # how often to ask whether another worker has published the prediction that a label judges


class Publisher(Protocol):
    """Sends the outputs of a commit and the input offsets as one transaction."""

    def publish(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        spans: Mapping[Partition, Span],
        slices: Mapping[Partition, bytes],
    ) -> None: ...


@dataclass(slots=True)
class CycleReport:
    """What a cycle did, for counters and the watchdog. Times are seconds of wall clock."""

    outcome: StepOutcome
    marks: Mapping[Partition, Mark]
    records: int
    seconds_by_stage: dict[str, float]
    dead_letter_codes: list[str] = field(default_factory=list)


class Cycle:
    """Runs turns; one thread owns it."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        store: Store,
        scorer: Scorer,
        publisher: Publisher,
        fold: Callable[[], None],
        is_current: Callable[[], bool],
        failpoint: Callable[[str], None],
    ) -> None:
        """`fold` brings the scorer up to the examples log; `is_current` says whether the batch's partitions are still
        ours: asked before the script, never between script and transaction."""
        self._pipeline = pipeline
        self._store = store
        self._scorer = scorer
        self._publisher = publisher
        self._fold = fold
        self._is_current = is_current
        self._failpoint = failpoint

    def run(self, turn: Turn) -> list[CycleReport]:
        """Process the whole turn; several commits when another worker forces a cut.

        Raises:
            FencedError: the batch is no longer ours; nothing more of it may be done here.
            UnavailableError: a server did not answer; the caller must claim again.
        """
        reports = []
        parts = [turn]  # what is left of the turn, the next part last
        while parts:
            reports.append(self._run_part(parts))
        return reports

    def _run_part(self, parts: list[Turn]) -> CycleReport:
        turn = parts.pop()
        clock = _StageClock()
        self._failpoint("F1")
        self._fold()
        clock.lap("fold")
        conflicts = 0
        while True:
            if not self._is_current():
                raise FencedError("TM-4001", "the partitions of this batch were taken away before its commit")
            reads = self._pipeline.reads(turn)
            view = self._store.read(reads)
            clock.lap("read")
            outcome = self._pipeline.step(turn, reads, view, self._scorer)
            clock.lap("step")
            if outcome.blocked_at == 0:
                time.sleep(BLOCKED_POLL_S)
                continue
            if outcome.blocked_at > 0:
                turn = self._cut(turn, outcome.blocked_at, parts)
                continue
            if not outcome.commit.spans:
                return CycleReport(outcome, view.marks, 0, clock.seconds)
            self._failpoint("F2")
            result = self._store.commit(outcome.commit)
            if not isinstance(result, Conflict):
                break
            conflicts += 1
            if conflicts >= CONFLICTS_MAX:
                contested = self._pipeline.first_position(turn, frozenset(result.ids))
                if contested > 0:
                    turn = self._cut(turn, contested, parts)
                conflicts = 0
        self._failpoint("F4")
        clock.lap("commit")
        if outcome.outputs:
            spans = {p: span for p, span in outcome.commit.spans.items() if p in outcome.outputs}
            self._publisher.publish(outcome.outputs, spans, outcome.commit.slices)
            self._failpoint("F8")
            clock.lap("publish")
            marks = self._store.mark_published({p: span.next for p, span in spans.items()})
            clock.lap("mark")
        else:
            marks = result.marks
        codes = [letter.code for _, letter in turn.batch.dead_letters]
        return CycleReport(outcome, marks, len(turn.batch), clock.seconds, codes)

    def _cut(self, turn: Turn, position: int, parts: list[Turn]) -> Turn:
        """The part of the turn before `position`; the rest goes back to `parts`."""
        head, tail = split_batch(turn.batch, position, self._pipeline.topic_names)
        parts.append(replace(turn, batch=tail))
        return replace(turn, batch=head)


class _StageClock:
    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
