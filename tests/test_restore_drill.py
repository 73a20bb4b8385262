"""The drill of docs/restore.md, as it stands there, and a store that is lost while its workers run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_lines import console_lines
from shop import Shop, a_shop

from tidemill.apps.engine import worker_group
from tidemill.apps.reset import RefusedError
from tidemill.apps.status import Status
from tidemill.apps.store_snapshots import restore_snapshot, take_snapshot
from tidemill.errors import StateLostError
from tidemill.io import kafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "restore.md"


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        yield made


def send(shop: Shop, first: int, last: int, *, from_s: float, labelled: int = 2, tea: str = "tea") -> None:
    """Orders [first, last), a hundredth of a second apart; of `labelled` in three, the return is known 2 s later."""
    for order in range(first, last):
        at = from_s + (order - first) / 100
        shop.send("event", str(order), at, order=order, product=tea, amount=float(order))
        if order % 3 < labelled:
            shop.send("label", str(order), at + 2, order=order, returned=order % 2 == 0)


def until(shop: Shop, is_so: Callable[[Status], bool]) -> Status:
    """A restart of a worker that finds nothing takes longer than a batch does."""
    return shop.until(is_so, deadline_s=90.0)


def tidemill(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TIDEMILL_BOOTSTRAP_SERVERS": shop.settings.bootstrap_servers or "",
        "TIDEMILL_REDIS_URL": shop.settings.redis_url or "",
        "TIDEMILL_DATA": str(shop.folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    }
    command = [sys.executable, "-m", "tidemill", *arguments]
    return subprocess.run(command, cwd=shop.folder, env=environment, capture_output=True, text=True, timeout=120)


def json_of(shop: Shop, *arguments: str) -> dict[str, object]:
    done = tidemill(shop, *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def restore(shop: Shop, id_: str | None = None) -> None:
    restore_snapshot(shop.settings, id_, replaces=False, is_dry_run=False, report=print)


def stores_of_the_group(shop: Shop) -> set[str]:
    """Those that the group's offsets name."""
    partitions = kafka.partitions_of(shop.clients, [topic.name for topic in shop.settings.app.topics])
    group = worker_group(shop.settings.app.name)
    found = kafka.committed_offsets(shop.clients, group, partitions)
    return {metadata.partition("/")[0] for _, metadata in found.values()}


def commands_of_the_drill() -> list[list[str]]:
    page = PAGE.read_text()
    assert page.index("## Drill") < page.index("## Restore in earnest")
    wanted = page[page.index("## Drill") : page.index("## Restore in earnest")]
    return [line for line in console_lines(PAGE) if f"$ tidemill {shlex.join(line)}" in wanted]


def test_the_drill_of_the_page_ends_with_the_same_digest_and_closed_balances(shop: Shop) -> None:
    """Half of the records come before the snapshot; some predictions expire before it, some after it."""
    lines = commands_of_the_drill()
    assert [line[0] for line in lines] == ["snapshot", "status", "restore", "restore", "worker", "status"]
    shop.config.rename(shop.folder / "app.yaml")  # as the page calls it
    shop.config = shop.folder / "app.yaml"

    shop.send("context", "tea", -91, product="tea", price=3.5)
    send(shop, 0, 60, from_s=-90)
    shop.producer.flush()
    shop.start()
    until(shop, lambda now: now.published.get("example") == 40)
    time.sleep(1.5)  # the prices are quiet for longer than `idle_after`: they no longer hold back the watermark
    send(shop, 60, 120, from_s=-50)
    shop.producer.flush()
    until(shop, lambda now: now.outcomes.get("expired") == 20 and now.published["example"] == 80)

    taken = tidemill(shop, *lines[0])  # the worker runs
    assert taken.returncode == 0, taken.stderr
    send(shop, 120, 180, from_s=-20)
    send(shop, 180, 200, from_s=0)
    shop.producer.flush()
    until(shop, lambda now: now.published.get("prediction") == 200 and now.outcomes.get("expired", 0) >= 40)
    until(shop, lambda now: all(balance.is_closed for balance in now.balances))
    assert shop.stop() == 0
    shop.wait_for_the_session_to_end()
    store = shop.store()
    before, rows = json_of(shop, *lines[1]), store.row_counts()

    planned = tidemill(shop, *lines[2])
    assert planned.returncode == 0, planned.stderr
    assert store.row_counts() == rows, "a dry run changed the store"
    restored = tidemill(shop, *lines[3])
    assert restored.returncode == 0, restored.stderr
    assert store.row_counts() != rows, "nothing was put back: the drill shows nothing"

    shop.start(*lines[4][2:])
    until(shop, lambda now: "rolling the store forward" in shop.log_text() and not any(now.lag.values()))
    assert shop.stop() == 0
    after = json_of(shop, *lines[5])
    assert after["feature_digest"] == before["feature_digest"]
    assert after["outcomes"] == before["outcomes"] and after["published"] == before["published"]
    assert all(balance["is_closed"] for balance in after["balances"])  # type: ignore[attr-defined]


def test_a_worker_that_finds_the_store_lost_restores_the_newest_snapshot_and_goes_on(shop: Shop) -> None:
    shop.send("context", "tea", -61, product="tea", price=3.5)
    send(shop, 0, 60, from_s=-60)
    shop.producer.flush()
    shop.start()
    until(shop, lambda now: now.published.get("prediction") == 60 and now.published.get("example") == 40)
    taken = take_snapshot(shop.settings, kept=2, report=print)
    send(shop, 60, 120, from_s=-30)
    shop.producer.flush()
    until(shop, lambda now: now.published.get("prediction") == 120 and now.published.get("example") == 80)
    digest = shop.store().feature_digest()

    shop.store().wipe()  # while the worker runs: it is refused at its next commit
    send(shop, 120, 130, from_s=-1, labelled=0, tea="coffee")
    shop.producer.flush()
    until(shop, lambda now: now.published.get("prediction") == 130)
    until(shop, lambda now: all(balance.is_closed for balance in now.balances))
    assert "restoring the store from snapshot" in shop.log_text()
    assert shop.store().feature_digest() != digest  # ten orders more

    # Once more, before there is another snapshot: by now no offset names the store that the first one is of.
    send(shop, 130, 160, from_s=0, labelled=3)
    for product in ("tea", "coffee", "milk", "salt"):
        shop.send("context", product, 0, product=product, price=2.5)
    shop.producer.flush()
    until(shop, lambda now: now.published.get("example") == 110 and not any(now.lag.values()))
    assert taken.head.incarnation not in stores_of_the_group(shop)
    shop.store().wipe()
    send(shop, 160, 170, from_s=3, labelled=0)
    shop.producer.flush()
    until(shop, lambda now: now.published.get("prediction") == 170)
    status = until(shop, lambda now: all(balance.is_closed for balance in now.balances))
    assert shop.log_text().count(f"restoring the store from snapshot {taken.id}") == 2
    assert "rebuilding it from the log" not in shop.log_text()
    assert shop.stop() == 0
    assert max(Counter(row["id"] for row in shop.read("predictions")).values()) == 1
    assert (status.published["prediction"], status.published["example"]) == (170, 110)

    # A worker alone with the log comes to the same state as the snapshot and the log beyond it.
    rebuilt = shop.store().feature_digest()
    for path in (shop.folder / "stores").rglob("manifest.json"):
        path.unlink()
    shop.store().wipe()
    shop.start()
    until(shop, lambda now: "rebuilding it from the log" in shop.log_text() and not any(now.lag.values()))
    until(shop, lambda now: all(balance.is_closed for balance in now.balances))
    assert shop.stop() == 0
    assert shop.store().feature_digest() == rebuilt


def test_a_restore_wants_its_workers_stopped_and_an_empty_store(shop: Shop) -> None:
    shop.send("event", "1", 0, order=1, product="tea", amount=1.0)
    shop.producer.flush()
    shop.start()
    until(shop, lambda now: now.published.get("prediction", 0) == 1)
    ahead = shop.folder / "stores" / shop.settings.app.name / "002000000000000-00000000"  # of a clock in 2033
    ahead.mkdir(parents=True)
    (ahead / "part-00000").touch()
    taken = take_snapshot(shop.settings, kept=1, report=print)
    assert taken.id > ahead.name and not (ahead / "part-00000").exists()
    with pytest.raises(RefusedError, match="TM-4301"):
        restore(shop)
    assert shop.stop() == 0
    shop.wait_for_the_session_to_end()
    with pytest.raises(StateLostError, match=r"TM-4114 .* --replace"):
        restore(shop)
    with pytest.raises(StateLostError, match=f"TM-4115 there is no snapshot nothing; there is {taken.id}"):
        restore(shop, "nothing")
    assert shop.store().row_counts() == {1: 1}
