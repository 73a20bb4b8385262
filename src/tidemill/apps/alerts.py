"""The alarm topic for its readers: incidents from their records, and people's answers to them.

In: `<app>.alerts.v1`, read committed. Out: incidents, one record an acknowledgement. Invariant: an incident is what its
records say, in the order of the topic; an acknowledgement changes nothing but that it is known who has seen it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from tidemill.apps.clients import clients_of
from tidemill.config import Settings
from tidemill.core.alerts import Alert
from tidemill.core.records import Output
from tidemill.core.spec import AppSpec
from tidemill.core.topic_names import alerts_topic, drift_topic
from tidemill.errors import ConfigError
from tidemill.io.kafka_reader import read_topic
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.loop_records import ALERT_SCHEMA, decode_alerts, decode_ticks, encode_alerts

EVENT_TYPE = "io.tidemill.alert.v1"
IncidentStatus = Literal["open", "acknowledged", "resolved"]


@dataclass(frozen=True, slots=True)
class Incident:
    """All records of one incident, in the order of the topic; at least one."""

    records: tuple[Alert, ...]

    @property
    def id(self) -> str:
        return self.records[0].id

    @property
    def newest(self) -> Alert:
        """The last record that the monitor wrote."""
        return next((one for one in reversed(self.records) if one.event != "acknowledged"), self.records[-1])

    @property
    def told(self) -> int:
        """How often it was opened or repeated."""
        return sum(one.event in ("opened", "repeated") for one in self.records)

    @property
    def by(self) -> str:
        """Who acknowledged it last; "" = nobody."""
        return next((one.by for one in reversed(self.records) if one.event == "acknowledged"), "")

    @property
    def resolved(self) -> int | None:
        """When, ms; a trigger is resolved as it opens."""
        if self.newest.kind == "trigger":
            return self.newest.time
        return next((one.time for one in reversed(self.records) if one.event == "resolved"), None)

    @property
    def status(self) -> IncidentStatus:
        if self.resolved is not None:
            return "resolved"
        return "acknowledged" if self.by else "open"


def alert_output(app: AppSpec, alert: Alert) -> Output:
    """One record of the alarm topic, with CloudEvents headers in binary mode."""
    names = cloud_event(app, alert) | {"content-type": "application/avro"}
    headers = tuple((name.replace("ce-", "ce_"), value.encode()) for name, value in names.items())
    return Output(alerts_topic(app.name), alert.key.encode(), encode_alerts([alert])[0], headers)


def cloud_event(app: AppSpec, alert: Alert) -> dict[str, str]:
    """The attributes of a CloudEvent in binary mode, as HTTP names them; Kafka's begin with `ce_` instead.

    The id is one of the record, the same whenever it is sent again; the subject is the incident.
    """
    return {
        "ce-specversion": "1.0",
        "ce-id": f"{alert.id}/{alert.event}/{alert.time}",
        "ce-source": f"tidemill/{app.name}",
        "ce-type": EVENT_TYPE,
        "ce-time": time_text(alert.time),
        "ce-subject": alert.id,
        "ce-dataschema": f"tidemill/{ALERT_SCHEMA}",
    }


def time_text(time_ms: int) -> str:
    """RFC 3339, UTC, to the second."""
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_alerts(settings: Settings) -> list[Alert]:
    """Every record of the alarm topic.

    Raises:
        UnavailableError: TM-3011, there is no such topic: no monitor has run.
    """
    clients = clients_of(settings)
    found: list[Alert] = []
    for messages in read_topic(clients, alerts_topic(settings.app.name)):
        found += decode_alerts([message.value() for message in messages])
    return found


def incidents_of(alerts: Iterable[Alert]) -> list[Incident]:
    """Open ones first, of both kinds the newest first. An answer to nothing is no incident."""
    records: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.event != "acknowledged" or alert.id in records:
            records.setdefault(alert.id, []).append(alert)
    found = [Incident(tuple(of_one)) for of_one in records.values()]
    return sorted(found, key=lambda one: (one.resolved is not None, -one.newest.time, one.id))


def incident_named(incidents: Sequence[Incident], id: str) -> Incident:
    """The incident; of a key alone the newest one.

    Raises:
        ConfigError: TM-1066, there is none of that id.
    """
    named = [one for one in incidents if id in (one.id, one.newest.key)]
    if named:
        return max(named, key=lambda one: one.records[0].opened)
    from difflib import get_close_matches

    matches = get_close_matches(id, [one.id for one in incidents], n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}?" if matches else "`tidemill alerts ls` shows them"
    raise ConfigError("TM-1066", f"there is no incident {id!r}; {hint}")


def acknowledge(settings: Settings, id: str, *, by: str) -> tuple[Alert, bool]:
    """Say on the alarm topic that somebody has seen it: the monitor repeats it no more, and resolves it as ever.

    Returns:
        The record, and whether it was written: who has acknowledged an incident already does not do it twice.
    Raises:
        ConfigError: TM-1066 there is no such incident, TM-1067 it is over.
    """
    incident = incident_named(incidents_of(read_alerts(settings)), id)
    if incident.resolved is not None:
        raise ConfigError("TM-1067", f"{incident.id} was resolved on {time_text(incident.resolved)}: nothing to say")
    if incident.by == by:
        return next(one for one in reversed(incident.records) if one.event == "acknowledged"), False
    clients = clients_of(settings)
    time = max(_newest_tick(clients, settings.app), incident.newest.time)
    record = replace(incident.newest, event="acknowledged", time=time, by=by)
    writer = TransactionalWriter(clients, f"tidemill.{settings.app.name}.acknowledgements")
    writer.open()
    try:
        writer.publish([alert_output(settings.app, record)], {}, None)
    finally:
        writer.abandon()
    return record, True


def alert_as_json(alert: Alert) -> dict[str, Any]:
    """The fields of the record; NaN and infinities, which JSON has not, are null."""
    plain: dict[str, Any] = {name: getattr(alert, name) for name in alert.__slots__}
    return plain | {"culprits": list(alert.culprits), "evidence": _finite(alert.evidence)}


def _newest_tick(clients: Mapping[str, Any], app: AppSpec) -> int:
    """Event time is the monitor's clock: in a replay it is not that of the wall."""
    newest = -1
    for messages in read_topic(clients, drift_topic(app.name)):
        newest = max(newest, decode_ticks([messages[-1].value()])[0].time)
    return newest


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if abs(value) < float("inf") else None for name, value in sorted(numbers.items())}
