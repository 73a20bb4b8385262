"""The audit finds nothing in an honest past, and whatever was changed in it: a record, a bit, a model."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from audited_past import APP, AuditedPast, MemoryLogs, edited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shop import a_shop

from tests.memory_kafka import Message
from tidemill.apps.audit import run_audit
from tidemill.apps.audit_report import AuditReport, report_as_json, report_rows
from tidemill.apps.cli import run as run_command
from tidemill.apps.models import registry_of
from tidemill.core.records import Output, Partition
from tidemill.errors import ConfigError, StateLostError, TidemillError
from tidemill.io.embedded import Servers
from tidemill.io.outputs import Encoder, decode
from tidemill.io.registry import MODEL

PREDICTIONS, EXAMPLES, COMMITS = f"{APP}.predictions.v1", f"{APP}.examples.v1", f"{APP}.commits.v1"
Change = Callable[[MemoryLogs], None]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> AuditedPast:
    return AuditedPast(tmp_path_factory.mktemp("past"))


def changed(past: AuditedPast, *changes: Change) -> MemoryLogs:
    logs = copy.copy(past.logs)
    logs.lanes, logs.next = {place: list(lane) for place, lane in logs.lanes.items()}, dict(logs.next)
    for change in changes:
        change(logs)
    return logs


def audited(past: AuditedPast, *changes: Change, **options: float) -> AuditReport:
    return run_audit(past.settings, logs=changed(past, *changes), **options)  # type: ignore[arg-type]


def findings(report: AuditReport) -> set[str]:
    return {name for name, check in report.checks.items() if check.count}


def with_flipped_bit(number: float, bit: int = 0) -> float:
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    flipped: float = struct.unpack("<d", struct.pack("<q", bits ^ (1 << bit)))[0]
    return flipped


def float32_with_flipped_bit(numbers: list[float]) -> list[float]:
    (bits,) = struct.unpack("<i", struct.pack("<f", numbers[0]))
    return [struct.unpack("<f", struct.pack("<i", bits ^ 1))[0], *numbers[1:]]


# An honest past ---------------------------------------------------------------------------------------------------


def test_honest_past_is_sound_and_every_score_was_recomputed(past: AuditedPast):
    report = audited(past)
    assert report.is_sound, findings(report)
    assert (report.predictions, report.mismatched, report.degraded, report.unprocessed) == (400, 0, 0, 0)
    assert report.records == sum(
        len(past.logs.lanes[p]) for t in past.spec.topics for p in past.logs.partitions(t.name)
    )
    assert report.examples == sum(len(lane) for place, lane in past.logs.lanes.items() if place.topic == EXAMPLES) - 3
    assert report.models == ("initial", past.version)
    assert report.snapshots >= 3
    assert report.comparison == "bit for bit"


def test_past_has_all_that_the_audit_must_tell_apart(past: AuditedPast):
    names = {name for row in rows_of(past, COMMITS) for name, count in row["outcomes"] if count}
    assert names >= {"prediction", "event_duplicate", "event_dead_letter", "example", "amendment", "label_duplicate"}
    assert names >= {"orphan", "waiting", "waiting_joined", "expired", "state"}
    predictions = rows_of(past, PREDICTIONS)
    assert {row["model_version"] for row in predictions if row["other_version"]} == {"initial", past.version}


def rows_of(past: AuditedPast, topic: str) -> list[dict]:
    values = [message.value() for message in past.logs.lanes[Partition(topic, 0)]]
    return decode(topic.removeprefix(f"{APP}.").replace("s.v1", ".v1"), values).to_pylist()


def test_every_part_of_the_log_is_sound_by_itself(past: AuditedPast):
    """Each range of batches, without what comes before and behind it."""
    end = past.logs.next[Partition(COMMITS, 0)]
    parts = [audited(past, start=start, end=min(start + end // 3, end)) for start in range(0, end, end // 3)]
    assert all(report.is_sound for report in parts), [report_as_json(report)["checks"] for report in parts]
    assert sum(report.predictions for report in parts) == 400
    assert all(0 < report.predictions < 400 for report in parts[:3])


@pytest.mark.parametrize(("start", "end"), [(5, 5), (0, 10_000), (9, 4)])
def test_range_that_is_not_in_the_log_is_refused(past: AuditedPast, start: int, end: int):
    with pytest.raises(ConfigError, match="TM-1069"):
        audited(past, start=start, end=end)


def test_tables_and_json_tell_the_same(past: AuditedPast):
    report = audited(past)
    told = json.loads(json.dumps(report_as_json(report)))
    looked_at, checks = report_rows(report)
    assert told["is_sound"] and told["predictions"] == 400
    assert {row["check"]: row["findings"] for row in checks} == {n: c["findings"] for n, c in told["checks"].items()}
    assert 400 in [row["value"] for row in looked_at]


# Records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "check", "named"),
    [
        (lambda logs: logs.drop(PREDICTIONS, 30), "missing", "no outcome of event"),
        (lambda logs: logs.repeat(PREDICTIONS, 30), "duplicate", "has two predictions"),
        (
            lambda logs: logs.change(PREDICTIONS, 30, edited("prediction.v1", offset=9_999)),
            "extra",
            "behind all commits",
        ),
        (lambda logs: logs.change(PREDICTIONS, 30, edited("prediction.v1", id="who")), "extra", "whose id is"),
        (lambda logs: logs.change(PREDICTIONS, 30, edited("prediction.v1", event_time=7)), "inputs", "event time"),
        (lambda logs: logs.drop(EXAMPLES, 30), "missing", "has a label in time and no example"),
        (lambda logs: logs.repeat(EXAMPLES, 30), "duplicate", "has an example before it"),
        (lambda logs: logs.change(EXAMPLES, 30, edited("example.v1", id="who")), "extra", "no prediction of that id"),
        (lambda logs: logs.drop(COMMITS, 30), "ranges", "gap"),
        (lambda logs: logs.drop(COMMITS, 0), "ranges", "the first commit begins at"),
        (lambda logs: logs.repeat(COMMITS, 30), "ranges", "overlap"),
        (lambda logs: logs.drop("events.dlq", 3), "missing", "cannot be read and is no dead letter"),
        (lambda logs: logs.repeat("events.dlq", 3), "duplicate", "has two dead letters"),
        (lambda logs: logs.drop("outcomes", 100), "missing", "records, outcomes of"),
        (lambda logs: logs.drop("events", 100), "extra", "which is no record"),
        (lambda logs: logs.drop("readings", 100), "extra", "records, outcomes of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lost_repeated_and_foreign_records_are_named(past: AuditedPast, change: Change, check: str, named: str):
    report = audited(past, change)
    checks = report.checks if check != "missing" or named[0] != "r" else {"missing": merged(report)}
    assert named in "\n".join(checks[check].first), report_as_json(report)["checks"]


def merged(report: AuditReport):
    """A lost label leaves its commit with more outcomes than records."""
    both = copy.deepcopy(report.checks["missing"])
    for text in report.checks["extra"].first:
        both.add(text)
    return both


def test_outcome_that_was_only_counted_is_found(past: AuditedPast):
    """A commit that calls a prediction a duplicate: the sum is right, the counts are not."""

    def lie(outcomes: dict[str, int]) -> dict[str, int]:
        return {**outcomes, "prediction": outcomes["prediction"] - 1, "event_duplicate": 1}

    at = next(at for at, row in enumerate(rows_of(past, COMMITS)) if dict(row["outcomes"]).get("prediction", 0) > 1)
    report = audited(past, lambda logs: logs.change(COMMITS, at, edited("commit.v1", outcomes=lie)))
    assert findings(report) == {"counts"}
    assert "prediction counted" in report.checks["counts"].first[0]


@pytest.mark.parametrize("name", ["joined", "waiting", "settled"])
def test_a_commit_that_names_fewer_records_than_it_counts_is_found(past: AuditedPast, name: str):
    at = next(at for at, row in enumerate(rows_of(past, COMMITS)) if row[name])
    report = audited(past, lambda logs: logs.change(COMMITS, at, edited("commit.v1", **{name: lambda them: them[1:]})))
    assert findings(report) == {"counts"}
    assert f"{name} are named" in report.checks["counts"].first[0]


def test_an_amendment_of_another_event_is_found(past: AuditedPast):
    at = next(
        place
        for place, message in enumerate(past.logs.lanes[Partition(EXAMPLES, 0)])
        if schema_of(message) == "example.v1"
        and decode("example.v1", [message.value() or b""]).to_pylist()[0]["kind"] == "amendment"
    )
    moved = edited("example.v1", event_time=lambda time: time + 1)
    report = audited(past, lambda logs: logs.change(EXAMPLES, at, moved))
    assert "no prediction of that id and event time" in report.checks["extra"].first[0]


def test_dead_letters_of_another_app_that_reads_the_topic_are_not_ours(past: AuditedPast):
    def add_foreign(logs: MemoryLogs) -> None:
        logs.repeat("events.dlq", 3)
        logs.lanes[Partition("events.dlq", 0)][-1].headers().append(("tidemill.dlq.app", b"other"))

    assert audited(past, add_foreign).is_sound


def test_batches_that_come_while_it_reads_are_not_taken_for_extra_ones(past: AuditedPast):
    """The commits end before the last batches; the predictions of those are there already."""
    end = past.logs.next[Partition(COMMITS, 0)]

    class Growing(MemoryLogs):
        def bounds(self, partition: Partition) -> tuple[int, int]:
            return (0, end // 2) if partition.topic == COMMITS else super().bounds(partition)

    logs = changed(past)
    logs.__class__ = Growing
    report = run_audit(past.settings, logs=logs)
    assert report.is_sound, report_as_json(report)["checks"]
    assert report.unprocessed > 0


# Bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blend", "learner", "base_rate", "booster", "other"])
def test_one_flipped_bit_of_a_published_score_is_found(past: AuditedPast, name: str):
    at = next(at for at, row in enumerate(rows_of(past, PREDICTIONS)) if row[name])
    report = audited(
        past, lambda logs: logs.change(PREDICTIONS, at, edited("prediction.v1", **{name: with_flipped_bit}))
    )
    assert report.mismatched == 1
    assert name in report.checks["scores"].first[0] and "recomputed" in report.checks["scores"].first[0]


@pytest.mark.parametrize(
    "change",
    [
        {"numeric": float32_with_flipped_bit},
        {"categories": ["d"]},
        {"model_version": "m0"},
        {"decision": lambda it: not it},
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_change_of_a_stored_prediction_is_found(past: AuditedPast, change: dict):
    report = audited(past, lambda logs: logs.change(PREDICTIONS, 380, edited("prediction.v1", **change)))
    assert findings(report) & {"scores", "copies"}
    assert report.checks["scores"].count == 1 or "copies" in findings(report)


@pytest.mark.parametrize(
    "change",
    [{"numeric": float32_with_flipped_bit}, {"categories": ["d"]}, {"blend": with_flipped_bit}, {"n": lambda n: n + 1}],
    ids=lambda change: next(iter(change)),
)
def test_one_change_of_a_stored_example_is_found(past: AuditedPast, change: dict):
    report = audited(past, lambda logs: logs.change(EXAMPLES, 40, edited("example.v1", **change)))
    (name,) = change
    assert name in report.checks["copies"].first[0]


def test_label_that_was_turned_over_is_found_in_the_input_and_in_all_scores_after_it(past: AuditedPast):
    report = audited(past, lambda logs: logs.change(EXAMPLES, 40, edited("example.v1", label=lambda label: 1 - label)))
    assert {"inputs", "scores", "models"} <= findings(report)
    assert report.mismatched > 300


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_flipped_bit_of_an_example_is_found_or_refused(past: AuditedPast, data: st.DataObject):
    lane = past.logs.lanes[Partition(EXAMPLES, 0)]
    at = data.draw(st.integers(0, len(lane) - 1), "record")
    bit = data.draw(st.integers(0, 8 * len(lane[at].value() or b"") - 1), "bit")

    def flip(value: bytes) -> bytes:
        changed_bytes = bytearray(value)
        changed_bytes[bit // 8] ^= 1 << bit % 8
        return bytes(changed_bytes)

    name = schema_of(lane[at])
    try:
        report = audited(past, lambda logs: logs.change(EXAMPLES, at, flip))
    except TidemillError:
        return
    if report.is_sound:
        assert is_told_by_nothing(name, lane[at].value() or b"", flip)


def schema_of(message: Message) -> str:
    prefix = Encoder("command.v1").encode(
        {"id": [""], "kind": ["drop"], "expects": [""], "model_version": [""], "cause": [""], "time": [0]}
    )[0][:10]
    return "command.v1" if (message.value() or b"").startswith(prefix) else "example.v1"


def is_told_by_nothing(name: str, value: bytes, flip: Callable[[bytes], bytes]) -> bool:
    """Why a command was given, by whom and when changes no score; nor do the flags of an example."""
    before, after = (decode(name, [one]).to_pylist()[0] for one in (value, flip(value)))
    differing = {field for field in before if str(before[field]) != str(after[field])}
    return differing <= ({"id", "cause", "time"} if name == "command.v1" else {"flags"})


# Models -----------------------------------------------------------------------------------------------------------


def test_one_flipped_bit_of_a_stored_model_is_found(past: AuditedPast):
    path = past.settings.data_folder / "registry" / APP / past.version / MODEL
    with a_flipped_bit(path, 1_000):
        report = audited(past)
    assert any("TM-5011" in text and past.version in text for text in report.checks["models"].first)
    assert report.mismatched > 0
    assert audited(past).is_sound
    assert registry_of(past.settings).versions(APP) == [past.version]


def test_one_flipped_bit_of_a_snapshot_is_found(past: AuditedPast):
    path = sorted((past.settings.data_folder / "snapshots").rglob("*.models"))[1]
    with a_flipped_bit(path, 2_000):
        report = audited(past)
    assert findings(report) == {"models"}
    assert path.name in report.checks["models"].first[0]


class a_flipped_bit:
    def __init__(self, path: Path, at: int) -> None:
        self._path, self._at, self._whole = path, at, path.read_bytes()

    def __enter__(self) -> None:
        content = bytearray(self._whole)
        content[self._at % len(content)] ^= 4
        self._path.write_bytes(bytes(content))

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._whole)


def test_scores_of_another_platform_are_held_within_the_tolerance_and_no_further(past: AuditedPast):
    def near(logs: MemoryLogs) -> None:
        logs.change(PREDICTIONS, 100, edited("prediction.v1", learner=lambda score: score + 3e-6))

    def far(logs: MemoryLogs) -> None:
        logs.change(PREDICTIONS, 100, edited("prediction.v1", learner=lambda score: score + 3e-5))

    exact = audited(past, near)
    assert (exact.mismatched, exact.close, exact.comparison) == (1, 1, "bit for bit")
    elsewhere = audited(past, near, tolerance=1e-5)
    assert "scores" not in findings(elsewhere) and elsewhere.comparison == "within 1e-05"
    assert audited(past, far, tolerance=1e-5).mismatched == 1


def test_score_that_was_served_degraded_is_counted_apart(past: AuditedPast):
    """A worker without the champion's model says so; its score is not what the log makes."""
    change = {"learner": lambda score: score / 2, "flags": ["degraded"]}
    report = audited(past, lambda logs: logs.change(PREDICTIONS, 399, edited("prediction.v1", **change)))
    assert (report.mismatched, report.degraded, report.predictions) == (0, 1, 399)


@pytest.mark.parametrize(("at", "is_history"), [(0, True), (390, False)])
def test_other_features_are_history_only_before_the_first_of_ours(past: AuditedPast, at: int, is_history: bool):
    report = audited(
        past, lambda logs: logs.change(PREDICTIONS, at, edited("prediction.v1", feature_digest="of another year"))
    )
    assert (report.earlier_features, report.mismatched) == ((1, 0) if is_history else (0, 1))


# A log that was cut ------------------------------------------------------------------------------------------------


def test_snapshot_stands_in_for_a_log_that_was_cut_and_without_one_nothing_is_claimed(past: AuditedPast):
    class Cut(MemoryLogs):
        def bounds(self, partition: Partition) -> tuple[int, int]:
            return (150 if partition.topic == EXAMPLES else 0), self.next[partition]

    logs = changed(past)
    logs.lanes[Partition(EXAMPLES, 0)] = [m for m in logs.lanes[Partition(EXAMPLES, 0)] if m.offset() >= 150]
    logs.__class__ = Cut
    with pytest.raises(StateLostError, match="TM-4130"):
        run_audit(past.settings, logs=logs)
    commits = rows_of(past, COMMITS)
    first = next(at for at, row in enumerate(commits) if row["n"] >= 250)
    start = past.logs.lanes[Partition(COMMITS, 0)][first].offset()
    report = run_audit(past.settings, logs=logs, start=start)
    assert report.is_sound, report_as_json(report)["checks"]
    assert report.predictions > 50


# On the real broker ------------------------------------------------------------------------------------------------


@pytest.mark.servers
def test_command_audits_what_a_worker_left_and_ends_with_1_when_a_prediction_was_added(
    servers: Servers, app_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with a_shop(servers, app_name, tmp_path) as shop:
        shop.work_off_sixty_orders()
        servers_of = ["--bootstrap-servers", servers.bootstrap_servers, "--data", str(tmp_path)]
        assert run_command(["audit", str(shop.config), "-o", "json", *servers_of]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["predictions"], told["mismatched"], told["examples"]) == (60, 0, 40)

        topic = f"{app_name}.predictions.v1"
        row = {**shop.read("predictions")[0], "offset": 1_000}
        value = Encoder("prediction.v1").encode({name: [value] for name, value in row.items()})[0]
        shop.producer.produce(topic, value, row["id"])
        shop.producer.flush()
        assert run_command(["audit", str(shop.config), *servers_of]) == 1
        assert "behind all commits" in capsys.readouterr().out


def test_output_of_a_topic_that_is_no_record_is_refused_by_name(past: AuditedPast):
    place = Partition(PREDICTIONS, 0)
    with pytest.raises(TidemillError, match=r"a value is not prediction\.v1"):
        audited(past, lambda logs: logs.append(place, Output(PREDICTIONS, b"k", b"not ours")))
