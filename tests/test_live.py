"""A live worker on a stream of somebody else: no Python of the user, no punctuation, quiet partitions."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import Shop, a_shop

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        yield made


def test_a_stream_of_ones_own_needs_yaml_and_avro_only(shop: Shop):
    """200 orders, 150 of them labelled in time; the others expire although every topic has gone quiet."""
    shop.send("context", "tea", -31, product="tea", price=3.5)
    for order in range(200):
        shop.send("event", str(order), -30 + order / 100, order=order, product="tea", amount=float(order))
    for order in range(150):
        shop.send("label", str(order), -20 + order / 100, order=order, returned=order % 3 == 0)
    shop.send("event", "7", -15, order=7, product="tea", amount=7.0)  # a producer's retry
    shop.producer.flush()
    shop.start()
    # A status is read topic after topic while the worker goes on: wait for all of it.
    shop.until(lambda now: now.outcomes.get("prediction") == 200 and now.outcomes.get("event_duplicate") == 1)
    shop.until(lambda now: now.published.get("example") == 150 and now.outcomes.get("example") == 150)

    # One record moves the orders' first partition on; the quiet partitions take its time, and what was due expires.
    for order in range(1000, 1008):
        shop.send("event", str(order), 0, order=order, product="tea", amount=1.0)
    shop.producer.flush()
    status = shop.until(lambda now: now.outcomes.get("expired") == 50 and now.published["prediction"] == 208)
    status = shop.until(lambda now: all(balance.is_closed for balance in now.balances))
    assert all(balance.is_closed for balance in status.balances), status.balances
    assert status.open_rows["pending"] == 8
    assert shop.stop() == 0

    predictions = {row["id"]: row for row in shop.read("predictions")}
    assert len(predictions) == 208
    first, last = predictions["0"], predictions["199"]
    assert first["numeric"] == [0.0, 0.0, 0.5, 3.5]  # amount, orders before it, prior of the return rate, price
    assert last["numeric"][:2] == [199.0, 199.0] and last["categories"] == ["tea"]
    # Every label is known by the eight last orders: (50 positives + 0.5 * 2) / (150 + 2).
    assert predictions["1000"]["numeric"][2] == pytest.approx(51 / 152)


def test_time_goes_on_in_quiet_partitions_beside_a_stream_without_a_pause(shop: Shop):
    """Ten orders are due at once, but prices and returns never come; no gap between orders lets the worker rest."""
    for order in range(10):
        shop.send("event", str(order), -30, order=order, product="tea", amount=1.0)
    is_over = threading.Event()

    def send_steadily() -> None:
        order = 10
        while not is_over.wait(0.03):
            shop.send("event", str(order), 0, order=order, product="tea", amount=1.0)
            shop.producer.poll(0)
            order += 1

    steady = threading.Thread(target=send_steadily)
    steady.start()
    try:
        shop.start()
        shop.until(lambda now: now.outcomes.get("expired", 0) >= 10)
    finally:
        is_over.set()
        steady.join()
    assert shop.stop() == 0


def test_health_tells_of_a_running_worker(shop: Shop, unused_port: int):
    shop.start("--web-port", str(unused_port))
    shop.send("event", "1", 0, order=1, product="tea", amount=1.0)
    shop.producer.flush()
    shop.until(lambda now: now.published.get("prediction", 0) == 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/healthz") as answer:
        health = json.load(answer)
    assert health["is_stalled"] is False and health["records"] == 1 and health["partitions"] == 4
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as answer:
        assert b'outcome="prediction"' in answer.read()
    assert shop.stop() == 0


def test_a_replay_whose_producer_died_ends_with_exit_4_and_says_what_it_waits_for(shop: Shop):
    shop.send("event", "1", 0, order=1, product="tea", amount=1.0)
    shop.producer.flush()
    shop.config.write_text(shop.config.read_text().replace("stall_after: 20s", "stall_after: 6s"))
    shop.start("--bounded")  # which waits for a record or a punctuation in every partition
    assert shop.worker is not None
    assert shop.worker.wait(60) == 4
    message = shop.log_text()
    assert "TM-4030" in message and "@0 has waited " in message
    assert "waits for a record or a punctuation in" in message and "does its producer still run?" in message
