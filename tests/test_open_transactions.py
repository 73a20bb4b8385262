"""Readers of a whole log and a dead writer's open transaction, on a real broker: what is behind it is read too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer
from open_transactions import an_open_transaction

from tidemill.apps.reset import _commit_records
from tidemill.apps.restoring import _published
from tidemill.core.records import Partition
from tidemill.core.topic_names import commits_topic
from tidemill.errors import UnavailableError
from tidemill.io import kafka, kafka_reader
from tidemill.io.embedded import Servers
from tidemill.io.kafka_reader import read_to_end, read_topic
from tidemill.io.outputs import Encoder

pytestmark = pytest.mark.servers
PARTITION = Partition("in", 0)


@pytest.fixture
def clients(servers: Servers) -> dict[str, Any]:
    return kafka.client_settings(servers.bootstrap_servers)


@pytest.fixture
def topic(clients: dict[str, Any], app_name: str) -> str:
    """The app's commits log, with one partition."""
    kafka.ensure_topics(clients, {commits_topic(app_name): 1}, {})
    return commits_topic(app_name)


def a_commit(next_: int) -> bytes:
    """The record of a batch that ended at an offset of the only partition."""
    row: dict[str, Any] = {name: [0] for name in ("start", "batch", "n", "watermark", "group_watermark", "merge_rank")}
    row |= {"topic": [PARTITION.topic], "partition": [PARTITION.number], "next": [next_], "worker": ["w"]}
    row |= {name: [[]] for name in ("outcomes", "joined", "waiting", "settled")}
    return Encoder("commit.v1").encode(row)[0]


@pytest.fixture
def behind(clients: dict[str, Any], topic: str, app_name: str) -> Iterator[bytes]:
    """A record that was committed behind a transaction which is ended only while somebody waits for it."""
    torn = an_open_transaction(clients, app_name, topic)
    whole = Producer({**clients, "transactional.id": f"{app_name}.2"})
    whole.init_transactions(30)
    whole.begin_transaction()
    whole.produce(topic, a_commit(7))
    whole.commit_transaction(30)
    assert list(read_topic(clients, topic)) == []  # no reader that stops at the last stable offset sees it
    end = threading.Timer(1.0, torn.abort_transaction, [30])
    end.start()
    yield a_commit(7)
    end.join()


def test_who_reads_to_the_end_gets_it(clients: dict[str, Any], topic: str, behind: bytes) -> None:
    """A rebuild that missed it would decide the past anew."""
    assert [m.value() for messages in read_to_end(clients, topic) for m in messages] == [behind]


def test_a_reset_knows_how_far_it_is_published(clients: dict[str, Any], topic: str, behind: bytes) -> None:
    """One that missed it would publish the batch a second time."""
    assert _commit_records(clients, topic) == ({behind}, {PARTITION: 7})


def test_a_restore_knows_that_it_is_published(clients: dict[str, Any], app_name: str, behind: bytes) -> None:
    """One that missed it would put the batch back into the outbox, to be published a second time."""
    cut: Any = SimpleNamespace(head=SimpleNamespace(partitions={PARTITION: SimpleNamespace(slices={1: b"one"})}))
    cut.log_ends = {}
    spec: Any = SimpleNamespace(name=app_name)
    assert _published(clients, spec, cut) == {behind}


def test_who_reads_to_the_end_says_so_when_a_transaction_does_not_end(
    clients: dict[str, Any], topic: str, app_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = an_open_transaction(clients, app_name, topic)
    monkeypatch.setattr(kafka_reader, "STABLE_DEADLINE_S", 0.5)
    with pytest.raises(UnavailableError, match=r"TM-3016 .*commits.v1\[0\]@0 came no further in 0.5 s and ends at 1"):
        list(read_to_end(clients, topic))
    hanging.abort_transaction(10)
