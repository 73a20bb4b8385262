"""Sinks against a local HTTP server: what is sent, and that nothing is lost while nobody answers."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shop import Shop, a_shop

from tidemill.apps.alert_sinks import Forwarder, body_of, headers_of, sink_group
from tidemill.apps.alerts import alert_output
from tidemill.apps.topics import ensure_loop_topics
from tidemill.config import SinkSettings, load_settings
from tidemill.core.alerts import Alert
from tidemill.core.records import Partition
from tidemill.core.topic_names import alerts_topic
from tidemill.errors import ConfigError, UnavailableError
from tidemill.io import kafka
from tidemill.io.http_post import post
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.telemetry import SinkTelemetry

GOLDEN = Path(__file__).parent / "golden"
SHOP = Path(__file__).parent / "streams" / "shop" / "shop.yaml"
ALERT = Alert(
    id="concept/blend@1380585600000",
    key="concept/blend",
    kind="concept",
    event="opened",
    severity="page",
    time=1380585600000,
    opened=1380585600000,
    summary="The blend's loss is above what it expects: <b> & more.",
    action="Check the labels of the worst slices first.",
    runbook="docs/runbooks/concept.md",
    champion="m0a1b2c3d4e5f",
    window_start=1379980800000,
    window_end=1380585600000,
    offset_start=120,
    offset_next=5120,
    culprits=("product=p1", "amount"),
    evidence={"e_value": 812.5, "threshold": 365.0, "ratio": float("nan")},
)


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: Any


class Receiver:
    """Answers with what `answers` gives, then with 200; keeps every request that it took."""

    def __init__(self) -> None:
        self.taken: list[Request] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.asked = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                if status == 200:
                    receiver.taken.append(Request(self.path, dict(self.headers), json.loads(body)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"said so")

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        ensure_loop_topics(made.settings)
        yield made


def app() -> Any:
    return load_settings(SHOP).app


def publish(shop: Shop, *alerts: Alert) -> None:
    writer = TransactionalWriter(shop.clients, f"tests.{shop.settings.app.name}.alerts")
    writer.open()
    writer.publish([alert_output(shop.settings.app, alert) for alert in alerts], {}, None)
    writer.abandon()


def numbered(number: int, **changed: Any) -> Alert:
    return dataclasses.replace(ALERT, id=f"concept/blend@{number}", **changed)


def a_webhook(receiver: Receiver, name: str = "webhook", *, path: str = "", **more: Any) -> SinkSettings:
    return SinkSettings(kind="webhook", name=name, url=receiver.url + path, **more)


def forwarder(shop: Shop, *sinks: SinkSettings, report: Callable[[str], None] = print, **more: Any) -> Forwarder:
    settings = dataclasses.replace(shop.settings, sinks=sinks)
    return Forwarder(settings, report=report, backoff_s=0.02, **more)


def forward(shop: Shop, *sinks: SinkSettings, report: Callable[[str], None] = print, **more: Any) -> dict[str, int]:
    made = forwarder(shop, *sinks, report=report, **more)
    deadline = time.monotonic() + 90
    made.run(is_until_end=True, is_stopped=lambda: time.monotonic() > deadline)
    made.close()
    return dict(made.counts)


def position(shop: Shop, name: str) -> int | None:
    at = Partition(alerts_topic(shop.settings.app.name), 0)
    return kafka.committed_offsets(shop.clients, sink_group(shop.settings.app, name), [at])[at][0]


@pytest.mark.parametrize("kind", ["webhook", "slack", "alertmanager"])
def test_payloads_are_the_golden_ones(kind: Any) -> None:
    events = {
        "opened": ALERT,
        "acknowledged": dataclasses.replace(ALERT, event="acknowledged", time=1380672000000, by="Zoë <zoe>"),
        "resolved": dataclasses.replace(ALERT, event="resolved", time=1382400000000, culprits=(), evidence={}),
    }
    sink = SinkSettings(kind=kind, name="one", url="http://nowhere", headers={"Authorization": "Bearer 1"})
    sent = {
        event: {"headers": headers_of(app(), sink, alert), "body": body_of(app(), sink, alert)}
        for event, alert in events.items()
    }
    assert sent == json.loads((GOLDEN / f"sink_{kind}.json").read_text())
    json.dumps(sent, allow_nan=False)


def test_slack_text_cannot_mention_anybody() -> None:
    sink = SinkSettings(kind="slack", name="slack", url="http://nowhere")
    shout = dataclasses.replace(ALERT, summary="<!channel> & <@U1>", action="<!here>", culprits=("<x>",), by="<!here>")
    text = json.dumps(body_of(app(), sink, shout))
    assert "<" not in text and ">" not in text and "&lt;!channel&gt; &amp; &lt;@U1&gt;" in text


@pytest.mark.servers
def test_nothing_is_lost_while_a_sink_is_down_and_other_sinks_are_not_held_up(shop: Shop, receiver: Receiver) -> None:
    other = Receiver()
    receiver.answers = [(503, {})] * 4 + [(200, {}), (429, {"Retry-After": "0"}), (500, {})]
    publish(shop, *map(numbered, range(5)))
    said: list[str] = []
    sinks = a_webhook(receiver, path="/a"), SinkSettings(kind="slack", name="slack", url=other.url + "/secret")
    telemetry = SinkTelemetry()
    made = forwarder(shop, *sinks, report=said.append, telemetry=telemetry)
    while len(other.taken) < 5:
        made.step()
    assert len(receiver.taken) < 5  # the healthy one has all before the other has come back
    deadline = time.monotonic() + 90
    made.run(is_until_end=True, is_stopped=lambda: time.monotonic() > deadline)
    made.close()
    other.close()
    assert [one.body["id"] for one in receiver.taken] == [f"concept/blend@{number}" for number in range(5)]
    assert {one.path for one in receiver.taken} == {"/a"}
    assert dict(made.counts) == {"taken": 10, "failed": 6}
    assert any("answered 503" in line and "next try in" in line for line in said)
    assert any("takes alerts again" in line for line in said)
    assert not any("secret" in line for line in said)
    counted = {"sink": "webhook", "kind": "webhook", "outcome": "failed"}
    assert telemetry.registry.get_sample_value("tidemill_sink_alerts_total", counted) == 6


@pytest.mark.servers
def test_a_forwarder_that_ends_while_a_sink_is_down_goes_on_where_it_was(shop: Shop, receiver: Receiver) -> None:
    publish(shop, *map(numbered, range(3)))
    receiver.answers = [(200, {}), *[(503, {})] * 50]
    sink = a_webhook(receiver)
    made = forwarder(shop, sink, report=lambda line: None)
    while receiver.asked < 3:
        made.step()
    made.close()
    assert len(receiver.taken) == 1
    receiver.answers = []
    assert forward(shop, sink) == {"taken": 2}
    assert [one.body["id"] for one in receiver.taken] == [f"concept/blend@{number}" for number in range(3)]
    assert forward(shop, sink) == {}  # all was taken


@pytest.mark.servers
def test_a_refused_alert_is_reported_whole_and_does_not_stop_the_next(shop: Shop, receiver: Receiver) -> None:
    publish(shop, numbered(1), numbered(2), numbered(3))
    receiver.answers = [(400, {}), (302, {"Location": receiver.url})]
    said: list[str] = []
    sink = a_webhook(receiver)
    assert forward(shop, sink, report=said.append) == {"refused": 2, "taken": 1}
    assert [one.body["id"] for one in receiver.taken] == ["concept/blend@3"]
    assert "TM-3041" in said[0] and "answered 400 'said so'" in said[0]
    assert json.loads(said[0].partition("The alert: ")[2])["id"] == "concept/blend@1"


@pytest.mark.servers
def test_records_below_the_severity_are_passed_over_for_good(shop: Shop, receiver: Receiver) -> None:
    publish(shop, numbered(1, severity="info"), numbered(2), numbered(3, severity="ticket"))
    sink = a_webhook(receiver, min_severity="ticket")
    assert forward(shop, sink) == {"passed over": 1, "taken": 2}
    assert [one.body["id"] for one in receiver.taken] == ["concept/blend@2", "concept/blend@3"]
    last = position(shop, "webhook")
    publish(shop, numbered(4, severity="info"))
    assert forward(shop, sink) == {"passed over": 1}
    assert last is not None and (position(shop, "webhook") or 0) > last


@pytest.mark.servers
def test_sinks_keep_their_places_in_the_topic_wherever_they_stand_in_the_list(shop: Shop, receiver: Receiver) -> None:
    old, new = a_webhook(receiver, "old", path="/old"), a_webhook(receiver, "new", path="/new")
    publish(shop, numbered(1), numbered(2))
    assert forward(shop, old) == {"taken": 2}
    assert forward(shop, new, old) == {"taken": 2}, "a new name begins with the oldest alert"
    assert [(one.path, one.body["id"][-1]) for one in receiver.taken] == [
        ("/old", "1"), ("/old", "2"), ("/new", "1"), ("/new", "2")
    ]  # fmt: skip
    moved = dataclasses.replace(old, url=receiver.url + "/moved")
    publish(shop, numbered(3))
    assert forward(shop, moved, new) == {"taken": 2}
    assert {(one.path, one.body["id"][-1]) for one in receiver.taken[4:]} == {("/moved", "3"), ("/new", "3")}


@pytest.mark.servers
def test_alertmanager_gets_lists_at_its_own_path(shop: Shop, receiver: Receiver) -> None:
    publish(shop, ALERT, dataclasses.replace(ALERT, event="resolved", time=1382400000000))
    assert forward(shop, SinkSettings(kind="alertmanager", name="one", url=receiver.url + "/")) == {"taken": 2}
    assert [one.path for one in receiver.taken] == ["/api/v2/alerts"] * 2
    opened, resolved = (one.body[0] for one in receiver.taken)
    assert opened["labels"] == resolved["labels"]
    assert (opened["endsAt"], resolved["endsAt"]) == ("9999-12-31T23:59:59Z", "2013-10-22T00:00:00Z")


def test_the_host_alone_is_named_when_nobody_answers(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UnavailableError, match="TM-3040") as caught:
        post(f"http://127.0.0.1:{unused_port}/hooks/secret?token=secret", b"{}", {"Authorization": "secret"})
    assert f"http://127.0.0.1:{unused_port} did not answer" in str(caught.value) and "secret" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="TM-3040"):
            post(f"http://127.0.0.1:{silent.getsockname()[1]}/", b"{}", {}, timeout_s=0.2)
        assert time.monotonic() - began < 2


def declared(folder: Path, sinks: str) -> Any:
    config = folder / "shop.yaml"
    config.write_text(SHOP.read_text().replace("schema: ", f"schema: {SHOP.parent}/") + sinks)
    return load_settings(config)


def test_sinks_are_declared_in_yaml_with_secrets_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.example/T1/secret")
    settings = declared(
        tmp_path,
        "sinks:\n"
        "  - {kind: slack, url: '${HOOK}', min_severity: page}\n"
        "  - {kind: webhook, url: 'http://a.example', headers: {Authorization: 'Bearer ${HOOK}'}}\n",
    )
    slack, webhook = settings.sinks
    assert (slack.name, webhook.name) == ("slack", "webhook")
    assert (slack.kind, slack.url, slack.min_severity) == ("slack", "https://hooks.example/T1/secret", "page")
    assert webhook.headers == {"Authorization": "Bearer https://hooks.example/T1/secret"}
    assert webhook.min_severity == "info"
    assert "secret" not in repr(settings)


def test_two_sinks_of_one_kind_and_url_are_told_apart_by_name(tmp_path: Path) -> None:
    line = "  - {{kind: webhook, {}url: 'http://a', min_severity: page}}\n"
    text = "sinks:\n" + line.format("") + line.format("name: on_call, ")
    assert [sink.name for sink in declared(tmp_path, text).sinks] == ["webhook", "on_call"]


@pytest.mark.parametrize(
    "second", ["{kind: webhook, url: 'http://b'}", "{kind: slack, name: webhook, url: 'http://b'}"]
)
def test_two_sinks_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(
        ConfigError, match=r"TM-1003 .*sinks.1 is named webhook, and so is sinks.0; give each .* `name`"
    ):
        declared(tmp_path, f"sinks:\n  - {{kind: webhook, url: 'http://a'}}\n  - {second}\n")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{kind: slack, name: On Call, url: 'http://a'}", "TM-1003 .*sinks.0.name"),
        ("{kind: pager, url: 'http://a'}", "TM-1003 .*sinks.0.kind"),
        ("{kind: slack, url: 'a.example'}", "TM-1003 .*must begin with http"),
        ("{kind: slack, url: 'http://a', severity: page}", "TM-1002 .*sinks.0.severity.*min_severity"),
        ("{kind: slack, url: '${NOT_THERE}'}", "TM-1007 .*NOT_THERE"),
    ],
)
def test_a_wrong_sink_is_refused_with_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        declared(tmp_path, f"sinks:\n  - {line}\n")
