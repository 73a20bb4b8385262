"""`tidemill reset`: make the store and the consumer group agree again, by decision of the operator.

In: an app's settings, where to go. Out: what was (or would be) moved, by partition. Invariant: nothing moves while the
group has living members, and nothing moves in a dry run.

`committed`: the store follows the group: it is emptied, and the next worker computes it anew from the log, or from a
snapshot and the log, up to the group's offsets; nothing is published again.

`applied`: the group's offsets follow the store. Outputs that the store applied and Kafka does not hold are kept for the
next worker to publish: which ones those are is read from the commits log, not guessed. `earliest`: the store's keys and
the group's offsets are deleted; every record is processed, and every output published, again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tidemill.apps.clients import clients_of
from tidemill.apps.engine import worker_group
from tidemill.apps.publishing import offset_metadata
from tidemill.apps.restoring import newest_fit
from tidemill.config import Settings, config_digest
from tidemill.core.feature_versions import compare_features, declared_features
from tidemill.core.records import Partition
from tidemill.core.topic_names import commits_topic
from tidemill.errors import ModelRefusedError, StateLostError, TidemillError
from tidemill.io import kafka
from tidemill.io.fill_store import FillStore
from tidemill.io.kafka_reader import read_to_end
from tidemill.io.redis_store import ClaimedPartition, RedisStore
from tidemill.io.slices import unpack_slice
from tidemill.io.wire import decode

Target = Literal["applied", "committed", "earliest"]
TARGETS: tuple[Target, ...] = get_args(Target)


class RefusedError(TidemillError):
    """The operator has to do something first; nothing was changed."""

    exit_code = ModelRefusedError.exit_code


@dataclass(frozen=True, slots=True)
class Move:
    """One partition: the group's offset before and after; None = none. `lost`: records that are skipped for good."""

    partition: Partition
    before: int | None
    after: int | None
    lost: int = 0


def reset(settings: Settings, target: Target, *, is_dry_run: bool) -> list[Move]:
    """Move the group, or tell how it would move.

    Raises:
        RefusedError: TM-4301, the group has living members.
        StateLostError: TM-4302, the store holds nothing to follow; TM-4305, the group does not; TM-4306, the log cannot
            give back what the store holds.
        UnavailableError: a server did not answer.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    clients = clients_of(settings)
    group = worker_group(settings.app.name)
    refuse_living_members(kafka.living_members(clients, group), group)
    partitions = kafka.partitions_of(clients, [topic.name for topic in settings.app.topics])
    known = kafka.committed_offsets(clients, group, partitions)
    committed = {p: at for p, (at, _) in known.items()}
    store = RedisStore(
        settings.redis_url, settings.app.name, owner_slot="reset", config_digest=config_digest(settings.app)
    )
    try:
        if target == "earliest":
            if not is_dry_run:
                # The group first: a stop between the two leaves a store without a group, which no worker mistakes.
                kafka.delete_group(clients, group)
                store.wipe()
                store.open_rebuild(secrets.token_hex(8))  # else a worker would take it for one that was lost (TM-4208)
            return [Move(p, committed[p], None) for p in partitions]
        log_starts = {p: start for p, (start, _) in kafka.log_bounds(clients, partitions).items()}
        if target == "committed":
            _need_log(settings, known, log_starts)
            if not is_dry_run:
                store.wipe()
            return [Move(p, at, at) for p, at in committed.items() if at is not None]
        if is_dry_run:
            applied = {p: mark.applied for p, mark in store.marks().items() if mark.applied >= 0}
            _need_progress(applied, settings.app.name)
            _, ends = _commit_records(clients, commits_topic(settings.app.name))
            reached = {p: max(at, ends.get(p, 0)) for p, at in sorted(applied.items())}
            return [
                Move(p, committed[p], max(at, log_starts[p]), max(0, log_starts[p] - at)) for p, at in reached.items()
            ]
        return _follow_store(clients, settings.app.name, store, partitions, committed, log_starts)
    finally:
        store.close()


def accept_configuration(settings: Settings) -> None:
    """From now on the store belongs to workers of this configuration.

    Raises:
        RefusedError: TM-4301, the group has living members; TM-4303, the features changed: their state must be filled.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    clients = clients_of(settings)
    group = worker_group(settings.app.name)
    refuse_living_members(kafka.living_members(clients, group), group)
    fill_store = FillStore(settings.redis_url, settings.app.name)
    _, features = fill_store.in_force()
    fill_store.close()
    if features is not None and not compare_features(features, settings.app).is_same:
        raise RefusedError(
            "TM-4303",
            f"app {settings.app.name}: the features are not those of the store's state; raise the `version` of each "
            "group that changed and run `tidemill features fill`, which accepts the configuration too",
        )
    store = RedisStore(
        settings.redis_url,
        settings.app.name,
        owner_slot="reset",
        config_digest=config_digest(settings.app),
        features=declared_features(settings.app),
    )
    store.set_config()
    store.close()


def refuse_living_members(count: int, group: str) -> None:
    """Moving offsets under a running worker would lose or double records."""
    if count:
        raise RefusedError(
            "TM-4301",
            f"group {group} has {count} living member{'s' * (count > 1)}: stop all workers first (one that has stopped "
            "counts until its session times out, about ten seconds), then run the reset again",
        )


def follow(
    found: ClaimedPartition, *, incarnation: str, published: frozenset[bytes], end: int, commits_topic: str
) -> tuple[int, str]:
    """The offset and metadata that the group must have for the next worker to go on exactly once.

    Args:
        found: what the store holds of one partition; `applied` is known.
        published: the values of the commits log: a slice whose record is among them is in Kafka with all its outputs,
            for they were written in one transaction.
        end: how far the commits log says that the partition's outputs are published. A store that stands before it has
            lost its last commits: the worker applies them again and publishes nothing.
    """
    assert found.applied is not None
    offset, metadata = found.slices[0][0] if found.slices else found.applied, incarnation
    for start, next_, packed in found.slices:
        outputs = unpack_slice(packed)
        records = {output.value or b"" for output in outputs if output.topic == commits_topic}
        if outputs and not (records and records <= published):
            break
        offset, metadata = next_, offset_metadata(incarnation, start, next_, packed)
    return (end, incarnation) if end > found.applied else (offset, metadata)


def _follow_store(
    clients: Mapping[str, Any],
    app: str,
    store: RedisStore,
    partitions: Sequence[Partition],
    committed: Mapping[Partition, int | None],
    log_starts: Mapping[Partition, int],
) -> list[Move]:
    group, commits = worker_group(app), commits_topic(app)
    # The claim voids whatever a worker sent before it died: from here on the store stands still.
    view = store.claim(partitions, may_create=False)
    known = {p: found for p, found in view.partitions.items() if found.applied is not None}
    _need_progress(known, app)
    assert view.incarnation is not None
    published, ends = _commit_records(clients, commits)
    moves = []
    for partition, found in sorted(known.items()):
        end = ends.get(partition, 0)
        offset, metadata = follow(
            found, incarnation=view.incarnation, published=published, end=end, commits_topic=commits
        )
        lost = 0
        if offset == found.applied and log_starts[partition] > offset:
            lost, offset, metadata = log_starts[partition] - offset, log_starts[partition], view.incarnation
            store.set_positions({partition: offset})
        kafka.set_committed_offsets(clients, group, {partition: offset}, metadata)
        moves.append(Move(partition, committed[partition], offset, lost))
    store.release(partitions)
    return moves


def _commit_records(clients: Mapping[str, Any], topic: str) -> tuple[frozenset[bytes], dict[Partition, int]]:
    """The values of the commits log, and how far it says that the outputs of each partition are published."""
    values: set[bytes] = set()
    ends: dict[Partition, int] = {}
    for messages in read_to_end(clients, topic):
        found = [message.value() or b"" for message in messages]
        values.update(found)
        for row in decode("commit.v1", found).select(["topic", "partition", "next"]).to_pylist():
            partition = Partition(row["topic"], row["partition"])
            ends[partition] = max(row["next"], ends.get(partition, 0))
    return frozenset(values), ends


def _need_log(
    settings: Settings, known: Mapping[Partition, tuple[int | None, str]], log_starts: Mapping[Partition, int]
) -> None:
    """An emptied store must be able to come to where the group is."""
    committed = [p for p, (at, _) in known.items() if at is not None]
    by_hand = [p for p in committed if not known[p][1]]
    if by_hand or not committed:
        found = f"its offset of {by_hand[0]} was set by hand" if by_hand else "it has committed no offset"
        raise StateLostError(
            "TM-4305",
            f"group {worker_group(settings.app.name)} cannot be followed: {found}; let it follow the store with "
            "`tidemill reset --to applied`, or begin again with `--to earliest`",
        )
    cut = [p for p in committed if log_starts[p] > 0]
    if cut and newest_fit(settings, known, lambda _reason: None) is None:
        raise StateLostError(
            "TM-4306",
            f"{cut[0]} begins at {log_starts[cut[0]]} and no snapshot of the store fits the group's offsets: what the "
            "store holds could not be computed again; restore it from a backup",
        )


def _need_progress(known: Mapping[Partition, object], app: str) -> None:
    if not known:
        raise StateLostError(
            "TM-4302",
            f"the store holds no position of app {app}, so there is nothing to follow; check the store's address, "
            "restore it from a backup, or begin again with `tidemill reset --to earliest`",
        )
