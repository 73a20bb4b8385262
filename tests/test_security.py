"""What a stranger's record, a reader of our output or a thief of our logs must not get. Without servers."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_servers import GUIDE

from tidemill.apps.children import start_child, stop_children
from tidemill.apps.cli import app as commands
from tidemill.apps.handover import read_line, write_line
from tidemill.apps.rights import KAFKA_RIGHTS, prefixes
from tidemill.apps.rounds import RoundTask
from tidemill.config import SchemaRegistrySettings, Settings, SinkSettings, config_digest, load_app, load_settings
from tidemill.core.spec import AppSpec, LabelSpec, LimitsSpec, TopicSpec
from tidemill.errors import ConfigError, InvariantError
from tidemill.io.limits import RecordLimits, count_items
from tidemill.io.redis_connection import RedisConnection

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CANARY = "c4n4ry-of-the-tests"
CONFIGS = [ROOT / "config" / "flights.yaml", *sorted((ROOT / "tests" / "streams").glob("*/*.yaml"))]


# No value from outside becomes code --------------------------------------------------------------------------------

# What runs code of the bytes that it reads, and what does so behind the scenes between processes.
CODE_FROM_BYTES = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "multiprocessing",
    "jsonpickle",
}
# Of these the bytes never leave one program: a backtest and the children that it starts on the same machine.
OWN_CHILDREN = {"backtest_compare.py", "backtest_job.py"}
CALLS = {"eval", "exec", "ProcessPoolExecutor", "unsafe_load", "full_load"}


def test_nothing_reads_a_form_that_may_hold_code() -> None:
    findings = []
    for path in (one for one in SOURCES if one.name not in OWN_CHILDREN):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [one.name.split(".")[0] for one in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            findings += [f"{path}:{node.lineno} imports {name}" for name in names if name in CODE_FROM_BYTES]
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in CALLS or any(word.arg in ("allow_pickle", "shell") for word in node.keywords):
                    findings.append(f"{path}:{node.lineno} calls {name}")
                if name == "load" and isinstance(node.func, ast.Attribute) and "yaml" in ast.unparse(node.func):
                    findings.append(f"{path}:{node.lineno} loads YAML that may name classes")
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_child_gets_the_settings_that_its_parent_has(config: Path) -> None:
    settings = load_settings(config, redis_url="redis://u:p@h:1/0", bootstrap_servers="h:9092", data_folder=Path("d"))
    line = write_line(Settings, settings)
    assert line.count(b"\n") == 1
    read = read_line(Settings, line)
    assert repr(read) == repr(settings) and read == settings and config_digest(read.app) == config_digest(settings.app)


@given(
    time=st.integers(0, 2**53),
    cause=st.text(),
    ranges=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=3),
)
def test_child_gets_the_task_that_its_parent_gave(time: int, cause: str, ranges: list[tuple[int, int]]) -> None:
    task = RoundTask(time=time, offset_next=1, parent="p", cause=cause, due=time, excised=tuple(ranges))
    assert read_line(RoundTask, write_line(RoundTask, task)) == task


def test_line_that_is_no_value_of_the_type_is_refused_without_showing_it() -> None:
    with pytest.raises(InvariantError) as refused:
        read_line(RoundTask, json.dumps({"time": CANARY, "parent": CANARY}).encode())
    assert "time" in refused.value.message and CANARY not in str(refused.value)


# Every client goes through one block --------------------------------------------------------------------------------

CLIENTS = {"Consumer", "Producer", "AdminClient", "AIOProducer", "AIOConsumer", "Redis", "from_url", "StrictRedis"}


def client_constructions() -> Iterator[tuple[str, str]]:
    """(place, call) of each construction of a client of Kafka or Redis."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in CLIENTS and "object_store" not in path.name:
                    yield f"{path.relative_to(ROOT / 'src' / 'tidemill').as_posix()}:{node.lineno}", ast.unparse(node)


def test_every_kafka_client_is_made_of_the_shared_settings() -> None:
    found = [(place, call) for place, call in client_constructions() if "from_url" not in call]
    assert {place.split(":")[0] for place, _ in found} == {
        "io/kafka.py",
        "io/kafka_producer.py",
        "io/kafka_reader.py",
        "io/kafka_rights.py",
        "io/kafka_writer.py",
        "io/polling.py",
    }
    of_settings = re.compile(r"\w+\((\{\*\*(self\._)?settings\b|dict\((self\._)?settings\))")
    assert [one for one in found if not of_settings.match(one[1])] == []


def test_settings_of_kafka_clients_come_from_one_builder() -> None:
    """Whoever names servers to a client passes the `kafka:` block on."""
    findings = [
        f"{path.name}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if '"bootstrap.servers":' in line and not (path.name == "kafka.py" or re.search(r"\*\*\(?kafka", line))
    ]
    assert findings == []


def test_offsets_of_groups_are_asked_for_by_consumers() -> None:
    """An AdminClient's question ends the process where the coordinator has moved: librdkafka #5040."""
    assert [path for path in SOURCES if re.search(r"\.list_consumer_group_offsets\(", path.read_text())] == []


# Secrets are shown nowhere ------------------------------------------------------------------------------------------


def settings_with_canary(tmp_path: Path) -> Settings:
    settings = load_settings(CONFIGS[0], data_folder=tmp_path, bootstrap_servers="127.0.0.1:1")
    return dataclasses.replace(
        settings,
        kafka={"sasl.password": CANARY, "ssl.key.password": CANARY},
        redis_url=f"rediss://user:{CANARY}@127.0.0.1:1/0",
        object_store=f"s3://key:{CANARY}@bucket",
        schema_registry=SchemaRegistrySettings(url="https://registry", basic_auth=f"user:{CANARY}"),
        sinks=(SinkSettings(kind="slack", name="slack", url=f"https://x/{CANARY}", headers={"Authorization": CANARY}),),
    )


def test_settings_show_no_secret(tmp_path: Path) -> None:
    settings = settings_with_canary(tmp_path)
    shown = [repr(settings), str(settings), f"{settings!r:>10}", repr(settings.sinks), repr([settings])]
    assert [one for one in shown if CANARY in one] == []


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{CANARY}/more@host:6379/0",  # a slash ends the address
        f"redis://user:{CANARY}@host:{CANARY}/0",
        f"tcp://user:{CANARY}@host:6379",
        f"redis://user:{CANARY}@[host:6379/0",
        f"redis://user:{CANARY}@host:6379/0?socket_timeout={CANARY}",
        f"redis://user:{CANARY}@host:6379/0?no_such_option={CANARY}",
    ],
)
def test_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RedisConnection(url, ())
    assert refused.value.code == "TM-1080" and CANARY not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def run_tidemill(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "broken",
    [
        "kafka: [{canary}]",
        "kafka: {{sasl.password: [{canary}]}}",
        "redis_url: [{canary}]",
        "redis_ulr: {canary}",
        "schema_registry: {{url: 'https://u:{canary}@h'}}",
        "schema_registry: {{url: 'https://h', basic_auth: {canary}}}",
        "sinks: [{{kind: slack, url: '{canary}'}}]",
        "sinks: [{{kind: slack, url: 'https://x/{canary}', headers: {canary}}}]",
        "object_store: {{a: {canary}}}",
        "redis_url: '{canary}\n  : {canary}",
        "kafka: {{sasl.password: {canary}, sasl.password: {canary}}}",
        "kafka: {{sasl.password: !!python/object:{canary} {{}}}}",
    ],
)
def test_broken_configuration_is_named_without_its_values(broken: str, tmp_path: Path) -> None:
    app = tmp_path / "shop"
    app.mkdir()
    for path in (ROOT / "tests" / "streams" / "shop").iterdir():
        (app / path.name).write_bytes(path.read_bytes())
    with (app / "shop.yaml").open("a") as file:
        file.write("\n" + broken.format(canary=CANARY) + "\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(app / "shop.yaml")
    assert CANARY not in str(refused.value)


def test_password_of_the_environment_shows_in_no_help_and_no_error() -> None:
    environment = {
        "TIDEMILL_REDIS_URL": f"redis://user:{CANARY}@127.0.0.1:1/0",
        "TIDEMILL_OBJECT_STORE": f"s3://{CANARY}",
        "TIDEMILL_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }
    helped = run_tidemill("worker", "--help", **environment)
    failed = run_tidemill("-v", "worker", "no-such-file.yaml", **environment)
    assert helped.returncode == 0 and failed.returncode == 3
    assert CANARY not in helped.stdout + helped.stderr + failed.stdout + failed.stderr


def test_no_option_takes_its_default_from_the_environment() -> None:
    """`--help` prints defaults; what stands in a variable may be a secret."""
    with_variables = [
        f"{command.name or command.callback.__name__}"
        for group in (commands, *(one.typer_instance for one in commands.registered_groups))
        for command in group.registered_commands
        if command.callback and "envvar" in (Path(command.callback.__code__.co_filename).read_text())
    ]
    assert with_variables == []


def test_child_of_the_demo_has_no_password_on_its_command_line(tmp_path: Path) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:1/0"
    child = start_child("worker", ["worker", str(CONFIGS[0]), "--redis-url", url, "--help"], tmp_path)
    try:
        folder = Path(f"/proc/{child.process.pid}")
        assert CANARY.encode() not in (folder / "cmdline").read_bytes()
        assert CANARY.encode() in (folder / "environ").read_bytes()
    finally:
        stop_children([child])
    assert CANARY not in child.log.read_text() + child.result.read_text()


# Rights -------------------------------------------------------------------------------------------------------------


def test_doctor_and_guide_list_the_same_rights() -> None:
    rows = re.findall(r"^\| ([a-z, ]+) \| ([a-z-]+) `([a-z.]+)` \| ([A-Za-z, ]+) \|", GUIDE.read_text(), re.MULTILINE)
    listed = {
        (role.strip(), kind, tuple(words.split(", "))) for whose, kind, _, words in rows for role in whose.split(",")
    }
    known = {(role, one.kind, one.operations) for role, rights in KAFKA_RIGHTS.items() for one in rights}
    assert {one for one in listed if one[0] in KAFKA_RIGHTS} == known


def test_prefixes_cover_every_topic_of_an_app() -> None:
    payments = load_app(ROOT / "tests" / "streams" / "payments" / "payments.yaml")
    assert prefixes(payments)["topic"] == ("payments.",)
    flights = prefixes(load_app(CONFIGS[0]))["topic"]
    assert "flights." in flights and not any(
        one != other and one.startswith(other) for one in flights for other in flights
    )


# Limits -------------------------------------------------------------------------------------------------------------


def an_app() -> AppSpec:
    topic = TopicSpec(name="events", role="event", schema={}, id_field="id")
    return AppSpec(name="app", topics=(topic,), label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())


def limits_of(spec: AppSpec, columns: pa.RecordBatch, **limits: int) -> dict[int, str]:
    changed = dataclasses.replace(spec, limits=LimitsSpec(**limits))
    found = RecordLimits(changed, changed.topics[0], columns.schema).find_excess(columns)
    return {row: str(fault.code) for row, fault in found.items()}


def a_batch(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def test_text_of_an_id_over_the_limit_is_a_dead_letter_and_its_neighbours_are_not() -> None:
    ids = a_batch(id=pa.array(["a" * 16, "a" * 17, None, "ä" * 8, "ä" * 9]))
    assert limits_of(an_app(), ids, text_bytes=16) == {1: "TM-2018", 4: "TM-2018"}


def test_text_that_is_no_id_no_entity_and_no_category_may_be_long() -> None:
    assert limits_of(an_app(), a_batch(remark=pa.array(["a" * 5_000])), text_bytes=16) == {}


def test_items_of_arrays_maps_and_what_is_inside_are_counted() -> None:
    nested = pa.array([[[1, 2], [3]], None, [], [[]]], pa.list_(pa.list_(pa.int32())))
    assert count_items(nested).tolist() == [5, 0, 0, 1]
    pairs = pa.array([[("a", [1, 2])], []], pa.map_(pa.string(), pa.list_(pa.int32())))
    assert count_items(pairs).tolist() == [3, 0]
    inside = pa.array([{"a": [1, 2, 3]}, {"a": []}], pa.struct([("a", pa.list_(pa.int32()))]))
    assert count_items(inside).tolist() == [3, 0]
    assert limits_of(an_app(), a_batch(tags=pa.array([[1] * 4, [1] * 3])), items=3) == {0: "TM-2019"}


@given(
    rows=st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4), min_size=1, max_size=8), data=st.data()
)
def test_a_row_has_the_same_count_in_every_batch(rows: list[list[list[int]]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    column = pa.array(rows, pa.list_(pa.list_(pa.int64())))
    expected = [len(row) + sum(map(len, row)) for row in rows]
    assert count_items(column).tolist() == expected
    assert count_items(column.slice(start)).tolist() == expected[start:]


def test_digest_of_a_store_of_before_there_were_limits_is_the_same() -> None:
    spec = an_app()
    assert config_digest(spec) == config_digest(dataclasses.replace(spec, limits=LimitsSpec()))
    assert config_digest(spec) != config_digest(dataclasses.replace(spec, limits=LimitsSpec(text_bytes=99)))


# What listens -------------------------------------------------------------------------------------------------------


def test_servers_of_ours_listen_on_this_machine_alone() -> None:
    findings = [
        f"{path.name}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"0\.0\.0\.0|\"::\"|INADDR_ANY|host=\"\"", line)
    ]
    assert findings == []


def test_worker_pages_are_bound_to_this_machine_and_agents_answer_nobody() -> None:
    transport = (ROOT / "src" / "tidemill" / "io" / "faust_transport.py").read_text()
    assert 'web_bind="127.0.0.1"' in transport
    for path in SOURCES:
        assert not re.search(r"reply_to|Faust-Ag|sink=\[", path.read_text()), path
    worker = ast.parse((ROOT / "src" / "tidemill" / "apps" / "worker.py").read_text())
    agents = [
        node
        for node in ast.walk(worker)
        if isinstance(node, ast.AsyncFunctionDef) and any("agent" in ast.unparse(one) for one in node.decorator_list)
    ]
    assert len(agents) == 1  # what an agent yields goes where a record's header says
    assert not [node for node in ast.walk(agents[0]) if isinstance(node, ast.Yield | ast.YieldFrom)]
