"""Two workers lose their store and one of them hangs: what the other one serves meanwhile is flagged `degraded`."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import SHOP, Shop, a_shop

pytestmark = pytest.mark.servers
ORDERS = 20


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    text = SHOP.read_text().replace("partitions: 2", "partitions: 6")  # so each of two workers has some of the orders
    with a_shop(
        servers, app_name, tmp_path, text=text.replace("worker: {", "worker: {when_behind: degraded, ")
    ) as made:
        yield made


def order(shop: Shop, first: int) -> None:
    for number in range(first, first + ORDERS):
        shop.send("event", str(number), 0, order=number, product="tea", amount=1.0)
    shop.producer.flush()


def test_while_a_hanging_worker_has_not_rebuilt_its_part_the_other_one_flags_what_it_serves(shop: Shop) -> None:
    def flags_of(first: int, partitions: frozenset[int]) -> list[list[str]]:
        rows = shop.read("predictions")
        return [
            row["flags"] for row in rows if first <= int(row["id"]) < first + ORDERS and row["partition"] in partitions
        ]

    order(shop, 0)
    for number in range(ORDERS):  # who has learned nothing is `degraded` anyhow
        shop.send("label", str(number), 1, order=number, returned=number % 2 == 0)
    shop.producer.flush()
    shop.start("--slot", "0")
    shop.until(lambda now: now.published.get("example") == ORDERS)
    first = shop.worker
    assert first is not None
    shop.start("--slot", "1")
    other = shop.worker
    try:
        shop.until(lambda now: shop.log_text().count("owns ") == 3)
        first.send_signal(signal.SIGSTOP)
        # Those of the other worker: what it is given later it may rebuild before anybody looks.
        owned = frozenset(
            partition.number
            for partition, mark in shop.store().marks().items()
            if partition.topic == shop.names["event"] and mark.owner.startswith("1:")
        )
        shop.store().wipe()
        order(shop, 100)
        shop.until(lambda now: now.published.get("prediction", 0) > ORDERS)
        assert "still being rebuilt: going on, flagged degraded" in shop.log_text()
        served = flags_of(100, owned)
        assert served and all("degraded" in flags for flags in served)

        # The group takes the hanging worker's partitions away, and the other one rebuilds them too.
        shop.until(lambda now: now.published.get("prediction") == 2 * ORDERS)
        first.send_signal(signal.SIGCONT)
        order(shop, 200)
        shop.until(lambda now: now.published.get("prediction") == 3 * ORDERS)
        shop.until(lambda now: all(balance.is_closed for balance in now.balances))
        assert not any("degraded" in flags for flags in flags_of(200, frozenset(range(6))))
    finally:
        for worker in (first, other):
            assert isinstance(worker, subprocess.Popen)
            worker.kill()
            worker.wait()
