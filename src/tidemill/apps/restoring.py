"""Put a snapshot of the store back: what a worker does that finds the store lost, and `tidemill restore`.

In: an app's snapshots, the group's offsets. Out: a store that stands where the snapshot was taken; the claims of the
workers then roll it forward through the log. Invariant: only an empty store is filled, only by one process, and nobody
can claim it meanwhile.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.models import store_place
from tidemill.apps.roll_forward import name_of_record
from tidemill.config import Settings, config_digest
from tidemill.core.records import Due, Partition
from tidemill.core.rows import due_time, partition_of, unpack_row
from tidemill.core.spec import AppSpec
from tidemill.core.topic_names import commits_topic
from tidemill.errors import StateLostError, UnavailableError
from tidemill.io import kafka
from tidemill.io.cut_store import CutHead, CutStore, Pair, PartitionCut
from tidemill.io.kafka_reader import read_to_end
from tidemill.io.redis_store import RedisStore
from tidemill.io.slices import unpack_slice
from tidemill.io.store_snapshots import Descent, StoreSnapshot, StoreSnapshots

ROW = b"r:"
PUT_KEYS = 1_000  # per script
ALL = "~"  # sorts behind the ids of snapshots
SLICE_START = 8  # bytes of a stored slice before its outputs: where its span begins (io/commit_arguments.py)


def snapshots_of(settings: Settings) -> StoreSnapshots:
    return StoreSnapshots(store_place(settings, "stores"), settings.app.name)


class NewestSnapshot:
    """What a worker does that finds the store lost: the newest snapshot that fits, or nothing."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report

    def __call__(self, committed: Mapping[Partition, tuple[int | None, str]]) -> bool:
        """Restore it; False when there is none, so that the log has to do it all.

        Raises:
            UnavailableError: TM-4108, another worker is at it.
        """
        snapshot = newest_fit(self._settings, committed, self._report)
        if snapshot is None:
            return False
        self._report(f"restoring the store from snapshot {snapshot.id}, {snapshot.keys:,} keys")
        began = time.monotonic()
        put_back(self._settings, snapshot, committed, self._report)
        self._report(f"restored in {time.monotonic() - began:.1f} s")
        return True


class LastCut:
    """The last cut of the store before ranges were applied: where the logs of outputs stood then, the ranges' begin.

    A store that lost its last second would else read all that the app ever published: it only saves time.
    """

    def __init__(self, settings: Settings, store: RedisStore, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._store = store
        self._report = report

    def __call__(self, ranges: Mapping[Partition, tuple[int, int]]) -> Mapping[str, Any]:
        """As `RedisStore.restored`: of a snapshot of this store that is older than the ranges, or of the one from which
        it was restored; empty = of none."""
        try:
            log_ends = self._log_ends(ranges)
        except UnavailableError as error:
            self._report(f"no snapshot can be asked where the outputs stood, so more of them is read: {error}")
            log_ends = None
        return self._store.restored() if log_ends is None else {"log_ends": log_ends}

    def _log_ends(self, ranges: Mapping[Partition, tuple[int, int]]) -> dict[str, list[int]] | None:
        """Of the newest snapshot that will do; None = there is none."""
        place = snapshots_of(self._settings)
        for id_ in place.ids():
            try:
                snapshot = place.load(id_)
            except StateLostError:
                continue  # a broken one; an older one will do
            if snapshot.head.incarnation == self._store.incarnation and all(
                (applied_of(snapshot.head, partition) or 0) <= start for partition, (start, _) in ranges.items()
            ):
                return _as_lists(snapshot.log_ends)
        return None


def unfit(
    snapshot: StoreSnapshot,
    digest: str,
    committed: Mapping[Partition, tuple[int | None, str]],
    past: Mapping[str, str],
    log_starts: Mapping[Partition, int],
) -> str | None:
    """Why the log cannot go on from this snapshot; None = it can.

    Args:
        digest: of the app's configuration.
        committed: the group's offsets with their metadata, of all partitions of the app.
        past: of the group's state, as `past_of` tells.
        log_starts: the first offset that each of them still holds.
    """
    if snapshot.head.config_digest != digest:
        return f"it is of configuration {snapshot.head.config_digest}, the app's is {digest}"
    newest = past.get(snapshot.head.incarnation, "")
    if not newest:
        known = ", ".join(sorted(past)) or "none"
        return f"it is of store {snapshot.head.incarnation}, the group's offsets are of {known}"
    if snapshot.id > newest:
        return f"the group went on from snapshot {newest} of the same store, and what came after that was given up"
    for partition, (at, _) in committed.items():
        applied = applied_of(snapshot.head, partition)
        if applied is not None and applied > (at or 0) and not snapshot.head.partitions[partition].slices:
            return f"it stands at {applied} of {partition}, the group at {at}: the group's offsets were moved back"
        if (applied or 0) < min(log_starts[partition], at or 0):
            return f"it stands at {applied or 0} of {partition}, which begins at {log_starts[partition]} by now"
    return None


def past_of(place: StoreSnapshots, committed: Mapping[Partition, tuple[int | None, str]]) -> dict[str, str]:
    """By store, the newest of its snapshots that the group's state comes from; `ALL` = whichever there is.

    The state comes from the stores that the offsets name. One that was restored comes from the store of its snapshot up
    to that one: all that was published since then is in the log, whichever of the two did it. What the other applied
    later and never published is no part of it; nor is anything of which a store was computed from the log alone.
    """
    past = dict.fromkeys({metadata.partition("/")[0] for _, metadata in committed.values()} - {""}, ALL)
    waiting = list(past)
    while waiting:
        if (found := place.descent(waiting.pop())) is not None:
            if found.incarnation not in past:
                waiting.append(found.incarnation)
            past[found.incarnation] = min(past.get(found.incarnation, ALL), found.snapshot)
    return past


def log_starts_of(settings: Settings, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The first offset that each partition still holds."""
    return {p: start for p, (start, _) in kafka.log_bounds(clients_of(settings), list(partitions)).items()}


def newest_fit(
    settings: Settings, committed: Mapping[Partition, tuple[int | None, str]], report: Callable[[str], None]
) -> StoreSnapshot | None:
    """The newest whole snapshot from which the log can go on; those that are passed over are reported, with reasons."""
    place, log_starts = snapshots_of(settings), log_starts_of(settings, committed)
    past = past_of(place, committed)
    for id_ in place.ids():
        try:
            snapshot = place.load(id_)
            reason = unfit(snapshot, config_digest(settings.app), committed, past, log_starts)
            if reason is None:
                place.check(snapshot)
                return snapshot
            report(f"snapshot {id_} does not fit: {reason}")
        except StateLostError as error:
            report(str(error))
    return None


def put_back(
    settings: Settings,
    snapshot: StoreSnapshot,
    committed: Mapping[Partition, tuple[int | None, str]],
    report: Callable[[str], None],
) -> None:
    """Make the snapshot the store; its parts have been checked.

    Raises:
        StateLostError: TM-4105, TM-4114, the store is not empty.
        UnavailableError: TM-4108, somebody else restores.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    clients = clients_of(settings)
    names = tuple(topic.name for topic in settings.app.topics)
    store = CutStore(settings.redis_url, settings.app.name)
    try:
        store.begin_restore()
        place, incarnation = snapshots_of(settings), secrets.token_hex(8)
        try:
            place.put_descent(incarnation, Descent(snapshot.head.incarnation, snapshot.id))
        except UnavailableError as error:
            report(f"once the group has gone on, snapshots from before will not fit any more: {error}")
        for page in place.pages(snapshot):
            for first in range(0, len(page), PUT_KEYS):
                pairs = page[first : first + PUT_KEYS]
                store.put(pairs, _due_of(pairs, settings.app, names))
        published = _published(clients, settings.app, snapshot)
        store.finish(
            _without_published(snapshot.head, published, commits_topic(settings.app.name)),
            incarnation=incarnation,
            earlier=frozenset(metadata.partition("/")[0] for _, metadata in committed.values()),
            restored=_origin(snapshot, settings.app),
        )
    finally:
        store.close()


def _due_of(pairs: list[Pair], spec: AppSpec, names: tuple[str, ...]) -> Iterator[Due]:
    """The due entries that the rows among the pairs have."""
    for key, value in pairs:
        if key.startswith(ROW):
            row = unpack_row(value)
            yield Due(partition_of(row, names), key[len(ROW) :].decode(), due_time(spec.label, row))


def _origin(snapshot: StoreSnapshot, spec: AppSpec) -> dict[str, Any]:
    """What a roll-forward has to know of the cut, see `RedisStore.restored`."""
    commits = commits_topic(spec.name)
    return {
        "snapshot": snapshot.id,
        "log_ends": _as_lists(snapshot.log_ends),
        "partitions": [
            {
                "topic": partition.topic,
                "number": partition.number,
                "applied": applied_of(snapshot.head, partition) or 0,
                "open_rows": list(snapshot.open_rows.get(partition, (0, 0))),
                "known": [
                    name_of_record(output.value or b"")
                    for slice_ in found.slices.values()
                    for output in unpack_slice(slice_[SLICE_START:])
                    if output.topic == commits
                ],
            }
            for partition, found in snapshot.head.partitions.items()
        ],
    }


def _as_lists(log_ends: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {topic: list(ends) for topic, ends in log_ends.items()}


def _published(clients: Mapping[str, Any], spec: AppSpec, snapshot: StoreSnapshot) -> frozenset[bytes]:
    """The commits log from the cut on, if the cut holds slices that might be in it."""
    topic = commits_topic(spec.name)
    if not any(found.slices for found in snapshot.head.partitions.values()):
        return frozenset()
    starts = snapshot.log_ends.get(topic, ())
    return frozenset(m.value() or b"" for messages in read_to_end(clients, topic, starts) for m in messages)


def _without_published(head: CutHead, published: frozenset[bytes], commits: str) -> CutHead:
    """The cut without the slices that Kafka holds: those that move no offset would be published a second time.

    A slice is there when its commit record is, for its outputs are one transaction.
    """

    def is_open(slice_: bytes) -> bool:
        records = {o.value or b"" for o in unpack_slice(slice_[SLICE_START:]) if o.topic == commits}
        return not (records and records <= published)

    return replace(
        head,
        partitions={
            partition: PartitionCut(found.record, {at: one for at, one in found.slices.items() if is_open(one)})
            for partition, found in head.partitions.items()
        },
    )


def applied_of(head: CutHead, partition: Partition) -> int | None:
    """The next offset that a cut's store had to apply; None = none yet."""
    found = head.partitions.get(partition)
    return None if found is None else found.applied
