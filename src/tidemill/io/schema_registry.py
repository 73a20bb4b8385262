"""A schema registry that speaks Confluent's protocol: schemas by id and by subject.

In: an address, credentials. Out: schemas as JSON. Invariant: what the registry does not know comes back as None or an
empty list only when the registry itself said so; everything else is an UnavailableError (ask again) or a ConfigError
(ask differently), and no message holds credentials.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from tidemill.errors import ConfigError, UnavailableError

ANSWER_BYTES_MAX = 4 * 1024 * 1024  # the registry's own limit of a schema is 1 MB by default
REFERENCES_MAX = 100  # schemas that one schema may pull in
_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA = 40401, 40402, 40403
_MOMENTARY = (408, 425, 429)
_NOT_UNDERSTOOD = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


class RegisteredSchema(NamedTuple):
    """One version of a subject; `schema` is None where it is no Avro record schema, `why` then says what it is."""

    version: int
    id: int
    schema: dict[str, Any] | None
    why: str


class _Refused(Exception):
    """The registry answered with an error of its own."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class NotAvroError(Exception):
    """What is registered is no Avro record schema that can be read alone; the text says why."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Credentials go to the address that was declared and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class SchemaRegistry:
    """Requests to one registry; may be used by several threads.

    Args:
        url: http:// or https://, without credentials.
        basic_auth: "user:password"; None = none.
        ca_file: certificates that the registry's is checked against; None = those of the system.
        timeout_s: of connecting, and of each read.
    Raises:
        ConfigError: TM-1320 the certificates cannot be read.
    """

    def __init__(
        self, url: str, *, basic_auth: str | None = None, ca_file: Path | None = None, timeout_s: float = 3.0
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if basic_auth is not None:
            self._headers["Authorization"] = "Basic " + base64.b64encode(basic_auth.encode()).decode()
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                "TM-1320", f"schema_registry.ca_file {ca_file}: {error}; give a file of certificates in PEM"
            ) from error
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))

    @property
    def name(self) -> str:
        """The address, for messages."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def by_id(self, schema_id: int) -> dict[str, Any] | None:
        """The schema of an id; None = the registry has never given this id.

        Raises:
            NotAvroError: it is no Avro record schema.
            UnavailableError: TM-3060.
            ConfigError: TM-1315 the registry refuses our credentials.
        """
        try:
            return self._readable(self._get(f"/schemas/ids/{schema_id}"), f"schema {schema_id}")
        except _Refused as refused:
            if refused.code in (_NO_SCHEMA, _NO_SUBJECT, _NO_VERSION):
                return None
            raise self._as_ours(refused) from None
        except _NOT_UNDERSTOOD as error:
            raise self._strange(error) from None

    def versions(self, subject: str, *, without: frozenset[int] = frozenset()) -> list[RegisteredSchema]:
        """The versions of a subject except some, oldest first; none where the registry does not know the subject.

        Errors as `by_id`.
        """
        place = f"/subjects/{quote(subject, safe='')}/versions"
        found: list[RegisteredSchema] = []
        try:
            for version in sorted(int(one) for one in self._get(place) if int(one) not in without):
                answer = self._get(f"{place}/{version}")
                try:
                    schema = self._readable(answer, f"version {version} of {subject}")
                    found.append(RegisteredSchema(version, int(answer["id"]), schema, ""))
                except NotAvroError as error:
                    found.append(RegisteredSchema(version, int(answer["id"]), None, str(error)))
        except _Refused as refused:
            if refused.code in (_NO_SUBJECT, _NO_VERSION):  # a version that was deleted between the two requests
                return found
            raise self._as_ours(refused) from None
        except _NOT_UNDERSTOOD as error:
            raise self._strange(error) from None
        return found

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Make a schema the newest version of a subject, unless it is one already; its id.

        Raises:
            ConfigError: TM-1316 the registry refuses the schema; else as `by_id`.
        """
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        try:
            return int(self._request(f"/subjects/{quote(subject, safe='')}/versions", body)["id"])
        except _Refused as refused:
            if refused.status in (409, 422):
                raise ConfigError(
                    "TM-1316",
                    f"{self.name} refuses the schema of {subject}: {refused.message}; "
                    "`tidemill schema check` tells what to change",
                ) from None
            raise self._as_ours(refused) from None
        except _NOT_UNDERSTOOD as error:
            raise self._strange(error) from None

    def _readable(self, answer: Mapping[str, Any], what: str) -> dict[str, Any]:
        kind = answer.get("schemaType", "AVRO")
        if kind != "AVRO":
            raise NotAvroError(f"{what} is a {kind} schema; Tidemill reads Avro")
        schema = self._json(answer["schema"], what)
        named: dict[str, Any] = {}
        self._collect(answer.get("references") or (), named, set())
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise NotAvroError(f"{what} is no record; the value of an input topic is one")
        return inlined(schema, named) if named else schema

    def _collect(self, references: Any, named: dict[str, Any], seen: set[tuple[str, int]]) -> None:
        """Schemas that others refer to, by full name."""
        for reference in references:
            place = (str(reference["subject"]), int(reference["version"]))
            if place in seen:
                continue
            if len(seen) == REFERENCES_MAX:
                raise NotAvroError(f"it refers to more than {REFERENCES_MAX} other schemas")
            seen.add(place)
            answer = self._get(f"/subjects/{quote(place[0], safe='')}/versions/{place[1]}")
            named[str(reference["name"])] = self._json(answer["schema"], f"version {place[1]} of {place[0]}")
            self._collect(answer.get("references") or (), named, seen)

    def _json(self, text: Any, what: str) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise NotAvroError(f"{what} is no JSON: {error}") from None

    def _get(self, path: str) -> Any:
        return self._request(path, None)

    def _request(self, path: str, body: bytes | None) -> Any:
        """Raises _Refused, UnavailableError."""
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/vnd.schemaregistry.v1+json"
        request = urllib.request.Request(self._url + path, body, headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                content = answer.read(ANSWER_BYTES_MAX + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise self._away(str(reason) or type(error).__name__) from None
        if len(content) > ANSWER_BYTES_MAX:
            raise self._away(f"an answer is larger than {ANSWER_BYTES_MAX:,} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self._away(f"the answer to {path} is no JSON; is this the address of a registry?") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """An answer with an error code of a registry is its word; a gateway's page is not."""
        try:
            answer = json.loads(error.read(10_000))
            code, message = int(answer["error_code"]), str(answer.get("message", ""))[:500]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
            code, message = 0, ""
        if error.code in (401, 403):
            return _Refused(error.code, code, message)
        if error.code >= 500 or error.code in _MOMENTARY or not code:
            return self._away(f"HTTP {error.code} {message}".rstrip())
        return _Refused(error.code, code, message)

    def _as_ours(self, refused: _Refused) -> Exception:
        if refused.status in (401, 403):
            return ConfigError(
                "TM-1315",
                f"{self.name} refuses this client with HTTP {refused.status}; check schema_registry.basic_auth and "
                "what its user may read",
            )
        return self._away(f"HTTP {refused.status}, {refused.code} {refused.message}")

    def _strange(self, error: Exception) -> UnavailableError:
        return self._away(f"it answers, but not as a registry does: {type(error).__name__} {error}"[:500])

    def _away(self, why: str) -> UnavailableError:
        return UnavailableError("TM-3060", f"schema registry {self.name} did not answer: {why}")


def inlined(schema: Any, named: Mapping[str, Any]) -> Any:
    """The schema with every name from `named` replaced by its definition where it first stands."""
    open_names = dict(named)

    def walk(node: Any, namespace: str) -> Any:
        if isinstance(node, list):
            return [walk(branch, namespace) for branch in node]
        if isinstance(node, str):
            full = node if node in open_names else f"{namespace}.{node}"
            if full not in open_names:
                return node
            definition = open_names.pop(full)
            return walk(definition, "")
        if not isinstance(node, dict):
            return node
        if "name" in node:
            prefix = node["name"].rpartition(".")[0]
            namespace = prefix or node.get("namespace", namespace)
        changed = {key: walk(node[key], namespace) for key in ("type", "items", "values") if key in node}
        if "fields" in node:
            changed["fields"] = [{**field, "type": walk(field["type"], namespace)} for field in node["fields"]]
        return {**node, **changed}

    return walk(schema, "")
