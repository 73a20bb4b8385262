"""The flights under a name of their own, and how far a campaign's workers are with them.

In: servers, a folder, a name. Out: topics full of records, positions. Invariant: nothing here writes to the store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import yaml

from tests.campaign.processes import ROOT
from tidemill.apps.flights import run_producer
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import Settings, config_digest, load_settings
from tidemill.core.records import Mark, Partition
from tidemill.core.rows import RowState
from tidemill.io import kafka
from tidemill.io.embedded import Servers
from tidemill.io.redis_store import RedisStore

FLIGHTS = (ROOT / "config" / "flights.yaml").read_text()  # once: all runs of a campaign are declared alike
POISON_COUNT = 200
POISON_SEED = 1
SETTLE_DEADLINE_S = 90.0


class Stream:
    """Flights until a day, in topics that begin with `name`."""

    def __init__(
        self,
        servers: Servers,
        name: str,
        folder: Path,
        *,
        until: date | None,
        snapshot_every: int = 20_000,
        batch_records: int | None = None,
        max_skew: str | None = None,
        has_loop: bool = False,
    ) -> None:
        """Writes the app's YAML into `folder`, which is new; creates the topics and fills them.

        `batch_records`, `max_skew`: None = as the flights' YAML says. `has_loop`: monitor and trainer run beside
        the workers.
        """
        folder.mkdir(parents=True)
        self.name, self.folder, self.until, self.servers = name, folder, until, servers
        self.config = folder / "flights.yaml"
        text = FLIGHTS
        for before in ("  ", "of: ", "closed_by: "):
            text = text.replace(f"{before}flights.", f"{before}{name}.")
        declared = yaml.safe_load(text.replace("../schemas/", f"{ROOT}/schemas/"))
        declared["name"] = name
        if not has_loop:
            del declared["retrain"]  # nobody answers ticks, and batches are to be of the size that a test asks for
        declared["learner"]["snapshot_every"] = snapshot_every
        if batch_records is not None:
            declared["batch_records"] = batch_records
        if max_skew is not None:
            declared["max_skew"] = max_skew
        self.config.write_text(yaml.safe_dump(declared, sort_keys=False))
        self.settings: Settings = load_settings(
            self.config,
            bootstrap_servers=servers.bootstrap_servers,
            redis_url=servers.redis_url,
            data_folder=folder,
            is_bounded=True,
        )
        app = self.settings.app
        self.clients = kafka.client_settings(servers.bootstrap_servers)
        ensure_app_topics(self.settings)
        run_producer(servers.bootstrap_servers, app=app, until=until, poison_count=POISON_COUNT, seed=POISON_SEED)
        counts = kafka.partition_counts(self.clients, [topic.name for topic in app.topics])
        self.partitions = [Partition(topic, number) for topic, count in counts.items() for number in range(count)]
        bounds = kafka.log_bounds(self.clients, self.partitions)
        self.ends = {partition: end for partition, (_, end) in bounds.items()}
        self.total = sum(self.ends.values())
        self.store = self.another_store()

    def another_store(self) -> RedisStore:
        """A connection of its own, for another thread."""
        app = self.settings.app
        return RedisStore(self.servers.redis_url, self.name, owner_slot="campaign", config_digest=config_digest(app))

    def marks(self) -> Mapping[Partition, Mark]:
        """What the store knows of each partition; `committed` is set after Kafka has committed, never before."""
        return self.store.marks()

    def is_drained(self) -> bool:
        marks = self.marks()
        return all(partition in marks and marks[partition].committed >= end for partition, end in self.ends.items())

    def wait_until_settled(self) -> None:
        """After the last record: until no prediction and no label waits for anything. The stream ends with punctuation
        behind the last label's wait, so none may be left."""
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        while True:
            counts = self.store.row_counts()
            open_rows = counts.get(RowState.PENDING, 0) + counts.get(RowState.WAITING, 0)
            if open_rows == 0:
                return
            assert time.monotonic() < deadline, f"{open_rows} rows still wait after {SETTLE_DEADLINE_S:.0f} s"
            time.sleep(0.1)


def committed(marks: Mapping[Partition, Mark], partitions: frozenset[Partition] | None = None) -> int:
    """Records known to be published, over all partitions or these."""
    return sum(max(0, mark.committed) for p, mark in marks.items() if partitions is None or p in partitions)


def applied(marks: Mapping[Partition, Mark], partitions: frozenset[Partition] | None = None) -> int:
    """Records that the store has applied, over all partitions or these."""
    return sum(max(0, mark.applied) for p, mark in marks.items() if partitions is None or p in partitions)


def owned_by(marks: Mapping[Partition, Mark], slot: int) -> frozenset[Partition]:
    """The partitions that the worker of a slot claimed last."""
    return frozenset(p for p, mark in marks.items() if mark.owner.partition(":")[0] == str(slot))
