"""A plausible run of an app, as records of its topics: what the web page is tested and looked at with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tidemill.apps.web_state import WebState
from tidemill.core.alerts import Alert
from tidemill.core.records import Partition
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import RolloutState, Shift, Tick

DAY_MS = 86_400_000
START_MS = 1_356_998_400_000  # 2013-01-01
TOPICS = ("mill.ordered.v1", "mill.returned.v1", "mill.prices.v1")
SERIES = {"blend": 0.0, "booster": 0.006, "learner": 0.014, "base_rate": 0.07, "constant": 0.075, "frozen": 0.02,
          "no_change": 3.1}  # fmt: skip


def day(number: float) -> int:
    return START_MS + round(number * DAY_MS)


def a_metric(series: str, window: str, number: int, loss: float, **fields: Any) -> dict[str, Any]:
    row = {
        "series": series,
        "window": window,
        "window_start": 0 if window == "run" else day(number),
        "slice_feature": "",
        "n": 900,
        "log_loss": loss,
        "auc": 0.77,
        "constant_log_loss": 0.52,
    }
    return row | fields


def a_tick(number: int, **fields: Any) -> Tick:
    wave = 0.05 + 0.04 * math.sin(number / 9)
    is_odd = 100 <= number < 116
    shifts = (
        Shift("temperature", "psi", 0.31 + wave if is_odd else wave, 0.001, is_odd),
        Shift("supplier", "chi2", wave / 2, 0.4, False),
        Shift("prediction", "psi", wave / 3 + (0.3 if 190 < number < 205 else 0), 0.6, False),
    )
    values: dict[str, Any] = {
        "time": day(number + 1),
        "offset_next": 900 * number,
        "champion": "v001" if number < 88 else "v002" if number < 206 else "v004",
        "challenger": "",
        "events": 910 + number % 40,
        "examples": 880 + number % 30,
        "examples_total": 880 * number,
        "log_loss": 0.45,
        "excess": 0.004 * math.sin(number / 5),
        "e_value": math.exp(min(9.0, (number - 176) / 2)) if 176 < number < 206 else 1 + wave,
        "threshold": 365.0,
        "adwin": number // 60,
        "page_hinkley": number // 90,
        "shifts": () if number < 7 else shifts,
    }
    return Tick(**values | fields)


def an_alert(key: str, opened: float, event: str = "opened", time: float | None = None, **fields: Any) -> Alert:
    values: dict[str, Any] = {
        "id": f"{key}@{day(opened)}",
        "key": key,
        "kind": key.split("/")[0],
        "event": event,
        "severity": "ticket",
        "time": day(opened if time is None else time),
        "opened": day(opened),
        "summary": "The share of records without a temperature rose from 0.4 % to 31 %",
        "action": "Look at the producer of the culprits; the models go on with what they have.",
        "runbook": f"docs/runbooks/{key.split('/')[0]}.md",
        "champion": "v001",
        "window_start": day(opened - 7),
        "window_end": day(opened),
        "offset_start": 78_000,
        "offset_next": 84_200,
        "culprits": ("temperature", "supplier=NORTH", "price_7d"),
        "evidence": {"psi": 0.3412, "p_value": 1.2e-9, "missing": 0.31, "reference_missing": 0.004},
    }
    return Alert(**values | fields)


def some_alerts() -> Iterator[Alert]:
    yield an_alert("covariate/temperature", 100, summary="temperature has drifted: PSI 0.34 against the training")
    yield an_alert("covariate/temperature", 100, "repeated", 104, summary="temperature has drifted: PSI 0.36")
    yield an_alert("quality/missing/temperature", 101)
    yield an_alert("quality/missing/temperature", 101, "acknowledged", 102, by="ines")
    yield an_alert("quality/missing/temperature", 101, "resolved", 118)
    yield an_alert("covariate/temperature", 100, "resolved", 131, summary="temperature is as it was in the training")
    concept = "Labels no longer follow the probabilities: e-value 411 is over 365"
    yield an_alert("concept/blend", 190, severity="page", summary=concept, culprits=("supplier=NORTH", "route=A-B"),
                   evidence={"e_value": 411.2, "threshold": 365.0, "log_loss": 0.583}, champion="v002")  # fmt: skip
    yield an_alert("trigger/concept", 190, severity="info", summary="retraining is due")
    yield an_alert("concept/blend", 190, "resolved", 212, severity="page", summary=concept)
    yield an_alert("prediction/served", 195, severity="info", summary="Probabilities are higher than in the training")
    yield an_alert("prediction/served", 195, "resolved", 209, severity="info")
    yield an_alert("operations/lag", 219.5, severity="page", culprits=(), evidence={"lag": 48_200.0},
                   summary="48,200 records wait, and the lag grows", champion="v004")  # fmt: skip
    yield an_alert("label/share", 216, summary="Positive labels: 34 % of the week against 24 %", culprits=())
    yield an_alert("label/share", 216, "acknowledged", 217, by="ines")


def some_story() -> Iterator[StoryEvent]:
    def step(kind: str, at: float, **fields: Any) -> StoryEvent:
        return StoryEvent(id=f"{kind}-{at}", kind=kind, time=day(at), **fields)  # type: ignore[arg-type]

    yield step("triggered", 80, cause="schedule: every 30d")
    made = {"log_loss": 0.4512, "auc": 0.781, "examples": 71_200}
    yield step("trained", 81, version="v002", parent="v001", cause="schedule: every 30d", evidence=made)
    yield step("shadow", 81, version="v002", parent="v001", cause="schedule: every 30d")
    yield step("promoted", 88, version="v002", parent="v001", verdict="better: +0.0041 [0.0009, 0.0073]")
    yield step("kept", 99, version="v002", parent="v001", verdict="still better on probation")
    yield step(
        "declined", 131, cause="schedule: every 30d", verdict="quality alert open: a training now would learn it"
    )
    yield step("trained", 141, version="v003", parent="v002", cause="schedule: every 30d")
    yield step("shadow", 141, version="v003", parent="v002")
    yield step("aborted", 158, version="v003", parent="v002", verdict="undecided after 20,000 examples")
    cause = f"concept/blend@{day(190)}"
    yield step("triggered", 190, cause=cause)
    yield step("frozen", 191, version="v002", cause="learner guard")
    yield step("trained", 191, version="v004", parent="v002", cause=cause)
    yield step("shadow", 191, version="v004", parent="v002", cause=cause)
    yield step("canary", 199, version="v004", parent="v002", cause=cause)
    yield step("promoted", 206, version="v004", parent="v002", cause=cause, verdict="better: +0.0117 [0.0031, 0.0202]",
               evidence={"mean": 0.0117, "lower": 0.0031, "upper": 0.0202, "examples": 6_200})  # fmt: skip
    yield step("thawed", 207, version="v004", cause="learner guard")


def fill(state: WebState, *, days: int = 220) -> WebState:
    """Fold a run into `state`."""
    outcomes = {"prediction": 200_000, "example": 190_000, "expired": 3_100, "context": 402_117, "orphan": 41,
                "event_dead_letter": 12}  # fmt: skip
    for number, topic in enumerate(TOPICS):
        row = {
            "topic": topic,
            "partition": 0,
            "next": 264_000,
            "group_watermark": day(days),
            "watermark": day(days),
            "outcomes": {},
        }
        state.fold_commits([row | {"outcomes": outcomes if number == 0 else {"label_dead_letter": number}}])
    state.set_ends({Partition(topic, 0): 264_000 + 1_204 * number for number, topic in enumerate(TOPICS)})
    for series, worse in SERIES.items():
        state.fold_metric(a_metric(series, "run", 0, 0.4487 + worse, n=190_000, auc=0.7812 - worse / 2))
        for number in range(days):
            season = (
                0.43 + 0.05 * math.sin(number / 30) + 0.012 * math.sin(number * 1.7) + 0.008 * math.sin(number * number)
            )
            shock = 0.1 * math.exp(-((number - 193) ** 2) / 40) * (0.3 if series == "learner" else 1)
            drifting = worse * (1 + number / 90) if series in ("booster", "frozen") else worse
            state.fold_metric(a_metric(series, "1d", number, season + shock + drifting))
    rollout = RolloutState(
        other="v002", stage_start=186_000, examples=4_120, mean=-0.0021, lower=-0.0049, upper=0.0007, verdict="open"
    )
    for number in range(days):
        state.fold_tick(a_tick(number, rollout=rollout if number == days - 1 else None))
    for alert in some_alerts():
        state.fold_alert(alert)
    for event in some_story():
        state.fold_story(event)
    return state
