"""What the web page shows: a fold of an app's topics, bounded in size, as plain JSON values.

In: rows of commits and metrics, alerts, ticks, story events, lags. Out: one document. Invariant: pure, and the same
records give the same document; nothing grows without bound, and no text is longer than TEXT_CHARACTERS.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tidemill.apps.web_models import model_lanes
from tidemill.core.alerts import Alert
from tidemill.core.drift.shifts import LABEL
from tidemill.core.records import Outcome, Partition
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import Tick
from tidemill.core.validation_rows import PREDICTIONS

TICKS_MAX = 750  # two years of days; a page of 1,280 px cannot show more
DAYS_MAX = 750
SERIES_MAX = 24
INCIDENTS_MAX = 200
STORY_MAX = 400
CULPRITS_MAX = 12
EVIDENCE_MAX = 16
TEXT_CHARACTERS = 300
BLEND, CONSTANT = "blend", "constant"
SERIES_ORDER = (BLEND, "booster", "learner", "base_rate", CONSTANT, "no_change")
SHOWN_WINDOWS = ("run", "1d")
# Outcomes that resolve an earlier record rather than count one of their own.
_LATER = frozenset(one.name.lower() for one in (Outcome.EXPIRED, Outcome.WAITING_JOINED, Outcome.WAITING_ORPHANED))


@dataclass(slots=True)
class Incident:
    """An alert from its opening on; `last` is the newest record that opened or repeated it."""

    last: Alert
    status: str = "open"
    told: int = 0  # records that opened or repeated it
    resolved: int | None = None
    by: str = ""

    def fold(self, alert: Alert) -> None:
        if alert.event == "acknowledged":
            self.by = alert.by or "someone"  # its evidence is that of whom it answers
            self.status = self.status if self.resolved is not None else "acknowledged"
            return
        if alert.event != "resolved":
            self.last = alert
            self.told += 1
        if alert.event == "resolved" or alert.kind == "trigger":  # a trigger is over when it is told
            self.status, self.resolved = "resolved", alert.time


@dataclass(slots=True)
class WebState:
    """One owner at a time. The topics are folded in the order of their logs, each by itself."""

    app: str
    config: str = ""  # as the operator named it; stands in the commands that the page suggests
    _outcomes: Counter[str] = field(default_factory=Counter)
    _dead_letters: Counter[str] = field(default_factory=Counter)
    _positions: dict[Partition, int] = field(default_factory=dict)
    _ends: dict[Partition, int] = field(default_factory=dict)
    _watermark: int = -1  # of the group: what every partition has passed
    _time_last: int = -1  # of any partition
    _runs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _days: dict[int, dict[str, float]] = field(default_factory=dict)
    _constants: dict[int, float] = field(default_factory=dict)  # by day: of the blend's rows
    _incidents: dict[str, Incident] = field(default_factory=dict)
    _ticks: dict[int, dict[str, Any]] = field(default_factory=dict)
    _story: dict[str, StoryEvent] = field(default_factory=dict)
    _first_champion: tuple[int, str] | None = None
    _champion: str = ""
    _challenger: str = ""

    def fold_commits(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of commit.v1."""
        for row in rows:
            at = Partition(row["topic"], row["partition"])
            self._positions[at] = max(row["next"], self._positions.get(at, 0))
            self._watermark = max(row["group_watermark"], self._watermark)
            self._time_last = max(row["watermark"], self._time_last)
            outcomes = dict(row["outcomes"])
            self._outcomes.update(outcomes)
            dead = sum(count for name, count in outcomes.items() if name.endswith("dead_letter"))
            if dead:
                self._dead_letters[at.topic] += dead

    def fold_metric(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.v1; only those without a slice, of the run and of days, are shown."""
        if row["slice_feature"] or row["series"] == PREDICTIONS or row["window"] not in SHOWN_WINDOWS:
            return
        series, loss = row["series"], _finite(row["log_loss"])
        if row["window"] == "run":
            if series in self._runs or len(self._runs) < SERIES_MAX:
                self._runs[series] = row
        elif loss is not None:
            day = self._days.setdefault(row["window_start"], {})
            if series in day or len(day) < SERIES_MAX:
                day[series] = loss
            constant = _finite(row["constant_log_loss"])
            if series == BLEND and constant is not None:
                self._constants[row["window_start"]] = constant
            _keep_newest(self._days, DAYS_MAX)
            _keep_newest(self._constants, DAYS_MAX)

    def drop_metric(self, series: str, window: str, start: int) -> None:
        """A row was taken back."""
        if window == "run":
            self._runs.pop(series, None)
        elif start in self._days:
            self._days[start].pop(series, None)
            if series == BLEND:
                self._constants.pop(start, None)
            if not self._days[start]:
                del self._days[start]

    def fold_alert(self, alert: Alert) -> None:
        incident = self._incidents.get(alert.id)
        if incident is None:
            if alert.event == "acknowledged":
                return  # of an incident that was let go, or never was
            incident = self._incidents[alert.id] = Incident(alert)
            while len(self._incidents) > INCIDENTS_MAX:
                done = (one for one, kept in self._incidents.items() if kept.resolved is not None)
                del self._incidents[next(done, next(iter(self._incidents)))]
        incident.fold(alert)

    def fold_tick(self, tick: Tick) -> None:
        shifts = [one for one in tick.shifts if math.isfinite(one.effect)]
        # The label's effect is a difference of shares: no PSI, so no colour.
        columns = [one for one in shifts if one.subject != LABEL]
        moved = [one for one in columns if one.is_drift]
        worst = max(moved or columns, key=lambda one: abs(one.effect), default=None)
        self._ticks[tick.time] = {
            "time": tick.time,
            "subject": "" if worst is None else _cut(worst.subject),
            "effect": None if worst is None else _rounded(abs(worst.effect)),
            "judged": len(columns),
            "moved": len(moved),
            "drifts": [_cut(one.subject) for one in shifts if one.is_drift][:CULPRITS_MAX],
            "e_value": _significant(tick.e_value),
            "threshold": _significant(tick.threshold),
            "events": tick.events,
            "examples": tick.examples,
            "excess": _rounded(tick.excess),
            "is_learner_bad": tick.is_learner_bad,
            "rollout": None
            if tick.rollout is None
            else {
                "other": _cut(tick.rollout.other),
                "examples": tick.rollout.examples,
                "mean": _rounded(tick.rollout.mean),
                "lower": _rounded(tick.rollout.lower),
                "upper": _rounded(tick.rollout.upper),
                "verdict": tick.rollout.verdict,
            },
        }
        if self._first_champion is None:
            self._first_champion = (tick.time, tick.champion)
        self._champion, self._challenger = tick.champion, tick.challenger
        _keep_newest(self._ticks, TICKS_MAX)

    def fold_story(self, event: StoryEvent) -> None:
        """A step told twice is one step."""
        self._story.setdefault(event.id, event)
        while len(self._story) > STORY_MAX:
            del self._story[next(iter(self._story))]

    def forget(self) -> None:
        """The logs begin anew, and so does this."""
        empty = WebState(self.app, self.config)
        for one in fields(self):
            setattr(self, one.name, getattr(empty, one.name))

    def is_new_lag(self, ends: Mapping[Partition, int]) -> bool:
        return self._ends != ends

    def set_ends(self, ends: Mapping[Partition, int]) -> None:
        """The ends of the input partitions, as offsets."""
        self._ends = dict(ends)

    def lag_by_topic(self) -> dict[str, int]:
        """Input records that are not processed yet."""
        lags: Counter[str] = Counter()
        for at, end in self._ends.items():
            lags[at.topic] += max(0, end - self._positions.get(at, 0))
        return dict(lags)

    @property
    def open_alerts(self) -> Counter[str]:
        """Incidents without a resolution, by severity."""
        return Counter(one.last.severity for one in self._incidents.values() if one.resolved is None)

    def as_json(self) -> dict[str, Any]:
        """Values that `json.dumps(..., allow_nan=False)` takes; times are milliseconds since the epoch, UTC."""
        # A constant that is declared is preferred to that of the blend's rows.
        losses: dict[int, dict[str, float | None]] = {
            start: {CONSTANT: self._constants.get(start), **day} for start, day in sorted(self._days.items())
        }
        names = _in_order({name for day in losses.values() for name, loss in day.items() if loss is not None})
        story = list(self._story.values())
        lag = self.lag_by_topic()
        return {
            "app": self.app,
            "config": self.config,
            "time": _time(self._watermark if self._watermark >= 0 else self._time_last),
            "records": sum(count for name, count in self._outcomes.items() if name not in _LATER),
            "predictions": self._outcomes["prediction"],
            "labels": self._outcomes["example"] + self._outcomes["waiting_joined"],
            "expired": self._outcomes["expired"],
            "orphans": self._outcomes["orphan"] + self._outcomes["waiting_orphaned"],
            "lag": sum(lag.values()),
            "lag_by_topic": lag,
            "dead_letters": sum(self._dead_letters.values()),
            "dead_letters_by_topic": dict(sorted(self._dead_letters.items())),
            "champion": _cut(self._champion),
            "challenger": _cut(self._challenger),
            "figures": self._figures(),
            "days": list(losses),
            "losses": {name: [_rounded(day.get(name)) for day in losses.values()] for name in names[:SERIES_MAX]},
            "alerts": self._alerts(),
            "ticks": list(self._ticks.values()),
            "models": model_lanes(story, self._first_champion),
            "story": [_story_as_json(event) for event in story],
        }

    def _figures(self) -> list[dict[str, Any]]:
        """Overall figures by series; a constant that is not declared is that of the blend's rows."""
        rows = [
            {"series": name, "n": row["n"], "log_loss": _rounded(row["log_loss"]), "auc": _rounded(row["auc"])}
            for name, row in ((name, self._runs[name]) for name in _in_order(set(self._runs)))
        ]
        blend = self._runs.get(BLEND)
        if blend is not None and CONSTANT not in self._runs:
            loss = _rounded(blend["constant_log_loss"])
            rows.append({"series": CONSTANT, "n": blend["n"], "log_loss": loss, "auc": 0.5})
        return rows

    def _alerts(self) -> list[dict[str, Any]]:
        """Open ones first, each part with the newest first."""
        order = sorted(self._incidents.values(), key=lambda one: (one.resolved is None, one.last.opened), reverse=True)
        return [_incident_as_json(one) for one in order]


def _incident_as_json(incident: Incident) -> dict[str, Any]:
    alert = incident.last
    return {
        "id": _cut(alert.id),
        "key": _cut(alert.key),
        "kind": alert.kind,
        "severity": alert.severity,
        "status": incident.status,
        "opened": alert.opened,
        "time": alert.time,
        "resolved": incident.resolved,
        "told": incident.told,
        "by": _cut(incident.by),
        "summary": _cut(alert.summary),
        "action": _cut(alert.action),
        "runbook": _cut(alert.runbook),
        "champion": _cut(alert.champion),
        "window": [alert.window_start, alert.window_end],
        "offsets": [alert.offset_start, alert.offset_next],
        "culprits": [_cut(one) for one in alert.culprits[:CULPRITS_MAX]],
        "evidence": _numbers(alert.evidence),
    }


def _story_as_json(event: StoryEvent) -> dict[str, Any]:
    return {
        "kind": event.kind,
        "time": event.time,
        "version": _cut(event.version),
        "parent": _cut(event.parent),
        "cause": _cut(event.cause),
        "verdict": _cut(event.verdict),
        "evidence": _numbers(event.evidence),
        "offsets": [event.offset_start, event.offset_next],
    }


def _time(time: int) -> int | None:
    return time if time >= 0 else None


def _in_order(names: set[str]) -> list[str]:
    """Those that every app has first, then the declared ones by name."""
    return [*(one for one in SERIES_ORDER if one in names), *sorted(names - set(SERIES_ORDER))]


def _numbers(evidence: Mapping[str, float]) -> list[list[Any]]:
    return [[_cut(name), _significant(value)] for name, value in sorted(evidence.items())[:EVIDENCE_MAX]]


def _keep_newest(by_time: dict[int, Any], count: int) -> None:
    while len(by_time) > count:
        del by_time[min(by_time)]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rounded(value: float | None) -> float | None:
    """Five digits behind the point: what losses and shares are read to."""
    return None if _finite(value) is None else round(float(value or 0.0), 5)


def _significant(value: float) -> float | None:
    """Four significant digits: e-values grow without bound."""
    return None if not math.isfinite(value) else float(f"{value:.4g}")
