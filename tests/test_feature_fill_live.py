"""A window changes under a running app: stop, raise the version, fill, go on, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shop import Shop, a_shop

from tidemill.apps import cli
from tidemill.apps.engine import worker_group
from tidemill.config import load_settings
from tidemill.io import kafka

pytestmark = pytest.mark.servers
FORMER = "orders_1h: {kind: count, of: APP.orders, window: 1h}"
LATER = "orders_1m: {kind: count, of: APP.orders, window: 12s}"


def run(shop: Shop, *arguments: str) -> int:
    """A command of the operator, in this process; its exit code."""
    return cli.run([*arguments[:2], str(shop.config), *arguments[2:], *addresses(shop)])


def addresses(shop: Shop) -> list[str]:
    settings = shop.settings
    return ["--bootstrap-servers", settings.bootstrap_servers or "", "--redis-url", settings.redis_url or ""]


def kill_fill_at(shop: Shop, place: str) -> None:
    command = [sys.executable, "-m", "tidemill", "features", "fill", str(shop.config), *addresses(shop)]
    environment = {**os.environ, "TIDEMILL_DATA": str(shop.folder), "TIDEMILL_FAILPOINT": f"{place}:kill"}
    assert subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False).returncode == -9


def wait_until_alone(shop: Shop) -> None:
    """A member that has left is counted for a moment more."""
    deadline = time.monotonic() + 90
    while kafka.living_members(shop.clients, worker_group(shop.settings.app.name)):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_changed_window_is_filled_and_goes_on_as_if_always_declared(servers, app_name: str, tmp_path: Path, capsys):
    began = time.time()

    def order(shop: Shop, number: int, seconds: float) -> None:
        at = began + seconds - time.time()
        shop.send("event", str(number), at, order=number, product="tea", amount=float(number))

    def label(shop: Shop, number: int, seconds: float) -> None:
        at = began + seconds - time.time()
        shop.send("label", str(number), at, order=number, returned=number % 2 == 0)

    with a_shop(servers, app_name, tmp_path) as shop:
        for number in range(100):
            order(shop, number, -40 + number / 5)  # five a second
        for number in range(60):
            label(shop, number, -26 + number / 10)
        shop.producer.flush()
        shop.start()
        shop.until(lambda now: now.published.get("prediction") == 100 and now.published.get("example") == 60)
        assert shop.stop() == 0

        former = FORMER.replace("APP", app_name)
        text = shop.config.read_text()
        assert former in text
        changed = text.replace(former, LATER.replace("APP", app_name))
        shop.config.write_text(changed)
        wait_until_alone(shop)
        assert run(shop, "features", "fill") == 5
        said = capsys.readouterr().err
        assert "group by_product" in said and "`version: 2`" in said
        assert cli.run(["reset", str(shop.config), "--config", "--yes", *addresses(shop)]) == 5
        assert "features fill" in capsys.readouterr().err

        shop.config.write_text(changed.replace("entity: [product]", "version: 2\n    entity: [product]"))
        shop.start()
        assert shop.worker is not None and shop.worker.wait(90) == 3
        assert "TM-4104" in shop.log_text() and "features fill" in shop.log_text()
        wait_until_alone(shop)
        kill_fill_at(shop, "fill-rows")
        capsys.readouterr()
        assert run(shop, "features", "fill", "--dry-run", "-o", "json") == 0
        groups = {row["group"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
        assert (groups["by_product"]["before"], groups["by_product"]["after"]) == (1, 2)  # the former one is in force
        assert run(shop, "features", "fill") == 0
        assert "40 predictions" in capsys.readouterr().err
        assert run(shop, "features", "fill") == 0  # nothing is left to do

        shop.worker = None
        shop.settings = load_settings(
            shop.config, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=tmp_path
        )
        for number in range(60, 100):  # labels of predictions from before feed the new version
            label(shop, number, -18)
        order(shop, 1000, -17)
        shop.producer.flush()
        shop.start()
        shop.until(lambda now: now.published.get("prediction") == 101 and now.published.get("example") == 100)
        order(shop, 1001, -16)
        shop.producer.flush()
        shop.until(lambda now: now.published.get("prediction") == 102)
        assert shop.stop() == 0
        rows = {row["id"]: row for row in shop.read("predictions")}
        # amount; orders in the 11 to 12 s before, five a second up to 20 s ago; return rate of 100 labels and the prior
        in_window = rows["1000"]["numeric"][1]
        assert 38 <= in_window <= 45
        assert rows["1001"]["numeric"][2] == pytest.approx((50 + 0.5 * 2) / 102)
        assert rows["1000"]["feature_digest"] != rows["0"]["feature_digest"]
        learned = [row for row in shop.read("examples") if row["feature_digest"] == rows["1000"]["feature_digest"]]
        assert not learned  # those of the former features are published, and the new model's fold passes them over
        assert "N = " in shop.log_text()
