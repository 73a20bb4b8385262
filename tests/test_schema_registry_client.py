"""The client of a schema registry, what is declared of it, and the commands that register and check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from registered_schemas import ADDED, READER, REMOVED, RETYPED, registry
from registry_server import RegistryServer

from tidemill.apps.cli import run
from tidemill.apps.schema_lookup import open_schemas
from tidemill.config import SchemaRegistrySettings, config_digest, load_settings
from tidemill.errors import ConfigError, UnavailableError
from tidemill.io.framing import header_of
from tidemill.io.schema_registry import NotAvroError, SchemaRegistry

__all__ = ["registry"]


# --- the client and its settings


def test_credentials_are_sent_and_never_told(tmp_path) -> None:
    with RegistryServer(basic_auth="user:canary-secret") as registry:
        schema_id = registry.register("events-value", READER)
        good = SchemaRegistry(registry.url, basic_auth="user:canary-secret")
        assert good.by_id(schema_id) == READER
        with pytest.raises(ConfigError, match=r"TM-1315 .*basic_auth") as refused:
            SchemaRegistry(registry.url, basic_auth="user:canary-wrong").by_id(schema_id)
        assert "canary" not in str(refused.value)
    declared = SchemaRegistrySettings(url="https://registry", basic_auth="user:canary-secret")
    assert "canary" not in repr(declared)


def test_an_unknown_id_is_none_and_a_schema_of_another_kind_says_so(registry) -> None:
    client = SchemaRegistry(registry.url)
    assert client.by_id(5) is None and client.versions("nothing") == []
    schema_id = registry.register("p", 'syntax = "proto3";', "PROTOBUF")
    with pytest.raises(NotAvroError, match="PROTOBUF"):
        client.by_id(schema_id)
    assert [(one.id, one.schema) for one in client.versions("p")] == [(schema_id, None)]


@pytest.mark.parametrize("answer", [{}, [], 7, {"schema": None}, {"schema": "{}", "references": 5}])
def test_an_answer_that_no_registry_gives_is_no_word_about_a_schema(registry, monkeypatch, answer) -> None:
    client = SchemaRegistry(registry.url)
    monkeypatch.setattr(registry, "answer", lambda *_: answer)
    for ask in (lambda: client.by_id(1), lambda: client.register("s", READER)):
        with pytest.raises((UnavailableError, NotAvroError)):
            ask()


def test_an_address_that_answers_without_json_is_no_registry(registry) -> None:
    registry.status = 200
    with pytest.raises(UnavailableError, match="is this the address of a registry"):
        SchemaRegistry(registry.url).by_id(1)


APP = """\
name: app
topics:
  events: {{role: event, schema: event.avsc, id: id, writers: [{writers}]}}
  labels: {{role: label, schema: event.avsc, id: id}}
label: {{positive_if_any: [{{field: n, above: 0}}], wait: 1h}}
groups:
  all: {{entity: [], features: {{n: {{kind: field, field: n}}}}}}
{more}
"""


def write_app(folder: Path, *, writers: str = "", more: str = "", reader: dict[str, Any] = READER) -> Path:
    (folder / "event.avsc").write_text(json.dumps(reader))
    (folder / "app.yaml").write_text(APP.format(writers=writers, more=more))
    return folder / "app.yaml"


def test_writers_are_declared_by_pattern_and_do_not_change_what_the_store_accepts(tmp_path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "v1.avsc").write_text(json.dumps(RETYPED))
    (tmp_path / "old" / "v2.avsc").write_text(json.dumps(ADDED))
    plain = load_settings(write_app(tmp_path)).app
    app = load_settings(write_app(tmp_path, writers="old/*.avsc")).app
    assert app.topics[0].writers == (RETYPED, ADDED)
    assert config_digest(app) == config_digest(plain)
    with pytest.raises(ConfigError, match=r"TM-1004 .*app.yaml:3: nothing/\*.avsc names no file"):
        load_settings(write_app(tmp_path, writers="nothing/*.avsc"))


def test_the_registry_is_declared_without_a_password_in_its_address(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH", "user:pass")
    address = "url: 'http://registry:8081', basic_auth: '${REGISTRY_AUTH}'"
    more = f"schema_registry: {{{address}, refresh: 2m, ca_file: ca.pem}}"
    found = load_settings(write_app(tmp_path, more=more)).schema_registry
    assert found == SchemaRegistrySettings(
        url="http://registry:8081", basic_auth="user:pass", refresh_s=120.0, ca_file=tmp_path / "ca.pem"
    )
    for url in ("http://user:pass@registry:8081", "registry:8081"):
        with pytest.raises(ConfigError, match="TM-1003"):
            load_settings(write_app(tmp_path, more=f"schema_registry: {{url: '{url}'}}"))
    with pytest.raises(ConfigError, match=r"TM-1320 .*ca.pem"):
        open_schemas(load_settings(write_app(tmp_path, more=more)), print)


# --- the command line


def test_register_is_checked_confirmed_and_idempotent(registry, tmp_path, capsys) -> None:
    config = write_app(tmp_path, more=f"schema_registry: {{url: '{registry.url}'}}")
    registry.register("events-value", RETYPED)
    arguments = ["schema", "register", str(config), "-o", "json"]
    assert run([*arguments, "--dry-run"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["action"] for row in rows] == ["would register"] * 2
    assert run(arguments) == 5 and len(registry.versions) == 1  # nobody agreed
    capsys.readouterr()
    assert run([*arguments, "--yes"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["subject"], row["schema_id"], row["action"]) for row in rows] == [
        ("events-value", 2, "registered"),
        ("labels-value", 2, "registered"),
    ]
    assert run([*arguments, "--topic", "events"]) == 0
    assert [row["action"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["present"]
    assert run([*arguments, "--topic", "evnts"]) == 3 and "TM-1319" in capsys.readouterr().err


def test_register_refuses_what_could_not_read_a_registered_version(registry, tmp_path, capsys) -> None:
    config = write_app(tmp_path, more=f"schema_registry: {{url: '{registry.url}'}}")
    registry.register("labels-value", RETYPED)
    registry.register("labels-value", REMOVED)
    assert run(["schema", "register", str(config), "--yes", "-o", "json"]) == 5
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["topic"], row["writer"], row["field"]) for row in rows] == [("labels", "registry version 2", "n")]
    assert "events-value" not in registry.versions
    assert run(["schema", "check", str(config)]) == 1


def test_a_registry_that_refuses_is_quoted(registry, tmp_path, capsys) -> None:
    config = write_app(tmp_path, more=f"schema_registry: {{url: '{registry.url}'}}")
    registry.refuses = lambda subject, _: subject == "events-value"
    assert run(["schema", "register", str(config), "--yes"]) == 3
    assert "TM-1316" in (said := capsys.readouterr().err) and "incompatible with an earlier schema" in said


def test_check_finds_two_versions_that_nobody_can_tell_apart(registry, tmp_path, capsys) -> None:
    times = [
        {**READER, "fields": [*READER["fields"], {"name": "at", "type": {"type": "long", "logicalType": logical}}]}
        for logical in ("timestamp-millis", "timestamp-micros")
    ]
    assert header_of(times[0]) == header_of(times[1])
    config = write_app(tmp_path, reader=times[0], more=f"schema_registry: {{url: '{registry.url}'}}")
    registry.register("events-value", times[1])
    assert run(["schema", "check", str(config), "-o", "jsonl"]) == 1
    assert "under one fingerprint" in (said := capsys.readouterr().out) and "another name" in said
