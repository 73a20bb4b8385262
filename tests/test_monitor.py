"""The monitor on real servers: what it publishes of a live stream, once, and with one voice."""

from __future__ import annotations

import dataclasses
import io
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from metrics_by_hand import assert_same_rows, constant, no_change, rows_by_hand
from shop import Shop, a_shop

from tidemill.apps import cli
from tidemill.apps.metrics_table import newest_rows, read_metrics, worst_slices
from tidemill.apps.monitor import Monitor, monitor_id
from tidemill.core.records import Partition
from tidemill.core.spec import ComparatorSpec
from tidemill.errors import FencedError
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode
from tidemill.io.telemetry import MonitorTelemetry

pytestmark = pytest.mark.servers
COMPARATORS = {"constant": constant, "no_change": no_change}


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        declared = tuple(ComparatorSpec(name=name, kind=name) for name in COMPARATORS)  # type: ignore[arg-type]
        app = dataclasses.replace(made.settings.app, comparators=declared)
        made.settings = dataclasses.replace(made.settings, app=app)
        yield made


def serve(shop: Shop, first: int, count: int) -> None:
    """Orders, four of five with their label five seconds later, through a worker."""
    now = time.time()
    for order in range(first, first + count):
        fields = {"order": order, "product": f"p{order % 3}", "amount": float(order)}
        shop.send("event", str(order), -15 + order / 100, now=now, **fields)
    for order in range(first, first + count):
        if order % 5:
            shop.send("label", str(order), -10 + order / 100, now=now, order=order, returned=order % 3 == 0)
    shop.producer.flush()
    shop.start()
    done = (first + count) // 5 * 4
    shop.until(lambda now: now.published.get("example") == done and now.published.get("prediction") == first + count)
    assert shop.stop() == 0


def a_monitor(shop: Shop) -> Monitor:
    return Monitor(shop.settings, telemetry=MonitorTelemetry(), report=print)


def run_once(shop: Shop) -> None:
    monitor = a_monitor(shop)
    monitor.run(is_until_end=True, is_stopped=lambda: False)
    monitor.close()


def log_of(shop: Shop) -> list[dict[str, Any]]:
    return [
        row | {"offset": message.offset()}
        for messages in read_topic(shop.clients, f"{shop.settings.app.name}.examples.v1")
        for message in messages
        for row in decode("example.v1", [message.value()]).to_pylist()
    ]


def by_hand(shop: Shop) -> dict[str, dict[str, Any]]:
    costs = {"false_alarm": 1, "miss": 1}
    return rows_by_hand(shop.read("predictions"), log_of(shop), columns=("product",), comparators=COMPARATORS, **costs)


def metrics_end(shop: Shop) -> int:
    topic = Partition(f"{shop.settings.app.name}.metrics.v1", 0)
    return kafka.log_bounds(shop.clients, [topic])[topic][1]


def committed(shop: Shop) -> dict[Partition, tuple[int | None, str]]:
    name = shop.settings.app.name
    parts = [Partition(f"{name}.examples.v1", 0), *(Partition(f"{name}.predictions.v1", at) for at in range(4))]
    return kafka.committed_offsets(shop.clients, monitor_id(shop.settings.app), parts)


def printed(*arguments: str) -> str:
    with redirect_stdout(io.StringIO()) as text:
        assert cli.run(arguments) == 0
    return text.getvalue()


def test_published_figures_are_those_of_the_topics_and_are_published_once(shop: Shop) -> None:
    serve(shop, 0, 250)
    run_once(shop)
    assert assert_same_rows(read_metrics(shop.settings), by_hand(shop)) > 1_000
    ends = kafka.log_bounds(shop.clients, list(committed(shop)))
    assert {at: offset for at, (offset, _) in committed(shop).items()} == {at: end for at, (_, end) in ends.items()}

    end = metrics_end(shop)
    run_once(shop)  # a restart: nothing is new, so nothing is written, not even a marker
    assert metrics_end(shop) == end

    older, newer = a_monitor(shop), a_monitor(shop)
    with pytest.raises(FencedError, match="TM-4010"):
        serve(shop, 250, 5)
        older.run(is_until_end=True, is_stopped=lambda: False)
    assert metrics_end(shop) == end
    newer.run(is_until_end=True, is_stopped=lambda: False)
    for monitor in (older, newer):
        monitor.close()
    assert_same_rows(read_metrics(shop.settings), by_hand(shop))

    servers = ("--bootstrap-servers", shop.settings.bootstrap_servers or "")
    table = printed("metrics", str(shop.config), *servers)
    for text in ("blend", "no_change", "constant: log loss", "delay p95", "kappa", "204"):
        assert text in table
    sliced = [json.loads(line) for line in printed("metrics", str(shop.config), "-o", "jsonl", *servers).splitlines()]
    assert {row["window"] for row in sliced} == {"run"} and all(row["slice_feature"] == "" for row in sliced)
    assert worst_slices(newest_rows(read_metrics(shop.settings), "run")) == []  # none has 200 examples


def test_a_live_monitor_follows_and_tells_prometheus(shop: Shop, unused_port: int) -> None:
    telemetry = MonitorTelemetry()
    end_serving = telemetry.serve(unused_port)
    monitor = Monitor(shop.settings, telemetry=telemetry, report=print)
    began = time.monotonic()
    looks = 0

    def is_stopped() -> bool:
        """Serves once the monitor runs; stops it when the topic shows every label."""
        nonlocal looks
        looks += 1
        if looks == 5:
            serve(shop, 0, 50)
        assert time.monotonic() - began < 90
        rows = read_metrics(shop.settings) if looks > 5 else []
        return any(row["n"] == 40 for row in rows if row["series"] == "blend" and row["window"] == "run")

    monitor.run(is_until_end=False, is_stopped=is_stopped)
    monitor.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as answer:
        text = answer.read().decode()
    end_serving()
    assert 'tidemill_progressive_loss{model="blend",window="run"}' in text
    assert 'tidemill_label_delay_seconds{quantile="0.95",window="1d"} 4.' in text  # 5 s, rounded down by 1/64
    assert_same_rows(read_metrics(shop.settings), by_hand(shop))
