"""The verifier accepts a right run, and finds and names every single defect."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.verify import Report, judge, read_declared, read_log
from tests.verify.avro import BadRecordError, Decoder, encode, fingerprint, read_schema
from tests.verify.declared import milliseconds
from tests.verify.example_run import APP, DECLARED, ORDER, Run, next_float, right_run
from tests.verify.log import Record
from tests.verify.raw import flight_labels
from tidemill.io.embedded import Servers

PREDICTIONS, EXAMPLES, COMMITS = (f"{APP}.{kind}.v1" for kind in ("predictions", "examples", "commits"))


def judged(run: Run, **given: Any) -> Report:
    return judge(run.log(), DECLARED, APP, **given)


def fields_of(run: Run, topic: str, place: int) -> dict[str, Any]:
    schema = fastavro.parse_schema(read_schema(_kind(topic)))
    value = run.topics[topic][place].value or b""
    found: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[10:]), schema)  # type: ignore[assignment]
    return found


def put(run: Run, topic: str, place: int, /, **changed: Any) -> dict[str, Any]:
    """Change fields of one published record; returns them as they were."""
    fields = fields_of(run, topic, place)
    value = encode(read_schema(_kind(topic)), {**fields, **changed})
    run.topics[topic][place] = run.topics[topic][place]._replace(value=value)
    return fields


def place_of(run: Run, topic: str, is_wanted: Callable[[dict[str, Any]], bool], skip: int = 0) -> int:
    places = [at for at in range(len(run.topics[topic])) if is_wanted(fields_of(run, topic, at))]
    return places[skip]


def _kind(topic: str) -> str:
    return topic.split(".")[1][:-1]


def is_example(fields: dict[str, Any]) -> bool:
    return bool(fields["kind"] == "example" and fields["is_learned"] and fields["n"] > 5)


def only(report: Report, *names: str) -> None:
    assert set(report.failed) == set(names), str(report)


@pytest.mark.parametrize("seed", range(8))
def test_a_right_run_is_accepted(seed: int) -> None:
    run = right_run(seed)

    report = judged(run, raw_labels=run.raw_labels, sample=0)

    assert report.is_ok, str(report)
    assert report.counts["predictions"] == report.counts["predictions recomputed"] == 70


def test_the_right_run_has_every_outcome() -> None:
    run = right_run(1)
    named = {name for at in range(len(run.topics[COMMITS])) for name in fields_of(run, COMMITS, at)["outcomes"]}

    assert len(named) == 15, named


def test_a_prediction_that_was_removed_is_missing() -> None:
    run = right_run(1)
    removed = run.topics[PREDICTIONS].pop(20)

    report = judged(run)

    only(report, "predictions missing", "balance of predictions")
    assert (removed.key or b"").decode() in report.findings["predictions missing"].texts[0]


def test_a_prediction_that_was_doubled_is_a_duplicate() -> None:
    run = right_run(1)
    twice = run.topics[PREDICTIONS][20]
    run.topics[PREDICTIONS].append(twice._replace(offset=999))

    report = judged(run)

    only(report, "predictions duplicate", "balance of predictions")
    assert (twice.key or b"").decode() in report.findings["predictions duplicate"].texts[0]


def test_a_prediction_of_a_duplicate_event_is_extra() -> None:
    run = right_run(1)
    at = place_of(run, PREDICTIONS, lambda fields: fields["id"] == "o31")
    again = [one for one in run.topics["orders.v1"] if one.key == b"o31"][1]
    run.topics[PREDICTIONS].append(run.topics[PREDICTIONS][at])
    put(run, PREDICTIONS, -1, offset=again.offset)

    only(judged(run), "predictions extra", "balance of predictions")


def test_a_prediction_with_another_event_time_is_found() -> None:
    run = right_run(1)
    fields = fields_of(run, PREDICTIONS, 9)
    put(run, PREDICTIONS, 9, event_time=fields["event_time"] + 1)

    only(judged(run), "predictions with wrong event")


def test_a_blend_that_is_no_probability_is_found() -> None:
    for blend in (1.5, float("nan")):
        run = right_run(1)
        at = place_of(run, PREDICTIONS, lambda fields: fields["id"] == "o12")  # no example repeats it
        put(run, PREDICTIONS, at, blend=blend)

        only(judged(run), "predictions with wrong event")


def test_a_label_that_was_flipped_is_wrong_by_topics_and_by_raw_data() -> None:
    run = right_run(1)
    at = place_of(run, EXAMPLES, is_example)
    was = fields_of(run, EXAMPLES, at)
    put(run, EXAMPLES, at, label=1 - was["label"])

    report = judged(run, raw_labels=run.raw_labels)

    only(report, "examples with wrong label", "labels against the raw data")
    assert f"{was['id']}: expected {was['label']}" in report.findings["examples with wrong label"].texts[0]


def test_a_label_topic_that_disagrees_with_the_raw_data_is_found() -> None:
    run = right_run(1)
    raw = {**run.raw_labels, "o30": 1 - run.raw_labels["o30"]}

    only(judged(run, raw_labels=raw), "labels against the raw data")


def test_an_example_that_was_removed_is_missing() -> None:
    run = right_run(1)
    at = place_of(run, EXAMPLES, is_example)
    id_ = fields_of(run, EXAMPLES, at)["id"]
    del run.topics[EXAMPLES][at]

    report = judged(run)

    only(report, "examples missing", "balance of predictions")
    assert f"example of {id_}" in report.findings["examples missing"].texts[0]


def test_an_example_or_amendment_that_was_doubled_is_a_duplicate() -> None:
    for kind in ("example", "amendment"):
        run = right_run(1)
        at = place_of(run, EXAMPLES, lambda fields, kind=kind: fields["kind"] == kind, skip=1)
        run.topics[EXAMPLES].append(run.topics[EXAMPLES][at]._replace(offset=9_999))

        assert judged(run).failed["examples duplicate"].count == 1


def test_an_example_with_other_times_is_found() -> None:
    for name in ("event_time", "label_time"):
        run = right_run(1)
        at = place_of(run, EXAMPLES, is_example)
        put(run, EXAMPLES, at, **{name: fields_of(run, EXAMPLES, at)[name] + 1})

        only(judged(run), "examples with wrong times")


def test_a_label_first_flag_on_an_example_in_order_is_found() -> None:
    run = right_run(1)
    at = place_of(run, EXAMPLES, is_example)
    prediction = place_of(run, PREDICTIONS, lambda f: f["id"] == fields_of(run, EXAMPLES, at)["id"])
    put(run, EXAMPLES, at, flags=["label_first"])
    put(run, PREDICTIONS, prediction, flags=["label_first"])

    only(judged(run), "examples with wrong is_learned")


def test_a_group_watermark_beyond_all_records_is_found() -> None:
    run = right_run(1)
    last = len(run.topics[COMMITS]) - 1
    put(run, COMMITS, last, group_watermark=max(one.timestamp for one in run.topics["orders.v1"]) + 1)

    assert judged(run).failed["group watermark beyond the inputs"].count == 1


def test_an_amendment_that_was_learned_is_found() -> None:
    run = right_run(1)
    put(run, EXAMPLES, place_of(run, EXAMPLES, lambda fields: fields["kind"] == "amendment"), is_learned=True)

    only(judged(run), "examples with wrong is_learned")


def test_a_label_first_example_that_was_learned_is_found() -> None:
    run = right_run(1)
    put(run, EXAMPLES, place_of(run, EXAMPLES, lambda fields: "label_first" in fields["flags"]), is_learned=True)

    only(judged(run), "examples with wrong is_learned")


def test_the_last_bit_of_a_served_feature_is_found_and_named() -> None:
    for column, feature in enumerate(DECLARED.numeric):
        run = right_run(2)
        at = place_of(run, PREDICTIONS, lambda f, c=column: f["numeric"][c] == f["numeric"][c], skip=10)
        numeric = fields_of(run, PREDICTIONS, at)["numeric"]
        numeric[column] = next_float(numeric[column])
        id_ = put(run, PREDICTIONS, at, numeric=numeric)["id"]

        report = judged(run)

        assert report.failed["features mismatched"].count == 1
        assert report.failed["features mismatched"].texts[0].startswith(f"{id_} {feature.name}: expected")


def test_a_feature_that_saw_one_record_too_many_is_found() -> None:
    run = right_run(2)
    column = [one.name for one in DECLARED.numeric].index("orders_2h")
    at = place_of(run, PREDICTIONS, lambda fields: fields["numeric"][column] > 2)
    numeric = fields_of(run, PREDICTIONS, at)["numeric"]
    numeric[column] += 1
    put(run, PREDICTIONS, at, numeric=numeric)

    assert "orders_2h" in judged(run).failed["features mismatched"].texts[0]


def test_a_category_that_differs_is_named() -> None:
    run = right_run(2)
    put(run, PREDICTIONS, 40, categories=["west", fields_of(run, PREDICTIONS, 40)["categories"][1]])

    assert " shop: expected" in judged(run).failed["features mismatched"].texts[0]


def test_an_example_whose_features_are_not_those_served_is_found() -> None:
    run = right_run(1)
    at = place_of(run, EXAMPLES, is_example)
    numeric = fields_of(run, EXAMPLES, at)["numeric"]
    numeric[1] = next_float(numeric[1])
    put(run, EXAMPLES, at, numeric=numeric)

    report = judged(run)

    only(report, "examples not as served")
    assert "orders_2h served" in report.findings["examples not as served"].texts[0]


def test_an_example_whose_blend_is_not_that_served_is_found() -> None:
    run = right_run(1)
    put(run, EXAMPLES, place_of(run, EXAMPLES, is_example), blend=0.5)

    only(judged(run), "examples not as served")


def test_a_gap_and_an_overlap_of_commit_ranges_are_told_apart() -> None:
    for shift, name in ((1, "I1 gaps"), (-1, "I1 overlaps")):
        run = right_run(1)
        at = place_of(run, COMMITS, lambda fields: fields["next"] > fields["start"] > 20)
        put(run, COMMITS, at, start=fields_of(run, COMMITS, at)["start"] + shift)

        assert judged(run).failed[name].count == 1


def test_a_commit_that_was_lost_is_a_gap_and_a_last_one_is_an_end() -> None:
    run = right_run(1)
    lost = place_of(run, COMMITS, lambda fields: fields["start"] > 20)
    del run.topics[COMMITS][lost]
    assert "I1 gaps" in judged(run).failed

    run = right_run(1)
    run.topics[COMMITS].pop()
    assert "I1 ends" in judged(run).failed


def test_a_partition_without_commits_is_found() -> None:
    run = right_run(1)
    kept = [at for at in range(len(run.topics[COMMITS])) if fields_of(run, COMMITS, at)["topic"] != "rain.v1"]
    run.topics[COMMITS] = [run.topics[COMMITS][at] for at in kept]

    assert [text.split(":")[0] for text in judged(run).failed["I1 ends"].texts] == ["rain.v1[0]", "rain.v1[1]"]


def test_a_first_range_that_starts_late_or_before_the_partition_is_found() -> None:
    for start, name in ((1, "I1 gaps"), (-1, "I1 overlaps")):
        run = right_run(1)
        put(run, COMMITS, place_of(run, COMMITS, lambda fields: fields["start"] == 0), start=start)

        assert judged(run).failed[name].count == 1


def test_a_commit_of_a_topic_that_is_no_input_is_found() -> None:
    run = right_run(1)
    put(run, COMMITS, -1, topic="other.v1")

    assert judged(run).failed["commits of no input"].count == 1


def test_an_outcome_that_nobody_knows_is_found() -> None:
    run = right_run(1)
    put(run, COMMITS, 5, outcomes={**fields_of(run, COMMITS, 5)["outcomes"], "forgotten": 1})

    only(judged(run), "outcome counts")


def test_a_label_that_is_counted_twice_breaks_the_balance() -> None:
    for name in ("example", "amendment", "label_duplicate", "orphan", "label_dead_letter", "waiting"):
        run = right_run(1)
        at = place_of(run, COMMITS, lambda fields, name=name: name in fields["outcomes"])
        counts = fields_of(run, COMMITS, at)["outcomes"]
        put(run, COMMITS, at, outcomes={**counts, name: counts[name] + 1})

        named = {"named outcomes"} if name in ("example", "waiting") else set()
        only(judged(run), "outcome counts", "balance of labels", *named)


def test_a_record_that_waits_or_ends_twice_or_is_not_named_is_found() -> None:
    for what in ("joined", "waiting", "settled"):
        run = right_run(1)
        at = place_of(run, COMMITS, lambda fields, what=what: len(fields[what]) > 1)
        first, _, *more = fields_of(run, COMMITS, at)[what]
        put(run, COMMITS, at, **{what: [first, first, *more]})
        only(judged(run), "named outcomes")
        put(run, COMMITS, at, **{what: [first, *more]})
        only(judged(run), "named outcomes")


def test_a_commit_beyond_the_end_of_the_partition_is_found() -> None:
    run = right_run(1)
    last = len(run.topics[COMMITS]) - 1
    put(run, COMMITS, last, next=fields_of(run, COMMITS, last)["next"] + 1)
    assert judged(run).is_ok  # the marker of the producer's transaction

    put(run, COMMITS, last, next=fields_of(run, COMMITS, last)["next"] + 1)
    only(judged(run), "I1 ends")


def test_a_dead_letter_with_changed_bytes_key_time_or_headers_is_found() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"value": b"other"},
        {"key": b"other"},
        {"timestamp": 5},
    )
    for change in changes:
        run = right_run(1)
        run.topics["orders.v1.dlq"][0] = run.topics["orders.v1.dlq"][0]._replace(**change)
        report = judged(run)
        only(report, "dead letters changed")
        assert next(iter(change)) in report.findings["dead letters changed"].texts[0]

    run = right_run(1)
    letter = run.topics["orders.v1.dlq"][0]
    run.topics["orders.v1.dlq"][0] = letter._replace(headers=letter.headers[1:])
    only(judged(run), "dead letters changed")


def test_a_dead_letter_removed_doubled_or_of_a_good_record_is_found() -> None:
    run = right_run(1)
    letter = run.topics["rain.v1.dlq"].pop()
    only(judged(run), "dead letters missing")

    run = right_run(1)
    run.topics["rain.v1.dlq"].append(letter._replace(offset=50))
    only(judged(run), "dead letters duplicate")

    run = right_run(1)
    headers = tuple((name, b"0" if name.endswith("offset") else value) for name, value in letter.headers)
    run.topics["rain.v1.dlq"].append(letter._replace(headers=headers))
    only(judged(run), "dead letters extra")


def test_an_example_with_n_past_its_own_offset_is_found() -> None:
    run = right_run(1)
    at = place_of(run, EXAMPLES, is_example)
    own = run.topics[EXAMPLES][at].offset
    prediction = place_of(run, PREDICTIONS, lambda f: f["id"] == fields_of(run, EXAMPLES, at)["id"])
    put(run, EXAMPLES, at, n=own)
    put(run, PREDICTIONS, prediction, n=own)
    assert "label used before its prediction" not in judged(run).failed

    put(run, EXAMPLES, at, n=own + 1)
    put(run, PREDICTIONS, prediction, n=own + 1)
    assert judged(run).failed["label used before its prediction"].count == 1


def test_a_prediction_that_had_learned_a_later_label_is_found() -> None:
    run = right_run(1)
    last = run.topics[EXAMPLES][-1].offset + 1
    at = place_of(run, PREDICTIONS, lambda fields: fields["id"] == "o12")  # its label never comes
    put(run, PREDICTIONS, at, n=last)

    only(judged(run), "label of the future was learned")


def test_a_count_that_is_off_by_one_is_named_with_its_range() -> None:
    for name in ("prediction", "event_duplicate", "orphan", "state", "punctuation"):
        run = right_run(1)
        at = place_of(run, COMMITS, lambda fields, name=name: name in fields["outcomes"])
        fields = fields_of(run, COMMITS, at)
        counts = {**fields["outcomes"], name: fields["outcomes"][name] + 1}
        put(run, COMMITS, at, outcomes=counts)

        finding = judged(run).failed["outcome counts"]

        assert finding.count == 1
        assert finding.texts[0] == (
            f"{fields['topic']}[{fields['partition']}] [{fields['start']}, {fields['next']}): "
            f"{name} counted {counts[name]}, computed {counts[name] - 1}"
        )


def test_a_later_outcome_that_is_off_by_one_is_found() -> None:
    for name in ("expired", "waiting_joined", "waiting_orphaned"):
        run = right_run(1)
        at = place_of(run, COMMITS, lambda fields, name=name: name in fields["outcomes"])
        counts = fields_of(run, COMMITS, at)["outcomes"]
        put(run, COMMITS, at, outcomes={**counts, name: counts[name] + 1})

        assert judged(run).failed["later outcome counts"].texts[0].startswith(f"{name} counted")


def test_an_event_that_was_never_sent_is_found() -> None:
    report = judged(right_run(1), sent_ids=frozenset(["o3", "o700"]))

    only(report, "events that were never sent")
    assert report.findings["events that were never sent"].texts == ["o700"]


def test_a_published_record_that_cannot_be_read_is_found() -> None:
    run = right_run(1)
    run.topics[COMMITS].append(Record(0, 999, 0, b"k", b"\xc3\x01rubbish--"))

    only(judged(run), "published but unreadable")


def test_commands_in_the_examples_log_are_passed_over() -> None:
    run = right_run(1)
    fields = {"id": "c", "kind": "freeze", "expects": "m1", "model_version": "m1", "cause": "test", "time": 1}
    run.topics[EXAMPLES].append(Record(0, 9_999, 0, b"c", encode(read_schema("command"), fields)))

    assert judged(run).is_ok


def test_with_several_workers_a_label_may_wait_or_meet_its_event() -> None:
    run = right_run(1)
    put(run, COMMITS, 3, worker="another")

    report = judged(run)

    assert report.is_ok, str(report)
    assert "predictions recomputed" not in report.counts and report.notes


def test_with_several_workers_every_label_that_met_its_event_is_still_counted() -> None:
    run = right_run(1)
    put(run, COMMITS, 3, worker="another")
    at = place_of(run, COMMITS, lambda fields: "waiting_joined" in fields["outcomes"])
    counts = fields_of(run, COMMITS, at)["outcomes"]
    put(run, COMMITS, at, outcomes={**counts, "waiting_joined": counts["waiting_joined"] + 1})

    assert judged(run).failed["later outcome counts"].texts[0].startswith("example + waiting_joined counted")


def test_a_prediction_whose_key_is_not_its_id_is_found() -> None:
    run = right_run(1)
    run.topics[PREDICTIONS][7] = run.topics[PREDICTIONS][7]._replace(key=b"other")

    only(judged(run), "published but unreadable")


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
