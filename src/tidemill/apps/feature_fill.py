"""`tidemill features fill`: the state of changed features, as if they had been declared from the start.

In: an app's settings with raised versions, its input logs, the positions of its store. Out: the store in the new
configuration, or untouched. Invariant: up to the switch the former configuration is in force and nothing of it changed,
so a fill that stops anywhere is begun again; nothing is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.apps.clients import clients_of
from tidemill.apps.engine import worker_group
from tidemill.apps.failpoints import failpoint
from tidemill.apps.reset import RefusedError, refuse_living_members
from tidemill.apps.roll_forward import condemned_records, read_merged
from tidemill.apps.schema_lookup import open_schemas
from tidemill.config import Settings, config_digest
from tidemill.core.batches import with_idle_partitions
from tidemill.core.entities import MISSING_ENTITY
from tidemill.core.feature_versions import Comparison, compare_features, declared_features, group_of_key
from tidemill.core.features import EventRows, FeaturePlan
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.records import Batch, FeatureBatch, Output, Partition, Scores
from tidemill.core.rows import Row, pack_row, unpack_row
from tidemill.core.spec import AppSpec
from tidemill.core.tables import with_entities
from tidemill.errors import StateLostError
from tidemill.io import kafka
from tidemill.io.codec import WireCodec
from tidemill.io.fill_store import FillStore
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.redis_store import RedisStore
from tidemill.io.wire import InputDecoder

ROWS_CHUNK = 5_000  # pending rows that are rewritten at a time
PROGRESS_RECORDS = 100_000

Source = tuple[int, int]  # partition and offset of an event; an app has one event topic
Ranges = Mapping[Partition, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class GroupFill:
    """One group: its version before and after (None = there is none), and the keys of its state."""

    group: str
    before: int | None
    after: int | None
    action: str  # "keep", "fill" or "drop"
    keys: int | None  # written, or deleted; None = not known before the fill


@dataclass(frozen=True, slots=True)
class FillReport:
    """records: replayed, or to replay. rows: pending predictions whose entities are those of the new groups. lost_rows:
    those whose event is no longer in the log, so that their label will feed no group."""

    groups: tuple[GroupFill, ...]
    records: int
    rows: int
    lost_rows: int = 0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay of the inputs gives: state by key, and the entities of the events that were asked for."""

    state: Mapping[str, bytes]
    entities: Mapping[Source, tuple[str, ...]]
    records: int


class _SilentCodec(WireCodec):
    """Encodes what rows keep, and nothing that would be published."""

    def encode(self, schema_name: str, columns: pa.RecordBatch) -> list[bytes]:
        return [b""] * columns.num_rows

    def pack_slice(self, outputs: Sequence[Output]) -> bytes:
        return b""


class _NoModel:
    """Features do not depend on scores."""

    n = 0

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        nothing = np.zeros(len(features))
        return Scores(learner=nothing, base_rate=nothing, booster=None, blend=nothing, n=0, model_version="")


def replay(
    spec: AppSpec,
    groups: frozenset[str],
    batches: Iterator[Batch],
    decoder: InputDecoder,
    starts: Mapping[Partition, int],
    wanted: frozenset[Source],
    report: Callable[[str], None] = lambda message: None,
) -> Replayed:
    """Run the inputs from their start through the pipeline of an app with these groups only, in memory.

    Args:
        batches: of the inputs from `starts` on, in merged order.
        wanted: the events whose entities are asked for, those of all groups of `spec`.
    """
    part = replace(spec, groups=tuple(group for group in spec.groups if group.name in groups))
    pipeline = Pipeline(part, FeaturePlan(part), _SilentCodec(part, decoder))
    plan = FeaturePlan(spec)
    event_topic = next(topic.name for topic in spec.topics if topic.role == "event")
    backend = MemoryBackend()
    store = MemoryStore(backend)
    store.claim(sorted(starts), may_create=True)
    for partition, start in starts.items():
        store.set_start(partition, start)
    at, entities, records, watermark = dict(starts), dict[Source, tuple[str, ...]](), 0, -1
    for number, batch in enumerate(batches):
        entities.update(_entities_of(plan, batch, event_topic, wanted))
        turn = Turn(with_idle_partitions(batch, at), watermark, frozenset(starts), "fill", number)
        reads = pipeline.reads(turn)
        outcome = pipeline.step(turn, reads, store.read(reads), _NoModel())
        store.commit(replace(outcome.commit, slices={}))
        at.update({partition: span.next for partition, span in batch.spans.items()})
        store.mark_published(at)
        # Records come in the order of time from all partitions: what is due before the last one can be settled.
        watermark = max(watermark, int(batch.time.max(initial=-1)))
        if (records + len(batch)) // PROGRESS_RECORDS > records // PROGRESS_RECORDS:
            report(f"{records + len(batch):,} records replayed")
        records += len(batch)
    return Replayed(backend.state, entities, records)


def with_new_entities(
    codec: WireCodec, rows: Mapping[str, bytes], entities: Mapping[Source, tuple[str, ...]], group_count: int
) -> dict[str, bytes]:
    """Pending rows with the entities of their events; features and scores stay as served.

    An event without entities here (its record is gone) has a missing one for each of `group_count` groups.
    """
    opened: dict[str, Row] = {id_: unpack_row(packed) for id_, packed in rows.items()}
    missing = (MISSING_ENTITY,) * group_count
    texts = [entities.get((row.partition, row.offset), missing) for row in opened.values()]
    tails = codec.encode_rows(with_entities(codec.decode_rows([row.tail for row in opened.values()]), texts))
    return {
        id_: pack_row(row._replace(revision=row.revision + 1, tail=tail))
        for (id_, row), tail in zip(opened.items(), tails, strict=True)
    }


def fill_features(settings: Settings, *, is_dry_run: bool, report: Callable[[str], None]) -> FillReport:
    """Fill the state of the groups whose version is new, and let the store accept the configuration.

    Raises:
        RefusedError: TM-4301, the group has living members; TM-4303, the declaration cannot be filled as it is.
        StateLostError: TM-4304, the store does not know its features.
        FencedError: TM-4112, a worker claimed meanwhile; nothing changed.
        UnavailableError: a server did not answer.
    """
    assert settings.bootstrap_servers is not None and settings.redis_url is not None
    spec = settings.app
    clients = clients_of(settings)
    group = worker_group(spec.name)
    refuse_living_members(kafka.living_members(clients, group), group)
    fill_store = FillStore(settings.redis_url, spec.name)
    store = RedisStore(settings.redis_url, spec.name, owner_slot="fill", config_digest=config_digest(spec))
    try:
        config, features = fill_store.in_force()
        if config is None or features is None:
            raise StateLostError(
                "TM-4304",
                f"the store does not know which features the state of app {spec.name} belongs to: either no worker has "
                "run yet, so there is nothing to fill, or one of an earlier version of Tidemill has: start a worker "
                "with the former YAML once",
            )
        comparison = compare_features(features, spec)
        _refuse(comparison, spec, is_same_config=config == config_digest(spec))
        if not is_dry_run:
            # Leftovers go first: of a fill that was stopped, or of versions before a switch.
            fill_store.begin()
            fill_store.delete_state(_is_not_of(_former(comparison)))
        ranges = _ranges(clients, store)
        records = sum(end - start for start, end in ranges.values())
        if comparison.is_same:
            return FillReport(_groups(comparison, {}), 0, 0)
        if is_dry_run:
            return FillReport(_groups(comparison, None), records, sum(1 for _ in fill_store.pending_rows()))
        report(f"replaying {records:,} offsets of {len(ranges)} partitions")
        return _fill(settings, clients, fill_store, comparison, ranges, report)
    finally:
        store.close()
        fill_store.close()


def _fill(
    settings: Settings,
    clients: Mapping[str, Any],
    fill_store: FillStore,
    comparison: Comparison,
    ranges: Ranges,
    report: Callable[[str], None],
) -> FillReport:
    spec = settings.app
    decoder = InputDecoder(spec, schemas=open_schemas(settings, report))
    sources = {id_: _source(row) for id_, row in fill_store.pending_rows()}
    names = frozenset(change.group for change in comparison.changes if change.action == "fill")
    replayed = replay(
        spec,
        names,
        read_merged(clients, spec, decoder, ranges, condemned_records(clients, spec.name, ranges)),
        decoder,
        {partition: start for partition, (start, _) in ranges.items()},
        frozenset(sources.values()),
        report,
    )
    failpoint("fill-replayed")
    fill_store.put_state(replayed.state)
    failpoint("fill-state")
    codec = WireCodec(spec, decoder)
    group_count = len(FeaturePlan(spec).label_groups)
    chunk: dict[str, bytes] = {}
    for id_, row in fill_store.pending_rows():
        chunk[id_] = row
        if len(chunk) == ROWS_CHUNK:
            fill_store.put_rows(with_new_entities(codec, chunk, replayed.entities, group_count))
            chunk = {}
    fill_store.put_rows(with_new_entities(codec, chunk, replayed.entities, group_count))
    failpoint("fill-rows")
    fill_store.switch(config_digest(spec), declared_features(spec))
    failpoint("fill-switched")
    fill_store.delete_state(_is_not_of(_declared(comparison)))
    counts: dict[str, int] = {}
    for key in replayed.state:
        found = group_of_key(key)
        if found is not None:
            counts[found[0]] = counts.get(found[0], 0) + 1
    lost = sum(source not in replayed.entities for source in sources.values())
    return FillReport(_groups(comparison, counts), replayed.records, len(sources), lost)


def _refuse(comparison: Comparison, spec: AppSpec, *, is_same_config: bool) -> None:
    """Raises RefusedError TM-4303."""
    if comparison.refusals:
        raise RefusedError("TM-4303", f"app {spec.name}: " + "\n".join(comparison.refusals))
    if comparison.is_same and not is_same_config:
        raise RefusedError(
            "TM-4303",
            f"app {spec.name}: the configuration changed and its features did not, so there is nothing to fill; "
            "`tidemill reset --config` accepts it",
        )


def _ranges(clients: Mapping[str, Any], store: RedisStore) -> dict[Partition, tuple[int, int]]:
    """What the store has applied of each partition and its log still holds."""
    applied = {partition: mark.applied for partition, mark in store.marks().items() if mark.applied >= 0}
    bounds = kafka.log_bounds(clients, sorted(applied)) if applied else {}
    return {p: (min(bounds[p][0], end), end) for p, end in applied.items()}


def _source(packed: bytes) -> Source:
    row = unpack_row(packed)
    return row.partition, row.offset


def _entities_of(
    plan: FeaturePlan, batch: Batch, event_topic: str, wanted: frozenset[Source]
) -> Iterator[tuple[Source, tuple[str, ...]]]:
    found = batch.records.get(event_topic)
    if found is None:
        return
    at = found.row_index
    sources = list(zip(batch.partition[at].tolist(), batch.offset[at].tolist(), strict=True))
    rows = [row for row, source in enumerate(sources) if source in wanted]
    if rows:
        columns = found.columns.take(pa.array(rows, pa.int64()))
        texts = plan.entities(EventRows(at[rows], batch.time[at[rows]], columns))
        yield from zip([sources[row] for row in rows], texts, strict=True)


def _former(comparison: Comparison) -> frozenset[tuple[str, int]]:
    """Name and version of the groups whose state is in force."""
    return frozenset((one.group, one.before) for one in comparison.changes if one.before is not None)


def _declared(comparison: Comparison) -> frozenset[tuple[str, int]]:
    return frozenset((one.group, one.after) for one in comparison.changes if one.after is not None)


def _is_not_of(groups: frozenset[tuple[str, int]]) -> Callable[[str], bool]:
    """Whether a key of feature state belongs to none of the groups."""
    return lambda key: (found := group_of_key(key)) is not None and found not in groups


def _groups(comparison: Comparison, counts: Mapping[str, int] | None) -> tuple[GroupFill, ...]:
    return tuple(
        GroupFill(
            one.group,
            one.before,
            one.after,
            one.action,
            counts.get(one.group, 0) if counts is not None and one.action == "fill" else None,
        )
        for one in comparison.changes
    )
