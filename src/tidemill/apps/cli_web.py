"""`tidemill web`: what an app does, in a browser.

In: arguments. Out: the address of the page on stdout, then the page until it is stopped; an exit code. Invariant: the
page is read-only and is served on this machine alone unless `--host` says otherwise.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tidemill.apps.cli_options import Config, Quiet, Servers, Verbose, WithParent, progress, settings_with_servers

PORT = 8765


def web(
    config: Config,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the page; 0 takes a free one.")] = PORT,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. The page asks for no password: leave it, unless a proxy does."),
    ] = "127.0.0.1",
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Show figures, drift, alerts and the story of models in a browser, as they come.

    Read-only: it reads the app's topics in no group. It prints its address; /metrics tells Prometheus the lag.
    """
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.web import run_web

    return run_web(
        settings,
        port=port,
        host=host,
        config=str(config),
        say=lambda url: print(url, flush=True),
        report=progress,
    )


def add_web_command(app: typer.Typer) -> None:
    """Register it with the command line."""
    app.command(
        epilog="Example: [bold]tidemill web app.yaml --bootstrap-servers kafka:9092 --port 8765[/bold], then open "
        "http://127.0.0.1:8765/. TERM or Ctrl-C ends it."
    )(web)
