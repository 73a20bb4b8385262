"""A record that kills a native library costs one worker once; then it is a dead letter, and the rest goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import fastavro
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st
from shop import SHOP, Shop, a_shop

from tidemill.apps.bisecting import Bisecting
from tidemill.apps.dead_letter_listing import list_dead_letters
from tidemill.apps.trial_child import run_apart
from tidemill.config import load_settings
from tidemill.core.bisection import CULPRITS_MAX, find_culprits
from tidemill.core.records import Partition
from tidemill.io.framing import header_of
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER, SourceRecord

# Put in front of a worker's and of its children's Python: a decoder that reads address 0 when it meets the mark, and a
# model that aborts when it does. Real deaths, of the whole process.
POISONED = """
import ctypes, os, pyruhvro
decode = pyruhvro.deserialize_array
def deserialize_array(bodies, schema):
    if any(b"KILLS-DECODING" in bytes(body) for body in bodies):
        ctypes.string_at(0)
    return decode(bodies, schema)
pyruhvro.deserialize_array = deserialize_array
import tidemill.models.serving as serving
score = serving.Serving.score
def score_or_die(self, features, ids):
    if any("KILLS-SCORING" in category for column in features.categories for category in column):
        os.abort()
    return score(self, features, ids)
serving.Serving.score = score_or_die
"""

NOON = 1_700_000_000
MORE = "batch_records: 20\n"  # several batches, so that the worker dies and goes on in the midst of the stream


def dies_of(*deadly: int, needed: int = 1):
    """A try that dies once it has met so many of the deadly positions."""

    def die(positions: Sequence[int]) -> int:
        return 11 if sum(position in deadly for position in positions) >= needed else 0

    return die


@given(count=st.integers(1, 300), data=st.data())
def test_every_deadly_record_is_found_and_no_other(count: int, data: st.DataObject):
    deadly = data.draw(st.sets(st.integers(0, count - 1), max_size=min(CULPRITS_MAX, 6)))
    found = find_culprits(count, dies_of(*deadly))
    assert found.is_clean and {position for position, _ in found.culprits} == deadly
    assert all(number == 11 for _, number in found.culprits)


def test_of_two_records_that_kill_together_the_later_one_is_named():
    found = find_culprits(100, dies_of(20, 70, needed=2))
    assert found.culprits == ((70, 11),) and found.is_clean


def test_a_death_that_does_not_repeat_condemns_nobody():
    answers = iter([9])
    found = find_culprits(1000, lambda positions: next(answers, 0))
    assert found.culprits == () and not found.is_clean


def test_a_library_that_dies_of_everything_is_not_blamed_on_the_records():
    found = find_culprits(1000, dies_of(*range(1000)))
    assert found.is_too_many and len(found.culprits) == CULPRITS_MAX


def test_a_search_costs_a_few_tries_for_each_culprit():
    tries: list[int] = []

    def die(positions: Sequence[int]) -> int:
        tries.append(len(positions))
        return dies_of(1234)(positions)

    assert find_culprits(2000, die).culprits == ((1234, 11),)
    assert len(tries) <= 15


def test_a_try_tells_the_signal_and_outlives_it():
    assert run_apart(os.abort).signal == signal.SIGABRT
    assert run_apart(lambda: os.kill(os.getpid(), signal.SIGSEGV)).signal == signal.SIGSEGV
    assert run_apart(lambda: 1 / 0).signal == 0  # a plain error kills no worker


def test_suspicion_ends_with_as_many_records_as_a_batch_has_or_with_the_last_one_of_the_claim():
    app = load_settings(SHOP)
    quiet, busy = (Partition(app.app.topics[0].name, number) for number in (0, 1))
    said: list[str] = []
    bisecting = Bisecting(app, report=said.append)

    def pass_one(partition: Partition, offset: int) -> bool:
        bisecting.passed([SourceRecord(0, 0, partition.number, offset, cast(Any, None))])
        return "the records that were suspected have passed" in said

    bisecting.suspect([quiet, busy], {quiet: (0, 12), busy: (0, 1_000_000)})
    assert not pass_one(quiet, 10) and not pass_one(quiet, 11)
    passed = [pass_one(busy, offset) for offset in range(app.app.batch_records)]
    assert passed == [False] * (app.app.batch_records - 1) + [True]


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on native libraries die of marked records."""
    folder = tmp_path / "poisoned"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(POISONED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))


def publish(shop: Shop, product: str | None) -> None:
    """120 orders with their labels, the same in every run, but for order 70: of this product, or cut off."""
    producer = Producer({**shop.clients, "enable.idempotence": True})  # else a first try that fails changes the order
    produce = producer.produce
    for order in range(120):
        name = product if order == 70 and product else "tea"
        value = encoded(shop, "event", order=order, product=name, amount=float(order))
        if order == 70 and product is None:
            value = value[:-3]
        produce(shop.names["event"], value, str(order), partition=order % 2, timestamp=(NOON + order) * 1000)
        if order % 3 == 0:
            value = encoded(shop, "label", order=order, returned=order % 2 == 0)
            produce(shop.names["label"], value, str(order), partition=0, timestamp=(NOON + order + 10) * 1000)
    end = [(PUNCTUATION_HEADER, b"%d" % ((NOON + 1_000) * 1000)), (END_HEADER, b"")]
    for topic in shop.names.values():
        for number in producer.list_topics(topic).topics[topic].partitions:
            produce(topic, None, None, partition=number, headers=end, timestamp=(NOON + 1_000) * 1000)
    producer.flush()


def encoded(shop: Shop, role: str, **fields: object) -> bytes:
    body = BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(shop.schemas[role]), fields)
    return header_of(shop.schemas[role]) + body.getvalue()


def finish(shop: Shop) -> dict[str, list[dict[str, Any]]]:
    """Let the worker come to the end; all that was published, without the app's name and who did it."""
    shop.until(lambda now: sum(now.lag.values()) == 0 and now.published.get("example", 0) >= 39, 120)
    assert shop.stop() == 0
    name = shop.settings.app.name
    found = {kind: shop.read(kind) for kind in ("predictions", "examples")}
    for rows in found.values():
        for row in rows:
            row.pop("feature_digest", None)  # of the declaration, in which topics are named after the app
            # Any worker that starts has read past the marker behind the last example: the same examples, one offset on.
            row.pop("n", None)
            row.update({key: value.replace(name, "shop") for key, value in row.items() if isinstance(value, str)})
        rows.sort(key=lambda row: (row["id"], str(row)))
    return found


@pytest.fixture(scope="module")
def undisturbed(servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What is published when order 70 is a plain poison."""
    with a_shop(servers, f"plain{os.getpid()}", tmp_path_factory.mktemp("plain"), more=MORE) as shop:
        publish(shop, None)
        shop.start("--bounded")
        found = finish(shop)
        assert [group.code for group in list_dead_letters(shop.settings)] == ["TM-2007"]
        return found


@pytest.mark.servers
@pytest.mark.parametrize(
    ("product", "code", "number"), [("KILLS-DECODING", "TM-2030", "SIGSEGV"), ("KILLS-SCORING", "TM-2031", "SIGABRT")]
)
def test_a_record_that_kills_costs_one_worker_once_and_the_rest_is_as_beside_a_plain_poison(
    servers, app_name: str, tmp_path: Path, poisoned: None, undisturbed, product: str, code: str, number: str
):
    with a_shop(servers, app_name, tmp_path, more=MORE) as shop:
        publish(shop, product)
        shop.start("--bounded")
        assert shop.worker is not None
        assert shop.worker.wait(60) == -getattr(signal, number), shop.log_text()
        shop.start("--bounded")
        found = finish(shop)
        [group] = list_dead_letters(shop.settings)
        assert (group.code, group.count) == (code, 1) and f"({number})" in group.example
        assert shop.log_text().count("it becomes a dead letter") == 1
        assert {row["id"] for row in found["predictions"]} == {str(order) for order in range(120) if order != 70}
        for kind, rows in found.items():  # as text: a missing number is not equal to itself
            assert [repr(row) for row in rows] == [repr(row) for row in undisturbed[kind]]
