"""Train a booster from the examples log and register it.

In: an app's settings, a range of the examples log. Out: a signed model version in the registry. Invariant: what is
trained is a function of the range, the declaration and the seed; nothing serves before a command in the log says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tidemill.apps.boosters import train_for
from tidemill.apps.commands import examples_topic, role_history
from tidemill.apps.models import feature_shape, registry_of, signing_key
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.manifest import Manifest
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogReader
from tidemill.io.wire import decode_examples
from tidemill.models.training_examples import TrainingExamples

READ_RECORDS_MAX = 10_000  # bounds memory: examples are kept as columns, messages are not


def read_training_examples(
    settings: Settings,
    plan: FeaturePlan,
    *,
    offset_start: int = 0,
    offset_next: int | None = None,
    on_read: Callable[[int, int], None] = lambda position, end: None,
) -> TrainingExamples:
    """The examples at offsets [offset_start, offset_next) that teach; None = up to the end of the log."""
    clients = kafka.client_settings(settings.bootstrap_servers or "", settings.kafka)
    examples = TrainingExamples(plan.numeric_names, plan.category_names)
    reader = LogReader(clients, examples_topic(settings), 0)
    try:
        end = reader.end_offset() if offset_next is None else offset_next
        reader.seek(max(offset_start, reader.first_offset()))
        while reader.position < end:
            messages = reader.read(until_offset=end, timeout_s=1.0, max_records=READ_RECORDS_MAX)
            values, offsets = [m.value() for m in messages], [m.offset() for m in messages]
            found, _ = decode_examples(values, offsets, feature_shape(plan))
            if len(found):
                examples.append(found)
            on_read(reader.position, end)
    finally:
        reader.close()
    return examples


def train(
    settings: Settings,
    *,
    offset_start: int = 0,
    offset_next: int | None = None,
    before_ms: int | None = None,
    cause: str,
    threads: int | None = None,
    on_read: Callable[[int, int], None] = lambda position, end: None,
    on_round: Callable[[int, float], None] | None = None,
) -> Manifest:
    """Read, train, sign, register; the new version's manifest.

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
    trained = train_for(
        app,
        plan,
        examples.rows(before_ms=before_ms),
        parent=role_history(settings).now.champion,
        cause=cause,
        created=round(time.time() * 1_000),
        threads=threads or os.cpu_count() or 1,
        on_round=on_round,
    )
    registry_of(settings).put(trained.manifest, trained.model, signing_key(settings))
    return trained.manifest
