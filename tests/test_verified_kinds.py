"""One app with every kind of feature: the product serves what the verifier computes from YAML and topics alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.builders import a_topic
from tests.in_memory import App, Worker
from tests.memory_kafka import kafka_in_memory
from tests.verify import Report, judge, read_declared
from tests.verify.log import Log, Record, TopicLog
from tidemill.config import load_app

YAML = """
name: shop
max_skew: 10m
topics:
  readings: {role: context, schema: readings.avsc}
  outcomes: {role: label, schema: outcomes.avsc, id: id}
  events: {role: event, schema: events.avsc, id: id}
label:
  positive_if_any: [{field: outcome, above: 0}]
  wait: 6h
groups:
  event:
    entity: []
    features:
      amount: {kind: field, field: amount}
      hour: {kind: calendar, part: hour, zone: Europe/Vienna}
      minute_of_day: {kind: calendar, part: minute_of_day}
      local_hour: {kind: category, part: hour, zone: Asia/Kolkata}
      shop: {kind: category, field: shop}
      open_all: {kind: open, of: events, closed_by: outcomes, due: due, window: 6h}
  by_shop:
    entity: [shop]
    features:
      readings_1h: {kind: count, of: readings, window: 1h}
      readings_rate: {kind: rate, of: readings, window: 3h}
      reading_sum: {kind: sum, of: readings, value: reading, unit: 0.5, window: 2h}
      reading_mean: {kind: mean, of: readings, value: reading, unit: 0.5, window: 2h, prior: 1, prior_weight: 2}
      reading_min: {kind: min, of: readings, value: reading, unit: 0.5, window: 2h}
      reading_max: {kind: max, of: readings, value: reading, unit: 0.5, window: 2h}
      reading_decayed: {kind: decayed_mean, of: readings, value: reading, unit: 0.5, half_life: 20m}
      late_decayed: {kind: decayed_mean, of: outcomes, value: label, half_life: 1h, prior: 0.3, prior_weight: 1}
      events_decayed: {kind: decayed_count, of: events, half_life: 10m}
      names: {kind: distinct, of: readings, field: name, window: 2h}
      reading: {kind: latest, of: readings, field: reading}
      reading_before: {kind: latest, of: readings, field: reading, back: 1}
      since_reading: {kind: time_since_last, of: readings}
      open: {kind: open, of: events, closed_by: outcomes, due: due, closed_due: due, ahead: 30m, window: 3h}
  by_pair:
    entity: [shop, user]
    features:
      users_open: {kind: open, of: events, closed_by: outcomes, window: 3h}
      amount_max: {kind: max, of: events, value: amount, unit: 0.01, window: 6h}
      amount_before: {kind: latest, of: events, field: amount, back: 2}
"""
FIELDS = {
    "readings": {"shop": "string", "reading": "double", "name": "string"},
    "outcomes": {"id": "string", "outcome": "int", "due": "long"},
    "events": {"id": "string", "shop": "string", "user": "long", "amount": "double", "due": "long"},
}
START, MINUTE = 1_370_000_000_000, 60_000


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name, fields in FIELDS.items():
        schema = a_topic(name, "context", fields).schema
        if "id" in fields:
            schema["fields"][0] = {"name": "id", "type": "string"}
        (tmp_path / f"{name}.avsc").write_text(json.dumps(schema))
    path = tmp_path / "shop.yaml"
    path.write_text(YAML)
    return path


def a_run(config: Path, seed: int) -> App:
    """Four hours of a shop in memory."""
    app, chance = App(load_app(config)), random.Random(seed)
    time = START
    events: list[tuple[str, int]] = []
    for number in range(240):
        time += chance.choice([0, 0, 1_000, MINUTE, 3 * MINUTE])
        shop = chance.choice(["a", "b\x1f", None])
        kind = chance.choice(["readings", "events", "outcomes"])
        due = chance.choice([None, time - MINUTE, time, time + 7 * MINUTE, time + 25 * MINUTE, time + 50 * MINUTE])
        if kind == "readings":
            value = chance.choice([None, 1e30, *(x / 4 for x in range(-20, 20))])
            app.inputs.add(kind, time, shop=shop, reading=value, name=chance.choice(["x", "y", "zü", None]))
        elif kind == "events":
            events.append((str(number), due))
            app.inputs.add(
                kind, time, id=str(number), shop=shop, user=chance.choice([1, 2]), amount=chance.random(), due=due
            )
        elif events:
            id_, due = events.pop(chance.randrange(len(events)))
            app.inputs.add(kind, time, id=id_, outcome=chance.choice([0, 1]), due=due)
    app.inputs.punctuate(time + 24 * 60 * MINUTE)
    with kafka_in_memory():
        Worker(app).claim().run_all(cuts=sorted(chance.sample(range(240), 12)))
    return app


def judged(app: App, config: Path) -> Report:
    topics: dict[str, TopicLog] = {}
    for place, lane in app.inputs.lanes.items():
        records = [
            Record(0, one.offset, one.time, one.message.key(), one.message.value(), tuple(one.message.headers()))
            for one in lane
        ]
        topics[place.topic] = TopicLog(records, {0: 0}, {0: len(records)})
    for name, outputs in app.log.topics.items():
        listed = [(at, one) for at, one in enumerate(outputs) if one is not None]
        records = [Record(0, at, one.timestamp or 0, one.key, one.value, one.headers) for at, one in listed]
        topics[name] = TopicLog(records, {0: 0}, {0: len(outputs)})
    return judge(Log(topics), read_declared(config), "shop", sample=0, order="total")


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_is_served_as_the_verifier_computes_it(config: Path, seed: int) -> None:
    report = judged(a_run(config, seed), config)
    failed = {name: found.texts for name, found in report.failed.items() if name.startswith("features")}
    assert not failed
    assert report.findings["features mismatched"].count == 0


def test_a_kind_that_is_read_otherwise_is_found(config: Path) -> None:
    app = a_run(config, seed=0)
    for right, wrong in (
        ("half_life: 20m", "half_life: 30m"),
        ("kind: min", "kind: max"),
        ("window: 2h}\n      reading:", "window: 1h}\n      reading:"),
        ("ahead: 30m", "ahead: 10m"),
        ("back: 1", "back: 2"),
        ("kind: rate", "kind: count"),
        ("zone: Asia/Kolkata", "zone: America/New_York"),
        ("kind: sum", "kind: mean"),
        ("part: minute_of_day", "part: day"),
        ("closed_due: due, ", ""),
    ):
        assert YAML.count(right) == 1
        config.write_text(YAML.replace(right, wrong))
        assert "features mismatched" in judged(app, config).failed, right
