"""What an app has done and where it stands, from its topics and its store.

In: settings with servers. Out: a `Status` of plain values, the same for the table and for JSON. Invariant: both
balances are made of numbers counted apart: outcomes from the commits log, predictions from their topic, open rows from
the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.engine import worker_group
from tidemill.config import Settings, config_digest
from tidemill.core.records import Partition
from tidemill.core.rows import RowState
from tidemill.core.topic_names import commits_topic, examples_topic, predictions_topic
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic
from tidemill.io.redis_store import RedisStore
from tidemill.io.wire import decode, without_commands


@dataclass(frozen=True, slots=True)
class Balance:
    """One equation: what came in, and what became of it. `parts` sum to `total` when it closes."""

    name: str
    total: int
    parts: Mapping[str, int]

    @property
    def is_closed(self) -> bool:
        return self.total == sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Status:
    lag: Mapping[Partition, int]
    outcomes: Mapping[str, int]
    published: Mapping[str, int]
    open_rows: Mapping[str, int]
    balances: tuple[Balance, ...]
    feature_digest: str | None


def balances(
    outcomes: Mapping[str, int], published: Mapping[str, int], open_rows: Mapping[str, int]
) -> tuple[Balance, ...]:
    """What came in equals what became of it, each side counted on its own.

    Args:
        outcomes: sums over `commits.v1`.
        published: counts of the records in the predictions and examples topics.
        open_rows: rows of the store by state.
    """
    count: Counter[str] = Counter(outcomes)
    labels_in = sum(
        count[name] for name in ("example", "amendment", "label_duplicate", "orphan", "label_dead_letter", "waiting")
    )
    return (
        Balance(
            "labels in",
            labels_in,
            {
                "joined": published.get("example", 0),
                "amended": published.get("amendment", 0),
                "duplicate": count["label_duplicate"],
                "orphaned": count["orphan"] + count["waiting_orphaned"],
                "dead-lettered": count["label_dead_letter"],
                "waiting": open_rows.get("waiting", 0),
            },
        ),
        Balance(
            "predictions",
            published.get("prediction", 0),
            {
                "labelled": published.get("example", 0),
                "expired": count["expired"],
                "pending": open_rows.get("pending", 0),
            },
        ),
        Balance("predictions counted", published.get("prediction", 0), {"in commits": count["prediction"]}),
    )


def read_status(settings: Settings, *, with_digest: bool = False) -> Status:
    """Read it all; time grows with the topics (about 3 s for a million records)."""
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    app = settings.app
    clients = clients_of(settings)
    partitions = kafka.partitions_of(clients, [topic.name for topic in app.topics])
    committed = kafka.committed_offsets(clients, worker_group(app.name), partitions)
    bounds = kafka.log_bounds(clients, partitions)
    outcomes: Counter[str] = Counter()
    for messages in read_topic(clients, commits_topic(app.name)):
        for counts_of in decode("commit.v1", [m.value() for m in messages]).column("outcomes").to_pylist():
            outcomes.update(dict(counts_of))
    published: Counter[str] = Counter()
    for messages in read_topic(clients, predictions_topic(app.name)):
        published["prediction"] += len(messages)
    for messages in read_topic(clients, examples_topic(app.name)):
        examples = without_commands([m.value() for m in messages])
        published.update(decode("example.v1", examples).column("kind").to_pylist())
    store = RedisStore(settings.redis_url, app.name, owner_slot="status", config_digest=config_digest(app))
    rows = {RowState(state).name.lower(): count for state, count in store.row_counts().items()}
    return Status(
        lag={p: max(0, bounds[p][1] - (committed[p][0] or 0)) for p in partitions},
        outcomes=dict(outcomes),
        published=dict(published),
        open_rows=rows,
        balances=balances(outcomes, published, rows),
        feature_digest=store.feature_digest() if with_digest else None,
    )


def as_json(status: Status) -> dict[str, Any]:
    """The status as JSON values; `schema_version` grows when a name changes."""
    return {
        "schema_version": 1,
        "lag": {str(partition): lag for partition, lag in sorted(status.lag.items())},
        "outcomes": dict(sorted(status.outcomes.items())),
        "published": dict(status.published),
        "open_rows": dict(status.open_rows),
        "balances": [
            {"name": b.name, "total": b.total, "parts": dict(b.parts), "is_closed": b.is_closed}
            for b in status.balances
        ],
        "feature_digest": status.feature_digest,
    }
