"""A worker whose registry comes and goes while its producers change their schema."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from registry_server import RegistryServer
from shop import a_shop
from wire_samples import body_of

from tidemill.io.schema_cache import confluent_header

pytestmark = pytest.mark.servers


def test_a_worker_goes_on_without_its_registry_and_waits_only_for_what_nobody_knows(
    servers, app_name: str, tmp_path: Path
) -> None:
    with RegistryServer() as registry:
        more = f"schema_registry: {{url: '{registry.url}', timeout: 1s}}\n"
        with a_shop(servers, app_name, tmp_path, more=more) as shop:
            # Every worker that stands still for so long ends: but not one that was told to wait.
            text = shop.config.read_text()
            shop.config.write_text(text.replace("stall_after: 20s", "stall_after: 12s"))
            first = shop.schemas["event"]
            second = {**first, "fields": [*first["fields"], {"name": "note", "type": "string"}]}
            subject = f"{shop.names['event']}-value"

            def order(number: int, schema: dict, **more: object) -> None:
                value = {"order": number, "product": "tea", "amount": 1.0, **more}
                header = confluent_header(registry.register(subject, schema))
                shop.producer.produce(
                    shop.names["event"], header + body_of(schema, value), b"k", timestamp=int(time.time() * 1_000)
                )
                shop.producer.flush()

            order(1, first)
            shop.start()
            shop.until(lambda now: now.outcomes.get("prediction") == 1, deadline_s=120)
            registry.stop()
            order(2, first)
            shop.until(lambda now: now.outcomes.get("prediction") == 2)

            order(3, second, note="new")
            order(4, first)
            shop.until(lambda now: "batch discarded: TM-3060" in shop.log_text())
            time.sleep(14)
            status = shop.until(lambda now: True)
            assert status.outcomes["prediction"] == 2 and "dead_letter" not in status.outcomes
            registry.start()
            status = shop.until(lambda now: now.outcomes.get("prediction") == 4)
            assert all(balance.is_closed for balance in status.balances), status.balances
            assert "answers again, after" in shop.log_text()
            assert shop.stop() == 0
            assert sorted(row["id"] for row in shop.read("predictions")) == ["1", "2", "3", "4"]

            shop.send("label", "4", -10, order=4, returned=True)
            shop.producer.flush()
            words = ["backtest", str(shop.config), "--bootstrap-servers", servers.bootstrap_servers]
            words += ["--out", str(tmp_path / "past"), "--predictions"]
            past = subprocess.run([sys.executable, "-m", "tidemill", *words], capture_output=True, text=True)
            assert past.returncode == 0, past.stderr
            found = pq.read_table(tmp_path / "past" / "predictions.parquet")
            assert sorted(found["id"].to_pylist()) == ["1", "2", "3", "4"]
