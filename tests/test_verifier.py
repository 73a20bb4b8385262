"""The verifier accepts a right run, and finds and names every single defect of predictions and examples."""

from __future__ import annotations

import pytest
from judged_runs import COMMITS, EXAMPLES, PREDICTIONS, fields_of, is_example, judged, only, place_of, put

from tests.verify.avro import encode, read_schema
from tests.verify.example_run import DECLARED, next_float, right_run
from tests.verify.log import Record


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


def test_an_event_that_was_never_sent_is_found() -> None:
    report = judged(right_run(1), sent_ids=frozenset(["o3", "o700"]))

    only(report, "events that were never sent")
    assert report.findings["events that were never sent"].texts == ["o700"]


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
