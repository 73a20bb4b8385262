"""`tidemill web`: a read-only page of one app, served from this process with nothing else to install or to load.

In: GET requests. Out: the page, its state as JSON, a stream of states, health, metrics. Invariant: nothing can be
changed from here; a response loads nothing from elsewhere and is never taken for another type; a name of another site
that points at this address is refused.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tidemill.apps.web_board import Board
from tidemill.apps.web_following import Follower
from tidemill.apps.web_state import WebState
from tidemill.config import Settings
from tidemill.errors import ConfigError
from tidemill.io.telemetry import WebTelemetry

PAGE_FOLDER = Path(__file__).parent / "web_page"
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STATE_EVERY_S = 0.5  # to one viewer; an eye does not read faster
KEEP_ALIVE_S = 15.0  # a silent stream says so: proxies close what says nothing for a minute
VIEWERS_MAX = 32  # each holds a thread
REQUEST_TIMEOUT_S = 30.0


class WebServer(ThreadingHTTPServer):
    """Answers from a board. Threads of viewers do not keep the process alive."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, board: Board, telemetry: WebTelemetry) -> None:
        self.board = board
        self.telemetry = telemetry
        self.is_following: Callable[[], bool] = lambda: True
        self.is_closing = threading.Event()
        self.viewers = threading.BoundedSemaphore(VIEWERS_MAX)
        self.hosts = LOOPBACK if host in LOOPBACK else ()  # elsewhere we cannot know by which names we are called
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                "TM-1070",
                f"the page cannot listen on {host}:{port}: {error.strerror}; stop who does, or choose another --port",
            ) from error

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no matter of ours."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: WebServer
    protocol_version = "HTTP/1.1"
    server_version = "tidemill"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.server.hosts and self._host() not in self.server.hosts:
            self._send(b"unknown host\n", "text/plain; charset=utf-8", HTTPStatus.MISDIRECTED_REQUEST)
        elif path in PAGE_FILES:
            name, kind = PAGE_FILES[path]
            self._send((PAGE_FOLDER / name).read_bytes(), kind)
        elif path == "/state":
            self._send(self.server.board.document()[1], "application/json")
        elif path == "/events":
            self._stream()
        elif path == "/health/live":
            self._send_health()
        elif path == "/metrics":
            self._send(self.server.telemetry.text(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._send(b"no such page\n", "text/plain; charset=utf-8", HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests of a page that reads by itself are no news."""

    def _host(self) -> str:
        """The name by which we were called, without its port."""
        return urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""

    def _send_health(self) -> None:
        is_live = self.server.is_following()
        status = HTTPStatus.OK if is_live else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(b"live\n" if is_live else b"the follower has ended\n", "text/plain; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._begin(status, kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)

    def _stream(self) -> None:
        """States as server-sent events, until the viewer or the server goes."""
        if not self.server.viewers.acquire(blocking=False):
            self._send(b"too many viewers\n", "text/plain; charset=utf-8", HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.server.telemetry.add_viewers(1)
        try:
            self.close_connection = True
            self._begin(HTTPStatus.OK, "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self._send_states()
        finally:
            self.server.telemetry.add_viewers(-1)
            self.server.viewers.release()

    def _send_states(self) -> None:
        self.wfile.write(b"retry: 1000\n\n")
        number, sent_at = 0, time.monotonic()
        while not self.server.is_closing.is_set():
            if self.server.board.wait_for_newer(number, STATE_EVERY_S):
                number, document = self.server.board.document()
                self.wfile.write(b"event: state\ndata: " + document + b"\n\n")
                sent_at = time.monotonic()
            elif time.monotonic() - sent_at > KEEP_ALIVE_S:
                self.wfile.write(b": still here\n\n")
                sent_at = time.monotonic()
            self.server.is_closing.wait(STATE_EVERY_S)


@dataclass(frozen=True, slots=True)
class Web:
    """A running page."""

    url: str
    close: Callable[[], None]


def start_web(settings: Settings, port: int, *, host: str = "127.0.0.1", config: str = "app.yaml") -> Web:
    """Follow the app's topics and serve its page, from threads of this process. Port 0 takes a free one.

    Args:
        config: the app's YAML as the page names it in the commands that it suggests.
    Raises:
        ConfigError: TM-1070 the address is taken or is not ours.
    """
    telemetry = WebTelemetry()
    board = Board(WebState(settings.app.name, config))
    server = WebServer(host, port, board, telemetry)
    follower = Follower(settings, board, telemetry)
    server.is_following = lambda: follower.is_alive
    follower.start()
    return serve(server, follower.close)


def serve(server: WebServer, close_follower: Callable[[], None]) -> Web:
    """Answer from a thread; closing ends it, all streams, and the follower."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="web", daemon=True)
    thread.start()

    def close() -> None:
        server.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
        close_follower()

    return Web(server.url, close)


def run_web(
    settings: Settings, *, port: int, host: str, config: str, say: Callable[[str], None], report: Callable[[str], None]
) -> int:
    """Serve until TERM or Ctrl-C; the exit code.

    Args:
        say: gets the address of the page, alone. report: gets a hint.
    """
    stopped = threading.Event()
    former = {one: signal.signal(one, lambda *_: stopped.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        web = start_web(settings, port, host=host, config=config)
        say(web.url)
        report("the page is read-only; TERM or Ctrl-C ends it")
        stopped.wait()
        web.close()
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
    return 0
