"""A worker without one guard, or with an accident at an exact place: `mutant_worker MUTATION ACCIDENT worker ...`.

In: a mutation of `MUTATIONS` or "none", an accident or "none", then a command line of tidemill. Out: that command.
Invariant: what is not named stays the product's own.

An accident is `PLACE:ACTION@PASS`. Places: F1, F2, F4, F8 as in `apps/failpoints.py`; T, outputs and offsets are with
the broker, the transaction is not committed; C, before the script of a commit without ids, which no read set
protects (the worker then takes batches of 5, so that there are some). Actions: kill; stop, until somebody sends CONT;
gate: if `gate.armed` is in the data folder, write `gate.reached`, wait for `gate.open`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidemill.apps import cli, engine
from tidemill.apps.claims import Claims
from tidemill.apps.cycle import Cycle
from tidemill.apps.worker import Worker
from tidemill.core.pipeline import Pipeline
from tidemill.io import kafka_reader, redis_store
from tidemill.io.kafka_writer import TransactionalWriter

GATE_DEADLINE_S = 30.0


class Accident:
    """Happens at one pass of one place."""

    def __init__(self, text: str, folder: Path) -> None:
        self.place, _, rest = text.partition(":")
        self._action, _, at = rest.partition("@")
        self._at = int(at or 1)
        self._folder = folder
        self._passes: Counter[str] = Counter()

    def at(self, place: str) -> None:
        if place != self.place:
            return
        if self._action == "gate":
            self._wait_at_gate()
            return
        self._passes[place] += 1
        if self._passes[place] == self._at:
            os.kill(os.getpid(), signal.SIGKILL if self._action == "kill" else signal.SIGSTOP)

    def _wait_at_gate(self) -> None:
        if not (self._folder / "gate.armed").exists() or (self._folder / "gate.open").exists():
            return
        (self._folder / "gate.reached").touch()
        deadline = time.monotonic() + GATE_DEADLINE_S
        while not (self._folder / "gate.open").exists() and time.monotonic() < deadline:
            time.sleep(0.005)


def without_guards(*names: str) -> Callable[[Accident], None]:
    """The commit script lets through what these guards refuse."""

    def mutate(accident: Accident) -> None:
        intact = redis_store.load_script

        def load_script(name: str) -> str:
            source = intact(name)
            for guard in names if name == "commit" else ():
                source, cuts = re.subn(rf"-- guard: {guard}\n.*?-- end guard\n", "", source, flags=re.DOTALL)
                assert cuts == 1, f"commit.lua has no guard {guard!r}"
            return source

        redis_store.load_script = load_script

    return mutate


def drop_outbox(accident: Accident) -> None:
    """A claim believes that what the store applied is published."""

    def forget(self: Claims, view: Any, partition: Any, slices: Any, group_metadata: Any) -> int:
        end: int = slices[-1][1]
        return end

    Claims._send = forget  # type: ignore[method-assign]


def publish_first(accident: Accident) -> None:
    """Kafka before the store: what is published may then be refused."""
    newest: dict[str, Any] = {}
    step, begin = Pipeline.step, Cycle.__init__

    def remember(self: Pipeline, *arguments: Any) -> Any:
        newest["outcome"] = outcome = step(self, *arguments)
        return outcome

    class PublishingStore:
        def __init__(self, store: Any, publisher: Any) -> None:
            self._store, self._publisher = store, publisher

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def commit(self, commit: Any) -> Any:
            outputs = newest["outcome"].outputs
            if outputs:
                spans = {p: span for p, span in commit.spans.items() if p in outputs}
                self._publisher.publish(outputs, spans, commit.slices)
            return self._store.commit(commit)

    class Silent:
        def publish(self, *arguments: Any) -> None:
            """It is published already."""

    def init(self: Cycle, *, store: Any, publisher: Any, **others: Any) -> None:
        begin(self, store=PublishingStore(store, publisher), publisher=Silent(), **others)

    Pipeline.step = remember  # type: ignore[method-assign]
    Cycle.__init__ = init  # type: ignore[method-assign]


def read_uncommitted(accident: Accident) -> None:
    """The fold reads what a transaction has not committed, and what it has aborted."""
    intact = kafka_reader.Consumer

    def consumer(settings: Mapping[str, Any]) -> Any:
        return intact({**settings, "isolation.level": "read_uncommitted"})

    kafka_reader.Consumer = consumer


MUTATIONS: dict[str, Callable[[Accident], None]] = {
    "none": lambda accident: None,
    "claims": without_guards("owner", "position"),
    "read-set": without_guards("read set"),
    "outbox": drop_outbox,
    "kafka-first": publish_first,
    "uncommitted": read_uncommitted,
}


def bring_about(accident: Accident) -> None:
    """Let the product pass the places of the accident."""
    call = TransactionalWriter._call

    def pass_by(self: TransactionalWriter, what: str, request: Any) -> None:
        if what == "commit":
            self._producer.flush()
            accident.at("T")
        call(self, what, request)

    step = Pipeline.step

    def without_ids(self: Pipeline, *arguments: Any) -> Any:
        outcome = step(self, *arguments)
        if outcome.commit.pane_deltas and not outcome.commit.read_set:
            accident.at("C")
        return outcome

    TransactionalWriter._call = pass_by  # type: ignore[method-assign]
    engine.failpoint = accident.at
    if accident.place == "C":
        Pipeline.step = without_ids  # type: ignore[method-assign]
        begin = Worker.__init__

        def init(self: Worker, *arguments: Any, **named: Any) -> None:
            begin(self, *arguments, **named)
            self.batch_records = 5

        Worker.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    mutation, accident_text, *command = sys.argv[1:]
    folder = Path(command[command.index("--data") + 1])
    accident = Accident(accident_text, folder)
    MUTATIONS[mutation](accident)
    bring_about(accident)
    sys.argv = ["tidemill", *command]
    cli.main()


if __name__ == "__main__":
    main()
