"""The product without one of its guards: what the simulation must notice.

In: the name of a guard. Out: a context in which the product lacks it. Invariant: a mutant changes one thing, and the
oracle knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from tests.simulation.clients import SimulatedReader, SimulatedStore
from tests.simulation.world import WALL_MS
from tidemill.apps.claims import Claims
from tidemill.apps.cycle import Cycle
from tidemill.apps.engine import Engine
from tidemill.apps.folding import ExampleFold
from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, PaneDelta, Partition
from tidemill.core.state import merge_pane
from tidemill.io import memory
from tidemill.io.memory import MemoryStore

Mutant = Callable[[ExitStack], None]


def no_owner_check(stack: ExitStack) -> None:
    """Whoever stands at the right position may write."""
    _replace(stack, MemoryStore, "_check_owner", lambda self, partition: None)


def no_read_set(stack: ExitStack) -> None:
    """Rows may have changed since they were read."""
    commit = MemoryStore.commit

    def without(self: MemoryStore, given: Commit) -> Applied | Conflict:
        rows = self._backend.rows
        seen = {id_: memory.revision_of(rows.get(id_)) for id_ in given.read_set}
        return commit(self, replace(given, read_set=seen))

    _replace(stack, MemoryStore, "commit", without)


def no_outbox(stack: ExitStack) -> None:
    """A claim takes what was applied for published."""

    def forget(self: Claims, view: Any, partition: Partition, slices: Sequence[Any], group_metadata: object) -> int:
        return int(slices[-1][1])

    _replace(stack, Claims, "_send", forget)


def kafka_first(stack: ExitStack) -> None:
    """A batch is published before the store has taken it."""
    commit = SimulatedStore.commit

    def publish_before(self: SimulatedStore, given: Commit) -> Applied | Conflict:
        process = self._world.running
        outputs = process.stepped.outputs if process.stepped.commit is given else {}
        if outputs:
            spans = {partition: span for partition, span in given.spans.items() if partition in outputs}
            process.engine._publishing.publish(outputs, spans, given.slices)
        return commit(self, given)

    class Silent:
        def publish(self, *given: object) -> None:
            """It is published already."""

    begin = Cycle.__init__

    def init(self: Cycle, **given: Any) -> None:
        begin(self, **{**given, "publisher": Silent()})

    _replace(stack, SimulatedStore, "commit", publish_before)
    _replace(stack, Cycle, "__init__", init)


def uncommitted_reads(stack: ExitStack) -> None:
    """Readers see transactions that are open or were aborted."""
    _replace(stack, SimulatedReader, "is_committed_only", False)


def fold_twice(stack: ExitStack) -> None:
    """After a claim the examples log is folded from an earlier offset again."""
    catch_up = ExampleFold.catch_up

    def again(self: ExampleFold) -> None:
        if self._serving.n:
            self._serving.n -= 2
            self.reader.seek(self._serving.n)
        catch_up(self)

    _replace(stack, ExampleFold, "catch_up", again)


def wall_clock_lateness(stack: ExitStack) -> None:
    """Rows are due by the clock of the machine."""
    _replace(stack, Engine, "_group_watermark", lambda self: WALL_MS)


def float_state(stack: ExitStack) -> None:
    """Sums are kept as float32."""

    def merge(state: bytes, delta: PaneDelta) -> bytes:
        merged = bytearray(merge_pane(state, delta))
        for cell in range(len(delta.cells)):
            first = 8 * (delta.word + 1 + cell)
            word = int.from_bytes(merged[first : first + 8], "big", signed=True)
            merged[first : first + 8] = int(np.float32(word)).to_bytes(8, "big", signed=True)
        return bytes(merged)

    _replace(stack, memory, "merge_pane", merge)


def no_group_watermark(stack: ExitStack) -> None:
    """A worker looks at its own partitions alone."""

    def own(self: Engine) -> int:
        marks = self.progress.marks
        return min((marks[p].watermark for p in self._positions if p in marks), default=-1)

    _replace(stack, Engine, "_group_watermark", own)


MUTANTS: Mapping[str, Mutant] = {
    name.__name__.replace("_", "-"): name
    for name in (
        no_owner_check,
        no_read_set,
        no_outbox,
        kafka_first,
        uncommitted_reads,
        fold_twice,
        wall_clock_lateness,
        float_state,
        no_group_watermark,
    )
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """While it is open the product lacks the guard; None = it is whole."""
    with ExitStack() as stack:
        if name is not None:
            MUTANTS[name](stack)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, by: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, by))
