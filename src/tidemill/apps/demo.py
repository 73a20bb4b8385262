"""The demo: servers, producer, workers, and a view of what comes out; at the end, the books.

In: options of the command line. Out: an exit code, tables on stdout, JSON where asked for. Invariant: nothing that the
demo started outlives it; it ends with 0 only if every balance closes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import NoReturn

from tidemill.apps.children import Child, ChildFailed, start_child, stop_children
from tidemill.apps.demo_view import View, make_view
from tidemill.config import Settings, load_settings
from tidemill.errors import ConfigError, UnavailableError
from tidemill.io.embedded import start_servers
from tidemill.io.start_checks import check_port, explain_full_disk, folder_error
from tidemill.io.supervisor import LOCK_FILE, take_lock
from tidemill.resources import shipped_path

CONFIG = "config/flights.yaml"
OTHER_FOLDER = "choose another one with --data"
MARKER = "demo.json"  # says that a folder belongs to a demo, so a demo may empty it
METRICS_TIMEOUT_S = 2.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OUT_OF_ORDER = "tidemill_merge_out_of_order_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asked for; None for a server means: start one."""

    until: date | None = None
    json_file: Path | None = None
    poison_count: int = 200
    data_folder: Path | None = None
    bootstrap_servers: str | None = None
    redis_url: str | None = None
    workers: int = 1
    inject: tuple[str, ...] = ()
    web_port: int | None = None
    is_quiet: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """The running parts of a demo."""

    producer: Child
    workers: tuple[Child, ...]
    loop: tuple[Child, ...]  # monitor and trainer, and the page where it was asked for
    web_ports: tuple[int, ...]
    workers_at: float  # when they were started, on time.monotonic


def run_demo(options: DemoOptions) -> int:
    """Run it all; the exit code.

    Raises:
        ConfigError: TM-1310 the folder is not a demo's, TM-1311 the servers hold data, TM-1303 the page's port is
            taken; those of `start_servers`.
        UnavailableError: TM-4032 no progress; those of the servers.
        KeyboardInterrupt: on INT and TERM, after everything was stopped.
    """
    started_at = time.monotonic() - time.process_time()  # imports are CPU time: they belong to the command
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    view = make_view(is_quiet=options.is_quiet)
    try:
        with ExitStack() as stack:
            return _run(options, started_at, view, stack)
    except ChildFailed as failed:
        code = failed.code if failed.code > 0 else 4
        ending = f"ended with {failed.code}" if failed.code >= 0 else f"was killed by signal {-failed.code}"
        print(
            f"{failed.child.last_lines()}\nerror: TM-4033 {failed.child.name} {ending}; all of its log is in "
            f"{failed.child.log}",
            file=sys.stderr,
        )
        if full := explain_full_disk(failed.child.log.parent, OTHER_FOLDER):
            raise full from failed
        return code
    except UnavailableError as error:  # a server that ended of a full disk looks like one that does not answer
        if full := explain_full_disk(options.data_folder or Path.cwd(), OTHER_FOLDER):
            raise full from error
        raise
    except KeyboardInterrupt:
        view.close()
        print("servers and workers are stopped; the same command begins anew", file=sys.stderr)
        raise
    finally:
        view.close()


def _run(options: DemoOptions, started_at: float, view: View, stack: ExitStack) -> int:
    config = shipped_path(CONFIG)
    settings = load_settings(config)
    folder = (options.data_folder or Path(".tidemill") / settings.app.name).absolute()
    if options.web_port is not None:
        check_port(options.web_port, "--web")
    lock = _empty_folder(folder, view)
    bootstrap_servers, redis_url = options.bootstrap_servers, options.redis_url
    if bootstrap_servers is not None and redis_url is not None:
        stack.callback(os.close, lock)
    else:
        os.close(lock)  # from here on the servers' supervisor holds it
        servers = stack.enter_context(
            start_servers(folder, kafka=bootstrap_servers is None, valkey=redis_url is None, report_progress=view.say)
        )
        bootstrap_servers = bootstrap_servers or servers.bootstrap_servers
        redis_url = redis_url or servers.redis_url
    settings = replace(settings, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=folder)
    run = _start_children(config, settings, options, stack)
    setup_s = run.workers_at - started_at
    # Heavy to import, and not needed before the children run.
    from tidemill.apps.demo_following import DemoFollower
    from tidemill.apps.results import print_tables, results_as_json, results_tables

    if options.web_port is not None:
        view.say(f"the page: http://127.0.0.1:{options.web_port}/")
    follower = DemoFollower(settings, run.producer, run.workers, run.loop, started_at=started_at, view=view)
    follower.follow()
    out_of_order = _out_of_order(run.web_ports)
    view.say("all done: stopping workers, monitor and trainer, and checking the books")
    running = [*run.workers, *run.loop]
    codes = stop_children(running)
    for child in running:
        if codes[child.name] != 0:
            raise ChildFailed(child, codes[child.name])
    results = follower.results(out_of_order=out_of_order, setup_s=setup_s, workers_at=run.workers_at)
    view.close()
    print_tables(results_tables(results))
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(results_as_json(results), indent=2) + "\n", encoding="utf-8")
    if not results.is_sound:
        print(f"error: TM-9030 a balance does not close; the data is kept in {folder}", file=sys.stderr)
    return 0 if results.is_sound else 1


def _empty_folder(folder: Path, view: View) -> int:
    """A demo begins anew: what an earlier one left in its folder goes, what is not a demo's stays untouched.

    Returns the descriptor of the folder's lock, held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = sorted(folder.iterdir())
        if left and not (folder / MARKER).exists():
            raise ConfigError(
                "TM-1310",
                f"data folder {folder} holds {left[0].name}, which is not of a demo; a demo empties its folder, so "
                "give it one of its own with --data",
            )
        descriptor = take_lock(folder)
        if descriptor is None:
            holder = (folder / LOCK_FILE).read_text()
            raise ConfigError(
                "TM-1302",
                f"another demo runs in {folder} (processes {holder or 'not named'}); stop it, or give this one a "
                "folder of its own with --data",
            )
        if left:
            view.say(f"removing the data of an earlier demo in {folder}")
            for path in left:
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in (LOCK_FILE, MARKER):
                    path.unlink()
        (folder / MARKER).write_text('{"made by": "tidemill demo"}\n')
        (folder / "logs").mkdir()
        return descriptor
    except OSError as error:
        raise folder_error(folder, error, OTHER_FOLDER) from error


def _start_children(config: Path, settings: Settings, options: DemoOptions, stack: ExitStack) -> _Run:
    """Topics first, then producer and workers side by side."""
    from tidemill.apps.topics import ensure_app_topics, ensure_loop_topics, refuse_used_topics

    ensure_app_topics(settings)
    if options.bootstrap_servers is not None:
        refuse_used_topics(settings)
    ensure_loop_topics(settings)
    logs = settings.data_folder / "logs"
    kafka = ["--bootstrap-servers", str(settings.bootstrap_servers)]
    until = ["--until", options.until.isoformat()] if options.until else []
    children: list[Child] = []
    stack.callback(stop_children, children)
    workers_at = time.monotonic()
    web_ports = _free_ports(options.workers)
    for number, port in enumerate(web_ports):
        arguments = ["worker", str(config), "--bounded", "--paced", "--slot", str(number), "--web-port", str(port)]
        servers = [*kafka, "--redis-url", str(settings.redis_url), "--data", str(settings.data_folder)]
        children.append(start_child(f"worker-{number}", [*arguments, *servers], logs))
    workers = tuple(children)
    folder = ["--data", str(settings.data_folder)]
    children.append(start_child("monitor", ["monitor", str(config), *kafka, *folder], logs))
    children.append(start_child("trainer", ["trainer", str(config), "--bounded", *kafka, *folder], logs))
    if options.web_port is not None:
        children.append(start_child("web", ["web", str(config), "--port", str(options.web_port), *kafka], logs))
    loop = tuple(children[len(workers) :])
    how = ["--poison", str(options.poison_count)]
    how += [part for fault in options.inject for part in ("--inject", fault)]
    children.append(start_child("producer", ["produce", str(config), *until, *how, *kafka, "-o", "json"], logs))
    return _Run(children[-1], workers, loop, web_ports, workers_at)


def _out_of_order(web_ports: tuple[int, ...]) -> int | None:
    """Records merged after a later one, by all workers; None when one of them does not tell."""
    total = 0
    for port in web_ports:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
                lines = answer.read().decode().splitlines()
            total += sum(int(float(line.split()[1])) for line in lines if line.startswith(OUT_OF_ORDER + " "))
        except (OSError, ValueError):
            return None
    return total


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the clean-up short
    raise KeyboardInterrupt
