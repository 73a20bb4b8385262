"""What the verifier is made of: it reads logs, records and declarations by itself, and says what it found."""

from __future__ import annotations

import ast
from pathlib import Path

import fastavro
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from judged_runs import PREDICTIONS, judged

from tests.verify import read_declared, read_log
from tests.verify.avro import BadRecordError, Decoder, encode, fingerprint
from tests.verify.declared import milliseconds
from tests.verify.example_run import ORDER, right_run
from tests.verify.log import Record
from tests.verify.raw import flight_labels
from tidemill.io.embedded import Servers


@pytest.mark.servers
def test_only_committed_records_are_read_from_kafka(servers: Servers, app_name: str) -> None:
    topic = f"{app_name}.orders.v1"
    admin = AdminClient({"bootstrap.servers": servers.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 2, 1, config={"retention.ms": "-1"})])[topic].result(timeout=15)
    producer = Producer({"bootstrap.servers": servers.bootstrap_servers, "transactional.id": app_name})
    producer.init_transactions(15)
    for value, is_committed in ((b"first", True), (b"aborted", False), (b"last", True)):
        producer.begin_transaction()
        producer.produce(topic, value, b"k", partition=1, timestamp=1_357_000_000_000, headers=[("a", b"b")])
        producer.flush(15)  # an aborted record reaches the log too
        producer.commit_transaction(15) if is_committed else producer.abort_transaction(15)

    log = read_log(servers.bootstrap_servers, [topic, f"{app_name}.absent"])

    assert list(log.topics) == [topic]
    assert list(log.topic(topic).records) == [
        Record(1, 0, 1_357_000_000_000, b"k", b"first", (("a", b"b"),)),
        Record(1, 4, 1_357_000_000_000, b"k", b"last", (("a", b"b"),)),
    ]
    assert (log.topic(topic).begin, log.topic(topic).end) == ({0: 0, 1: 0}, {0: 0, 1: 6})


def test_a_report_reads_as_text_and_as_json() -> None:
    run = right_run(1)
    run.topics[PREDICTIONS].pop(20)
    report = judged(run)

    assert "predictions missing" in str(report) and str(report).splitlines()[-1].startswith("FAILED")
    assert report.as_json()["findings"]["predictions missing"]["count"] == 1


def test_the_fingerprint_is_that_of_the_specification() -> None:
    assert fingerprint("null") == bytes.fromhex("8a8f25cce724dd63")
    expected = fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(ORDER), "CRC-64-AVRO")
    assert fingerprint(ORDER).hex() == expected


def test_every_truncation_of_a_record_is_bad() -> None:
    value = encode(ORDER, {"id": "a", "shop": "b", "price": 1.0, "hour": 3})
    decoder = Decoder([ORDER])
    assert decoder.decode(value)["hour"] == 3

    for length in range(len(value)):
        with pytest.raises(BadRecordError):
            decoder.decode(value[:length])


def test_durations_are_read_as_people_write_them() -> None:
    assert [milliseconds(one) for one in ("24h", "1h30m", "500ms", 7)] == [86_400_000, 5_400_000, 500, 7]


def test_labels_of_the_flights_are_those_of_the_study() -> None:
    labels = flight_labels()

    assert len(labels) == 336_776
    assert round(sum(labels.values()) / len(labels), 3) == 0.259


def test_the_declaration_of_the_flights_is_read() -> None:
    declared = read_declared(Path(__file__).parents[1] / "config" / "flights.yaml")

    assert {topic.role for topic in declared.topics} == {"event", "label", "context"}
    assert len(declared.numeric) + len(declared.categories) == len(declared.features)


def test_the_verifier_imports_nothing_of_the_system() -> None:
    for path in sorted((Path(__file__).parent / "verify").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "tidemill"], f"{path}: {names}"
