"""Schemas from a registry: written by Confluent's client, read by this one, also while the registry is away."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from registered_schemas import ADDED, READER, REMOVED, RENAMED, RETYPED, registry
from registry_server import RegistryServer
from wire_samples import EVENT, FakeMessage, Records, an_app, an_event, body_of, event_topic, framed

from tidemill.core.records import Batch
from tidemill.errors import UnavailableError
from tidemill.io.dead_letters import Code
from tidemill.io.schema_cache import AWAY_S, SchemaCache, confluent_header
from tidemill.io.schema_registry import SchemaRegistry, inlined
from tidemill.io.telemetry import Telemetry
from tidemill.io.wire import InputDecoder

__all__ = ["registry"]


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Side:
    """A decoder with a registry, and everything around it."""

    def __init__(self, registry: RegistryServer, folder: Path, *, if_unreachable: Any = "wait", **app: Any) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.cache = SchemaCache(
            SchemaRegistry(registry.url, timeout_s=5.0),
            topics=["events"],
            folder=folder,
            if_unreachable=if_unreachable,
            report=self.said.append,
            now_s=self.clock,
            sleep=self.clock.sleep,
        )
        self.decoder = InputDecoder(an_app(event_topic(app.pop("schema", READER), **app)), schemas=self.cache)

    def decode(self, *values: bytes) -> Batch:
        records = Records()
        for value in values:
            records.add(FakeMessage(value))
        return self.decoder.decode(records.all, {})


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    return batch.records["events"].columns.to_pylist() if "events" in batch.records else []


def letters_of(batch: Batch) -> list[tuple[int, str]]:
    return [(at, letter.code) for at, letter in batch.dead_letters]


def registered(registry: RegistryServer, schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    """A value as a registry's client frames it."""
    return confluent_header(registry.register("events-value", schema)) + body_of(schema, row)


# --- the stream goes on while its schema changes


def test_writers_change_in_mid_stream_and_every_record_is_read(registry, tmp_path) -> None:
    side = Side(registry, tmp_path, schema=ADDED)
    batch = side.decode(
        registered(registry, READER, {"id": "a", "n": 1}),
        registered(registry, ADDED, {"id": "b", "n": 2, "note": "x"}),
        framed(ADDED, {"id": "c", "n": 3, "note": None}),
        registered(registry, RETYPED, {"id": "d", "n": 4}),
        registered(registry, READER, {"id": "e", "n": 5}),
    )
    assert letters_of(batch) == []
    assert [(row["id"], row["n"], row["note"]) for row in rows_of(batch)] == [
        ("a", 1, None),
        ("b", 2, "x"),
        ("c", 3, None),
        ("d", 4, None),
        ("e", 5, None),
    ]
    assert len([path for _, path in registry.requests if path.startswith("/schemas/ids/")]) == 3


def test_a_renamed_field_is_read_by_its_alias_and_a_removed_one_makes_dead_letters(registry, tmp_path) -> None:
    reader = {**READER, "fields": [READER["fields"][0], {**READER["fields"][1], "aliases": ["m"]}]}
    side = Side(registry, tmp_path, schema=reader)
    batch = side.decode(
        registered(registry, RENAMED, {"id": "a", "m": 1}),
        registered(registry, REMOVED, {"id": "b"}),
        registered(registry, READER, {"id": "c", "n": 3}),
    )
    assert [(row["id"], row["n"]) for row in rows_of(batch)] == [("a", 1), ("c", 3)]
    assert letters_of(batch) == [(1, Code.NOT_RESOLVED)]
    assert "give the field a default or an alias" in batch.dead_letters[0][1].message


def test_without_a_registry_declared_writers_are_read_and_others_are_dead_letters() -> None:
    topic = event_topic(READER, writers=(RETYPED,))
    records = Records()
    for value in (
        framed(RETYPED, {"id": "a", "n": 1}),
        framed(READER, {"id": "b", "n": 2}),
        framed(ADDED, {"id": "c", "n": 3, "note": None}),
        b"\x00\x00\x00\x00\x01" + body_of(READER, {"id": "d", "n": 4}),
        framed(RETYPED, {"id": "e", "n": 5}),
    ):
        records.add(FakeMessage(value))
    batch = InputDecoder(an_app(topic)).decode(records.all, {})
    assert [row["id"] for row in rows_of(batch)] == ["a", "b", "e"]
    assert letters_of(batch) == [(2, Code.UNKNOWN_SCHEMA), (3, Code.CONFLUENT_FRAMED)]


def test_a_fingerprint_is_found_among_the_versions_of_the_subject(registry, tmp_path) -> None:
    registry.register("events-value", RETYPED)
    side = Side(registry, tmp_path)
    batch = side.decode(framed(RETYPED, {"id": "a", "n": 1}), framed(ADDED, {"id": "b", "n": 2, "note": None}))
    assert [row["id"] for row in rows_of(batch)] == ["a"]
    assert letters_of(batch) == [(1, Code.UNKNOWN_SCHEMA)]
    assert "events-value" in batch.dead_letters[0][1].message
    registry.register("events-value", ADDED)
    side.clock.sleep(31)
    assert letters_of(side.decode(framed(ADDED, {"id": "b", "n": 2, "note": None}))) == []


def test_an_id_that_the_registry_never_gave_is_a_dead_letter_and_is_not_asked_for_again(registry, tmp_path) -> None:
    side = Side(registry, tmp_path)
    value = confluent_header(77) + body_of(READER, {"id": "a", "n": 1})
    for _ in range(3):
        batch = side.decode(value, value)
        assert letters_of(batch) == [(0, Code.UNKNOWN_SCHEMA), (1, Code.UNKNOWN_SCHEMA)]
    assert "schema id 77 is not in the schema registry" in batch.dead_letters[0][1].message
    assert len(registry.requests) == 2  # a registry of several nodes is asked twice


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('{"type": "object"}', "JSON", "is a JSON schema"),
        ('"string"', "AVRO", "is no record"),
        ('{"type": "record", "name": "E", "fields": [{"name": "a", "type": "nonsense"}]}', "AVRO", "no Avro schema"),
    ],
)
def test_what_is_registered_and_cannot_be_read_makes_dead_letters(registry, tmp_path, text, kind, words) -> None:
    schema_id = registry.register("events-value", text, kind)
    side = Side(registry, tmp_path)
    batch = side.decode(confluent_header(schema_id) + b"x", framed(READER, {"id": "a", "n": 1}))
    assert letters_of(batch) == [(0, Code.UNKNOWN_SCHEMA)]
    assert words in batch.dead_letters[0][1].message
    assert len(rows_of(batch)) == 1


def test_a_value_that_is_cut_within_its_header_is_a_dead_letter(registry, tmp_path) -> None:
    batch = Side(registry, tmp_path).decode(b"\x00\x00\x01", b"", b"\xc3\x01\x02")
    assert letters_of(batch) == [(at, Code.NOT_FRAMED) for at in range(3)]
    assert registry.requests == []


def test_schemas_that_refer_to_others_are_put_together(registry, tmp_path) -> None:
    card = {"type": "record", "name": "Card", "namespace": "pay", "fields": [{"name": "no", "type": "long"}]}
    registry.register("card", card)
    outer = {
        "type": "record",
        "name": "E",
        "namespace": "pay",
        "fields": [
            *READER["fields"],
            {"name": "card", "type": "Card"},
            {"name": "former", "type": ["null", "pay.Card"]},
        ],
    }
    reference = {"name": "pay.Card", "subject": "card", "version": 1}
    schema_id = registry.register("events-value", outer, references=[reference])
    whole = inlined(outer, {"pay.Card": card})
    assert whole["fields"][2]["type"] == card and whole["fields"][3]["type"] == ["null", "pay.Card"]
    side = Side(registry, tmp_path)
    value = body_of(whole, {"id": "a", "n": 1, "card": {"no": 5}, "former": None})
    assert [row["id"] for row in rows_of(side.decode(confluent_header(schema_id) + value))] == ["a"]


# --- Confluent's own client


def test_confluents_serializer_and_this_reader_agree(registry, tmp_path) -> None:
    serializers = pytest.importorskip("confluent_kafka.schema_registry.avro", exc_type=ImportError)
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.serialization import MessageField, SerializationContext

    client, place = SchemaRegistryClient({"url": registry.url}), SerializationContext("events", MessageField.VALUE)
    later = {**EVENT, "fields": [*EVENT["fields"], {"name": "note", "type": "string", "default": ""}]}
    values, expected = [], []
    for schema in (EVENT, later, EVENT):
        write = serializers.AvroSerializer(client, json.dumps(schema))
        for at in range(20):
            event = an_event(id=f"e{at}", amount=at / 3, count=at - 10, tags=["x"] * at)
            values.append(write({**event, "note": "n"} if schema is later else event, place))
            expected.append(serializers.AvroDeserializer(client)(values[-1], place))
    batch = Side(registry, tmp_path, schema=EVENT).decode(*values)

    assert letters_of(batch) == []
    found = rows_of(batch)
    for name in ("id", "amount", "count", "paid", "colour", "tags"):
        assert [row[name] for row in found] == [row[name] for row in expected], name
    assert {value[:5] for value in values} == {confluent_header(1), confluent_header(2)}


def test_bytes_that_confluents_serializer_wrote_are_read(registry, tmp_path) -> None:
    """Recorded from confluent-kafka 2.16.1: {"id": "golden", "n": -3} with the first schema of the subject."""
    registry.register("events-value", READER)
    batch = Side(registry, tmp_path).decode(bytes.fromhex("00000000010c676f6c64656e05"))
    assert [(row["id"], row["n"]) for row in rows_of(batch)] == [("golden", -3)]


# --- the registry goes away


def test_scoring_goes_on_from_the_cache_while_the_registry_is_away_for_ten_minutes(registry, tmp_path) -> None:
    side = Side(registry, tmp_path)
    known = registered(registry, READER, {"id": "a", "n": 1})
    side.cache.refresh()
    registry.stop()
    for _ in range(10):
        side.clock.sleep(60)
        with pytest.raises(UnavailableError, match="TM-3060"):
            side.cache.refresh()
        assert len(rows_of(side.decode(known, known))) == 2
    assert 600 <= side.cache.age_s < 620
    telemetry = Telemetry([])
    telemetry.watch_schema_registry(lambda: side.cache.age_s)
    assert b"tidemill_schema_registry_age_seconds 6" in telemetry.text()
    assert len(side.said) == 1 and "2 schemas are known and go on being read" in side.said[0]
    registry.start()
    side.clock.sleep(AWAY_S)
    side.cache.refresh()
    assert side.cache.age_s == 0 and "answers again, after 6" in side.said[1]


def test_an_unknown_id_waits_while_the_registry_is_away_and_is_read_when_it_is_back(registry, tmp_path) -> None:
    side = Side(registry, tmp_path)
    value = registered(registry, RETYPED, {"id": "a", "n": 1})
    registry.stop()
    for _ in range(3):
        before = side.clock()
        with pytest.raises(UnavailableError, match=r"TM-3060 .*did not answer"):
            side.decode(value)
        assert side.clock() >= before + AWAY_S  # the worker begins again at once: the pace is here
    registry.start()
    assert len(rows_of(side.decode(value))) == 1


def test_an_unknown_id_is_a_dead_letter_while_the_registry_is_away_where_that_is_declared(registry, tmp_path) -> None:
    side = Side(registry, tmp_path, if_unreachable="dead_letter")
    value = registered(registry, RETYPED, {"id": "a", "n": 1})
    registry.stop()
    batch = side.decode(value, framed(READER, {"id": "b", "n": 2}))
    assert letters_of(batch) == [(0, Code.UNKNOWN_SCHEMA)] and len(rows_of(batch)) == 1
    assert "did not answer" in batch.dead_letters[0][1].message
    registry.start()
    side.clock.sleep(2 * AWAY_S)
    assert letters_of(side.decode(value)) == []


def test_a_worker_starts_from_the_disk_while_the_registry_is_away(registry, tmp_path) -> None:
    value = registered(registry, RETYPED, {"id": "a", "n": 1})
    Side(registry, tmp_path).decode(value)
    registry.stop()
    assert len(rows_of(Side(registry, tmp_path).decode(value))) == 1
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")  # a torn file is asked for again
    with pytest.raises(UnavailableError):
        Side(registry, tmp_path).decode(value)


def test_a_cache_that_cannot_be_written_is_said_and_reading_goes_on(registry, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    side = Side(registry, tmp_path / "file")
    assert len(rows_of(side.decode(registered(registry, RETYPED, {"id": "a", "n": 1})))) == 1
    assert "cannot be kept" in side.said[0]


@pytest.mark.parametrize("status", [500, 503, 429, 404])
def test_a_gateways_answer_is_never_taken_for_the_registrys_word(registry, tmp_path, status) -> None:
    """A 404 of a proxy must not turn good records into dead letters."""
    side = Side(registry, tmp_path)
    value = registered(registry, RETYPED, {"id": "a", "n": 1})
    registry.status = status
    with pytest.raises(UnavailableError, match=str(status)):
        side.decode(value)
    registry.status = None
    side.clock.sleep(2 * AWAY_S)
    assert letters_of(side.decode(value)) == []


def test_a_404_of_another_path_of_the_registry_is_no_word_about_a_schema(registry) -> None:
    """An address that lacks its prefix, or has one too many, must not turn good records into dead letters."""
    client = SchemaRegistry(registry.url + "/prefix")
    for ask in (lambda: client.by_id(1), lambda: client.versions("events-value")):
        with pytest.raises(UnavailableError, match="HTTP 404"):
            ask()


def test_a_refresh_learns_schemas_ahead_of_their_first_record(registry, tmp_path) -> None:
    side = Side(registry, tmp_path)
    values = [registered(registry, RETYPED, {"id": "a", "n": 1}), framed(RETYPED, {"id": "b", "n": 2})]
    side.cache.refresh()
    asked = len(registry.requests)
    side.cache.refresh()
    assert len(registry.requests) == asked + 1  # only the list: versions never change
    registry.stop()
    assert len(rows_of(side.decode(*values))) == 2


def test_the_thread_refreshes_by_itself_and_ends(registry, tmp_path) -> None:
    registry.register("events-value", RETYPED)
    side = Side(registry, tmp_path)
    end = side.cache.keep_fresh(0.01)
    for _ in range(500):
        if side.cache.count:
            break
        time.sleep(0.01)
    end()
    assert side.cache.count == 2
