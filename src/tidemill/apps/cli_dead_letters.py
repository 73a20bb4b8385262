"""`tidemill dlq`: count dead letters, look at them, take them away, send them again.

In: arguments. Out: tables or JSON on stdout, progress on stderr, an exit code. Invariant: only `redrive` writes, only
after the operator agreed, and each letter once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.apps.cli_options import (
    Config,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    confirm_or_exit,
    form_of,
    hint,
    progress,
    settings_with_servers,
)

if TYPE_CHECKING:
    from tidemill.apps.dead_letters import Letter, Selection
    from tidemill.config import Settings

dead_letters_app = typer.Typer(
    help="Records that could not be processed, with their original bytes.", no_args_is_help=True
)

Codes = Annotated[
    list[str] | None, typer.Option("--code", metavar="CODE", help="Only letters with this code.", show_default=False)
]
Topics = Annotated[
    list[str] | None,
    typer.Option("--topic", metavar="NAME", help="Only letters of this input topic.", show_default=False),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--id", metavar="PLACE", help="Only the letter of the record that stood here: topic[0]@15.", show_default=False
    ),
]


@dead_letters_app.command("ls", epilog="Example: [bold]tidemill dlq ls app.yaml -o jsonl[/bold]")
def list_letters(
    config: Config,
    output: OutputForm = "table",
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Count the dead letters by topic and code, with one example of each."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.dead_letter_listing import list_dead_letters
    from tidemill.apps.results import print_rows

    rows = [dataclasses.asdict(group) for group in list_dead_letters(settings)]
    print_rows("dead letters", rows, ("topic", "code", "count", "redriven", "first", "last", "example"), form)
    return 0


@dead_letters_app.command(
    epilog="Example: [bold]tidemill dlq show app.yaml 'orders[0]@15'[/bold]: the place is in the letter's message."
)
def show(
    config: Config,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Of the original record: topic[0]@15.")],
    output: OutputForm = "table",
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Show one dead letter: the reason, and what can be decoded of it. Exit 1: there is none."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.dead_letters import Selection, parse_place, select_letters
    from tidemill.apps.results import Form, print_json

    wanted = parse_place(place)
    topic = wanted.partition.topic.removesuffix(".dlq")  # the place of the letter itself is understood as well
    letters = [
        letter
        for letter in select_letters(settings, Selection(topics=frozenset({topic})))
        if wanted in (letter.origin, letter.place)
    ]
    if not letters:
        hint(f"{topic}.dlq has no letter of {place}; `tidemill dlq ls` shows what there is")
        return 1
    for shown in (_shown(settings, letter) for letter in letters):
        if form is Form.TABLE:
            for name, value in shown.items():
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                print(f"{name:<12} {text}")
        else:
            print_json(json.loads(json.dumps(shown, default=str)), form)
    return 0


@dead_letters_app.command(epilog="Example: [bold]tidemill dlq export app.yaml --code TM-2005 --to letters.jsonl[/bold]")
def export(
    config: Config,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="A new file; without it, stdout.", show_default=False)
    ] = None,
    code: Codes = None,
    topic: Topics = None,
    id_: Ids = None,
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write dead letters as JSON, one a line: key, value and headers of the original in base64, and the reason."""
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.dead_letters import as_json, select_letters
    from tidemill.errors import ConfigError

    letters = select_letters(settings, _selection(code, topic, id_))
    count = 0
    try:
        file = sys.stdout if to is None else to.open("x")
    except OSError as error:
        raise ConfigError("TM-1062", f"cannot write {to}: {error.strerror}; --to takes a new file") from None
    for letter in letters:
        print(json.dumps(as_json(letter), ensure_ascii=False), file=file)
        count += 1
    if to is not None:
        file.close()
    hint(f"{count:,} letters exported")
    return 0


@dead_letters_app.command(
    epilog="Examples: [bold]tidemill dlq redrive app.yaml --code TM-2005 --dry-run[/bold], then without --dry-run. "
    "Exit 1: some letters cannot be sent again."
)
def redrive(
    config: Config,
    code: Codes = None,
    topic: Topics = None,
    id_: Ids = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Records a second at most.")] = 100.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Send dead letters again, to the topic and partition they came from, once each.

    A letter that was sent before is passed over, so the command can be given again at any time. What fails again
    becomes a new dead letter.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    selection = _selection(code, topic, id_)
    from tidemill.apps.redriving import plan_redrive
    from tidemill.apps.redriving import redrive as send
    from tidemill.apps.results import print_rows

    found = plan_redrive(settings, selection)
    if not dry_run and found.sent:
        confirm_or_exit(f"Send {len(found.sent):,} dead letters of app {settings.app.name} again?", yes=yes)
        found = send(settings, selection, rate_max=rate, report=progress)
    done = "would be sent again" if dry_run else "sent again"
    rows: list[dict[str, Any]] = [
        {"letters": done, "count": len(found.sent)},
        {"letters": "sent before", "count": found.already},
        *({"letters": f"refused: {why}", "count": count} for why, count in sorted(found.refused.items())),
    ]
    print_rows("redrive", rows, ("letters", "count"), form)
    return 1 if found.refused else 0


def _selection(codes: list[str] | None, topics: list[str] | None, ids: list[str] | None) -> Selection:
    from tidemill.apps.dead_letters import Selection, parse_place

    return Selection(
        frozenset(codes or ()), frozenset(topics or ()), frozenset(str(parse_place(each)) for each in ids or ())
    )


def _shown(settings: Settings, letter: Letter) -> dict[str, Any]:
    from tidemill.apps.dead_letters import read_value, topic_of

    reading = read_value(letter, topic_of(letter, settings.app.topics))
    return {
        "record": letter.id,
        "letter": str(letter.place),
        "code": letter.code,
        "stage": letter.stage,
        "reason": letter.message,
        "timestamp": letter.timestamp,
        "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
        "headers": {name: None if c is None else c.decode("utf-8", "backslashreplace") for name, c in letter.headers},
        "bytes": None if letter.value is None else len(letter.value),
        "schema": reading.schema,
        "fields": dict(reading.fields),
        "broken": reading.fault,
        "first bytes": reading.first_bytes,
    }
