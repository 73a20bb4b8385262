"""Rows of the matrix in which the records are wrong or unusual: 14-18, 21, 23-25.

In: a stage. Out: a `RowResult` per seed. Invariant: what is sent depends on the seed alone, so the verifier can compute
from the topics what must have come of it.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from tests.campaign.processes import WorkerProcess
from tests.campaign.stream import committed
from tests.faults.orders import (
    FIRST_MS,
    HOUR_MS,
    MINUTE_MS,
    ORDER,
    PARTITIONS,
    SPAN_MS,
    Orders,
    Sent,
    made_stream,
    moved,
    order,
    returned,
)
from tests.faults.row import Row, RowResult
from tests.faults.stage import Stage
from tests.faults.watching import (
    Verdict,
    finish,
    judge,
    predictions_left,
    result_of,
    running,
    wait,
    wait_for_share,
    workers_of,
)
from tests.registry_server import RegistryServer
from tests.verify.avro import encode
from tidemill.io.framing import header_of
from tidemill.io.kafka_reader import read_topic


def played(
    stage: Stage, seed: int, records: Sequence[Sent], *, injected: int, note: str = "", **more: Any
) -> RowResult:
    """Send, run to the end, judge."""
    site = Orders(stage.servers, stage.name, stage.folder / "run", records, **more)
    with running(site, workers_of(seed)) as workers:
        codes = finish(site, workers)
        found = judge(site, workers, codes)
    return result_of(found, injected, note or f"{len(workers)} workers")


# 14 ------------------------------------------------------------------------------------------------------------


def duplicates(stage: Stage, seed: int) -> RowResult:
    """5 % of all records are sent again with the same id, the same bytes, up to two hours later in event time."""
    draw = random.Random(seed)
    records = made_stream(seed)
    again = [moved(one, draw.randrange(2 * HOUR_MS)) for one in records if draw.random() < 0.05]
    records = sorted([*records, *again], key=lambda one: one.time)
    site = Orders(stage.servers, stage.name, stage.folder / "run", records)
    with running(site, workers_of(seed)) as workers:
        codes = finish(site, workers)
        found = judge(site, workers, codes)
    ids = Counter(row["id"] for row in predictions_left(site))
    found.expect(max(ids.values()) == 1, f"an id has {max(ids.values())} predictions")
    return result_of(found, len(again), f"{len(workers)} workers")


# 15 ------------------------------------------------------------------------------------------------------------


def late_and_out_of_order(stage: Stage, seed: int) -> RowResult:
    """Sent in an order shuffled by ten minutes, 1 % two hours late; a second run of the same log gives the same."""
    draw = random.Random(seed)
    records = made_stream(seed)
    delays = [2 * HOUR_MS if draw.random() < 0.01 else draw.randrange(10 * MINUTE_MS) for _ in records]
    places = sorted(range(len(records)), key=lambda place: records[place].time + delays[place])
    sent = [records[place] for place in places]
    late = sum(delay == 2 * HOUR_MS for delay in delays)
    found, left = [], []
    for run, count in (("", workers_of(seed)), ("again", 1)):
        site = Orders(stage.servers, f"{stage.name}{run}", stage.folder / f"run{run}", sent)
        with running(site, count) as workers:
            codes = finish(site, workers)
            found.append(judge(site, workers, codes))
        left.append(sorted(map(_content, predictions_left(site))))
    first, second = found
    first.wrong += second.wrong
    if workers_of(seed) == 1:
        first.expect(left[0] == left[1], "the replay gave other predictions")
        first.expect(first.feature_digest == second.feature_digest, "the replay left other features")
        first.expect(first.learner_digest == second.learner_digest, "the replay taught the learner something else")
    return result_of(first, late, f"{workers_of(seed)} workers, then one; all shuffled by 10 min")


def _content(prediction: dict[str, Any]) -> tuple[str, ...]:
    """What does not depend on the names of the topics, or on how a transaction's markers number the log."""
    names = ("id", "event_time", "numeric", "categories", "learner", "blend", "flags")
    return tuple(repr(prediction[name]) for name in names)


# 16 ------------------------------------------------------------------------------------------------------------

LARGE = 10_000_000


def poison(stage: Stage, seed: int) -> RowResult:
    """Every kind of bad record in every topic, between good ones; the worker is killed once while it is at it."""
    draw = random.Random(seed)
    records = made_stream(seed)
    bad = [_spoilt(draw, number, records) for number in range(200)]
    records = sorted([*records, *bad], key=lambda one: one.time)
    site = Orders(stage.servers, stage.name, stage.folder / "run", records)
    with running(site, 0) as workers:
        first = {"TIDEMILL_FAILPOINT": f"{draw.choice(('F2', 'F4', 'F8'))}:kill@{draw.randrange(3, 12)}"}
        workers.append(WorkerProcess(site, 0, environment=first))
        assert workers[0].process.wait(60) == -signal.SIGKILL, workers[0].log()
        workers[0].restart()
        codes = finish(site, workers)
        found = judge(site, workers, codes)
    letters = sum(len(lot) for topic in PARTITIONS for lot in read_topic(site.clients, f"{site.name}.{topic}.dlq"))
    found.expect(letters == len(bad), f"{letters} dead letters for {len(bad)} bad records")
    return result_of(found, len(bad), "10 kinds, 3 topics, one kill")


def _spoilt(draw: random.Random, number: int, records: Sequence[Sent]) -> Sent:
    """A bad record made of a good one. Its key and value are its own, so that no good record looks like it."""
    good = draw.choice(records)
    assert good.value is not None
    frame, body = good.value[:10], good.value[10:]
    kinds: list[bytes | None] = [
        good.value[: 10 + draw.randrange(max(1, len(body) - 1))],  # cut
        frame[:2] + bytes(8) + body,  # nobody's schema
        good.value + b"\x00left",
        frame + body[:1] + b"\xff" + body[2:],  # no UTF-8 in its first text
        b"\x00\x00\x00\x00\x07" + body,  # of a registry that nobody has
        b'{"id":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        None,  # no punctuation either
        good.value,  # its key will be null
        encode(ORDER, {"id": f"nan{number}", "product": "p1", "customer": None, "amount": float("nan")}),
    ]
    kind = number % len(kinds)
    value, key = kinds[kind], f"bad{number}".encode()
    topic, partition = good.topic, good.partition
    if kind == 8:
        topic, partition = "orders", number % PARTITIONS["orders"]
    if number in (50, 150):
        value = frame + bytes([draw.randrange(256)]) * LARGE
    return Sent(good.time, topic, partition, None if kind == 7 and number not in (50, 150) else key, value)


# 17 ------------------------------------------------------------------------------------------------------------


def schema_change(stage: Stage, seed: int) -> RowResult:
    """Half of the stream is written by an older schema: a field less, one more, one retyped; and some by strangers."""
    draw = random.Random(seed)
    older, newer, stranger = (deepcopy(ORDER) for _ in range(3))
    older["fields"] = [field for field in older["fields"] if field["name"] != "customer"]  # added later
    older["fields"].append({"name": "coupon", "type": ["null", "string"], "default": None})  # removed later
    older["fields"] = [{**f, "type": "long"} if f["name"] == "amount" else f for f in older["fields"]]  # retyped later
    stranger["fields"].append({"name": "shop", "type": "string", "default": ""})
    records = made_stream(seed)
    change = FIRST_MS + SPAN_MS // 2
    written, counts = [], Counter[str]()
    for number, one in enumerate(records):
        if one.topic == "orders" and one.key is not None:
            fields = {"id": one.key.decode(), "product": f"p{number % 12}", "amount": draw.randrange(200)}
            # Producers are rolled out one after the other: around the change both write.
            is_old = one.time + draw.randrange(-HOUR_MS, HOUR_MS) < change
            schema, more = (older, {"coupon": "x"}) if is_old else (newer, {"customer": f"c{number % 200}"})
            if number % 40 == 0:
                schema, more = stranger, {"customer": None, "shop": "?"}
            counts["stranger" if schema is stranger else "old" if is_old else "new"] += 1
            one = replace(one, value=encode(schema, {**fields, **more}))
        written.append(one)
    site = Orders(
        stage.servers, stage.name, stage.folder / "run", written, schemas={"orders": [newer, older]}
    )  # fmt: skip
    with running(site, workers_of(seed)) as workers:
        codes = finish(site, workers)
        found = judge(site, workers, codes)
    letters = sum(len(lot) for lot in read_topic(site.clients, f"{site.name}.orders.dlq"))
    found.expect(letters == counts["stranger"], f"{letters} dead letters, {counts['stranger']} of an unknown schema")
    note = ", ".join(f"{name} {count}" for name, count in counts.items())
    return result_of(found, counts["old"] + counts["stranger"], f"{len(workers)} workers, {note}")


# 18 ------------------------------------------------------------------------------------------------------------


def future_and_skew(stage: Stage, seed: int) -> RowResult:
    """2 % of the records are stamped an hour ahead, and the clock of one partition's producer is an hour fast."""
    draw = random.Random(seed)
    records = made_stream(seed)
    is_ahead = [draw.random() < 0.02 for _ in records]
    fast = draw.randrange(PARTITIONS["orders"])
    is_ahead = [
        a or (one.topic == "orders" and one.partition == fast) for a, one in zip(is_ahead, records, strict=True)
    ]
    sent = [moved(one, HOUR_MS) if ahead else one for one, ahead in zip(records, is_ahead, strict=True)]
    return played(stage, seed, sent, injected=sum(is_ahead), note=f"{workers_of(seed)} workers, partition {fast} fast")


# 21 ------------------------------------------------------------------------------------------------------------

AWAY_S = 10.0  # the matrix says ten minutes; nothing in the cache grows old, and a full run must end


def registry_away(stage: Stage, seed: int) -> RowResult:
    """The registry stops in mid-stream; near the end come records of a schema that it alone knows.

    Odd seeds declare that the worker waits for it, even ones that such records are dead letters. A twin app that needs
    no registry reads the same records and is judged by the verifier; what it predicts is what has to be predicted.
    """
    does_wait = seed % 2 == 1
    newer, stranger = deepcopy(ORDER), deepcopy(ORDER)
    newer["fields"].append({"name": "shop", "type": "string", "default": ""})
    stranger["name"] = "Stranger"
    records, plain, framed, unknown = made_stream(seed), [], [], 0
    for one in records:
        twin, ours = one, one
        if one.topic == "orders" and one.value is not None:
            body, id_ = one.value[10:], 1
            if one.time > FIRST_MS + SPAN_MS * 3 // 4:
                unknown, id_, body = unknown + 1, 2, body + b"\x02s"
                twin = replace(one, value=header_of(newer if does_wait else stranger) + body)
            ours = replace(one, value=b"\x00" + id_.to_bytes(4) + body)
        plain.append(twin)
        framed.append(ours)
    twin_site = Orders(
        stage.servers, f"{stage.name}t", stage.folder / "twin", plain, schemas={"orders": [ORDER, newer]}
    )
    with running(twin_site, 1) as workers:
        found = judge(twin_site, workers, finish(twin_site, workers))
    with RegistryServer() as registry:
        registry.register(f"{stage.name}.orders-value", ORDER)
        declared = {"url": registry.url, "timeout": "1s", "if_unreachable": "wait" if does_wait else "dead_letter"}
        site = Orders(stage.servers, stage.name, stage.folder / "run", framed, more={"schema_registry": declared})
        with running(site, 1) as workers:
            wait_for_share(site, workers, 0.15)
            registry.stop()
            stopped, at = time.monotonic(), committed(site.marks())
            registry.register(f"{stage.name}.orders-value", newer)  # by a producer's deployment that nobody here saw
            wait(site, workers, lambda: committed(site.marks()) >= max(at + 1, 0.6 * site.total), "scoring to go on")
            time.sleep(max(0.0, AWAY_S - (time.monotonic() - stopped)))
            found.expect(site.is_drained() != does_wait, "it did not wait" if does_wait else "it waited")
            found.expect("registry" in workers[0].log(), "nobody was told that the registry is away")
            began = time.monotonic()
            registry.start()
            wait(site, workers, site.is_drained, "the end")
            recovered = time.monotonic() - began
            found.expect(finish(site, workers) == [0], "it did not stop cleanly")
    expected, got = (sorted(map(_content, predictions_left(each))) for each in (twin_site, site))
    found.missing += max(0, len(expected) - len(got))
    found.expect(got == expected, f"{len(got)} predictions, {len(expected)} expected, or not the same")
    found.expect(site.store.feature_digest() == twin_site.store.feature_digest(), "other features than its twin's")
    return result_of(found, 1, f"{declared['if_unreachable']}, {unknown} records of an unknown id", recovered)


# 23 ------------------------------------------------------------------------------------------------------------


def label_flood(stage: Stage, seed: int) -> RowResult:
    """Two thirds of the events never get a label, thousands of labels are of nobody, and an hour's come at once."""
    draw = random.Random(seed)
    records = made_stream(seed, count=1_500, labelled=0.33)
    flood_at = FIRST_MS + 6 * HOUR_MS
    records = [
        replace(one, time=flood_at) if one.topic == "returns" and flood_at - HOUR_MS < one.time <= flood_at else one
        for one in records
    ]
    strangers = [
        returned(500_000 + number, FIRST_MS + draw.randrange(SPAN_MS), is_returned=draw.random() < 0.5)
        for number in range(4_000)
    ]
    records = sorted([*records, *strangers], key=lambda one: one.time)
    site = Orders(stage.servers, stage.name, stage.folder / "run", records)
    most = 0
    with running(site, workers_of(seed)) as workers:
        while not site.is_drained():
            most = max(most, sum(site.store.row_counts().values()))
            for worker in workers:
                worker.check_alive()
            time.sleep(0.2)
        codes = finish(site, workers)
        found = judge(site, workers, codes)
    # Nothing is forgotten before the stream's last punctuation, a day behind its end: then nothing may be left.
    kept = sum(site.store.row_counts().values())
    events = {one.key for one in records if one.topic == "orders"}
    found.expect(most <= len(events) + len(strangers), f"{most} rows in the store at once")
    found.expect(kept <= len(events), f"{kept} rows are left behind the end, {len(events)} events were sent")
    return result_of(found, len(strangers), f"{len(workers)} workers, at most {most} rows, {kept} at the end")


# 24 ------------------------------------------------------------------------------------------------------------

STATIONARY_SEEDS = 20


def false_alarms(stage: Stage, seed: int) -> RowResult:
    """The concept detector: twenty stationary streams of 500 days, then labels that turn round on day 60."""
    from tests.test_drift_concept import SPEC, alarms, noise, served_days

    spec = replace(SPEC, average_run_length=100)
    seeds = range(STATIONARY_SEEDS * seed, STATIONARY_SEEDS * (seed + 1))
    false = sum(len(alarms(noise(one, 500), spec)) for one in seeds)
    allowed = STATIONARY_SEEDS * (500 - spec.reference_ticks) / spec.average_run_length
    delays = []
    for one in seeds:
        fired = [day for day in alarms(served_days(70, seed=one, inverted_from=60)) if day >= 60]
        delays.append(fired[0] - 60 + 1 if fired else 99)
    found = Verdict()
    found.expect(false <= allowed, f"{false} false alarms, {allowed:.0f} are allowed")
    found.expect(max(delays) <= 3, f"a real shift was called after {max(delays)} days")
    note = f"{false} false alarms of {allowed:.0f} allowed; shift called within {max(delays)} days"
    return RowResult(STATIONARY_SEEDS, None, 0, 0, found.text, note)


# 25 ------------------------------------------------------------------------------------------------------------


def hot_key(stage: Stage, seed: int) -> RowResult:
    """90 % of the events are of one product and one customer, and stand in one partition."""
    records = made_stream(seed, hot_share=0.9)
    hot = order(0, 0, product="p0", customer="hot", amount=0.0)
    assert hot.value is not None
    records = [
        replace(one, partition=0) if one.topic == "orders" and one.value is not None and b"hot" in one.value else one
        for one in records
    ]
    count = sum(one.topic == "orders" and one.value is not None and b"hot" in one.value for one in records)
    return played(stage, seed, records, injected=count)


ROWS: tuple[Row, ...] = (
    Row(14, "duplicate input", 2, duplicates),
    Row(15, "late and out of order", 2, late_and_out_of_order),
    Row(16, "poison", 2, poison),
    Row(17, "schema change in mid-stream", 2, schema_change),
    Row(18, "event times in the future, clock skew", 2, future_and_skew),
    Row(21, "registry away", 2, registry_away),
    Row(23, "label flood, never, unknown ids", 2, label_flood),
    Row(24, "false alarms, then a real shift", 2, false_alarms),
    Row(25, "hot key", 2, hot_key),
)
