"""The logs of workers without workers: days of predictions, examples and commits, written as transactions.

In: a shop's settings, which days. Out: records on its topics. Invariant: the same days give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.apps.models import feature_shape
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.loop_spec import DAY_MS
from tidemill.core.records import Output, Partition
from tidemill.io import kafka
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.outputs import Encoder

FIRST_DAY = 15_000  # of the epoch
DELAY_MS = 3_600_000


class MonitoredLogs:
    """Writes as one worker would: a day's predictions and examples, then what it committed."""

    def __init__(self, settings: Settings) -> None:
        self.app = settings.app
        self.clients = kafka.client_settings(settings.bootstrap_servers or "")
        counts = kafka.partition_counts(self.clients, [topic.name for topic in self.app.topics])
        self.partitions = [Partition(name, number) for name, count in counts.items() for number in range(count)]
        self.shape = feature_shape(FeaturePlan(self.app))
        self.encoders = {name: Encoder(name) for name in ("prediction.v1", "example.v1", "commit.v1", "command.v1")}
        self.writer = TransactionalWriter(self.clients, f"tests.{self.app.name}.worker")
        self.writer.open()
        self.batch = 0

    def write_day(self, day: int, *, count: int = 60, dead_letters: int = 0, is_committed: bool = True) -> None:
        """Day `day` from FIRST_DAY on; with its commit everything up to its end is processed."""
        start = (FIRST_DAY + day) * DAY_MS
        random = np.random.Generator(np.random.PCG64(day))
        times = np.sort(random.integers(start, start + DAY_MS - 2 * DELAY_MS, count))
        blend = random.uniform(0.05, 0.95, count)
        label = (random.uniform(size=count) < blend).astype(np.int64)
        ids = [f"d{day}-{index}" for index in range(count)]
        features: dict[str, Any] = {
            "feature_digest": [self.shape.digest] * count,
            "numeric": random.uniform(size=(count, self.shape.numeric)).astype(np.float32),
            "categories": [[f"p{index % 3}"] * self.shape.categories for index in range(count)],
            "blend": blend,
            "learner": blend,
            "booster": [None] * count,
            "base_rate": np.full(count, 0.5),
            "n": np.zeros(count, np.int64),
            "model_version": ["initial"] * count,
            "other": [None] * count,
            "other_version": [""] * count,
            "flags": [[]] * count,
        }
        served = {
            **features,
            "id": ids,
            "event_time": times,
            "topic": [self.app.topics[0].name] * count,
            "partition": np.zeros(count, np.int32),
            "offset": np.arange(count),
            "decision": blend > 0.5,
            "entities": [[]] * count,
            "top_features": [[]] * count,
            "top_contributions": [[]] * count,
        }
        examples = {
            **features,
            "kind": ["example"] * count,
            "id": ids,
            "label": label,
            "event_time": times,
            "label_time": times + DELAY_MS,
            "is_learned": [True] * count,
        }
        outputs = self._outputs("prediction.v1", served, ids) + self._outputs("example.v1", examples, ids)
        self.writer.publish(outputs, {}, None)
        if is_committed:
            self.commit(start + DAY_MS, events=count, labels=count, dead_letters=dead_letters)

    def commit(self, watermark: int, *, events: int = 0, labels: int = 0, dead_letters: int = 0) -> None:
        """All partitions have shown `watermark`."""
        self.batch += 1
        outcomes: list[dict[str, int]] = [{} for _ in self.partitions]
        roles = {topic.name: topic.role for topic in self.app.topics}
        for role, found in (("event", {"prediction": events}), ("label", {"example": labels})):
            at = next(index for index, one in enumerate(self.partitions) if roles[one.topic] == role)
            outcomes[at] = {name: number for name, number in found.items() if number}
            if role == "event" and dead_letters:
                outcomes[at]["event_dead_letter"] = dead_letters
        count = len(self.partitions)
        rows = {
            "topic": [one.topic for one in self.partitions],
            "partition": [one.number for one in self.partitions],
            "start": [self.batch] * count,
            "next": [self.batch + 1] * count,
            "worker": ["w"] * count,
            "batch": [self.batch] * count,
            "n": [0] * count,
            "watermark": [watermark] * count,
            "group_watermark": [-1] * count,
            "merge_rank": [0] * count,
            "outcomes": [list(one.items()) for one in outcomes],
            "joined": [[]] * count,
            "waiting": [[]] * count,
            "settled": [[]] * count,
        }
        self.writer.publish(self._outputs("commit.v1", rows, [str(one) for one in self.partitions]), {}, None)

    def command(self, kind: str, version: str, *, expects: str, time: int) -> None:
        row = {"id": [f"{kind}-{version}"], "kind": [kind], "expects": [expects], "model_version": [version]}
        values = self.encoders["command.v1"].encode(row | {"cause": ["test"], "time": [time]})
        self.writer.publish([Output(f"{self.app.name}.examples.v1", b"command", values[0])], {}, None)

    def _outputs(self, schema: str, columns: dict[str, Any], keys: Sequence[str]) -> list[Output]:
        topic = f"{self.app.name}.{schema.split('.')[0]}s.v1"
        values = self.encoders[schema].encode(columns)
        return [Output(topic, key.encode(), value) for key, value in zip(keys, values, strict=True)]

    def close(self) -> None:
        self.writer.abandon()
