"""The names of the topics that Tidemill writes: `<app>.<kind>.v1`, and `<input>.dlq` beside each input.

In: the name of an app, or of an input. Out: the name of a topic. Invariant: no other module puts such a name together.
"""

from __future__ import annotations


def predictions_topic(app: str) -> str:
    """What was served, by id."""
    return f"{app}.predictions.v1"


def examples_topic(app: str) -> str:
    """Features as served with their labels, and commands: all that the models are made of, in order."""
    return f"{app}.examples.v1"


def commits_topic(app: str) -> str:
    """What each batch did with its input partitions, in order."""
    return f"{app}.commits.v1"


def metrics_topic(app: str) -> str:
    """The monitor's rows: the newest value of a key is what counts."""
    return f"{app}.metrics.v1"


def alerts_topic(app: str) -> str:
    """The alarm topic: every record of every incident, people's acknowledgements among them."""
    return f"{app}.alerts.v1"


def drift_topic(app: str) -> str:
    """What the monitor found, a tick a record."""
    return f"{app}.drift.v1"


def models_topic(app: str) -> str:
    """The story of the models, as the trainer tells it."""
    return f"{app}.models.v1"


def redrives_topic(app: str) -> str:
    """Which dead letters were sent again, by id."""
    return f"{app}.redrives.v1"


def dead_letter_topic(input_topic: str) -> str:
    """The records of an input that could not be processed."""
    return f"{input_topic}.dlq"


def written_topics(app: str) -> frozenset[str]:
    """All but the dead letters: no input may have such a name."""
    named = (predictions_topic, examples_topic, commits_topic, metrics_topic, alerts_topic, drift_topic, models_topic)
    return frozenset(name(app) for name in (*named, redrives_topic))
