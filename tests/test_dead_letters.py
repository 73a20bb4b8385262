"""Dead letters can be read, taken away and sent again, byte for byte and once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop import SHOP, Shop, a_shop
from stored_letters import StoredLetter

from tidemill.apps import roll_forward
from tidemill.apps.cli import run
from tidemill.apps.dead_letters import (
    Letter,
    Place,
    Selection,
    as_json,
    letter_from_json,
    letter_of,
    parse_place,
    read_value,
    select_letters,
)
from tidemill.apps.redriving import (
    NO_ORIGIN,
    NO_PARTITION,
    OTHER_TOPIC,
    REDRIVE_HEADER,
    TRUNCATED,
    KafkaSink,
    plan_redrive,
    redrive,
    send_again,
)
from tidemill.config import load_app
from tidemill.core.records import DeadLetter, Output, Partition
from tidemill.errors import ConfigError, FencedError
from tidemill.io.dead_letters import dead_letter_output
from tidemill.io.framing import header_of
from tidemill.io.kafka_reader import read_topic
from tidemill.io.leading_fields import leading_fields

ORDERS = Partition("shop.orders", 1)
ORDER = next(topic for topic in load_app(SHOP).topics if topic.role == "event")


def dead(
    offset: int = 0,
    *,
    value: bytes | None = b"bad",
    headers: tuple[tuple[str, bytes | None], ...] = (),
    key: bytes | None = b"k",
    partition: Partition = ORDERS,
) -> DeadLetter:
    place = f"{partition}@{offset}"
    return DeadLetter(partition, offset, key, value, headers, 1_000, "TM-2007", f"{place}: is cut off", "decode")


def letter(offset: int = 0, **fields: object) -> Letter:
    return letter_of(StoredLetter(dead_letter_output(dead(offset, **fields), "shop"), offset))  # type: ignore[arg-type]


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["trace", "__streams.errors.exception", "tidemill.dlq.code", "__streams.errors.offset"]),
        st.none() | st.binary(max_size=4),
    ),
    max_size=6,
).map(tuple)


@given(HEADERS, st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9), st.integers(0, 2**40))
def test_a_letter_gives_back_the_record_even_one_that_has_been_a_dead_letter_elsewhere(headers, key, value, offset):
    found = letter(offset, headers=headers, key=key, value=value)
    assert (found.key, found.value, found.headers, found.timestamp) == (key, value, headers, 1_000)
    assert found.origin == Place(ORDERS, offset) and found.id == f"shop.orders[1]@{offset}"
    assert (found.code, found.stage) == ("TM-2007", "decode")
    assert parse_place(found.id) == found.origin


def test_a_rebuild_believes_this_app_alone_about_records_that_kill(monkeypatch: pytest.MonkeyPatch):
    letters = [
        StoredLetter(dead_letter_output(dead(offset)._replace(code=code), app), offset)
        for offset, (code, app) in enumerate([("TM-2030", "shop"), ("TM-2030", "other"), ("TM-2007", "shop")])
    ]
    monkeypatch.setattr(roll_forward, "read_to_end", lambda clients, topic: iter([letters]))
    assert set(roll_forward.condemned_records({}, "shop", {ORDERS: (0, 9)})) == {(ORDERS, 0)}


@given(HEADERS, st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9))
def test_an_exported_letter_is_the_letter(headers, key, value):
    found = letter(7, headers=headers, key=key, value=value)
    assert letter_from_json(json.loads(json.dumps(as_json(found)))) == found


def test_a_record_of_somebody_else_has_no_origin():
    found = letter_of(StoredLetter(Output("shop.orders.dlq", b"k", b"v", (("why", b"who knows"),)), 3))
    assert found.origin is None and found.code == "unknown" and found.id == "shop.orders.dlq[0]@3"
    assert found.headers == (("why", b"who knows"),)


@pytest.mark.parametrize("text", ["orders", "orders[0]", "orders[x]@1", "[0]@1", "orders[0]@-1"])
def test_what_is_no_place_is_refused(text: str):
    with pytest.raises(ConfigError, match="TM-1071"):
        parse_place(text)


def order_body(**fields: object) -> bytes:
    body = BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(ORDER.schema), fields)
    return body.getvalue()


@given(st.integers(0, 2**40), st.text(max_size=20), st.floats(0, 1e9), st.data())
def test_of_a_cut_value_the_whole_fields_are_shown(order: int, product: str, amount: float, data: st.DataObject):
    whole = {"order": order, "product": product, "amount": amount}
    body = order_body(**whole)
    ends = [len(order_body(**whole)) - 8 - len(product.encode()) - _varint(len(product.encode())), len(body) - 8]
    cut = data.draw(st.integers(0, len(body) - 1))
    fields, fault = leading_fields(ORDER.schema, body[:cut])
    expected = sum(end <= cut for end in ends)
    assert fields == dict(list(whole.items())[:expected])
    assert fault is not None and f"field {list(whole)[expected]} " in fault.what
    assert leading_fields(ORDER.schema, body) == (whole, None)


def _varint(length: int) -> int:
    return 1 if length < 64 else 2


def test_show_names_the_schema_and_the_broken_field():
    value = header_of(ORDER.schema) + order_body(order=5, product="tea", amount=1.0)[:-3]
    reading = read_value(letter(value=value), ORDER)
    assert reading.fields == {"order": 5, "product": "tea"} and "field amount is cut off" in reading.fault
    assert reading.schema.startswith(ORDER.schema["name"])
    assert read_value(letter(value=b"\x07rubbish"), ORDER).schema == "unknown"


class Sent:
    """A sink that remembers when it was given what."""

    def __init__(self) -> None:
        self.time = 0.0
        self.parts: list[tuple[float, list[Letter]]] = []

    def open(self) -> set[str]:
        return {each.id for _, part in self.parts for each in part}

    def send(self, letters: Sequence[Letter]) -> None:
        self.time += 0.01
        self.parts.append((self.time, list(letters)))

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def send(sink: Sent, letters: Sequence[Letter], *, rate: float = 50.0, partitions: int = 2):
    counts = {"shop.orders": partitions}
    say = [].append
    return send_again(
        letters, sink.open(), counts, sink, rate_max=rate, report=say, now=lambda: sink.time, sleep=sink.sleep
    )


@given(st.integers(0, 300), st.sampled_from([0.5, 3.0, 50.0, 1000.0]))
def test_the_rate_is_kept(count: int, rate: float):
    sink = Sent()
    found = send(sink, [letter(offset) for offset in range(count)], rate=rate)
    assert len(found.sent) == count
    before = 0
    for time, part in sink.parts:
        assert before <= rate * time + 1e-6 and len(part) <= max(1, rate)
        before += len(part)


def test_a_letter_is_sent_once_however_often_it_is_asked_for():
    sink = Sent()
    twice = [letter(1), letter(2), letter(1)]  # a reset made the same record a dead letter again
    first, second = send(sink, twice), send(sink, twice)
    assert first.sent == ["shop.orders[1]@1", "shop.orders[1]@2"] and first.already == 1
    assert second.sent == [] and second.already == 3


def test_letters_that_cannot_be_sent_are_refused_by_reason():
    cut = letter_of(StoredLetter(dead_letter_output(dead(4, value=b"x" * (17 * 1024 * 1024)), "shop"), 4))
    foreign = letter_of(StoredLetter(Output("shop.orders.dlq", b"k", b"v"), 3))
    astray = letter_of(StoredLetter(dead_letter_output(dead(5), "shop")._replace(topic="shop.returns.dlq"), 5))
    sink = Sent()
    found = send(sink, [cut, foreign, astray, letter(6, partition=Partition("shop.orders", 2))])
    assert found.refused == {TRUNCATED: 1, NO_ORIGIN: 1, OTHER_TOPIC: 1, NO_PARTITION: 1}
    assert sink.parts == [] and found.sent == []


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        yield made


def write_letters(shop: Shop, count: int) -> list[DeadLetter]:
    """Good orders that lie among the dead letters, as if a worker of an older configuration had put them there; and
    one of another app that reads the same topic, which is never ours to send."""
    made = []
    for offset in (*range(count), 999):
        value = header_of(ORDER.schema) + order_body(order=offset, product="tea", amount=1.0)
        headers = (("trace", b"%d" % offset), ("empty", None))
        one = dead(offset, value=value, headers=headers, partition=Partition(shop.names["event"], offset % 2))
        output = dead_letter_output(one, shop.settings.app.name if offset < count else "other")
        shop.producer.produce(
            output.topic, output.value, output.key, headers=list(output.headers), timestamp=output.timestamp
        )
        made.append(one)
    shop.producer.flush()
    return made[:count]


@pytest.mark.servers
def test_redriven_records_stand_where_they_stood_byte_for_byte_and_once(shop: Shop, capsys: pytest.CaptureFixture[str]):
    letters = write_letters(shop, 30)
    servers = ["--bootstrap-servers", shop.settings.bootstrap_servers or ""]
    config = [str(shop.config), *servers]

    assert run(["dlq", "redrive", *config, "--dry-run", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0] == {"letters": "would be sent again", "count": 30}
    assert list(read_topic(shop.clients, shop.names["event"])) == []

    one = f"{shop.names['event']}[1]@7"
    assert run(["dlq", "redrive", *config, "--id", one, "--yes", "--rate", "1000"]) == 0
    assert run(["dlq", "redrive", *config, "--code", "TM-2007", "--yes", "--rate", "1000"]) == 0
    assert run(["dlq", "redrive", *config, "--yes"]) == 0
    capsys.readouterr()
    found = {
        dict(message.headers())[REDRIVE_HEADER].decode(): message
        for messages in read_topic(shop.clients, shop.names["event"])
        for message in messages
    }
    assert sum(len(messages) for messages in read_topic(shop.clients, shop.names["event"])) == 30
    for original in letters:
        message = found[f"{original.partition}@{original.offset}"]
        assert (message.key(), message.value(), message.partition()) == (b"k", original.value, original.offset % 2)
        assert message.headers()[:-1] == list(original.headers) and message.timestamp()[1] == 1_000

    assert run(["dlq", "ls", *config, "-o", "jsonl"]) == 0
    [group] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (group["count"], group["redriven"], group["code"]) == (30, 30, "TM-2007")

    assert run(["dlq", "show", *config, one, "-o", "jsonl"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["fields"] == {"order": 7, "product": "tea", "amount": 1.0} and shown["headers"]["trace"] == "7"
    assert run(["dlq", "show", *config, f"{shop.names['event']}[1]@999"]) == 1

    file = shop.folder / "letters.jsonl"
    assert run(["dlq", "export", *config, "--to", str(file)]) == 0
    exported = [letter_from_json(json.loads(line)) for line in file.read_text().splitlines()]
    assert [(each.value, each.headers) for each in exported] == [(each.value, each.headers) for each in letters]
    assert base64.b64decode(json.loads(file.read_text().splitlines()[0])["key"]) == b"k"
    assert run(["dlq", "export", *config, "--to", str(file)]) == 3  # an earlier export is not overwritten


@pytest.mark.servers
def test_of_two_redrives_at_once_the_later_one_sends_and_a_stopped_one_leaves_nothing(shop: Shop):
    write_letters(shop, 4)
    chosen = list(select_letters(shop.settings, Selection()))
    earlier = KafkaSink(shop.settings)
    assert earlier.open() == set()
    earlier.send(chosen[:1])
    # It dies in the midst of a transaction: records are on their way, nothing is committed.
    assert earlier._writer is not None
    earlier._writer._producer.begin_transaction()
    earlier._writer._producer.produce(shop.names["event"], b"half", b"k")
    earlier._writer._producer.flush()
    assert redrive(shop.settings, Selection(), rate_max=1000, report=[].append).sent == [each.id for each in chosen[1:]]
    with pytest.raises(FencedError):  # it was not dead, only slow: what it wanted to commit is nowhere
        earlier._writer._end({}, None, [])
    assert sum(len(messages) for messages in read_topic(shop.clients, shop.names["event"])) == 4
    assert plan_redrive(shop.settings, Selection()).already == 4
