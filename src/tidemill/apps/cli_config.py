"""The commands about an app's YAML: look at it without a server, and print what may stand in it.

In: arguments. Out: exit codes; text on stdout. Invariant: nothing is connected to and nothing is written.
"""

from __future__ import annotations

import typer

from tidemill.apps.cli_options import Config, Quiet, Verbose

config_app = typer.Typer(help="An app's YAML: look at it without a server, print its reference.", no_args_is_help=True)


@config_app.command(epilog="Example: [bold]tidemill config check app.yaml[/bold]. Exit 3: it names file and line.")
def check(config: Config, quiet: Quiet = False, verbose: Verbose = False) -> int:
    """Read the YAML and its Avro schemas as a worker would, and say what they declare."""
    from tidemill.config import config_digest, load_app
    from tidemill.core.features import FeaturePlan

    app = load_app(config)
    plan = FeaturePlan(app)
    roles = ", ".join(f"{topic.name} ({topic.role})" for topic in app.topics)
    print(f"app {app.name}: {roles}")
    print(
        f"{len(app.groups)} groups, {len(plan.numeric_names)} numeric and {len(plan.category_names)} category features"
    )
    print(f"an event waits {app.label.wait_ms / 1_000:g} s for its label; an alarm above {app.costs.threshold:g}")
    print(f"retraining by itself: {'as declared' if app.retrain else 'no, `retrain:` is missing'}")
    print(f"digest {config_digest(app)}")
    return 0


@config_app.command(epilog="Example: [bold]tidemill config reference > docs/configuration.md[/bold]")
def reference(quiet: Quiet = False, verbose: Verbose = False) -> int:
    """Print every key with its type, default and meaning, as Markdown."""
    from tidemill.apps.config_reference import config_reference

    print(config_reference(), end="")
    return 0
