"""Store, log and group disagree: rebuilt where the log allows it, refused with exit 4 where it does not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from shop import Shop, a_shop

from tidemill.apps.engine import worker_group
from tidemill.config import config_digest
from tidemill.core.records import Partition
from tidemill.io import kafka
from tidemill.io.redis_store import RedisStore

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    """60 orders, 40 of them labelled and processed; the worker is stopped."""
    with a_shop(servers, app_name, tmp_path) as made:
        made.work_off_sixty_orders()
        made.wait_for_the_session_to_end()
        yield made


def orders_of(shop: Shop) -> list[Partition]:
    return [Partition(shop.names["event"], number) for number in (0, 1)]


def exit_code_of_a_start(shop: Shop) -> int:
    shop.start()
    assert shop.worker is not None
    return shop.worker.wait(90)


def reset_to(shop: Shop, target: str) -> None:
    shop.wait_for_the_session_to_end()
    reset = [sys.executable, "-m", "tidemill", "reset", str(shop.config), "--to", target, "--yes"]
    reset += ["--bootstrap-servers", shop.settings.bootstrap_servers or ""]
    reset += ["--redis-url", shop.settings.redis_url or ""]
    subprocess.run(reset, check=True, timeout=60, capture_output=True)


def process_one_more(shop: Shop) -> None:
    """After sixty; the worker has ended well then."""
    shop.start()
    shop.send("event", "999", 0, order=999, product="tea", amount=1.0)
    shop.producer.flush()
    shop.until(lambda now: now.published.get("prediction", 0) == 61)
    assert shop.stop() == 0


def test_a_lost_store_is_rebuilt_from_the_log_and_open_predictions_keep_what_was_served(shop: Shop):
    store = shop.store()
    digest, rows = store.feature_digest(), store.row_counts()
    store.wipe()

    shop.start()
    for order in range(40, 60):  # their predictions were open when the store was lost
        # Ten seconds after their events, however long the session before took to end: later ones would be orphans.
        shop.send("label", str(order), shop.sixty_sent_at - time.time(), order=order, returned=order % 2 == 0)
    shop.producer.flush()
    shop.until(lambda now: now.published.get("example", 0) == 60)
    assert shop.stop() == 0

    assert "rebuilding it from the log" in shop.log_text()
    predictions = {row["id"]: row for row in shop.read("predictions")}
    examples = {row["id"]: row for row in shop.read("examples")}
    assert len(predictions) == len(shop.read("predictions")) == 60 == len(examples)
    for id_, example in examples.items():
        assert {name: example[name] for name in ("numeric", "categories", "blend", "n")} == {
            name: predictions[id_][name] for name in ("numeric", "categories", "blend", "n")
        }
    assert sum(rows.values()) == sum(store.row_counts().values())
    # The digest of the same records applied in one go: the twenty labels that came later are in both.
    rebuilt = store.feature_digest()
    assert rebuilt != digest
    store.wipe()
    shop.start()
    shop.until(lambda now: sum(now.open_rows.values()) == 60)
    assert shop.stop() == 0
    assert store.feature_digest() == rebuilt


def test_a_lost_store_whose_log_was_cut_ends_with_exit_4(shop: Shop):
    shop.store().wipe()
    cut = [TopicPartition(p.topic, p.number, 5) for p in orders_of(shop)]
    admin = AdminClient(shop.clients)  # held by name: a client that is collected never answers
    for future in admin.delete_records(cut).values():
        future.result()
    assert exit_code_of_a_start(shop) == 4
    assert "TM-4203" in shop.log_text() and "the topic begins at 5" in shop.log_text()
    assert len(shop.read("predictions")) == 60


def test_offsets_moved_by_hand_end_with_exit_4_and_reset_makes_peace(shop: Shop):
    group = worker_group(shop.settings.app.name)
    before = kafka.committed_offsets(shop.clients, group, orders_of(shop))
    kafka.set_committed_offsets(shop.clients, group, dict.fromkeys(orders_of(shop), 1), "")
    assert exit_code_of_a_start(shop) == 4
    assert "TM-4204" in shop.log_text() and "tidemill reset" in shop.log_text()

    reset_to(shop, "applied")
    assert {p: at for p, (at, _) in kafka.committed_offsets(shop.clients, group, orders_of(shop)).items()} == {
        p: at for p, (at, _) in before.items()
    }
    process_one_more(shop)


def test_another_store_ends_with_exit_4_and_reset_lets_the_log_fill_it(shop: Shop):
    lost, rows = shop.store(), shop.store().row_counts()
    lost.wipe()
    other = RedisStore(
        shop.settings.redis_url or "",
        shop.settings.app.name,
        owner_slot="x",
        config_digest=config_digest(shop.settings.app),
    )
    other.claim([], may_create=True)  # it is nobody's yet: it becomes a store of its own
    assert exit_code_of_a_start(shop) == 4
    assert "TM-4201" in shop.log_text() and "tidemill reset --to committed" in shop.log_text()

    reset_to(shop, "committed")
    process_one_more(shop)
    assert "rebuilding it from the log" in shop.log_text()
    assert len(shop.read("predictions")) == 61 and sum(shop.store().row_counts().values()) == sum(rows.values()) + 1


def test_nothing_is_published_again_when_store_and_offsets_are_both_lost(shop: Shop):
    """As after a week without members and a store without persistence."""
    shop.store().wipe()
    kafka.delete_group(shop.clients, worker_group(shop.settings.app.name))
    assert exit_code_of_a_start(shop) == 4
    assert "TM-4208" in shop.log_text() and "tidemill reset --to earliest" in shop.log_text()
    assert len(shop.read("predictions")) == 60

    reset_to(shop, "earliest")  # who wants it twice may have it twice
    shop.start()
    shop.until(lambda now: now.published.get("prediction", 0) == 120)
    assert shop.stop() == 0
