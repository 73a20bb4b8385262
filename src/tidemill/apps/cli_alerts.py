"""`tidemill alerts`: list, follow, show, acknowledge, forward.

In: arguments. Out: tables or JSON on stdout, progress on stderr, an exit code. Invariant: reading changes nothing; what
a person says about an incident is a record of the alarm topic.
"""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.apps.cli_options import (
    Config,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    WithParent,
    form_of,
    hint,
    nearest_of,
    progress,
    settings_with_servers,
)
from tidemill.core.topic_names import alerts_topic
from tidemill.errors import ConfigError

if TYPE_CHECKING:
    from tidemill.apps.alerts import Incident
    from tidemill.core.alerts import Alert

alerts_app = typer.Typer(help="Incidents: list, follow, show, acknowledge, forward.", no_args_is_help=True)
IncidentId = Annotated[str, typer.Argument(metavar="ID", help="An incident, as `alerts ls` shows it, or its key.")]
Kind = Annotated[
    str | None, typer.Option("--kind", help="Only of this kind, such as concept or quality.", show_default="all")
]
LISTED = ("status", "severity", "id", "told", "time", "by", "summary")
TAIL_RECORDS_MAX = 1_000
TAIL_WAIT_S = 0.5


@alerts_app.command("ls", epilog="Example: [bold]tidemill alerts ls app.yaml --open -o jsonl | jq .id[/bold]")
def list_alerts(
    config: Config,
    kind: Kind = None,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not resolved.")] = False,
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """The incidents, open ones first, the newest first among them."""
    form, wanted = form_of(output), _kind(kind)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.alerts import incidents_of, read_alerts
    from tidemill.apps.results import Form, print_rows

    incidents = [
        one
        for one in incidents_of(read_alerts(settings))
        if (wanted is None or one.newest.kind == wanted) and (one.resolved is None or not only_open)
    ]
    if form is Form.TABLE:
        print_rows("incidents", [_listed(one) for one in incidents], LISTED, form)
    else:
        print_rows("incidents", [_as_json(one) for one in incidents], (), form)
    if any(one.status == "open" for one in incidents):
        hint(f"all of one: tidemill alerts show {config} ID; to quiet its repetitions: tidemill alerts ack {config} ID")
    return 0


@alerts_app.command(epilog="Example: [bold]tidemill alerts tail app.yaml --kind concept -o jsonl[/bold]")
def tail(
    config: Config,
    kind: Kind = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the present end of the topic; otherwise follow it.")
    ] = False,
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Every record of the alarm topic, from its start, as it comes: a line each. Ctrl-C ends it."""
    form, wanted = form_of(output), _kind(kind)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.alerts import alert_as_json
    from tidemill.apps.clients import clients_of
    from tidemill.apps.results import SCHEMA_VERSION, Form, print_json
    from tidemill.io import kafka
    from tidemill.io.kafka_reader import LogReader
    from tidemill.io.loop_records import decode_alerts

    clients = clients_of(settings)
    kafka.partition_counts(clients, [alerts_topic(settings.app.name)])
    reader = LogReader(clients, alerts_topic(settings.app.name), 0)
    try:
        end = reader.end_offset()
        reader.seek(reader.first_offset())
        while not until_end or reader.position < end:
            until = end if until_end else None
            messages = reader.read(until_offset=until, timeout_s=TAIL_WAIT_S, max_records=TAIL_RECORDS_MAX)
            for alert in decode_alerts([message.value() for message in messages]):
                if wanted not in (None, alert.kind):
                    continue
                if form is Form.TABLE:
                    print(_line(alert), flush=True)
                else:
                    print_json({"schema_version": SCHEMA_VERSION, **alert_as_json(alert)}, Form.JSONL)
    finally:
        reader.close()
    return 0


@alerts_app.command(epilog="Example: [bold]tidemill alerts show app.yaml concept/blend@1380585600000[/bold]")
def show(
    config: Config,
    id: IncidentId,
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """All of one incident: evidence, windows, offsets, culprits, what to do, and its records."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.alerts import incident_named, incidents_of, read_alerts, time_text
    from tidemill.apps.results import SCHEMA_VERSION, Form, print_json, print_rows

    incident = incident_named(incidents_of(read_alerts(settings)), id)
    if form is not Form.TABLE:
        print_json({"schema_version": SCHEMA_VERSION, **_as_json(incident)}, form)
        return 0
    told = next((one for one in reversed(incident.records) if one.event in ("opened", "repeated")), incident.newest)
    facts: dict[str, Any] = {
        "id": incident.id,
        "status": incident.status + (f" by {incident.by}" if incident.by else ""),
        "severity": told.severity,
        "summary": told.summary,
        "what to do": told.action,
        "runbook": told.runbook,
        "champion": told.champion,
        "window": f"{time_text(told.window_start)} to {time_text(told.window_end)}",
        "examples": f"offsets [{told.offset_start}, {told.offset_next})" if told.offset_next >= 0 else "-",
        "culprits": ", ".join(told.culprits) or "-",
        **{f"evidence: {name}": f"{value:.6g}" for name, value in sorted(told.evidence.items())},
    }
    print_rows("incident", [{"what": name, "is": value} for name, value in facts.items()], ("what", "is"), form)
    records = [
        {"time": time_text(one.time), "event": one.event, "by": one.by, "summary": one.summary}
        for one in incident.records
    ]
    print_rows("records", records, ("time", "event", "by", "summary"), form)
    return 0


@alerts_app.command(epilog="Example: [bold]tidemill alerts ack app.yaml concept/blend@1380585600000 --by Ada[/bold]")
def ack(
    config: Config,
    id: IncidentId,
    by: Annotated[str, typer.Option("--by", help="Who has seen it.", show_default="the user's login")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say that somebody has seen an incident: it is repeated no more, and resolved once it is over.

    There is no way back: the record stays on the topic.
    """
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.alerts import acknowledge, incident_named, incidents_of, read_alerts

    name = by.strip() or getpass.getuser()
    if dry_run:
        incident = incident_named(incidents_of(read_alerts(settings)), id)
        print(f"would acknowledge {incident.id} by {name}; it is {incident.status}")
        return 0
    record, is_written = acknowledge(settings, id, by=name)
    print(f"{record.id} acknowledged by {record.by}{'' if is_written else ', as before'}")
    return 0


@alerts_app.command(epilog="Example: [bold]tidemill alerts forward app.yaml --bootstrap-servers kafka:9092[/bold]")
def forward(
    config: Config,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop when every sink has what is there now; otherwise go on.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Serve /metrics on 127.0.0.1.", show_default="none"),
    ] = None,
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Send alerts to the sinks of the YAML: webhook, Slack, Alertmanager; each record at least once, in order.

    A sink that is down is tried again until it answers; its place is kept in Kafka. Exit code 1: one was refused.
    """
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    if not settings.sinks:
        raise ConfigError(
            "TM-1068", f"{config} declares no sinks; write for example `sinks: [{{kind: webhook, url: https://...}}]`"
        )
    from tidemill.apps.alert_sinks import run_forwarder

    counts = run_forwarder(settings, is_until_end=until_end, metrics_port=metrics_port, report=progress)
    progress(", ".join(f"{counts[name]} {name}" for name in ("taken", "refused", "passed over", "failed")))
    return 1 if counts["refused"] else 0


def _kind(name: str | None) -> str | None:
    from tidemill.core.alerts import ALERT_KINDS

    if name is not None and name not in ALERT_KINDS:
        raise typer.BadParameter(f"{name!r} is no kind; {nearest_of(name, ALERT_KINDS)}", param_hint="--kind")
    return name


def _listed(incident: Incident) -> dict[str, Any]:
    from tidemill.apps.alerts import time_text

    newest = incident.newest
    return {
        "status": incident.status,
        "severity": newest.severity,
        "id": incident.id,
        "told": incident.told,
        "time": time_text(newest.time),
        "by": incident.by,
        "summary": newest.summary,
    }


def _as_json(incident: Incident) -> dict[str, Any]:
    from tidemill.apps.alerts import alert_as_json

    state = {"status": incident.status, "resolved": incident.resolved, "told": incident.told, "by": incident.by}
    records = [alert_as_json(one) for one in incident.records]
    return {"id": incident.id, "key": incident.newest.key, "kind": incident.newest.kind, **state, "records": records}


def _line(alert: Alert) -> str:
    when = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(alert.time / 1_000))
    by = f" by {alert.by}" if alert.by else ""
    return f"{when} {alert.severity:6} {alert.event:12} {alert.id}{by}: {alert.summary}"
