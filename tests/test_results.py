"""Tables and JSON of a run, from plain values."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest

from tidemill.apps.demo_view import BARS, Snapshot, line_of, panel_of, sparkline
from tidemill.apps.results import (
    Compared,
    Form,
    Quality,
    RunResults,
    print_json,
    print_rows,
    print_tables,
    results_as_json,
    results_tables,
    status_tables,
)
from tidemill.apps.status import Balance, Status, balances
from tidemill.core.records import Partition

CLOSED = Balance("labels in", 3, {"joined": 2, "waiting": 1})
OPEN = Balance("predictions", 5, {"labelled": 2, "pending": 1})


def some_results(**changes: object) -> RunResults:
    results = RunResults(
        app="mill",
        workers=2,
        records=1_000,
        predictions=300,
        examples=290,
        label_delay_s_p50=7_200.0,
        label_delay_s_p95=90.0,
        quality={"learner": Quality(0.5432, 0.7), "no-change": Quality(1.6, math.nan)},
        compared={"blend": Compared(200, 0.4567, 0.78), "constant": Compared(200, 0.6, None)},
        timeline=("2013-02-01 model: m1 serves, initial stays beside · because of trigger/schedule@1",),
        balances=(CLOSED,),
        dead_letters={"TM-2001": 4, "TM-2002": 1},
        out_of_order=0,
        setup_s=1.9,
        first_prediction_s=6.5,
        replay_s=10.0,
        records_per_s=100.0,
        feature_digest="ab",
    )
    return dataclasses.replace(results, **changes)  # type: ignore[arg-type]


def text_of(results: RunResults) -> str:
    file = io.StringIO()
    print_tables(results_tables(results), file=file)
    return file.getvalue()


def test_results_are_sound_only_if_every_balance_closes() -> None:
    assert some_results().is_sound
    assert not some_results(balances=(CLOSED, OPEN)).is_sound


def test_open_balance_shows_by_how_much() -> None:
    text = text_of(some_results(balances=(CLOSED, OPEN)))

    assert "2 labelled + 1 pending" in text
    assert "no, +2" in text
    assert "yes" in text


def test_tables_hold_what_the_json_holds() -> None:
    results = some_results()
    text = text_of(results)

    for shown in ("0.5432", "0.4567", "m1 serves", "0.7000", "TM-2001", "290", "2.0 h", "1.5 min", "6.5 s", "1.9 s"):
        assert shown in text
    plain = results_as_json(results)
    assert plain["schema_version"] == 1
    assert plain["quality"]["learner"] == {"log_loss": 0.5432, "auc": 0.7}
    assert plain["balances"] == [
        {"name": "labels in", "total": 3, "parts": {"joined": 2, "waiting": 1}, "is_closed": True}
    ]
    assert plain["dead_letters"] == {"TM-2001": 4, "TM-2002": 1}


def test_what_was_not_measured_is_null_and_a_dash_never_zero() -> None:
    results = some_results(out_of_order=None, first_prediction_s=None, label_delay_s_p50=None)

    plain = json.loads(json.dumps(results_as_json(results), allow_nan=False))
    assert plain["out_of_order"] is None
    assert plain["first_prediction_s"] is None
    assert plain["quality"]["no-change"]["auc"] is None
    assert "- s after" not in text_of(some_results())
    assert "p50 -" in text_of(results)


def test_no_colour_leaves_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in text_of(some_results())


def test_rows_print_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"code": "TM-2001", "count": 1_234}, {"code": "TM-2002", "count": None}]

    print_rows("letters", rows, ("code", "count"), Form.JSONL)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"schema_version": 1, **row} for row in rows]
    print_rows("letters", rows, ("code", "count"), Form.JSON)
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "rows": rows}
    print_rows("letters", rows, ("code", "count"), Form.TABLE)
    assert "1,234" in capsys.readouterr().out


def test_jsonl_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": {"b": 1}}, Form.JSONL)
    assert capsys.readouterr().out == '{"a": {"b": 1}}\n'


def test_balances_close_for_a_run_with_every_outcome() -> None:
    outcomes = {
        "prediction": 10,
        "example": 6,
        "amendment": 1,
        "label_duplicate": 2,
        "orphan": 1,
        "waiting": 4,
        "waiting_joined": 1,
        "waiting_orphaned": 2,
        "expired": 2,
        "label_dead_letter": 3,
    }
    published = {"prediction": 10, "example": 7, "amendment": 1}

    found = balances(outcomes, published, {"pending": 1, "waiting": 1})
    assert all(one.is_closed for one in found), found
    lost = balances(outcomes, {**published, "example": 6}, {"pending": 1, "waiting": 1})
    assert [one.is_closed for one in lost] == [False, False, True]


def test_status_shows_lag_by_topic() -> None:
    lag = {Partition("in", 0): 1_000, Partition("in", 1): 500}
    file = io.StringIO()
    print_tables(status_tables(Status(lag, {}, {}, {}, (CLOSED,), "d1")), file=file)

    assert "1,500" in file.getvalue()
    assert "feature digest d1" in file.getvalue()


def test_sparkline_spans_the_heights_and_leaves_out_what_is_unknown() -> None:
    assert sparkline([1.0, math.nan, 2.0]) == BARS[0] + BARS[-1]
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == BARS[0] * 2


def test_sparkline_is_never_wider_than_its_columns() -> None:
    assert len(sparkline([float(day) for day in range(365)], columns=48)) == 48


def test_line_and_panel_say_where_the_run_stands() -> None:
    snapshot = Snapshot(
        elapsed_s=12.0,
        simulated_ms=1_357_023_600_000,
        records=4_000,
        lag=77,
        quality={"learner": Quality(0.5, 0.7)},
        losses_by_day=[0.6, 0.5],
    )
    file = io.StringIO()
    print_tables([panel_of(snapshot)], file=file)

    for text in (line_of(snapshot), file.getvalue()):
        assert "2013-01-01 07:00" in text
        assert "4,000" in text
        assert "77" in text
    assert "learner 0.500/0.700" in line_of(snapshot)
