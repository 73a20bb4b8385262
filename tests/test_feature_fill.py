"""A changed feature: its state is what it had been, had it been declared from the start; nothing else changes."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from builders import a_category, a_count, a_field, a_group, a_latest, a_mean, a_spec
from in_memory import HOUR_MS, App, Machinery, Worker

from tests.memory_kafka import kafka_in_memory
from tidemill.apps.feature_fill import replay, with_new_entities
from tidemill.apps.roll_forward import read_merged
from tidemill.core.entities import MISSING_ENTITY
from tidemill.core.feature_versions import compare_features, declared_features, group_of_key
from tidemill.core.records import Commit, Partition, Span
from tidemill.core.rows import Row, RowState, pack_row, unpack_row
from tidemill.core.spec import AppSpec
from tidemill.errors import ConfigError, FencedError
from tidemill.io.codec import WireCodec
from tidemill.io.embedded import start_servers
from tidemill.io.fill_store import CHUNK, FillStore
from tidemill.io.memory import MemoryStore
from tidemill.io.outputs import FeatureShape, decode_examples
from tidemill.io.redis_store import RedisStore

EVENTS = Partition("events", 0)
MINUTE_MS = 60_000
EVENT = a_group("event", [], a_field("amount", "amount"), a_category("shop", "shop"))
BY_SHOP = a_group(
    "by_shop",
    ["shop"],
    a_count("readings", "readings", 12 * HOUR_MS),
    a_mean("late", "outcomes", "label", 12 * HOUR_MS, prior=0.5, prior_weight=1.0),
    a_latest("reading", "readings", "reading"),
)
BY_USER = a_group("by_user", ["user"], a_mean("user_late", "outcomes", "label", 24 * HOUR_MS))


@pytest.fixture(autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def an_app(*groups) -> AppSpec:
    spec = a_spec(*groups, max_skew_ms=HOUR_MS)
    return replace(spec, label=replace(spec.label, wait_ms=6 * HOUR_MS, dedup_window_ms=24 * HOUR_MS))


BEFORE = an_app(EVENT, BY_SHOP)
AFTER = an_app(  # a user's group before the shop's, so that the places of the label groups move
    EVENT,
    BY_USER,
    replace(
        BY_SHOP,
        version=2,
        features=(
            a_count("readings", "readings", 3 * HOUR_MS),
            a_count("orders", "events", 3 * HOUR_MS),
            *BY_SHOP.features[1:],
        ),
    ),
)


def fill_inputs(app: App, seed: int) -> None:
    """Two days: retries, labels before and long after their events, quiet hours, entities that are missing."""
    chance = random.Random(seed)
    records = []
    for number in range(150):
        time, shop, id_ = chance.randrange(48 * HOUR_MS), chance.choice(["a", "b", None]), f"e{number}"
        event = {"id": id_, "shop": shop, "user": chance.randrange(3), "amount": 1.0}
        records.append(("events", time, event))
        if chance.random() < 0.1:
            records.append(("events", time + chance.randrange(30 * HOUR_MS), event))
        if chance.random() < 0.7:
            records.append(
                ("outcomes", max(0, time + chance.randrange(-HOUR_MS, 8 * HOUR_MS)), {"id": id_, "outcome": number % 2})
            )
        if chance.random() < 0.5:
            records.append(("readings", time + 1, {"shop": shop, "reading": float(number)}))
    for topic, time, fields in sorted(records, key=lambda record: record[1]):
        partition = zlib.crc32(str(fields.get("id")).encode()) % 2 if topic == "events" else 0
        app.inputs.add(topic, time, partition=partition, **fields)
    app.inputs.punctuate(80 * HOUR_MS)


def fill(app: App, to: AppSpec) -> App:
    """What `fill_features` does, on a store in memory."""
    machinery = Machinery(to)
    filled = App(machinery=machinery)
    filled.inputs, filled.backend, filled.log = app.inputs, app.backend, app.log
    marks = MemoryStore(app.backend).marks()
    ranges = {p: (0, mark.applied) for p, mark in marks.items()}
    changes = compare_features(declared_features(app.spec), to).changes
    pending = {id_: row for id_, row in app.backend.rows.items() if row[8] == RowState.PENDING}
    places = {id_: unpack_row(row) for id_, row in pending.items()}
    found = replay(
        to,
        frozenset(change.group for change in changes if change.action == "fill"),
        read_merged({"log": app.log}, to, machinery.decoder, ranges),
        machinery.decoder,
        dict.fromkeys(ranges, 0),
        frozenset((row.partition, row.offset) for row in places.values()),
    )
    app.backend.state.update(found.state)
    codec = WireCodec(to, machinery.decoder)
    groups = len(machinery.pipeline.plan.label_groups)
    app.backend.rows.update(with_new_entities(codec, pending, found.entities, groups))
    declared = {(group.name, group.version) for group in to.groups}
    app.backend.state = {key: value for key, value in app.backend.state.items() if group_of_key(key) in declared}
    return filled


CUTS = (40, 90, 140, 190, 240, 290)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stop", [100, 200])
def test_features_after_a_fill_are_those_of_a_run_that_had_them_from_the_start(seed: int, stop: int):
    ever = App(AFTER, partitions=2)
    fill_inputs(ever, seed)
    Worker(ever).claim().run_all((*CUTS, stop))
    app = App(BEFORE, partitions=2)
    fill_inputs(app, seed)
    first = Worker(app).claim()
    records = first.left()
    for start, end in itertools.pairwise([0, *(cut for cut in CUTS if cut < stop), stop]):
        first.run(records[start:end])
    before = len(app.log.rows("prediction.v1"))
    app = fill(app, AFTER)
    Worker(app, slot="1").claim().run_all([cut - stop for cut in CUTS if cut > stop])
    expected = {row["id"]: row for row in ever.log.rows("prediction.v1")}
    rows = app.log.rows("prediction.v1")
    assert len(rows) == len(expected) and before > 20
    for row in rows[before:]:
        assert row["feature_digest"] == expected[row["id"]]["feature_digest"]
        np.testing.assert_array_equal(row["numeric"], expected[row["id"]]["numeric"])
        assert (row["entities"], row["flags"]) == (expected[row["id"]]["entities"], expected[row["id"]]["flags"])
    assert app.digest() == ever.digest()
    # Examples of predictions from before carry the features that were served, and only new ones are learned.
    served = {row["id"]: row for row in rows}
    examples = [row for row in app.log.rows("example.v1") if row["kind"] == "example"]
    assert all(row["feature_digest"] == served[row["id"]]["feature_digest"] for row in examples)
    values = [output.value or b"" for output in app.log.outputs("shop.examples.v1")]
    plan = app.machinery.pipeline.plan
    shape = FeatureShape(plan.digest, len(plan.numeric_names), len(plan.category_names))
    found, _ = decode_examples(values, range(len(values)), shape)
    rows = app.log.rows("example.v1")
    ours = [row["is_learned"] and row["feature_digest"] == plan.digest for row in rows]
    assert found.is_learned.tolist() == ours and 0 < sum(ours) < sum(row["is_learned"] for row in rows)
    assert found.features.numeric.shape == (len(rows), len(plan.numeric_names))
    assert np.isnan(found.features.numeric[~np.array(ours)]).all() or any(not row["is_learned"] for row in rows)
    learned = [row["numeric"] for row, mine in zip(rows, ours, strict=True) if mine]
    np.testing.assert_array_equal(found.features.numeric[found.is_learned], np.array(learned, dtype=np.float32))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_servers(tmp_path_factory.mktemp("fill"), kafka=False) as running:
        yield running.redis_url


def a_claimed_store(url: str, app: str, config: str = "old") -> RedisStore:
    store = RedisStore(url, app, owner_slot="0", config_digest=config, features=f"features of {config}")
    store.claim([EVENTS], may_create=True)
    return store


def test_a_switch_shows_rows_and_configuration_at_once_and_voids_the_owners(valkey: str, app_name: str):
    store = a_claimed_store(valkey, app_name)
    store.set_start(EVENTS, 0)
    pending = pack_row(Row(1, RowState.PENDING, 5, -1, -1, 2, 0, 0, b"before"))
    store.commit(Commit(spans={EVENTS: Span(0, 1, 5, False)}, read_set={"e": 0}, rows={"e": pending}))
    fill_store = FillStore(valkey, app_name)
    fill_store.begin()
    assert fill_store.in_force() == ("old", "features of old")
    assert dict(fill_store.pending_rows()) == {"e": pending}
    fill_store.put_state({f"g:v2:{number}": b"12345678" for number in range(CHUNK + 1)} | {"g:v1:a": b"87654321"})
    fill_store.put_rows({"e": pending + b" and after"})
    with pytest.raises(FencedError):  # a late script of the worker that is gone
        store.commit(Commit(spans={EVENTS: Span(1, 2, 6, False)}))
    assert dict(fill_store.pending_rows()) == {"e": pending}
    fill_store.switch("new", "features of new")
    assert fill_store.in_force() == ("new", "features of new")
    assert dict(fill_store.pending_rows()) == {"e": pending + b" and after"}
    assert fill_store.delete_state(lambda key: group_of_key(key) == ("g", 2)) == CHUNK + 1
    with pytest.raises(ConfigError, match="features fill"):
        a_claimed_store(valkey, app_name, "old")
    a_claimed_store(valkey, app_name, "new")


def test_a_worker_that_claims_or_another_fill_ends_the_fill(valkey: str, app_name: str):
    a_claimed_store(valkey, app_name)
    for interfere in (lambda: a_claimed_store(valkey, app_name), lambda: FillStore(valkey, app_name).begin()):
        fill_store = FillStore(valkey, app_name)
        fill_store.begin()
        fill_store.put_rows({"e": b"row"})
        interfere()
        with pytest.raises(FencedError, match=r"TM-4112.*again"):
            fill_store.put_state({"g:v2:a": b"12345678"})
        with pytest.raises(FencedError, match="TM-4112"):
            fill_store.switch("new", "features of new")
        assert fill_store.in_force() == ("old", "features of old")
        assert dict(fill_store.pending_rows()) == {}


def test_the_same_claim_remembers_the_features_of_its_configuration(valkey: str, app_name: str):
    assert FillStore(valkey, app_name).in_force() == (None, None)
    store = a_claimed_store(valkey, app_name)
    assert FillStore(valkey, app_name).in_force() == ("old", "features of old")
    RedisStore(valkey, app_name, owner_slot="reset", config_digest="other", features="others").set_config()
    assert FillStore(valkey, app_name).in_force() == ("other", "others")
    store.close()


def test_a_store_that_is_lost_after_the_fill_is_rebuilt_in_the_new_features():
    app = App(BEFORE)
    app.inputs.add("events", 0, id="open", shop="b", user=2, amount=1.0)
    for number in range(6):
        app.inputs.add("events", number * MINUTE_MS, id=f"e{number}", shop="a", user=1, amount=1.0)
        app.inputs.add("outcomes", (number + 1) * MINUTE_MS, id=f"e{number - 1}", outcome=1)
    worker = Worker(app).claim()
    worker.run(worker.left()[:6])
    app = fill(app, AFTER)
    Worker(app, slot="1").claim().run_all()
    digest = app.digest()
    MemoryStore(app.backend).wipe()
    rebuilt = Worker(app, slot="2").claim()
    assert app.digest() == digest
    # A prediction of the former features was published with the entities of then; its label teaches those of now.
    assert not any(key.startswith("by_user:v1:2") for key in app.backend.state)
    app.inputs.add("outcomes", 10 * MINUTE_MS, id="open", outcome=1)
    rebuilt.run_all()
    assert {"by_user:v1:2", "by_shop:v2:b"} <= app.backend.state.keys()


def test_an_event_that_is_gone_leaves_a_missing_entity_for_each_group():
    app = App(BEFORE)
    app.inputs.add("events", MINUTE_MS, id="e", shop="a", user=1, amount=1.0)
    Worker(app).claim().run_all()
    machinery = Machinery(AFTER)
    codec = WireCodec(AFTER, machinery.decoder)
    row = with_new_entities(codec, app.backend.rows, {}, 2)["e"]
    assert codec.decode_rows([unpack_row(row).tail]).column("entities").to_pylist() == [[MISSING_ENTITY] * 2]
    assert unpack_row(row).revision == unpack_row(app.backend.rows["e"]).revision + 1


def test_a_changed_group_needs_a_higher_version_and_the_message_says_which():
    changed = an_app(EVENT, replace(BY_SHOP, features=BY_SHOP.features[:1]))
    (refusal,) = compare_features(declared_features(BEFORE), changed).refusals
    assert "by_shop" in refusal and "`version: 2`" in refusal


@pytest.mark.parametrize(
    "changed",
    [
        replace(BEFORE, max_skew_ms=2 * HOUR_MS),
        replace(BEFORE, label=replace(BEFORE.label, positive_if_any=())),
        replace(BEFORE, topics=(BEFORE.topics[2], *BEFORE.topics[:2])),
    ],
    ids=["ring of panes", "label rule", "places of topics"],
)
def test_what_gives_state_its_layout_or_meaning_counts_as_a_change(changed: AppSpec):
    assert compare_features(declared_features(BEFORE), changed).refusals


def test_versions_tell_what_is_filled_kept_and_dropped():
    found = compare_features(declared_features(AFTER), an_app(BY_USER, replace(BY_SHOP, version=3)))
    actions = {change.group: change.action for change in found.changes}
    assert actions == {"by_user": "keep", "by_shop": "fill", "event": "drop"}
    assert not found.refusals and not found.is_same
    assert compare_features(declared_features(AFTER), AFTER).is_same


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("by_shop:v2:a:v1:b", ("by_shop", 2)),
        ("by_shop.latest.0:v12:", ("by_shop", 12)),
        ("by_shop", None),
    ],
)
def test_a_key_tells_its_group_and_version(key: str, group: tuple[str, int] | None):
    assert group_of_key(key) == group
