"""Commands in the examples log: who may change models, and what the log says was changed.

In: an app's settings. Out: commands as committed records; the history of roles. Invariant: one writer at a time: a
second one fences the first, and every command names the champion that it was made for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.apps.clients import clients_of
from tidemill.config import Settings, config_digest
from tidemill.core.records import Command, Output
from tidemill.core.roles import RoleHistory
from tidemill.core.topic_names import examples_topic
from tidemill.errors import ModelRefusedError
from tidemill.io.kafka_reader import read_topic
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.redis_store import RedisStore
from tidemill.io.wire import Encoder, decode_commands

LOAD_TIMEOUT_S = 30.0  # an artifact of a few MB over a slow link; who lacks it then serves the old one, degraded
ASK_AGAIN_S = 0.02


def role_history(settings: Settings) -> RoleHistory:
    """Every command of the log, read from its start: a second per million examples."""
    clients = clients_of(settings)
    commands: list[Command] = []
    for messages in read_topic(clients, examples_topic(settings.app.name)):
        commands += decode_commands([m.value() for m in messages], [m.offset() for m in messages])
    return RoleHistory.of(commands)


class CommandWriter:
    """Writes commands; `close` it."""

    def __init__(self, settings: Settings) -> None:
        self._topic = examples_topic(settings.app.name)
        clients = clients_of(settings)
        self._writer = TransactionalWriter(clients, f"tidemill.{settings.app.name}.commands")
        self._writer.open()
        self._encoder = Encoder("command.v1")

    def write(self, kind: str, *, version: str, expects: str, cause: str) -> Command:
        """One command in a transaction of its own."""
        command = Command(-1, str(uuid.uuid4()), kind, expects, version, cause, round(time.time() * 1_000))
        value = self._encoder.encode({name: [given] for name, given in command._asdict().items() if name != "offset"})
        output = Output(self._topic, command.id.encode(), value[0])
        return command._replace(offset=self._writer.publish([output], {}, None)[self._topic])

    def close(self) -> None:
        self._writer.abandon()


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion came to. lacking: slots that had not loaded the version in time; they serve the old one."""

    prepared: Command
    promoted: Command
    lacking: tuple[str, ...]


def promote(
    settings: Settings,
    version: str,
    *,
    cause: str,
    writer: CommandWriter,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    expects: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Promotion:
    """Prepare the version, wait until every worker has it, promote it.

    Raises:
        ModelRefusedError: TM-5021, it is the champion already.
    """
    champion = role_history(settings).now.champion if expects is None else expects
    if version == champion:
        raise ModelRefusedError("TM-5021", f"{version} is the champion of app {settings.app.name} already")
    assert settings.redis_url is not None
    store = RedisStore(
        settings.redis_url, settings.app.name, owner_slot="commands", config_digest=config_digest(settings.app)
    )
    try:
        store.forget_loaded(version)
        prepared = writer.write("prepare", version=version, expects=champion, cause=cause)
        report(f"prepare {version} at offset {prepared.offset}")
        deadline = time.monotonic() + load_timeout_s
        while (lacking := _owners(store) - store.loaded_slots(version)) and time.monotonic() < deadline:
            time.sleep(ASK_AGAIN_S)
        promoted = writer.write("promote", version=version, expects=champion, cause=cause)
        report(f"promote {version} at offset {promoted.offset}; the parent is {champion}")
        return Promotion(prepared, promoted, tuple(sorted(lacking)))
    finally:
        store.close()


def _owners(store: RedisStore) -> frozenset[str]:
    """The slots of the workers that own a partition."""
    return frozenset(mark.owner.partition(":")[0] for mark in store.marks().values() if mark.owner)
