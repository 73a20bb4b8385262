"""Train a booster from the examples log and register it.

In: an app's settings, a range of the examples log. Out: a signed model version in the registry. Invariant: what is
trained is a function of the range, the declaration and the seed; nothing serves before a command in the log says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tidemill.apps.boosters import train_for
from tidemill.apps.clients import clients_of
from tidemill.apps.commands import role_history
from tidemill.apps.models import feature_shape, registry_of, signing_key
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.manifest import Manifest
from tidemill.core.records import Command
from tidemill.core.roles import OffsetRange, RoleHistory
from tidemill.core.topic_names import examples_topic
from tidemill.io.kafka_reader import LogReader
from tidemill.io.wire import decode_examples
from tidemill.models.training_examples import TrainingExamples

READ_RECORDS_MAX = 10_000  # bounds memory: examples are kept as columns, messages are not

OnRead = Callable[[int, int], None]


class ExamplesSoFar:
    """The examples log from an offset on, as far as it was read; one thread owns it, `close` it."""

    def __init__(self, settings: Settings, plan: FeaturePlan, *, offset_start: int = 0) -> None:
        clients = clients_of(settings)
        self.examples = TrainingExamples(plan.numeric_names, plan.category_names)
        self._commands: list[Command] = []
        self._shape = feature_shape(plan)
        self._reader = LogReader(clients, examples_topic(settings.app.name), 0)
        self._reader.seek(max(offset_start, self._reader.first_offset()))

    def read(self, *, offset_next: int | None = None, on_read: OnRead = lambda position, end: None) -> None:
        """Up to an offset; None = to the present end of the log."""
        end = self._reader.end_offset() if offset_next is None else offset_next
        while self._reader.position < end:
            messages = self._reader.read(until_offset=end, timeout_s=1.0, max_records=READ_RECORDS_MAX)
            values, offsets = [m.value() for m in messages], [m.offset() for m in messages]
            found, commands = decode_examples(values, offsets, self._shape)
            self._commands += commands
            if len(found):
                self.examples.append(found)
            on_read(self._reader.position, end)

    def excised(self, *, offset_next: int | None = None) -> tuple[OffsetRange, ...]:
        """Ranges that commands before `offset_next` took out; known only to who has read from the log's start."""
        commands = [one for one in self._commands if offset_next is None or one.offset < offset_next]
        return RoleHistory.of(commands).now.excised

    def close(self) -> None:
        self._reader.close()


def read_training_examples(
    settings: Settings,
    plan: FeaturePlan,
    *,
    offset_start: int = 0,
    offset_next: int | None = None,
    on_read: OnRead = lambda position, end: None,
) -> TrainingExamples:
    """The examples at offsets [offset_start, offset_next) that teach; None = up to the end of the log."""
    log = ExamplesSoFar(settings, plan, offset_start=offset_start)
    try:
        log.read(offset_next=offset_next, on_read=on_read)
    finally:
        log.close()
    return log.examples


def train(
    settings: Settings,
    *,
    offset_start: int = 0,
    offset_next: int | None = None,
    before_ms: int | None = None,
    cause: str,
    threads: int | None = None,
    on_read: OnRead = lambda position, end: None,
    on_round: Callable[[int, float], None] | None = None,
) -> Manifest:
    """Read, train, sign, register; the new version's manifest.

    What the log took out (`excise`) and the declared holdout are left out, as when the trainer trains.

    Args:
        before_ms: only examples whose label came before this event time.
        on_round: hears the round and its log loss on the newest examples.
    Raises:
        ModelRefusedError: too few examples, or of one class only.
    """
    app, plan = settings.app, FeaturePlan(settings.app)
    examples = read_training_examples(
        settings, plan, offset_start=offset_start, offset_next=offset_next, on_read=on_read
    )
    roles = role_history(settings).now
    trained = train_for(
        app,
        plan,
        examples.rows(
            before_ms=before_ms, excised=roles.excised, holdout=0.0 if app.retrain is None else app.retrain.holdout
        ),
        parent=roles.champion,
        cause=cause,
        created=round(time.time() * 1_000),
        threads=threads or os.cpu_count() or 1,
        on_round=on_round,
    )
    registry_of(settings).put(trained.manifest, trained.model, signing_key(settings))
    return trained.manifest
