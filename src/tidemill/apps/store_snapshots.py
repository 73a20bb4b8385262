"""`tidemill snapshot` and `tidemill restore`: a cut of the store into the object store, and back by decision.

In: an app's settings. Out: a snapshot with the positions of its moment, or a store that stands there. Invariant: taking
one stops no worker; restoring needs them all stopped. A snapshot saves time and decides nothing: what comes of a
restored store is what the log says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.engine import worker_group
from tidemill.apps.reset import refuse_living_members
from tidemill.apps.restoring import ROW, applied_of, log_starts_of, newest_fit, past_of, put_back, snapshots_of, unfit
from tidemill.config import Settings, config_digest
from tidemill.core.records import Partition
from tidemill.core.rows import RowState, partition_of, unpack_row
from tidemill.core.spec import AppSpec
from tidemill.errors import StateLostError
from tidemill.io import kafka
from tidemill.io.cut_store import CutStore, Pair
from tidemill.io.kafka_reader import LogEnds
from tidemill.io.redis_store import RedisStore
from tidemill.io.store_snapshots import StoreSnapshot


@dataclass(frozen=True, slots=True)
class Restored:
    """behind: records of each partition that the next claim applies again."""

    snapshot: StoreSnapshot
    behind: Mapping[Partition, int]
    seconds: float


def take_snapshot(settings: Settings, *, kept: int, report: Callable[[str], None]) -> StoreSnapshot:
    """Copy the store as it is at one moment, while workers go on, and drop all but the `kept` newest snapshots.

    Raises:
        StateLostError: TM-4302, the store is empty.
        UnavailableError: a server did not answer; TM-4109 another snapshot is being taken.
        FencedError: TM-4113, the cut was interrupted; nothing is kept of it.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    place = snapshots_of(settings)
    store = CutStore(settings.redis_url, settings.app.name)
    taken_ms = time.time_ns() // 1_000_000
    try:
        # First the logs, then the cut: what was published before is in it, as the store applies before Kafka knows.
        log_ends = _log_ends(clients_of(settings), settings.app)
        head = store.begin()
        id_ = place.new_id(taken_ms)  # now nobody else takes one
        counts = _Counts(settings.app)
        parts = place.put_parts(id_, counts.watch(store.pages()))
        store.end()
        snapshot = StoreSnapshot(id_, taken_ms, head, log_ends, counts.open_rows, counts.keys, parts)
        place.put_manifest(snapshot)
    finally:
        store.abandon()
        store.close()
    for dropped in place.drop_old(kept, taken=id_):
        report(f"dropped snapshot {dropped}")
    return snapshot


def restore_snapshot(
    settings: Settings, id_: str | None, *, replaces: bool, is_dry_run: bool, report: Callable[[str], None]
) -> Restored:
    """`tidemill restore`: by the operator's decision, with all workers stopped.

    Args:
        id_: None = the newest one that fits.
        replaces: empty the store first.
    Raises:
        RefusedError: TM-4301, the group has living members.
        StateLostError: TM-4114, the store is not empty; TM-4115, no snapshot, or it is broken; TM-4116, no fit.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    clients = clients_of(settings)
    group = worker_group(settings.app.name)
    refuse_living_members(kafka.living_members(clients, group), group)
    partitions = kafka.partitions_of(clients, [topic.name for topic in settings.app.topics])
    committed = kafka.committed_offsets(clients, group, partitions)
    if id_ is None:
        snapshot = newest_fit(settings, committed, report)
        if snapshot is None:
            raise StateLostError(
                "TM-4115", f"app {settings.app.name}: no snapshot that fits; workers rebuild the store from the log"
            )
    else:
        place = snapshots_of(settings)
        snapshot = place.load(id_)
        past, log_starts = past_of(place, committed), log_starts_of(settings, committed)
        if reason := unfit(snapshot, config_digest(settings.app), committed, past, log_starts):
            raise StateLostError("TM-4116", f"snapshot {id_} does not fit: {reason}; nothing was changed")
        place.check(snapshot)
    began = time.monotonic()
    if not is_dry_run:
        if replaces:
            store = RedisStore(
                settings.redis_url, settings.app.name, owner_slot="restore", config_digest=config_digest(settings.app)
            )
            store.wipe()
            store.close()
        put_back(settings, snapshot, committed, report)
    behind = {
        partition: (at or 0) - (applied_of(snapshot.head, partition) or 0) for partition, (at, _) in committed.items()
    }
    return Restored(snapshot, behind, time.monotonic() - began)


def _log_ends(clients: Mapping[str, Any], spec: AppSpec) -> dict[str, tuple[int, ...]]:
    """Where the outputs' logs end, records of open transactions included."""
    topics = [f"{spec.name}.{kind}.v1" for kind in ("predictions", "examples", "commits")]
    counts = kafka.partition_counts(clients, topics)
    ends = LogEnds(clients, [Partition(topic, number) for topic in topics for number in range(counts[topic])]).ask()
    return {topic: tuple(ends[Partition(topic, number)] for number in range(counts[topic])) for topic in topics}


class _Counts:
    """Counts what passes: keys, and open rows by partition."""

    def __init__(self, spec: AppSpec) -> None:
        self._names = tuple(topic.name for topic in spec.topics)
        self.keys = 0
        self.open_rows: dict[Partition, tuple[int, int]] = {}

    def watch(self, pages: Iterator[list[Pair]]) -> Iterator[list[Pair]]:
        for page in pages:
            self.keys += len(page)
            for key, value in page:
                if key.startswith(ROW):
                    row = unpack_row(value)
                    place = partition_of(row, self._names)
                    pending, waiting = self.open_rows.get(place, (0, 0))
                    pending += row.state is RowState.PENDING
                    waiting += row.state is RowState.WAITING
                    self.open_rows[place] = (pending, waiting)
            yield page
