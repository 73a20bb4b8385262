"""The verifier finds and names every single defect of commits, their counts, and dead letters."""

from __future__ import annotations

from typing import Any

from judged_runs import COMMITS, fields_of, judged, only, place_of, put

from tests.verify.example_run import right_run
from tests.verify.log import Record


def test_a_group_watermark_beyond_all_records_is_found() -> None:
    run = right_run(1)
    last = len(run.topics[COMMITS]) - 1
    put(run, COMMITS, last, group_watermark=max(one.timestamp for one in run.topics["orders.v1"]) + 1)

    assert judged(run).failed["group watermark beyond the inputs"].count == 1


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


def test_a_published_record_that_cannot_be_read_is_found() -> None:
    run = right_run(1)
    run.topics[COMMITS].append(Record(0, 999, 0, b"k", b"\xc3\x01rubbish--"))

    only(judged(run), "published but unreadable")
