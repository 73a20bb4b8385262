"""The topics of an app: inputs, outputs, dead letters.

In: an app's settings. Out: topics that exist. Invariant: topics that exist already are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.apps.clients import clients_of
from tidemill.config import Settings
from tidemill.core.spec import AppSpec
from tidemill.core.topic_names import (
    alerts_topic,
    commits_topic,
    dead_letter_topic,
    drift_topic,
    examples_topic,
    metrics_topic,
    models_topic,
    predictions_topic,
)
from tidemill.errors import ConfigError
from tidemill.io import kafka

PREDICTION_PARTITIONS = 4  # readers of predictions scale by it; examples and commits are one ordered log each
TOPIC_CONFIG = {
    "retention.ms": "-1",  # the logs are the app's memory, and records with old event times must stay
    "max.message.bytes": str(kafka.MESSAGE_BYTES_MAX),
    kafka.TIMESTAMP_AFTER_MAX: str(2**63 - 1),  # a dead letter has the stamp of its original
}
# An hour, Kafka 4's default: clocks of producers differ by less, and one stamp further ahead (microseconds, say) would
# end every wait and make all later records late, for good.
STAMP_AHEAD_MS_MAX = 3_600_000
INPUT_CONFIG = TOPIC_CONFIG | {kafka.TIMESTAMP_AFTER_MAX: str(STAMP_AHEAD_MS_MAX)}
COMPACTED_CONFIG = TOPIC_CONFIG | {"cleanup.policy": "compact"}


def loop_topics(app: AppSpec) -> tuple[str, ...]:
    """What monitor, trainer and people tell each other: one ordered log each."""
    return alerts_topic(app.name), drift_topic(app.name), models_topic(app.name)


def output_topics(app: AppSpec) -> dict[str, int]:
    """Partition counts of the topics that Tidemill writes, by name."""
    counts = {
        predictions_topic(app.name): PREDICTION_PARTITIONS,
        examples_topic(app.name): 1,
        commits_topic(app.name): 1,
    }
    return counts | {dead_letter_topic(topic.name): 1 for topic in app.topics}


def app_topics(app: AppSpec) -> dict[str, int]:
    """Partition counts of every topic of the app, by name."""
    return {topic.name: topic.partitions for topic in app.topics} | output_topics(app)


def ensure_output_topics(settings: Settings) -> list[str]:
    """Create what a worker writes and is missing; the names that were created. Inputs are their producers' matter."""
    return _ensure(settings, output_topics(settings.app))


def ensure_app_topics(settings: Settings) -> list[str]:
    """Create what is missing, inputs included; the names that were created.

    Raises:
        UnavailableError: TM-3010, Kafka did not create them.
    """
    app = settings.app
    created = _ensure(settings, {topic.name: topic.partitions for topic in app.topics}, INPUT_CONFIG)
    return created + _ensure(settings, output_topics(app))


def ensure_metrics_topic(settings: Settings) -> None:
    """Create what the monitor writes, if it is missing."""
    _ensure(settings, {metrics_topic(settings.app.name): 1}, COMPACTED_CONFIG)


def ensure_loop_topics(settings: Settings) -> list[str]:
    """Create the loop's topics that are missing; the names that were created."""
    return _ensure(settings, dict.fromkeys(loop_topics(settings.app), 1))


def _ensure(settings: Settings, topics: Mapping[str, int], config: Mapping[str, str] = TOPIC_CONFIG) -> list[str]:
    assert settings.bootstrap_servers is not None
    clients = clients_of(settings)
    return kafka.ensure_topics(clients, topics, config)


def refuse_used_topics(settings: Settings) -> None:
    """A run that is to be counted from its first record needs empty topics.

    Raises:
        ConfigError: TM-1311, a topic of the app holds records.
    """
    assert settings.bootstrap_servers is not None
    clients = clients_of(settings)
    partitions = kafka.partitions_of(clients, list(app_topics(settings.app)))
    for partition, (start, end) in kafka.log_bounds(clients, partitions).items():
        if end > start:
            raise ConfigError(
                "TM-1311",
                f"{partition} at {settings.bootstrap_servers} holds {end - start} records of an earlier run; delete "
                "the topics of the app, its consumer group and its keys in the store, or use other servers",
            )
