"""The topics of an app: inputs, outputs, dead letters.

In: an app's settings. Out: topics that exist. Invariant: topics that exist already are left as they are.
"""

from __future__ import annotations

from tidemill.config import Settings
from tidemill.core.spec import AppSpec
from tidemill.io import kafka

PREDICTION_PARTITIONS = 4  # readers of predictions scale by it; examples and commits are one ordered log each
TOPIC_CONFIG = {
    "retention.ms": "-1",  # the logs are the app's memory, and records with old event times must stay
    "max.message.bytes": str(kafka.MESSAGE_BYTES_MAX),
}


def app_topics(app: AppSpec) -> dict[str, int]:
    """Partition counts of every topic of the app, by name."""
    counts = {topic.name: topic.partitions for topic in app.topics}
    counts |= {
        f"{app.name}.predictions.v1": PREDICTION_PARTITIONS,
        f"{app.name}.examples.v1": 1,
        f"{app.name}.commits.v1": 1,
    }
    return counts | {f"{topic.name}.dlq": 1 for topic in app.topics}


def ensure_app_topics(settings: Settings) -> list[str]:
    """Create what is missing; the names that were created.

    Raises:
        UnavailableError: TM-3010, Kafka did not create them.
    """
    assert settings.bootstrap_servers is not None
    clients = kafka.client_settings(settings.bootstrap_servers, settings.kafka)
    return kafka.ensure_topics(clients, app_topics(settings.app), TOPIC_CONFIG)
