"""What an audit cannot look at it names, and outputs of which no commit speaks do not pass for honest ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from audited_past import APP, AuditedPast, MemoryLogs, edited

from tidemill.apps.audit import run_audit
from tidemill.apps.audit_report import AuditReport, report_as_json, report_rows
from tidemill.core.records import Output, Partition
from tidemill.io.outputs import decode

PREDICTIONS, COMMITS = f"{APP}.predictions.v1", f"{APP}.commits.v1"


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> AuditedPast:
    return AuditedPast(tmp_path_factory.mktemp("past"))


def changed(past: AuditedPast, change: Callable[[MemoryLogs], None] = lambda logs: None) -> MemoryLogs:
    logs = copy.copy(past.logs)
    logs.lanes, logs.next = {place: list(lane) for place, lane in logs.lanes.items()}, dict(logs.next)
    change(logs)
    return logs


def without_commits_of(*partitions: Partition) -> Callable[[MemoryLogs], None]:
    def drop(logs: MemoryLogs) -> None:
        place = Partition(COMMITS, 0)
        lane = logs.lanes[place]
        rows = decode("commit.v1", [message.value() or b"" for message in lane]).to_pylist()
        logs.lanes[place] = [
            message
            for message, row in zip(lane, rows, strict=True)
            if Partition(row["topic"], row["partition"]) not in partitions
        ]

    return drop


def told(report: AuditReport, name: str) -> str:
    return "\n".join(report.checks[name].first)


def test_an_honest_past_that_stands_still_is_looked_at_everywhere(past: AuditedPast) -> None:
    report = run_audit(past.settings, logs=changed(past))
    looked_at = {row["what"]: row["value"] for row in report_rows(report)[0]}

    assert (report.is_sound, report.without_commits, report.not_checked) == (True, (), ())
    assert (looked_at["not checked"], looked_at["partitions with records and no commit"]) == ("nothing", "none")


def test_outputs_of_a_partition_whose_commits_are_all_lost_are_extra(past: AuditedPast) -> None:
    report = run_audit(past.settings, logs=changed(past, without_commits_of(Partition("events", 1))))

    assert report.without_commits == ("events[1]",)
    assert "predictions of events[1], the first for offset" in told(report, "extra")
    assert "dead letters of events[1]" in told(report, "extra")
    assert "no commit speaks of that partition" in told(report, "extra")
    of_partition = [m for m in past.logs.lanes[Partition("events", 1)] if m.value() != b"broken"]
    assert report.checks["extra"].count > len(of_partition) - 10
    assert report_as_json(report)["without_commits"] == ["events[1]"]


def test_a_partition_that_leaves_no_output_is_named_where_its_commits_are_lost(past: AuditedPast) -> None:
    """Nothing tells it from one that no worker has come to yet."""
    report = run_audit(past.settings, logs=changed(past, without_commits_of(Partition("readings", 0))))

    assert report.without_commits == ("readings[0]",)
    assert report.unprocessed == past.logs.next[Partition("readings", 0)]
    assert {row["what"]: row["value"] for row in report_rows(report)[0]}[
        "partitions with records and no commit"
    ] == "readings[0]"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"topic": "elsewhere"},
            "elsewhere is no topic of events",
        ),
        ({"topic": "readings"}, "readings is no topic of events"),
        ({"partition": 7}, "there is no such partition"),
    ],
)
def test_a_prediction_of_a_foreign_partition_is_extra(past: AuditedPast, change: dict[str, object], why: str) -> None:
    logs = changed(past, lambda logs: logs.change(PREDICTIONS, 30, edited("prediction.v1", **change)))
    report = run_audit(past.settings, logs=logs)

    assert why in told(report, "extra")


def test_a_dead_letter_behind_all_commits_is_extra(past: AuditedPast) -> None:
    def add(logs: MemoryLogs) -> None:
        letter = logs.lanes[Partition("events.dlq", 0)][3]
        headers = tuple(
            (name, b"9999" if name.endswith("offset") else value or b"") for name, value in letter.headers()
        )
        logs.append(
            Partition("events.dlq", 0), Output("events.dlq", letter.key() or b"", letter.value() or b"", headers)
        )

    report = run_audit(past.settings, logs=changed(past, add))
    assert "@9999: behind all commits" in told(report, "extra")


@pytest.mark.parametrize("commits", [1, 40])
def test_what_is_left_out_because_the_app_went_on_is_named(past: AuditedPast, commits: int) -> None:
    """After one commit most partitions have none yet, although their outputs are there by now."""

    class Growing(MemoryLogs):
        def bounds(self, partition: Partition) -> tuple[int, int]:
            return (0, commits) if partition.topic == COMMITS else super().bounds(partition)

    logs = changed(past)
    logs.__class__ = Growing
    report = run_audit(past.settings, logs=logs)
    said = report_as_json(report)

    assert report.is_sound
    assert said["not_checked"] == [
        "examples without prediction",
        "examples whose label is no record",
        "labels in time without example",
        "amendments without prediction",
        "totals of amendments and of labels that waited",
        "outputs behind all commits, or of partitions without any",
    ]
    assert "stop its workers" in said["not_checked_because"]
    shown = {row["what"]: row["value"] for row in report_rows(report)[0]}["not checked"].split("\n")
    assert shown == [*said["not_checked"], said["not_checked_because"]]


def test_what_is_left_out_of_a_part_of_the_log_is_named(past: AuditedPast) -> None:
    report = run_audit(past.settings, logs=changed(past), start=0, end=10)

    assert "labels in time without example" in report.not_checked
    assert "examples without prediction" not in report.not_checked
    assert "without --from and --to" in report.not_checked_because
    assert report.without_commits == ()
