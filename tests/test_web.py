"""The web page's server: read-only, bounded, silent, and fed by the app's topics."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop import Shop, a_shop
from web_samples import DAY_MS, START_MS, a_metric, a_tick, day, fill, some_alerts, some_story

from tidemill.apps.monitor_rows import columns_of
from tidemill.apps.topics import ensure_loop_topics, ensure_metrics_topic
from tidemill.apps.web import PAGE_FOLDER, VIEWERS_MAX, Web, WebServer, serve, start_web
from tidemill.apps.web_board import Board
from tidemill.apps.web_state import WebState
from tidemill.core.topic_names import alerts_topic, drift_topic, metrics_topic, models_topic
from tidemill.core.validation_rows import key_of
from tidemill.errors import ConfigError
from tidemill.io.embedded import Servers
from tidemill.io.loop_records import encode_alerts, encode_story, encode_ticks
from tidemill.io.outputs import Encoder
from tidemill.io.telemetry import WebTelemetry
from tidemill.resources import schema_text

PAGE_BYTES_MAX = 60_000


# --- the server


@pytest.fixture
def board() -> Board:
    return Board(fill(WebState("mill")))


@pytest.fixture
def web(board: Board) -> Iterator[Web]:
    running = serve(WebServer("127.0.0.1", 0, board, WebTelemetry()), lambda: None)
    yield running
    running.close()


def fetch(web: Web, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(web.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize("path", ["", "page.css", "page.js", "state", "nothing", "../web.py", "health/live", "metrics"])
def test_every_answer_is_typed_and_under_the_policy(web: Web, path: str) -> None:
    status, headers, body = fetch(web, path)
    assert status == (404 if path in ("nothing", "../web.py") else 200)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert body


def test_page_is_small_and_names_no_other_address() -> None:
    files = sorted(PAGE_FOLDER.iterdir())
    assert [one.name for one in files] == ["index.html", "page.css", "page.js"]
    assert sum(one.stat().st_size for one in files) < PAGE_BYTES_MAX
    text = "".join(one.read_text() for one in files).replace("http://www.w3.org/2000/svg", "")
    for forbidden in (
        "http:",
        "https:",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "eval(",
        "Function(",
        "url(",
        "@import",
    ):
        assert forbidden not in text, forbidden
    html = (PAGE_FOLDER / "index.html").read_text()
    assert " style=" not in html and " onclick" not in html and html.count("<script") == html.count("<script src=")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed_from_here(web: Web, method: str) -> None:
    connection = http.client.HTTPConnection(web.url.split("/")[2], timeout=60)
    connection.request(method, "/state", body=b"")
    assert connection.getresponse().status == 501
    connection.close()


def test_a_name_of_another_site_is_refused(web: Web) -> None:
    assert fetch(web, "state", Host="evil.example")[0] == 421
    assert fetch(web, "state", Host="")[0] == 421
    assert fetch(web, "state", Host="localhost:1")[0] == 200


def test_state_is_what_the_board_says(web: Web, board: Board) -> None:
    status, headers, body = fetch(web, "state")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == board.document()[1] and json.loads(body)["app"] == "mill"


def test_a_taken_port_is_named_with_its_fix(web: Web, board: Board) -> None:
    port = int(web.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(ConfigError, match=rf"TM-1070 .*127.0.0.1:{port}.*--port"):
        WebServer("127.0.0.1", port, board, WebTelemetry())


def test_health_says_when_nobody_follows_any_more(board: Board) -> None:
    server = WebServer("127.0.0.1", 0, board, WebTelemetry())
    server.is_following = lambda: False
    web = serve(server, lambda: None)
    assert fetch(web, "health/live")[0] == 503
    web.close()


def listen(web: Web) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(web.url.split("/")[2], timeout=60)
    connection.request("GET", "/events")
    return connection, connection.getresponse()


def next_state(answer: http.client.HTTPResponse) -> dict[str, Any]:
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return dict(json.loads(line[6:]))


def test_viewers_get_a_state_when_it_changes_and_at_most_twice_a_second(web: Web, board: Board) -> None:
    connection, answer = listen(web)
    assert answer.getheader("Content-Type") == "text/event-stream"
    first = next_state(answer)
    began = time.monotonic()
    one = {"topic": "t", "partition": 0, "next": 1, "group_watermark": 0, "watermark": 0}
    for count in range(1, 21):
        board.change(lambda state: state.fold_commits([one | {"outcomes": {"prediction": 1}}]))
        time.sleep(0.05 if count < 20 else 0.0)
    seen = []
    while not seen or seen[-1]["predictions"] < first["predictions"] + 20:
        seen.append(next_state(answer))
    assert len(seen) <= (time.monotonic() - began) * 2 + 1
    connection.close()
    web.close()  # a stream that is open holds nobody


def test_more_viewers_than_threads_are_sent_away(web: Web) -> None:
    connections = [listen(web) for _ in range(VIEWERS_MAX)]
    assert {answer.status for _, answer in connections} == {200}
    more, answer = listen(web)
    assert answer.status == 503
    for connection, open_answer in [*connections, (more, answer)]:
        open_answer.close()
        connection.close()


# --- fed by Kafka


@pytest.fixture
def shop(servers: Servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        yield made


def state_until(web: Web, is_so: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        found = json.loads(fetch(web, "state")[2])
        if is_so(found):
            return dict(found)
        assert time.monotonic() < deadline, json.dumps(found)[:4_000]
        time.sleep(0.1)


def metric_records() -> Iterator[tuple[bytes, bytes | None]]:
    """As the monitor publishes them: of a series in two days and the run; slices, of which only the key is read."""
    empty = {"string": "", "array": [], "long": 0, "double": 0.0}
    fields = json.loads(schema_text("metrics.v1"))["fields"]
    kinds = {one["name"]: one["type"]["type"] if isinstance(one["type"], dict) else one["type"] for one in fields}
    blank = {name: None if isinstance(kind, list) else empty[kind] for name, kind in kinds.items()}
    for window, number, loss in (("run", 0, 0.45), ("1d", 3, 0.44), ("1d", 4, 0.46), ("1d", 4, 0.47), ("7d", 0, 0.9)):
        row = blank | a_metric("blend", window, number, loss)
        yield key_of(row), Encoder("metrics.v1").encode(columns_of([row]))[0]
    yield f"blend/1d/{day(3)}/supplier=NORTH".encode(), b"never decoded"
    yield f"blend/1d/{day(3)}/".encode(), None


@pytest.mark.servers
def test_the_page_follows_the_topics_of_a_live_app(shop: Shop) -> None:
    web = start_web(shop.settings, 0)  # before the loop's topics exist
    for order in range(20):
        shop.send("event", str(order), -15 + order / 100, order=order, product="p", amount=float(order))
    shop.producer.produce(shop.names["event"], b"broken", b"key")
    shop.producer.flush()
    shop.start()
    shown = state_until(web, lambda found: found["predictions"] == 20 and found["lag"] == 0)
    assert shown["dead_letters_by_topic"] == {shop.names["event"]: 1} and shown["trouble"] == ""
    assert shop.stop() == 0

    app = shop.settings.app
    ensure_metrics_topic(shop.settings)
    ensure_loop_topics(shop.settings)
    for topic, values in (
        (alerts_topic(app.name), [b"no record of ours", *encode_alerts(list(some_alerts()))]),
        (drift_topic(app.name), encode_ticks([a_tick(number) for number in range(12)])),
        (models_topic(app.name), encode_story(list(some_story()))),
    ):
        for value in values:
            shop.producer.produce(topic, value, b"key")
    for key, value in metric_records():
        shop.producer.produce(metrics_topic(app.name), value, key)
    shop.producer.flush()
    wanted = fill(WebState(app.name)).as_json()
    shown = state_until(
        web,
        lambda found: (
            found["alerts"] == wanted["alerts"]
            and len(found["story"]) == len(wanted["story"])
            and len(found["ticks"]) == 12
            and found["losses"] == {"blend": [0.47], "constant": [0.52]}
        ),
    )
    assert shown["story"] == wanted["story"]
    assert [(one["series"], one["log_loss"]) for one in shown["figures"]] == [("blend", 0.45), ("constant", 0.52)]
    assert shown["ticks"][0]["time"] == START_MS + DAY_MS
    assert "is left out" in shown["trouble"]  # the one that is none of ours

    deadline = time.monotonic() + 90  # the lag is looked at every few seconds
    wanted_line = f'tidemill_lag_records{{topic="{shop.names["event"]}"}} 0.0'
    while wanted_line not in (text := fetch(web, "metrics")[2].decode()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert wanted_line in text
    assert "tidemill_web_following 1.0" in text
    web.close()


@pytest.mark.servers
def test_the_command_prints_its_address_and_ends_on_term(shop: Shop) -> None:
    command = [sys.executable, "-m", "tidemill", "web", str(shop.config), "--port", "0"]
    environment = os.environ | {"TIDEMILL_BOOTSTRAP_SERVERS": shop.settings.bootstrap_servers or ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"<title>Tidemill</title>" in answer.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0


def test_an_unreachable_broker_is_said_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.io.kafka.REQUEST_TIMEOUT_S", 0.5)
    from shop import SHOP

    from tidemill.config import load_settings

    nowhere = load_settings(SHOP, bootstrap_servers="127.0.0.1:1", data_folder=tmp_path)
    web = start_web(dataclasses.replace(nowhere), 0)
    shown = state_until(web, lambda found: found["trouble"])
    assert "TM-3010" in shown["trouble"]
    assert fetch(web, "health/live")[0] == 200
    assert b"tidemill_web_following 0.0" in fetch(web, "metrics")[2]
    web.close()
