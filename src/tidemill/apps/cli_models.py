"""`tidemill models`: train, list, show, promote, roll back.

In: arguments. Out: tables or JSON on stdout, progress on stderr, an exit code. Invariant: what changes a model is a
command in the examples log; every verb that writes one prints how to undo it.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    RedisUrl,
    Servers,
    Verbose,
    form_of,
    hint,
    nearest_of,
    progress,
    settings_with_servers,
)
from tidemill.core.roles import INITIAL
from tidemill.errors import ModelRefusedError

models_app = typer.Typer(help="Model versions: train, list, show, promote, roll back.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A model version, as `models ls` shows it.")]
Cause = Annotated[str, typer.Option("--cause", help="Why, for the record.")]
LoadTimeout = Annotated[
    float, typer.Option("--load-timeout", metavar="SECONDS", min=0, help="How long to wait for workers to load it.")
]


@models_app.command(epilog="Example: [bold]tidemill models train app.yaml --before 2013-04-01[/bold]")
def train(
    config: Config,
    from_offset: Annotated[int, typer.Option(min=0, help="First offset of the examples log.")] = 0,
    to_offset: Annotated[
        int | None, typer.Option(min=0, help="Up to this offset.", show_default="the end of the log")
    ] = None,
    before: Annotated[
        datetime | None, typer.Option(help="Only labels that came before this event time (UTC).", show_default="all")
    ] = None,
    cause: Cause = "by hand",
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a booster from the examples log and register it; it serves once it is promoted."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.results import print_rows
    from tidemill.apps.training import train as train_version

    manifest = train_version(
        settings,
        offset_start=from_offset,
        offset_next=to_offset,
        before_ms=None if before is None else round(before.replace(tzinfo=UTC).timestamp() * 1_000),
        cause=cause,
        on_read=_every(200_000, lambda at, end: progress(f"read {at:,} of {end:,} records of the examples log")),
        on_round=_every(50, lambda at, loss: progress(f"round {at}: log loss {loss:.4f} on the newest examples")),
    )
    print_rows("trained", [_summary(manifest, "")], SUMMARY, form)
    hint(f"to serve it: tidemill models promote {config} {manifest.version}")
    return 0


SUMMARY = ("version", "role", "parent", "examples", "trees", "log_loss", "auc", "trained_until", "cause")


@models_app.command("ls")
def list_models(
    config: Config,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """The versions of the registry with their roles in the log, newest first."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.commands import role_history
    from tidemill.apps.models import registry_of, trusted_keys
    from tidemill.apps.results import print_rows

    now = role_history(settings).now
    roles = {now.parent: "parent", now.challenger: "challenger", now.champion: "champion"}
    unknown = dict.fromkeys(SUMMARY, "")
    rows: list[dict[str, Any]] = []
    for one in registry_of(settings).ls(settings.app.name, trusted_keys(settings)):
        role = roles.pop(one.version, "")
        if one.manifest is None:
            rows.append({**unknown, "version": one.version, "role": role, "cause": f"refused: {one.refused}"})
        else:
            rows.append(_summary(one.manifest, role))
    rows += [{**unknown, "version": version, "role": role} for version, role in roles.items() if version]
    print_rows("models", rows, SUMMARY, form)
    return 0


@models_app.command()
def show(
    config: Config,
    version: Version,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """One version: its manifest, and when it was promoted."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.commands import role_history
    from tidemill.apps.models import registry_of, trusted_keys
    from tidemill.apps.results import Form, print_json, print_rows

    refuse_unknown(version, registry_of(settings).versions(settings.app.name))
    manifest, _ = registry_of(settings).load(settings.app.name, version, trusted_keys(settings))
    commands = [
        {**command._asdict(), "time": time_text(command.time)}
        for command, _ in role_history(settings).obeyed
        if command.model_version == version
    ]
    if form is not Form.TABLE:
        print_json({"version": version, "manifest": dataclasses.asdict(manifest), "commands": commands}, form)
        return 0
    facts = dataclasses.asdict(manifest)
    facts["vocabularies"] = {
        name: len(values) for name, values in zip(manifest.category_features, manifest.vocabularies, strict=True)
    }
    for name in ("time_first", "time_last", "created"):
        facts[name] = time_text(facts[name])
    rows = [{"field": name, "value": ", ".join(given) if isinstance(given, tuple) else str(given)} for name, given in
            facts.items()]  # fmt: skip
    print_rows(version, rows, ("field", "value"), form)
    print_rows("commands", commands, ("offset", "kind", "expects", "cause", "time"), form)
    return 0


@models_app.command(
    epilog="Example: [bold]tidemill models promote app.yaml m0123456789ab --cause 'better on March'[/bold]"
)
def promote(
    config: Config,
    version: Version,
    cause: Cause = "by hand",
    load_timeout: LoadTimeout = 30.0,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check that it could be promoted.")] = False,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make a version the champion: prepare it in every worker, then promote it in the examples log."""
    settings = settings_with_servers(
        config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=data, needs_store=True
    )
    return _promote(settings, version, cause, load_timeout, output, is_dry_run=dry_run, config=config)


@models_app.command()
def explain(
    config: Config,
    event_id: Annotated[str, typer.Argument(metavar="ID", help="The event's id.")],
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Why an event was scored as it was: exact contributions of every column to the booster's margin."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.explaining import explain as explain_prediction
    from tidemill.apps.results import Form, print_json, print_rows

    found = explain_prediction(settings, event_id)
    served = {name: found.prediction[name] for name in ("id", "model_version", "n", "blend", "booster", "learner")}
    rows = [{"column": name, "value": value, "added": round(one, 4)} for name, value, one in found.contributions]
    if form is not Form.TABLE:
        print_json({"schema_version": 1, "prediction": served, "contributions": rows}, form)
        return 0
    print_rows("prediction", [served], tuple(served), form)
    print_rows("log odds by column", rows, ("column", "value", "added"), form)
    return 0


@models_app.command()
def key(config: Config, data: Data = None, quiet: Quiet = False, verbose: Verbose = False) -> int:
    """The public key of who trains with this data folder, for `trusted_keys` of other machines."""
    from tidemill.apps.models import signing_key
    from tidemill.config import load_settings

    print(signing_key(load_settings(config, data_folder=data)).public_key().text)
    return 0


@models_app.command()
def rollback(
    config: Config,
    cause: Cause = "rollback by hand",
    load_timeout: LoadTimeout = 30.0,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would serve.")] = False,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make the champion's parent the champion again."""
    settings = settings_with_servers(
        config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=data, needs_store=True
    )
    from tidemill.apps.commands import role_history

    parent = role_history(settings).now.parent
    if not parent:
        raise ModelRefusedError("TM-5022", f"app {settings.app.name} has no promotion that could be rolled back")
    return _promote(settings, parent, cause, load_timeout, output, is_dry_run=dry_run, config=config)


def _promote(
    settings: Any, version: str, cause: str, load_timeout_s: float, output: str, *, is_dry_run: bool, config: Any
) -> int:
    form = form_of(output)
    from tidemill.apps.commands import CommandWriter, role_history
    from tidemill.apps.commands import promote as write_promotion
    from tidemill.apps.models import booster_loader, registry_of
    from tidemill.apps.results import print_rows
    from tidemill.core.features import FeaturePlan

    if version != INITIAL:
        refuse_unknown(version, registry_of(settings).versions(settings.app.name))
        booster_loader(settings, FeaturePlan(settings.app))(version)  # what no worker could load is not prepared
    champion = role_history(settings).now.champion
    if is_dry_run:
        print_rows("would promote", [{"version": version, "instead_of": champion}], ("version", "instead_of"), form)
        return 0
    writer = CommandWriter(settings)
    try:
        done = write_promotion(
            settings, version, cause=cause, writer=writer, load_timeout_s=load_timeout_s, report=progress
        )
    finally:
        writer.close()
    row = {
        "version": version,
        "instead_of": done.promoted.expects,
        "prepared_at": done.prepared.offset,
        "promoted_at": done.promoted.offset,
        "lacking": ", ".join(done.lacking),
    }
    print_rows("promoted", [row], tuple(row), form)
    if done.lacking:
        hint(f"workers {', '.join(done.lacking)} had not loaded it in time: if they cannot, they serve the old one")
    hint(f"to undo: tidemill models rollback {config}")
    return 0


def refuse_unknown(version: str, known: list[str]) -> None:
    if version not in known:
        raise ModelRefusedError(
            "TM-5020", f"no model version {version!r} in the registry; {nearest_of(version, known)}"
        )


def _summary(manifest: Any, role: str) -> dict[str, Any]:
    return {
        "version": manifest.version,
        "role": role,
        "parent": manifest.parent,
        "examples": manifest.examples,
        "trees": manifest.trees,
        "log_loss": round(manifest.metrics["log_loss"], 4),
        "auc": round(manifest.metrics["auc"], 4),
        "trained_until": time_text(manifest.time_last),
        "cause": manifest.cause,
    }


def time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")


def _every(step: int, say: Any) -> Any:
    """Say it when another `step` is reached."""
    reached = [0]

    def heard(at: int, other: float) -> None:
        if at // step > reached[0]:
            reached[0] = at // step
            say(at, other)

    return heard
