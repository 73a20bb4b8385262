"""The web page's state as a fold of what an app publishes: what is shown, what comes first, and that it is bounded."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_samples import a_metric, a_tick, an_alert, day, fill

from tidemill.apps.web_board import Board
from tidemill.apps.web_models import model_lanes
from tidemill.apps.web_state import DAYS_MAX, INCIDENTS_MAX, TICKS_MAX, WebState
from tidemill.core.records import Partition
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import Shift


def folded(*alerts: Any) -> list[dict[str, Any]]:
    state = WebState("mill")
    for alert in alerts:
        state.fold_alert(alert)
    return list(state.as_json()["alerts"])


def test_commits_are_counted_by_topic_and_lag_is_what_lies_behind_them() -> None:
    state = WebState("mill")
    row = {"topic": "orders", "partition": 0, "next": 7, "group_watermark": day(3), "watermark": day(4)}
    state.fold_commits([row | {"outcomes": [("prediction", 5), ("event_dead_letter", 2)]}])
    state.fold_commits([row | {"next": 9, "group_watermark": day(2), "outcomes": [("prediction", 1), ("expired", 1)]}])
    state.set_ends({Partition("orders", 0): 12, Partition("orders", 1): 4, Partition("prices", 0): 0})
    shown = state.as_json()

    assert shown["records"] == 8  # an expiry is of an earlier record
    assert (shown["predictions"], shown["expired"]) == (6, 1)
    assert shown["time"] == day(3)
    assert shown["lag_by_topic"] == {"orders": 3 + 4, "prices": 0}
    assert shown["dead_letters_by_topic"] == {"orders": 2}


def test_only_rows_of_the_whole_are_shown_and_a_row_can_be_taken_back() -> None:
    state = WebState("mill")
    state.fold_metric(a_metric("blend", "1d", 0, 0.4))
    state.fold_metric(a_metric("blend", "1d", 2, 0.5))
    state.fold_metric(a_metric("blend", "1d", 2, 0.51))
    state.fold_metric(a_metric("booster", "1d", 2, float("nan")))
    state.fold_metric(a_metric("booster", "7d", 2, 0.9))
    state.fold_metric(a_metric("booster", "1d", 2, 0.9, slice_feature="supplier"))
    assert state.as_json()["losses"] == {"blend": [0.4, 0.51], "constant": [0.52, 0.52]}

    state.drop_metric("blend", "1d", day(0))
    assert state.as_json()["losses"] == {"blend": [0.51], "constant": [0.52]}
    state.fold_metric(a_metric("constant", "1d", 2, 0.6))
    assert state.as_json()["losses"]["constant"] == [0.6]


def test_before_the_group_has_a_watermark_the_newest_time_is_shown() -> None:
    state = WebState("mill")
    row = {"topic": "orders", "partition": 0, "next": 7, "group_watermark": -1, "outcomes": ()}
    state.fold_commits([row | {"watermark": -1}])
    assert state.as_json()["time"] is None
    state.fold_commits([row | {"watermark": day(2)}])
    assert state.as_json()["time"] == day(2)


def test_a_declared_constant_is_preferred_to_that_of_the_blend() -> None:
    state = WebState("mill")
    state.fold_metric(a_metric("blend", "run", 0, 0.4))
    assert state.as_json()["figures"][-1] == {"series": "constant", "n": 900, "log_loss": 0.52, "auc": 0.5}
    state.fold_metric(a_metric("constant", "run", 0, 0.53))
    assert [one["log_loss"] for one in state.as_json()["figures"]] == [0.4, 0.53]


def test_open_alerts_come_first_and_an_acknowledgement_keeps_the_evidence() -> None:
    old = an_alert("concept/blend", 1, evidence={"e_value": 400.0})
    shown = folded(
        old,
        an_alert("label/share", 5, summary="what happened"),
        an_alert("label/share", 5, "resolved", 8, summary="it was open for three days"),
        an_alert("concept/blend", 1, "repeated", 2, evidence={"e_value": 500.0}),
        an_alert("concept/blend", 1, "acknowledged", 3, evidence={}, by="ines"),
    )
    assert [one["key"] for one in shown] == ["concept/blend", "label/share"]
    assert shown[0]["status"] == "acknowledged" and shown[0]["by"] == "ines"
    assert shown[0]["evidence"] == [["e_value", 500.0]] and shown[0]["told"] == 2
    assert shown[1]["status"] == "resolved" and shown[1]["resolved"] == day(8)
    assert shown[1]["summary"] == "what happened"  # not that it is over


def test_an_acknowledgement_does_not_reopen_what_is_resolved() -> None:
    opened = an_alert("concept/blend", 1)
    (shown,) = folded(opened, an_alert("concept/blend", 1, "resolved", 4), an_alert("concept/blend", 1, "acknowledged"))
    assert shown["status"] == "resolved"


def test_a_trigger_is_over_when_it_is_told() -> None:
    state = WebState("mill")
    state.fold_alert(an_alert("trigger/schedule", 3, severity="info"))
    assert state.as_json()["alerts"][0]["status"] == "resolved" and not state.open_alerts


def test_a_shift_of_the_label_is_told_but_is_no_psi() -> None:
    state = WebState("mill")
    moved = (Shift("label", "t", 0.4, 0.0, True), Shift("amount", "psi", 0.2, 0.5, False))
    state.fold_tick(a_tick(50, shifts=moved))
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["effect"], tick["drifts"]) == ("amount", 0.2, ["label"])


def test_a_column_that_moved_is_worse_than_one_that_may_be_chance() -> None:
    state = WebState("mill")
    shifts = (Shift("rare", "psi", 6.5, 0.3, False), Shift("amount", "psi", 0.4, 0.001, True))
    state.fold_tick(a_tick(50, shifts=shifts))
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["effect"], tick["moved"]) == ("amount", 0.4, 1)


def test_the_worst_column_of_a_tick_is_shown() -> None:
    state = WebState("mill")
    state.fold_tick(a_tick(101))
    state.fold_tick(a_tick(101))  # a monitor that was fenced in between tells the same tick again
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["drifts"]) == ("temperature", ["temperature"])
    assert (tick["moved"], tick["judged"]) == (1, 3)
    assert tick["effect"] == pytest.approx(max(abs(one.effect) for one in a_tick(101).shifts), abs=1e-5)


def test_a_version_is_shadow_canary_champion_and_at_last_beside_its_successor() -> None:
    state = fill(WebState("mill"))
    lanes = {lane["version"]: lane for lane in state.as_json()["models"]}

    assert [(one["role"], one["to"] is None) for one in lanes["v004"]["spans"]] == [
        ("shadow", False), ("canary", False), ("champion", True)
    ]  # fmt: skip
    assert [one["role"] for one in lanes["v002"]["spans"]] == ["shadow", "champion", "probation"]
    assert lanes["v001"]["spans"] == [
        {"role": "champion", "from": day(1), "to": day(88)},
        {"role": "probation", "from": day(88), "to": day(99)},
    ]
    assert (lanes["v003"]["ending"], lanes["v003"]["ended"]) == ("aborted", day(158))


def test_a_rollback_gives_the_place_back() -> None:
    story = [
        StoryEvent(id="1", kind="promoted", time=10, version="b", parent="a"),
        StoryEvent(id="2", kind="rolled_back", time=15, version="b", parent="a"),
    ]
    lanes = {lane["version"]: lane for lane in model_lanes(story, (1, "a"))}
    assert [(one["role"], one["from"], one["to"]) for one in lanes["a"]["spans"]] == [
        ("champion", 1, 10), ("probation", 10, 15), ("champion", 15, None)
    ]  # fmt: skip
    assert lanes["b"]["ending"] == "rolled back" and lanes["b"]["spans"][-1]["to"] == 15


STEPS = st.tuples(
    st.sampled_from(["trained", "shadow", "canary", "promoted", "kept", "rolled_back", "aborted", "gated", "frozen"]),
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["", "a", "b", "c"]),
)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_whatever_the_story_at_most_one_version_serves(steps: list[tuple[Any, str, str]]) -> None:
    story = [
        StoryEvent(id=str(time), kind=kind, time=time, version=version, parent=parent)
        for time, (kind, version, parent) in enumerate(steps)
    ]
    lanes = model_lanes(story, (-1, "a"))
    is_open = [one for lane in lanes for one in lane["spans"] if one["role"] == "champion" and one["to"] is None]
    assert len(is_open) <= 1
    for lane in lanes:
        spans = lane["spans"]
        assert all(one["to"] == other["from"] or one["to"] < other["from"] for one, other in pairwise(spans))


def test_a_state_is_bounded_whatever_was_published() -> None:
    state = WebState("mill")
    for number in range(2_000):
        state.fold_tick(a_tick(number))
        state.fold_metric(a_metric(f"s{number % 90}", "1d", number, 0.5))
        state.fold_alert(an_alert(f"quality/missing/{'x' * 900}{number}", number, culprits=("y" * 900,) * 90))
        state.fold_story(StoryEvent(id=str(number), kind="trained", time=number, version=f"v{number}", cause="z" * 900))
    shown = state.as_json()
    assert (len(shown["ticks"]), len(shown["days"])) == (TICKS_MAX, DAYS_MAX)
    assert len(shown["alerts"]) == INCIDENTS_MAX
    assert shown["alerts"][0]["opened"] == day(1_999)  # the newest are kept
    assert len(json.dumps(shown)) < 3_000_000


def test_an_open_alert_outlives_those_that_are_resolved() -> None:
    state = WebState("mill")
    state.fold_alert(an_alert("concept/blend", 0))
    for number in range(1, INCIDENTS_MAX + 50):
        state.fold_alert(an_alert(f"quality/{number}", number))
        state.fold_alert(an_alert(f"quality/{number}", number, "resolved", number + 1))
    assert state.as_json()["alerts"][0]["key"] == "concept/blend"


def test_numbers_that_json_has_no_word_for_are_left_out() -> None:
    state = WebState("mill")
    state.fold_tick(a_tick(50, e_value=float("inf"), excess=float("nan")))
    state.fold_alert(an_alert("concept/blend", 1, evidence={"odds": float("-inf")}))
    shown = json.loads(json.dumps(state.as_json(), allow_nan=False))
    assert shown["ticks"][0]["e_value"] is None and shown["alerts"][0]["evidence"] == [["odds", None]]


def test_forgetting_begins_anew() -> None:
    state = fill(WebState("mill", "app.yaml"))
    state.forget()
    assert state.as_json() == WebState("mill", "app.yaml").as_json()


def test_a_document_is_made_once_for_each_change() -> None:
    board = Board(WebState("mill"))
    number, document = board.document()
    assert board.document() == (number, document) and board.document()[1] is document
    assert not board.wait_for_newer(number, 0.0)
    board.set_trouble("away")
    assert board.wait_for_newer(number, 0.0)
    later, changed = board.document()
    assert later > number and json.loads(changed)["trouble"] == "away"
    board.set_trouble("away")
    assert board.document()[0] == later
