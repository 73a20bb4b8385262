"""What the user of a `kafka:` block may do, found out without changing anything.

In: client settings and names. Out: operations by name. Invariant: no topic, group, offset or record comes or goes;
what remains is one transactional id, `tidemill.<app>.doctor`, which the broker forgets after a week.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill.io.kafka import REFUSED, REQUEST_TIMEOUT_S, unavailable_unless_answered

PROBE_TOPIC = "tidemill.doctor"  # never made: offsets of it can't be committed, but who may not commit is told so
INIT_TIMEOUT_S = 10.0

_SILENT = logging.Logger("tidemill.doctor")  # a refusal is an answer here, and librdkafka writes it to stderr
_SILENT.addHandler(logging.NullHandler())
_RETRIED = {KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR}


class RightsProbe:
    """One client that asks; `close` it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._admin = AdminClient(dict(settings))

    def topics(self, names: Sequence[str]) -> dict[str, frozenset[str] | None]:
        """Operations by topic; None = it does not exist.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        found: dict[str, frozenset[str] | None] = {}
        with unavailable_unless_answered("describe topics", self._settings):
            self._admin.list_topics(timeout=REQUEST_TIMEOUT_S)  # a wrong password shows here, with its reason
            futures = self._admin.describe_topics(
                TopicCollection(list(names)), include_authorized_operations=True, request_timeout=REQUEST_TIMEOUT_S
            )
            for name, future in futures.items():
                failed = future.exception()
                if failed is None:
                    found[name] = _names_of(future.result().authorized_operations)
                elif _code(failed) == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    found[name] = None
                elif _code(failed) in REFUSED:
                    found[name] = frozenset()
                else:
                    raise failed
        return found

    def may_create(self, name: str) -> bool:
        """Whether a topic of this name could be made; it is not."""
        with unavailable_unless_answered("check a topic's creation", self._settings):
            topic = NewTopic(name, num_partitions=1, replication_factor=-1)
            future = self._admin.create_topics([topic], validate_only=True, request_timeout=REQUEST_TIMEOUT_S)[name]
            failed = future.exception()
            if failed is None or _code(failed) == KafkaError.TOPIC_ALREADY_EXISTS:
                return True
            if _code(failed) in REFUSED:
                return False
            raise failed

    def group(self, name: str) -> frozenset[str]:
        """Operations on a group; one that does not exist yet is probed for Describe and Read."""
        with unavailable_unless_answered(f"describe group {name}", self._settings):
            futures = self._admin.describe_consumer_groups(
                [name], include_authorized_operations=True, request_timeout=REQUEST_TIMEOUT_S
            )
            failed = futures[name].exception()
            if failed is None and futures[name].result().authorized_operations is not None:
                return _names_of(futures[name].result().authorized_operations)
            if failed is not None and _code(failed) in REFUSED:
                return frozenset()
        return frozenset(("Describe", "Read")) if self._may_commit(name) else frozenset(("Describe",))

    def may_write_transactions(self, transactional_id: str) -> bool:
        """Whether a producer of this id may begin; nobody else may use the id, or it would be fenced."""
        producer = Producer({**self._settings, "transactional.id": transactional_id, "logger": _SILENT})
        try:
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as error:
            if _code(error) in REFUSED:
                return False
            with unavailable_unless_answered("begin a transactional producer", self._settings):
                raise
        return True

    def _may_commit(self, group: str) -> bool:
        """Commit an offset of a topic that does not exist: refused for want of a right, or of the topic."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(PROBE_TOPIC, 0, 0)])
        while True:
            future = self._admin.alter_consumer_group_offsets([request], request_timeout=REQUEST_TIMEOUT_S)[group]
            failed = future.exception()
            if failed is None:
                errors = [at.error.code() for at in future.result().topic_partitions if at.error is not None]
            else:
                errors = [_code(failed)]
            if not _RETRIED.intersection(errors) or time.monotonic() > deadline:
                return KafkaError.GROUP_AUTHORIZATION_FAILED not in errors
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the client's threads."""
        del self._admin


def _code(error: BaseException) -> int:
    return int(error.args[0].code()) if isinstance(error, KafkaException) else KafkaError.UNKNOWN


def _names_of(operations: Sequence[Any] | None) -> frozenset[str]:
    """As the rights of docs/own-servers.md are written: DESCRIBE_CONFIGS is DescribeConfigs."""
    return frozenset("".join(word.capitalize() for word in one.name.split("_")) for one in operations or ())
