"""Commands about what the learner learns: freeze, thaw, excise.

In: an app's settings, its examples log. Out: a command in the log that every worker obeys at its offset. Invariant:
nothing is written that a worker could not obey, and who asks hears whether it was obeyed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.apps.clients import clients_of
from tidemill.apps.commands import CommandWriter, role_history
from tidemill.apps.folding import ExampleHistory
from tidemill.apps.models import feature_shape, store_place
from tidemill.config import Settings
from tidemill.core.examples import outside
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Command
from tidemill.core.roles import OffsetRange, Roles, text_of
from tidemill.core.topic_names import examples_topic
from tidemill.errors import ModelRefusedError
from tidemill.io.kafka_reader import LogReader
from tidemill.io.model_snapshots import ModelSnapshots


@dataclass(frozen=True, slots=True)
class Excision:
    """What an excision would change.

    examples, learned: in the range, and how many of them the models have learned. folded_from: workers go back there
    and fold the log again, up to `folded_to` at least.
    """

    range_: OffsetRange
    examples: int
    learned: int
    folded_from: int
    folded_to: int


def plan_excision(settings: Settings, start: int, end: int) -> Excision:
    """Look at the range [start, end) of the examples log; nothing is written.

    Raises:
        ModelRefusedError: TM-5025, the range is empty or not in the log; TM-5005, the log does not go back far enough.
        UnavailableError: Kafka did not answer.
    """
    app, plan = settings.app, FeaturePlan(settings.app)
    clients = clients_of(settings)
    reader = LogReader(clients, examples_topic(settings.app.name), 0)
    try:
        first, behind = reader.first_offset(), reader.end_offset()
    finally:
        reader.close()
    if not first <= start < end <= behind:
        raise ModelRefusedError(
            "TM-5025",
            f"app {app.name}: [{start}, {end}) is no range of its examples log, which holds [{first}, {behind}); "
            f"any reader of the topic {examples_topic(settings.app.name)} shows the offsets",
        )
    excised = role_history(settings).now.excised
    at_most = min(begin for begin, _ in (*excised, (start, end)))
    snapshots = ModelSnapshots(store_place(settings, "snapshots"))
    snapshot = snapshots.newest(app.name, at_most, plan.digest, on_refused=lambda reason: None)
    folded_from = 0 if snapshot is None else snapshot.n
    if folded_from < first:
        raise ModelRefusedError(
            "TM-5005",
            f"app {app.name}: offsets {text_of((start, end))} cannot be excised: the log is needed from {folded_from} "
            f"on, and begins at {first}; restore it, or a snapshot at or before N = {at_most}",
        )
    count = learned = 0
    history = ExampleHistory(clients, examples_topic(settings.app.name), feature_shape(plan))
    for examples, _ in history.parts(start, end):
        count += len(examples)
        learned += int(np.count_nonzero(examples.is_learned & outside(examples.offset, excised)))
    return Excision((start, end), count, learned, folded_from, behind)


def write_learner_command(settings: Settings, kind: str, *, version: str = "", cause: str) -> tuple[Command, Roles]:
    """Write the command; it and the roles after it.

    Raises:
        ModelRefusedError: TM-5024, the champion changed before the command was in the log, so that it is ignored.
    """
    champion = role_history(settings).now.champion
    writer = CommandWriter(settings)
    try:
        command = writer.write(kind, version=version or champion, expects=champion, cause=cause)
    finally:
        writer.close()
    for obeyed, roles in role_history(settings).obeyed:
        if obeyed.offset == command.offset:
            return command, roles
    raise ModelRefusedError(
        "TM-5024",
        f"app {settings.app.name}: {kind} at offset {command.offset} is ignored, because {champion} was no longer the "
        "champion there; give the command again",
    )
