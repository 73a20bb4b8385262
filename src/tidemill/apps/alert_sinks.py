"""Alerts to where people look: a webhook, Slack, Alertmanager.

In: the alarm topic, the app's `sinks:`. Out: one POST per record and sink. Invariant: a sink's position, in the group
`tidemill.<app>.sinks.<name>`, moves past a record only once the sink has taken it or refused it for good, so none is
lost while a sink is down; one may come twice. A sink that is down holds up no other.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tidemill.apps.alerts import alert_as_json, cloud_event, time_text
from tidemill.apps.clients import clients_of
from tidemill.apps.topics import ensure_loop_topics
from tidemill.config import Settings, SinkSettings
from tidemill.core.alerts import Alert, Severity
from tidemill.core.records import Partition
from tidemill.core.spec import AppSpec
from tidemill.core.topic_names import alerts_topic
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.http_post import Answer, post
from tidemill.io.kafka_reader import LogReader
from tidemill.io.loop_records import decode_alerts
from tidemill.io.telemetry import SinkTelemetry

READ_RECORDS_MAX = 500
LOOK_EVERY_S = 0.25
BACKOFF_S = 1.0  # doubled by each failure in a row
BACKOFF_MAX_S = 60.0
SLACK_TEXT_MAX = 2_900  # characters of a section; Slack's own limit is 3,000
ALERTMANAGER_PATH = "/api/v2/alerts"
RANKS: Mapping[Severity, int] = {"info": 0, "ticket": 1, "page": 2}
# Alertmanager resolves what has no end five minutes after it was last told; ours end by a record.
OPEN_UNTIL = "9999-12-31T23:59:59Z"


def sink_group(app: AppSpec, name: str) -> str:
    """Whose offset is the position of the sink with this name: it may move in `sinks:` and change its address."""
    return f"tidemill.{app.name}.sinks.{name}"


@dataclass(slots=True)
class _Sink:
    settings: SinkSettings
    reader: LogReader
    pending: deque[tuple[int, Alert]] = field(default_factory=deque)  # (offset, record), oldest first
    committed: int = 0
    failures: int = 0  # in a row
    quiet_until: float = 0.0  # on time.monotonic

    @property
    def name(self) -> str:
        return f"sink {self.settings.name}"


class Forwarder:
    """Follows the alarm topic for all sinks. One thread owns it; `close` it.

    A sink whose name is seen for the first time begins at the start of the topic.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        report: Callable[[str], None],
        telemetry: SinkTelemetry | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._app = settings.app
        self._report = report
        self._telemetry = telemetry
        self._backoff_s = backoff_s
        self._at = Partition(alerts_topic(settings.app.name), 0)
        self.counts: Counter[str] = Counter()  # by outcome: taken, refused, passed over, failed
        ensure_loop_topics(settings)
        self._clients = clients_of(settings)
        self._sinks = [self._opened(sink) for sink in settings.sinks]

    def run(self, *, is_until_end: bool, is_stopped: Callable[[], bool]) -> None:
        """Forward what is there, and go on until told to stop, or until every sink has all that was there at first.

        Raises:
            UnavailableError: Kafka did not answer.
        """
        end = max((sink.reader.end_offset() for sink in self._sinks), default=0)
        while not is_stopped():
            has_worked = self.step()
            if is_until_end and all(sink.reader.position >= end and not sink.pending for sink in self._sinks):
                return
            if not has_worked:
                time.sleep(LOOK_EVERY_S)

    def step(self) -> bool:
        """Send one record to each sink that is ready; False when there was nothing to do."""
        has_worked = False
        for sink in self._sinks:
            if time.monotonic() < sink.quiet_until:
                continue
            if not sink.pending:
                self._read(sink)
            if sink.pending:
                self._send(sink)
                has_worked = True
        return has_worked

    def close(self) -> None:
        for sink in self._sinks:
            sink.reader.close()

    def _opened(self, settings: SinkSettings) -> _Sink:
        reader = LogReader(self._clients, *self._at)
        group = sink_group(self._app, settings.name)
        offset, _ = kafka.committed_offsets(self._clients, group, [self._at])[self._at]
        position = reader.first_offset() if offset is None else offset
        reader.seek(position)
        return _Sink(settings, reader, committed=position)

    def _read(self, sink: _Sink) -> None:
        messages = sink.reader.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
        alerts = decode_alerts([message.value() for message in messages])
        sink.pending.extend(zip([message.offset() for message in messages], alerts, strict=True))

    def _send(self, sink: _Sink) -> None:
        offset, alert = sink.pending[0]
        body = body_of(self._app, sink.settings, alert)
        if body is None:
            self._done(sink, offset, "passed over")
            return
        headers = headers_of(self._app, sink.settings, alert)
        try:
            answer = post(address_of(sink.settings), json.dumps(body, sort_keys=True).encode(), headers)
            trouble = f"answered {answer.status} {answer.text[:200]!r}"
        except UnavailableError as error:
            answer, trouble = Answer(0, ""), error.message
        if answer.is_taken:
            if sink.failures:
                self._report(f"{sink.name} takes alerts again")
            self._done(sink, offset, "taken")
        elif answer.is_final:
            self._report(
                f"error: TM-3041 {sink.name} {trouble}: it refuses this alert, which is not sent again; check its "
                f"settings. The alert: {json.dumps(alert_as_json(alert), sort_keys=True)}"
            )
            self._done(sink, offset, "refused")
        else:
            self._wait(sink, trouble, answer.retry_after_s)

    def _done(self, sink: _Sink, offset: int, outcome: str) -> None:
        """Move the sink's position past the record; what is passed over moves with the next one that is sent."""
        sink.pending.popleft()
        sink.failures = 0
        self._count(sink, outcome)
        if outcome != "passed over" or not sink.pending:
            group = sink_group(self._app, sink.settings.name)
            kafka.set_committed_offsets(self._clients, group, {self._at: offset + 1}, "")
            sink.committed = offset + 1

    def _wait(self, sink: _Sink, trouble: str, retry_after_s: float | None) -> None:
        wait_s = min(self._backoff_s * 2.0**sink.failures, BACKOFF_MAX_S)
        wait_s = max(wait_s, min(retry_after_s or 0.0, BACKOFF_MAX_S))
        sink.failures += 1
        sink.quiet_until = time.monotonic() + wait_s
        self._count(sink, "failed")
        self._report(f"{sink.name} {trouble}; {len(sink.pending)} alerts or more wait; next try in {wait_s:.3g} s")

    def _count(self, sink: _Sink, outcome: str) -> None:
        self.counts[outcome] += 1
        if self._telemetry is not None:
            told = outcome.replace(" ", "_")
            self._telemetry.count(sink=sink.settings.name, kind=sink.settings.kind, outcome=told)


def run_forwarder(
    settings: Settings, *, is_until_end: bool, metrics_port: int | None, report: Callable[[str], None]
) -> Counter[str]:
    """Forward until TERM, Ctrl-C or the end that was asked for; the records by outcome."""
    stopped = threading.Event()
    former = {one: signal.signal(one, lambda *_: stopped.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    telemetry = SinkTelemetry()
    end_serving = telemetry.serve(metrics_port) if metrics_port else lambda: None
    forwarder: Forwarder | None = None
    try:
        forwarder = Forwarder(settings, report=report, telemetry=telemetry)
        forwarder.run(is_until_end=is_until_end, is_stopped=stopped.is_set)
        return forwarder.counts
    finally:
        if forwarder is not None:
            forwarder.close()
        end_serving()
        for one, handler in former.items():
            signal.signal(one, handler)


def address_of(sink: SinkSettings) -> str:
    """Where requests go; of Alertmanager the settings name the server."""
    return sink.url.rstrip("/") + ALERTMANAGER_PATH if sink.kind == "alertmanager" else sink.url


def body_of(app: AppSpec, sink: SinkSettings, alert: Alert) -> Any | None:
    """What is sent as JSON; None: this record is none of the sink's."""
    if RANKS[alert.severity] < RANKS[sink.min_severity]:
        return None
    if sink.kind == "webhook":
        return {"schema_version": 1, "app": app.name} | alert_as_json(alert)
    if sink.kind == "slack":
        return slack_message(app, alert)
    # It knows states, not records: a trigger has no duration, and it has silences of its own.
    return None if alert.kind == "trigger" or alert.event == "acknowledged" else [alertmanager_alert(app, alert)]


def headers_of(app: AppSpec, sink: SinkSettings, alert: Alert) -> dict[str, str]:
    """Of the request; a webhook gets a CloudEvent in binary mode."""
    event = cloud_event(app, alert) if sink.kind == "webhook" else {}
    # A header is Latin-1 on the wire: anything else is escaped as CloudEvents says.
    event = {name: _percent(value) for name, value in event.items()}
    return {"Content-Type": "application/json", "User-Agent": "tidemill", **event, **sink.headers}


def slack_message(app: AppSpec, alert: Alert) -> dict[str, Any]:
    """Text for notifications, blocks for the channel."""
    title = f"{alert.severity.upper()} {app.name}: {alert.key} {alert.event}"
    facts = [f"*What to do:* {_escaped(alert.action)}"] if alert.action else []
    if alert.culprits:
        facts.append(f"*Culprits:* {_escaped(', '.join(alert.culprits))}")
    if alert.evidence:
        numbers = ", ".join(f"{name} = {value:.6g}" for name, value in sorted(alert.evidence.items()))
        facts.append(f"*Evidence:* {_escaped(numbers)}")
    if alert.by:
        facts.append(f"*Acknowledged by:* {_escaped(alert.by)}")
    window = f"{time_text(alert.window_start)} to {time_text(alert.window_end)}"
    foot = f"{alert.id} · {window} · champion {alert.champion} · {alert.runbook}"
    texts = [f"*{_escaped(title)}*\n{_escaped(alert.summary)}", *(["\n".join(facts)] if facts else [])]
    sections = [{"type": "section", "text": {"type": "mrkdwn", "text": text[:SLACK_TEXT_MAX]}} for text in texts]
    context = {"type": "context", "elements": [{"type": "mrkdwn", "text": _escaped(foot)[:SLACK_TEXT_MAX]}]}
    return {"text": _escaped(f"{title}: {alert.summary}")[:SLACK_TEXT_MAX], "blocks": [*sections, context]}


def alertmanager_alert(app: AppSpec, alert: Alert) -> dict[str, Any]:
    """One alert of `POST /api/v2/alerts`; its labels are the same from opening to resolution."""
    return {
        "labels": {
            "alertname": f"Tidemill{alert.kind.capitalize()}",
            "app": app.name,
            "kind": alert.kind,
            "severity": alert.severity,
            "key": alert.key,
        },
        "annotations": {
            "summary": alert.summary,
            "description": " ".join(
                part
                for part in (alert.action, f"Culprits: {', '.join(alert.culprits)}." if alert.culprits else "")
                if part
            ),
            "runbook_url": alert.runbook,
        },
        "startsAt": time_text(alert.opened),
        "endsAt": time_text(alert.time) if alert.event == "resolved" else OPEN_UNTIL,
    }


def _escaped(text: str) -> str:
    """Slack's own three."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _percent(text: str) -> str:
    return quote(text, safe=" !#$&'()*+,/:;<=>?@[]^_`{|}~-.")
