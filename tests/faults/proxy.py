"""A TCP proxy between workers and a server: it delays, holds, cuts and resets, and can wait for a request of Kafka's.

In: a port to forward to. Out: a port to connect to. Invariant: bytes that pass keep their order; what is cut never
reaches the other side.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT, PRODUCE = 25, 26, 28, 0  # Kafka's api keys
CHUNK = 1 << 16
_LINGER_OFF = struct.pack("ii", 1, 0)  # a close then is a reset


class CutError(Exception):
    """A handler's wish: the connection is reset, and the frame in hand does not pass."""


Handler = Callable[[], None]


class Proxy:
    """Starts at once; `close` ends it. Its methods may be called from any thread."""

    def __init__(self, target_port: int, *, port: int = 0, is_kafka: bool = False) -> None:
        """`port` 0: any free one. `is_kafka`: frames are told apart, so that `on_request` and `on_response` work."""
        self._target_port = target_port
        self._is_kafka = is_kafka
        self._pairs: set[_Pair] = set()
        self._mutex = threading.Lock()
        self._passes = threading.Event()
        self._passes.set()
        self._is_cut = False
        self.delay_s = 0.0  # before each piece, in either direction
        self.handlers: dict[tuple[str, int], Handler] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Reset every connection and refuse new ones until `heal`."""
        self._is_cut = True
        self.reset()

    def reset(self) -> None:
        """Reset every connection; new ones pass."""
        with self._mutex:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()

    def hold(self) -> None:
        """Requests pass, and no answer does until `heal`."""
        self._passes.clear()

    def turn_to(self, target_port: int) -> None:
        """Reset every connection; new ones go to another server."""
        self._target_port = target_port
        self.reset()

    def on_request(self, api_key: int, handler: Handler) -> None:
        """Kafka: called before such a request is forwarded; it may take its time, or raise CutError."""
        self.handlers["request", api_key] = handler

    def on_response(self, api_key: int, handler: Handler) -> None:
        """Kafka: called before the response to such a request is forwarded."""
        self.handlers["response", api_key] = handler

    def heal(self) -> None:
        """Everything passes at once from now on."""
        self.delay_s = 0.0
        self.handlers.clear()
        self._is_cut = False
        self._passes.set()

    def close(self) -> None:
        self.cut()
        self._passes.set()
        # Linux wakes an accept that waits only by a shutdown.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                _reset(client)
                continue
            for side in (client, server):
                side.settimeout(None)
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(self, client, server)
            with self._mutex:
                self._pairs.add(pair)
            pair.start(self._is_kafka)

    def wait_to_pass(self, side: str) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        if side == "response":
            self._passes.wait()

    def forget(self, pair: _Pair) -> None:
        with self._mutex:
            self._pairs.discard(pair)


class _Pair:
    """A client's connection and the one to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._asked: dict[int, int] = {}  # api key by correlation id

    def start(self, is_kafka: bool) -> None:
        for source, target, side in ((self._client, self._server, "request"), (self._server, self._client, "response")):
            copy = self._copy_frames if is_kafka else self._copy_bytes
            threading.Thread(target=self._run, args=(copy, source, target, side), daemon=True).start()

    def reset(self) -> None:
        _reset(self._client)
        _reset(self._server)

    def _run(self, copy: Callable[..., None], source: socket.socket, target: socket.socket, side: str) -> None:
        try:
            copy(source, target, side)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        except (CutError, OSError):
            self.reset()
        if side == "response":
            self.reset()
            self._proxy.forget(self)

    def _copy_bytes(self, source: socket.socket, target: socket.socket, side: str) -> None:
        while piece := source.recv(CHUNK):
            self._proxy.wait_to_pass(side)
            target.sendall(piece)

    def _copy_frames(self, source: socket.socket, target: socket.socket, side: str) -> None:
        while len(head := _receive(source, 4)) == 4:
            body = _receive(source, int.from_bytes(head))
            if side == "request":
                api_key = int.from_bytes(body[:2])
                self._asked[int.from_bytes(body[4:8])] = api_key
            else:
                api_key = self._asked.pop(int.from_bytes(body[:4]), -1)
            handler = self._proxy.handlers.get((side, api_key))
            if handler is not None:
                handler()
            self._proxy.wait_to_pass(side)
            target.sendall(head + body)


def _receive(source: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, fewer at the end of the connection."""
    pieces = []
    while size and (piece := source.recv(min(size, 1 << 20))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
    with suppress(OSError):
        connection.close()
