"""The web page's state as a fold, and its server: read-only, bounded, silent, and fed by the app's topics."""

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop import Shop, a_shop
from web_samples import DAY_MS, START_MS, a_metric, a_tick, an_alert, day, fill, some_alerts, some_story

from tidemill.apps.monitor_rows import columns_of
from tidemill.apps.topics import ensure_loop_topics, ensure_metrics_topic
from tidemill.apps.web import PAGE_FOLDER, VIEWERS_MAX, Web, WebServer, serve, start_web
from tidemill.apps.web_board import Board
from tidemill.apps.web_models import model_lanes
from tidemill.apps.web_state import DAYS_MAX, INCIDENTS_MAX, TICKS_MAX, WebState
from tidemill.core.records import Partition
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import Shift
from tidemill.core.topic_names import alerts_topic, drift_topic, metrics_topic, models_topic
from tidemill.core.validation_rows import key_of
from tidemill.errors import ConfigError
from tidemill.io.embedded import Servers
from tidemill.io.loop_records import encode_alerts, encode_story, encode_ticks
from tidemill.io.outputs import Encoder
from tidemill.io.telemetry import WebTelemetry
from tidemill.resources import schema_text

PAGE_BYTES_MAX = 60_000


def folded(*alerts: Any) -> list[dict[str, Any]]:
    state = WebState("mill")
    for alert in alerts:
        state.fold_alert(alert)
    return list(state.as_json()["alerts"])


# --- the fold


def test_commits_are_counted_by_topic_and_lag_is_what_lies_behind_them() -> None:
    state = WebState("mill")
    row = {"topic": "orders", "partition": 0, "next": 7, "group_watermark": day(3), "watermark": day(4)}
    state.fold_commits([row | {"outcomes": [("prediction", 5), ("event_dead_letter", 2)]}])
    state.fold_commits([row | {"next": 9, "group_watermark": day(2), "outcomes": [("prediction", 1), ("expired", 1)]}])
    state.set_ends({Partition("orders", 0): 12, Partition("orders", 1): 4, Partition("prices", 0): 0})
    shown = state.as_json()

    assert shown["records"] == 8  # an expiry is of an earlier record
    assert (shown["predictions"], shown["expired"]) == (6, 1)
    assert shown["time"] == day(3)
    assert shown["lag_by_topic"] == {"orders": 3 + 4, "prices": 0}
    assert shown["dead_letters_by_topic"] == {"orders": 2}


def test_only_rows_of_the_whole_are_shown_and_a_row_can_be_taken_back() -> None:
    state = WebState("mill")
    state.fold_metric(a_metric("blend", "1d", 0, 0.4))
    state.fold_metric(a_metric("blend", "1d", 2, 0.5))
    state.fold_metric(a_metric("blend", "1d", 2, 0.51))
    state.fold_metric(a_metric("booster", "1d", 2, float("nan")))
    state.fold_metric(a_metric("booster", "7d", 2, 0.9))
    state.fold_metric(a_metric("booster", "1d", 2, 0.9, slice_feature="supplier"))
    assert state.as_json()["losses"] == {"blend": [0.4, 0.51], "constant": [0.52, 0.52]}

    state.drop_metric("blend", "1d", day(0))
    assert state.as_json()["losses"] == {"blend": [0.51], "constant": [0.52]}
    state.fold_metric(a_metric("constant", "1d", 2, 0.6))
    assert state.as_json()["losses"]["constant"] == [0.6]


def test_before_the_group_has_a_watermark_the_newest_time_is_shown() -> None:
    state = WebState("mill")
    row = {"topic": "orders", "partition": 0, "next": 7, "group_watermark": -1, "outcomes": ()}
    state.fold_commits([row | {"watermark": -1}])
    assert state.as_json()["time"] is None
    state.fold_commits([row | {"watermark": day(2)}])
    assert state.as_json()["time"] == day(2)


def test_a_declared_constant_is_preferred_to_that_of_the_blend() -> None:
    state = WebState("mill")
    state.fold_metric(a_metric("blend", "run", 0, 0.4))
    assert state.as_json()["figures"][-1] == {"series": "constant", "n": 900, "log_loss": 0.52, "auc": 0.5}
    state.fold_metric(a_metric("constant", "run", 0, 0.53))
    assert [one["log_loss"] for one in state.as_json()["figures"]] == [0.4, 0.53]


def test_open_alerts_come_first_and_an_acknowledgement_keeps_the_evidence() -> None:
    old = an_alert("concept/blend", 1, evidence={"e_value": 400.0})
    shown = folded(
        old,
        an_alert("label/share", 5, summary="what happened"),
        an_alert("label/share", 5, "resolved", 8, summary="it was open for three days"),
        an_alert("concept/blend", 1, "repeated", 2, evidence={"e_value": 500.0}),
        an_alert("concept/blend", 1, "acknowledged", 3, evidence={}, by="ines"),
    )
    assert [one["key"] for one in shown] == ["concept/blend", "label/share"]
    assert shown[0]["status"] == "acknowledged" and shown[0]["by"] == "ines"
    assert shown[0]["evidence"] == [["e_value", 500.0]] and shown[0]["told"] == 2
    assert shown[1]["status"] == "resolved" and shown[1]["resolved"] == day(8)
    assert shown[1]["summary"] == "what happened"  # not that it is over


def test_an_acknowledgement_does_not_reopen_what_is_resolved() -> None:
    opened = an_alert("concept/blend", 1)
    (shown,) = folded(opened, an_alert("concept/blend", 1, "resolved", 4), an_alert("concept/blend", 1, "acknowledged"))
    assert shown["status"] == "resolved"


def test_a_trigger_is_over_when_it_is_told() -> None:
    state = WebState("mill")
    state.fold_alert(an_alert("trigger/schedule", 3, severity="info"))
    assert state.as_json()["alerts"][0]["status"] == "resolved" and not state.open_alerts


def test_a_shift_of_the_label_is_told_but_is_no_psi() -> None:
    state = WebState("mill")
    moved = (Shift("label", "t", 0.4, 0.0, True), Shift("amount", "psi", 0.2, 0.5, False))
    state.fold_tick(a_tick(50, shifts=moved))
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["effect"], tick["drifts"]) == ("amount", 0.2, ["label"])


def test_a_column_that_moved_is_worse_than_one_that_may_be_chance() -> None:
    state = WebState("mill")
    shifts = (Shift("rare", "psi", 6.5, 0.3, False), Shift("amount", "psi", 0.4, 0.001, True))
    state.fold_tick(a_tick(50, shifts=shifts))
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["effect"], tick["moved"]) == ("amount", 0.4, 1)


def test_the_worst_column_of_a_tick_is_shown() -> None:
    state = WebState("mill")
    state.fold_tick(a_tick(101))
    state.fold_tick(a_tick(101))  # a monitor that was fenced in between tells the same tick again
    (tick,) = state.as_json()["ticks"]
    assert (tick["subject"], tick["drifts"]) == ("temperature", ["temperature"])
    assert (tick["moved"], tick["judged"]) == (1, 3)
    assert tick["effect"] == pytest.approx(max(abs(one.effect) for one in a_tick(101).shifts), abs=1e-5)


def test_a_version_is_shadow_canary_champion_and_at_last_beside_its_successor() -> None:
    state = fill(WebState("mill"))
    lanes = {lane["version"]: lane for lane in state.as_json()["models"]}

    assert [(one["role"], one["to"] is None) for one in lanes["v004"]["spans"]] == [
        ("shadow", False), ("canary", False), ("champion", True)
    ]  # fmt: skip
    assert [one["role"] for one in lanes["v002"]["spans"]] == ["shadow", "champion", "probation"]
    assert lanes["v001"]["spans"] == [
        {"role": "champion", "from": day(1), "to": day(88)},
        {"role": "probation", "from": day(88), "to": day(99)},
    ]
    assert (lanes["v003"]["ending"], lanes["v003"]["ended"]) == ("aborted", day(158))


def test_a_rollback_gives_the_place_back() -> None:
    story = [
        StoryEvent(id="1", kind="promoted", time=10, version="b", parent="a"),
        StoryEvent(id="2", kind="rolled_back", time=15, version="b", parent="a"),
    ]
    lanes = {lane["version"]: lane for lane in model_lanes(story, (1, "a"))}
    assert [(one["role"], one["from"], one["to"]) for one in lanes["a"]["spans"]] == [
        ("champion", 1, 10), ("probation", 10, 15), ("champion", 15, None)
    ]  # fmt: skip
    assert lanes["b"]["ending"] == "rolled back" and lanes["b"]["spans"][-1]["to"] == 15


STEPS = st.tuples(
    st.sampled_from(["trained", "shadow", "canary", "promoted", "kept", "rolled_back", "aborted", "gated", "frozen"]),
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["", "a", "b", "c"]),
)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_whatever_the_story_at_most_one_version_serves(steps: list[tuple[Any, str, str]]) -> None:
    story = [
        StoryEvent(id=str(time), kind=kind, time=time, version=version, parent=parent)
        for time, (kind, version, parent) in enumerate(steps)
    ]
    lanes = model_lanes(story, (-1, "a"))
    is_open = [one for lane in lanes for one in lane["spans"] if one["role"] == "champion" and one["to"] is None]
    assert len(is_open) <= 1
    for lane in lanes:
        spans = lane["spans"]
        assert all(one["to"] == other["from"] or one["to"] < other["from"] for one, other in pairwise(spans))


def test_a_state_is_bounded_whatever_was_published() -> None:
    state = WebState("mill")
    for number in range(2_000):
        state.fold_tick(a_tick(number))
        state.fold_metric(a_metric(f"s{number % 90}", "1d", number, 0.5))
        state.fold_alert(an_alert(f"quality/missing/{'x' * 900}{number}", number, culprits=("y" * 900,) * 90))
        state.fold_story(StoryEvent(id=str(number), kind="trained", time=number, version=f"v{number}", cause="z" * 900))
    shown = state.as_json()
    assert (len(shown["ticks"]), len(shown["days"])) == (TICKS_MAX, DAYS_MAX)
    assert len(shown["alerts"]) == INCIDENTS_MAX
    assert shown["alerts"][0]["opened"] == day(1_999)  # the newest are kept
    assert len(json.dumps(shown)) < 3_000_000


def test_an_open_alert_outlives_those_that_are_resolved() -> None:
    state = WebState("mill")
    state.fold_alert(an_alert("concept/blend", 0))
    for number in range(1, INCIDENTS_MAX + 50):
        state.fold_alert(an_alert(f"quality/{number}", number))
        state.fold_alert(an_alert(f"quality/{number}", number, "resolved", number + 1))
    assert state.as_json()["alerts"][0]["key"] == "concept/blend"


def test_numbers_that_json_has_no_word_for_are_left_out() -> None:
    state = WebState("mill")
    state.fold_tick(a_tick(50, e_value=float("inf"), excess=float("nan")))
    state.fold_alert(an_alert("concept/blend", 1, evidence={"odds": float("-inf")}))
    shown = json.loads(json.dumps(state.as_json(), allow_nan=False))
    assert shown["ticks"][0]["e_value"] is None and shown["alerts"][0]["evidence"] == [["odds", None]]


def test_forgetting_begins_anew() -> None:
    state = fill(WebState("mill", "app.yaml"))
    state.forget()
    assert state.as_json() == WebState("mill", "app.yaml").as_json()


def test_a_document_is_made_once_for_each_change() -> None:
    board = Board(WebState("mill"))
    number, document = board.document()
    assert board.document() == (number, document) and board.document()[1] is document
    assert not board.wait_for_newer(number, 0.0)
    board.set_trouble("away")
    assert board.wait_for_newer(number, 0.0)
    later, changed = board.document()
    assert later > number and json.loads(changed)["trouble"] == "away"
    board.set_trouble("away")
    assert board.document()[0] == later


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
        with urllib.request.urlopen(request, timeout=10) as answer:
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
    connection = http.client.HTTPConnection(web.url.split("/")[2], timeout=10)
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
    connection = http.client.HTTPConnection(web.url.split("/")[2], timeout=10)
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
    deadline = time.monotonic() + 40
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

    deadline = time.monotonic() + 10  # the lag is looked at every few seconds
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
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b"<title>Tidemill</title>" in answer.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


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
