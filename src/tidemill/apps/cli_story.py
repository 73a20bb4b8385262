"""`tidemill models lineage`, `card`, `approve`, `reject`: what is known of a version, and a person's word on it.

In: arguments. Out: tables, JSON or Markdown on stdout, hints on stderr, an exit code. Invariant: what is printed is a
function of the registry and the story; an approval or a rejection is answered by the trainer, in the story.
"""

from __future__ import annotations

import dataclasses
import getpass
from typing import Literal

import typer

from tidemill.apps.cli_models import Cause, Version, refuse_unknown, time_text
from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    form_of,
    hint,
    settings_with_servers,
)


def lineage(
    config: Config,
    version: Version,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Where a version comes from: each version of the chain with its cause, its data, its parent and its verdicts."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.models import registry_of, trusted_keys
    from tidemill.apps.results import Form, print_json, print_rows
    from tidemill.apps.story import read_story
    from tidemill.core.lineage import lineage_of

    registry, events = registry_of(settings), read_story(settings)
    listed = registry.ls(settings.app.name, trusted_keys(settings))
    steps = lineage_of(
        events, version, manifests={one.version: one.manifest for one in listed if one.manifest is not None}
    )
    if not steps:
        refuse_unknown(version, registry.versions(settings.app.name))
    if form is not Form.TABLE:
        print_json({"version": version, "rows": [dataclasses.asdict(step) for step in steps]}, form)
        return 0
    chain = [
        {
            "version": step.version,
            "parent": step.parent,
            "trained": time_text(step.time) if step.time >= 0 else "",
            "offsets": f"[{step.offset_start}, {step.offset_next})",
            "status": step.status,
            "cause": step.cause,
        }
        for step in steps
    ]
    print_rows("lineage", chain, tuple(chain[0]) if chain else (), form)
    told = [
        {"version": step.version, "time": time_text(event.time), "step": event.kind, "verdict": event.verdict}
        for step in steps
        for event in step.events
    ]
    print_rows("story", told, ("version", "time", "step", "verdict"), form)
    return 0


def card(
    config: Config,
    version: Version,
    bootstrap_servers: Servers = None,
    data: Data = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """The model card of a version, in Markdown."""
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.models import registry_of, trusted_keys
    from tidemill.apps.story import read_story
    from tidemill.core.lineage import model_card

    registry = registry_of(settings)
    refuse_unknown(version, registry.versions(settings.app.name))
    manifest, _ = registry.load(settings.app.name, version, trusted_keys(settings))
    print(model_card(manifest, read_story(settings)), end="")
    return 0


def approve(
    config: Config,
    version: Version,
    cause: Cause = "approved by hand",
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Let a version that waits for approval go into the shadow; the trainer does it at its next look."""
    return _tell_trainer("approved", config, version, cause, bootstrap_servers, data, output)


def reject(
    config: Config,
    version: Version,
    cause: Cause = "rejected by hand",
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Drop a version that waits for approval, so that others can be trained; the trainer does it at its next look."""
    return _tell_trainer("rejected", config, version, cause, bootstrap_servers, data, output)


def _tell_trainer(
    word: Literal["approved", "rejected"],
    config: Config,
    version: Version,
    cause: Cause,
    bootstrap_servers: Servers,
    data: Data,
    output: OutputForm,
) -> int:
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.models import registry_of
    from tidemill.apps.results import print_rows
    from tidemill.apps.story import approve_version, reject_version

    refuse_unknown(version, registry_of(settings).versions(settings.app.name))
    tell = approve_version if word == "approved" else reject_version
    asked = tell(settings, version, cause=cause, by=getpass.getuser())
    row = {"id": asked.id, "version": version, "cause": cause, "by": asked.by}
    print_rows(word, [row], tuple(row), form)
    hint(f"what became of it: tidemill models lineage {config} {version}")
    return 0


def add_story_commands(models_app: typer.Typer) -> None:
    """Register them under `tidemill models`."""
    models_app.command(
        epilog="Example: [bold]tidemill models lineage app.yaml m0123456789ab -o json | jq .rows[].cause[/bold]"
    )(lineage)
    models_app.command()(card)
    models_app.command()(approve)
    models_app.command(
        epilog="Example: [bold]tidemill models reject app.yaml m0123456789ab --cause 'bad labels'[/bold]"
    )(reject)
