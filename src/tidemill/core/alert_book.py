"""Incidents from opening to resolution: when a detector that fires becomes a record, and when silence does.

In: at the end of each tick, what fires. Out: alert records in the order in which they are published. Invariant: of one
key at most one incident is open; every incident that was opened is resolved once; what a reader knows of incidents is
what the records say (`AlertBook.of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from tidemill.core.alerts import Alert, AlertKind, Severity
from tidemill.core.loop_spec import DAY_MS, MonitorSpec

# page: served probabilities are wrong or records are lost now; ticket: look within days; info: the loop acts by itself.
SEVERITIES: Mapping[AlertKind, Severity] = MappingProxyType(
    {
        "covariate": "ticket",
        "label": "ticket",
        "prediction": "ticket",
        "concept": "page",
        "quality": "ticket",
        "performance": "page",
        "operations": "page",
        "trigger": "info",
    }
)
ACTIONS: Mapping[AlertKind, str] = MappingProxyType(
    {
        "covariate": "See whether the world or the source of these features changed; if the losses hold, nothing needs"
        " to be done.",
        "label": "See whether the rule or the source of the labels changed before a model learns from them.",
        "prediction": "Compare with the features that moved; if none did, look at the version that serves.",
        "concept": "Check the labels of the worst slices first; if they are right, let the loop retrain or demand it.",
        "quality": "Repair the source of this field or topic; the models were not made for what it sends now.",
        "performance": "Check labels and features; if they are right, retrain, or freeze and excise the learner.",
        "operations": "Read the newest dead letters and the log of the workers.",
        "trigger": "Nothing: the trainer answers on the topic of models.",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """A detector that fires at the end of a tick; fields as in `Alert`. subject: what follows the kind in the key."""

    kind: AlertKind
    subject: str
    summary: str
    window_start: int
    window_end: int
    offset_start: int = -1
    offset_next: int = -1
    culprits: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.subject}"

    def opened(self, time: int, champion: str) -> Alert:
        """The record with which an incident begins."""
        return Alert(
            id=f"{self.key}@{time}",
            key=self.key,
            kind=self.kind,
            event="opened",
            severity=SEVERITIES[self.kind],
            time=time,
            opened=time,
            summary=self.summary,
            action=ACTIONS[self.kind],
            runbook=f"docs/runbooks/{self.kind}.md",
            champion=champion,
            window_start=self.window_start,
            window_end=self.window_end,
            offset_start=self.offset_start,
            offset_next=self.offset_next,
            culprits=self.culprits,
            evidence=dict(self.evidence),
        )


class Incident(NamedTuple):
    """What the records say of an open incident. newest: the last record that opened or repeated it."""

    first: Alert
    newest: Alert
    acknowledged_by: str = ""  # "" = nobody


class AlertBook:
    """The open incidents of an app, and when the others were resolved.

    A firing opens an incident; while it lasts there is one "repeated" each `cooldown_ms`, unless somebody acknowledged
    it. After `quiet_ms` without a firing it is resolved, and for `cooldown_ms` its key cannot open.
    """

    def __init__(self, spec: MonitorSpec) -> None:
        self._quiet_ms = spec.quiet_ms
        self._cooldown_ms = spec.cooldown_ms
        self._incidents: dict[str, Incident] = {}  # by key, in the order of their opening
        self._fired: dict[str, int] = {}  # by key, each open incident's among them: the last tick that fired
        self._resolved: dict[str, int] = {}  # by key: time of the last resolution

    @classmethod
    def of(cls, records: Iterable[Alert], spec: MonitorSpec | None = None) -> AlertBook:
        """The book that these records tell of, in the order of the alarm topic.

        Firings between two records leave no trace, so this book takes the last record for the last firing: fed with
        ticks it would resolve up to `cooldown_ms` too early. It is for readers; a monitor folds its ticks again, and
        takes the records over behind the last tick that is published.
        """
        book = cls(spec or MonitorSpec())
        for record in records:
            book._take(record)
        return book

    @property
    def incidents(self) -> Mapping[str, Incident]:
        """Open ones by key, in the order of their opening."""
        return MappingProxyType(self._incidents)

    @property
    def resolved(self) -> Mapping[str, int]:
        """By key: time of the last resolution, ms."""
        return MappingProxyType(self._resolved)

    def tell(self, time: int, champion: str, offset_next: int, firings: Sequence[Firing]) -> tuple[Alert, ...]:
        """The records of the tick that ends at `time`: those of firings in their order, then resolutions by opening.

        Ticks come in order of time; the keys of `firings` differ.
        """
        records: list[Alert] = []
        for firing in firings:
            record = self._record_of(firing.opened(time, champion))
            if record is not None:
                records.append(record)
                self._take(record)
            self._fired[firing.key] = time
        for key, incident in tuple(self._incidents.items()):
            if time - self._fired[key] >= self._quiet_ms:
                records.append(_resolution(incident, time, champion, offset_next, time - self._fired[key]))
                self._take(records[-1])
        return tuple(records)

    def acknowledge(self, id: str, by: str, time: int) -> Alert | None:
        """Somebody has seen it: no more repetitions. The record of that; None: no such incident is open."""
        for incident in self._incidents.values():
            if incident.first.id == id:
                record = replace(incident.newest, event="acknowledged", time=time, by=by)
                self._take(record)
                return record
        return None

    def take_over(self, records: Iterable[Alert]) -> None:
        """Go on from these records (see `of`), which are published for the ticks that were told so far.

        Told under other settings, the same ticks may have made other incidents: readers know nothing of those. From
        this book comes only how long after its last record the key of an incident has fired.
        """
        published = AlertBook.of(records)
        self._incidents, self._resolved = published._incidents, published._resolved
        self._fired = {key: max(time, self._fired.get(key, time)) for key, time in published._fired.items()}

    def _record_of(self, opening: Alert) -> Alert | None:
        """What a firing writes: the opening itself, a repetition, or nothing."""
        incident = self._incidents.get(opening.key)
        if incident is None:
            resolved = self._resolved.get(opening.key)
            return opening if resolved is None or opening.time - resolved >= self._cooldown_ms else None
        if incident.acknowledged_by or opening.time - incident.newest.time < self._cooldown_ms:
            return None
        return replace(opening, id=incident.first.id, opened=incident.first.opened, event="repeated")

    def _take(self, record: Alert) -> None:
        if record.kind == "trigger":  # opened and resolved at once
            return
        incident = self._incidents.get(record.key)
        if record.event == "opened":
            self._incidents[record.key] = Incident(record, record)
            self._fired[record.key] = record.time
        elif incident is None or incident.first.id != record.id:
            return  # about an incident that is over
        elif record.event == "repeated":
            self._incidents[record.key] = incident._replace(newest=record)
            self._fired[record.key] = record.time
        elif record.event == "acknowledged":
            self._incidents[record.key] = incident._replace(acknowledged_by=record.by or "unknown")
        else:
            del self._incidents[record.key], self._fired[record.key]
            self._resolved[record.key] = record.time


def _resolution(incident: Incident, time: int, champion: str, offset_next: int, silent_ms: int) -> Alert:
    first = incident.first
    return replace(
        incident.newest,
        event="resolved",
        time=time,
        champion=champion,
        summary=f"{first.key} was open for {_days(time - first.opened)}; silent for the last {_days(silent_ms)}.",
        action="Nothing: it is over.",
        window_start=first.window_start,
        window_end=time,
        offset_start=first.offset_start,
        offset_next=offset_next,
        evidence={"open_ms": float(time - first.opened), "silent_ms": float(silent_ms)},
    )


def _days(span_ms: int) -> str:
    return f"{span_ms / DAY_MS:.3g} days"
