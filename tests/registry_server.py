"""A schema registry for tests: what Confluent's answers to the requests that clients make, in this process.

In: schemas by subject, faults. Out: HTTP on 127.0.0.1. Invariant: one text has one id in all subjects, ids never
change their schema, and a registry that comes back has its address and all its schemas again.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

NO_SUBJECT, NO_VERSION, NO_SCHEMA, INCOMPATIBLE = 40401, 40402, 40403, 409


class Registered(NamedTuple):
    """One schema as the registry holds it. kind: AVRO, JSON or PROTOBUF; references: as they were posted."""

    text: str
    kind: str
    references: list[dict[str, Any]]


class Refused(Exception):
    """An answer that is an error: HTTP status, the registry's own code, words."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class RegistryServer:
    """`with RegistryServer() as registry:`; `registry.stop()` makes it refuse connections, `start()` brings it back.

    Args:
        basic_auth: "user:password" that every request has to give.
        port: 0 = a free one, kept over `stop` and `start`.
    """

    def __init__(self, *, basic_auth: str | None = None, port: int = 0) -> None:
        self.basic_auth = basic_auth
        self.schemas: dict[int, Registered] = {}
        self.versions: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path), oldest first
        self.delay_s = 0.0  # before every answer
        self.status: int | None = None  # answer all requests with this one, and with a page instead of JSON
        self.refuses: Callable[[str, str], bool] = lambda subject, text: False  # registrations, as incompatible
        self._port = port
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; a second call changes nothing."""
        if self._server is not None:
            return
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on; what is registered stays."""
        server, self._server = self._server, None
        if server is not None:
            assert self._thread is not None
            server.shutdown()
            server.server_close()
            self._thread.join()

    def register(self, subject: str, schema: Mapping[str, Any] | str, kind: str = "AVRO", references: Any = ()) -> int:
        """Put a schema into a subject as its next version; its id. A text that it has already keeps version and id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        with self._lock:
            entry = Registered(_canonical(text) if kind == "AVRO" else text, kind, list(references))
            found = next((id_ for id_, known in self.schemas.items() if known == entry), None)
            id_ = len(self.schemas) + 1 if found is None else found
            self.schemas[id_] = entry
            ids = self.versions.setdefault(subject, [])
            if id_ not in ids:
                ids.append(id_)
            return id_

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """What is answered to one request. Raises Refused."""
        if (method, path) == ("GET", "/subjects"):
            return sorted(self.versions)
        if found := re.fullmatch(r"/schemas/ids/(\d+)", path):
            if int(found[1]) not in self.schemas:
                raise Refused(404, NO_SCHEMA, f"Schema {found[1]} not found")
            return self._shown(int(found[1]))
        if found := re.fullmatch(r"/subjects/([^/]+)(/versions(?:/([^/]+))?)?", path):
            return self._of_subject(method, unquote(found[1]), bool(found[2]), found[3], body)
        raise Refused(404, 404, "HTTP 404 Not Found")

    def _of_subject(
        self, method: str, subject: str, of_versions: bool, version: str | None, body: dict[str, Any]
    ) -> Any:
        if method == "POST" and version is None:
            kind, references = body.get("schemaType", "AVRO"), body.get("references") or []
            if of_versions and self.refuses(subject, body["schema"]):
                raise Refused(409, INCOMPATIBLE, "Schema being registered is incompatible with an earlier schema")
            if of_versions:
                return {"id": self.register(subject, body["schema"], kind, references)}
        if subject not in self.versions:
            raise Refused(404, NO_SUBJECT, f"Subject '{subject}' not found.")
        ids = self.versions[subject]
        if method == "POST":
            entry = Registered(_canonical(body["schema"]), body.get("schemaType", "AVRO"), body.get("references") or [])
            found = next((id_ for id_ in ids if self.schemas[id_] == entry), None)
            if found is None:
                raise Refused(404, NO_SCHEMA, "Schema not found")
            return {"subject": subject, "version": ids.index(found) + 1, "id": found, **self._shown(found)}
        if version is None:
            return list(range(1, len(ids) + 1))
        number = len(ids) if version == "latest" else int(version)
        if not 1 <= number <= len(ids):
            raise Refused(404, NO_VERSION, f"Version {version} not found.")
        return {"subject": subject, "version": number, "id": ids[number - 1], **self._shown(ids[number - 1])}

    def _shown(self, id_: int) -> dict[str, Any]:
        entry = self.schemas[id_]
        shown: dict[str, Any] = {"schema": entry.text}
        if entry.kind != "AVRO":  # the registry leaves out what is the default
            shown["schemaType"] = entry.kind
        if entry.references:
            shown["references"] = entry.references
        return shown


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    owner: RegistryServer

    def do_GET(self) -> None:
        self._handle({})

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: dict[str, Any]) -> None:
        owner = self.owner
        path = urlsplit(self.path).path
        owner.requests.append((self.command, path))
        time.sleep(owner.delay_s)
        if owner.status is not None:
            return self._send(owner.status, b"<html>not this time</html>", "text/html")
        if owner.basic_auth is not None:
            wanted = "Basic " + base64.b64encode(owner.basic_auth.encode()).decode()
            if self.headers.get("Authorization") != wanted:
                return self._send_json(401, {"error_code": 401, "message": "Unauthorized"})
        try:
            self._send_json(200, owner.answer(self.command, path, body))
        except Refused as refused:
            self._send_json(refused.status, {"error_code": refused.code, "message": refused.message})

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/vnd.schemaregistry.v1+json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Tests look at `requests` instead."""


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), separators=(",", ":"))
