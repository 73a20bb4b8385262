"""The web page in a real Chromium: it draws itself, stays silent, fits, obeys the keyboard, and takes no markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from report_browser import Visit, browser, find_chromium, visit
from test_report_page import seen_by
from web_samples import a_metric, a_tick, an_alert, day, fill

from tidemill.apps.web import PAGE_FOLDER, WebServer, serve
from tidemill.apps.web_board import Board
from tidemill.apps.web_state import WebState
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import Shift
from tidemill.io.telemetry import WebTelemetry

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"

# Waits for the first drawing, does `act`, waits for two frames, and tells what is to be seen.
LOOK = """new Promise(done => {
  const frames = (count, then) => count ? requestAnimationFrame(() => frames(count - 1, then)) : then();
  const clock = setInterval(() => {
    if (!document.body.dataset.drawn) return;
    clearInterval(clock);
    const act = () => { ACT };
    frames(3, () => { act(); frames(3, () => {
      const paper = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
      const chart = at("chart"), box = chart.getBoundingClientRect(), all = css => [...document.querySelectorAll(css)];
      const cut = all("#chart text").map(one => one.getBoundingClientRect());
      done({
        title: document.title, app: at("app").textContent, tiles: at("tiles").innerText,
        status: at("status").innerText, trouble: at("trouble").hidden ? "" : at("trouble").textContent,
        alerts: all(".alert h3").map(one => one.textContent),
        culprits: all(".culprits li").map(one => one.textContent),
        story: at("story").innerText, models: chart.textContent,
        lines: all("#chart .line").length, cells: all("#chart rect.drift").length,
        shown: all("#legend [aria-pressed=true] span").map(one => one.textContent),
        moment: at("moment").textContent, value: chart.getAttribute("aria-valuetext"),
        focus: document.activeElement.dataset.key || document.activeElement.id,
        unnamed: all("button, [tabindex='0'], summary")
          .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim())).length,
        small: all("button").filter(one => one.getBoundingClientRect().height < 22).length,
        cut: cut.filter(one => one.left < box.left - 1 || one.right > box.right + 1).length,
        commands: all(".alert code").map(one => one.textContent),
        images: document.images.length, scripts: document.scripts.length, open: all("details[open]").length,
        outside: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        is_dark: paper[0] + paper[1] + paper[2] < 200,
      });
    }); });
  }, 20);
})"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[str]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium to check the page in a real browser")
    with browser(program) as endpoint:
        yield endpoint


def shown(endpoint: str, state: WebState, *, width: int = 1280, scheme: str = "light", act: str = "") -> Visit:
    web = serve(WebServer("127.0.0.1", 0, Board(state), WebTelemetry()), lambda: None)
    seen = visit(endpoint, web.url, width=width, scheme=scheme, script=LOOK.replace("ACT", act))
    web.close()
    assert [one for one in seen.complaints if "ERR_INCOMPLETE_CHUNKED" not in one] == []
    assert {one.removeprefix(web.url) for one in seen.requests} <= {"", "page.css", "page.js", "events", "data:,"}
    return seen


@pytest.fixture(scope="module")
def year() -> WebState:
    return fill(WebState("mill", "app.yaml"), days=350)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("is_empty", [False, True])
def test_page_draws_itself_and_fits(chromium: str, year: WebState, width: int, scheme: str, is_empty: bool) -> None:
    found = shown(chromium, WebState("mill") if is_empty else year, width=width, scheme=scheme).found

    assert (found["app"], found["title"]) == ("mill", "mill · Tidemill")
    assert found["outside"] <= 0 and found["cut"] == 0
    assert found["is_dark"] == (scheme == "dark")
    assert found["unnamed"] == 0 and found["small"] == 0
    assert "Live" in found["status"] and found["trouble"] == ""
    assert found["lines"] > 6 if not is_empty else "No tick yet" in found["models"]


def test_figures_alerts_models_and_drift_are_there(chromium: str) -> None:
    found = shown(chromium, fill(WebState("mill"))).found
    for text in ("0.4487", "0.781", "792", "200", "190", "3,612", "15", "2"):
        assert text in found["tiles"]
    assert found["alerts"][0].startswith("48,200 records wait")  # open ones first
    assert found["alerts"][1].startswith("Positive labels")
    assert found["cells"] == 16
    assert re.search("v003 . aborted 8 Jun 2013", found["models"])
    assert "Because of concept/blend of 10 Jul 2013" in found["story"]
    assert found["shown"] == ["blend", "booster", "learner", "base rate", "constant", "frozen"]


def test_a_command_is_suggested_unless_the_id_could_mean_something_to_a_shell(chromium: str) -> None:
    state = WebState("mill", "app.yaml")
    state.fold_alert(an_alert("label/share", 2))
    state.fold_alert(an_alert("quality/missing/a;reboot", 1))
    state.fold_alert(an_alert("concept/blend", 0))
    state.fold_alert(an_alert("concept/blend", 0, "resolved", 1))
    found = shown(chromium, state).found
    assert found["commands"] == [f"tidemill alerts ack app.yaml label/share@{day(2)}"]


def test_text_of_data_is_never_markup(chromium: str) -> None:
    state = fill(WebState(HOSTILE, HOSTILE))
    texts = {"summary": HOSTILE, "action": HOSTILE, "runbook": HOSTILE, "champion": HOSTILE, "culprits": (HOSTILE,)}
    state.fold_alert(an_alert(f"quality/{HOSTILE}", 219, **texts, evidence={HOSTILE: 1.0}))
    state.fold_tick(a_tick(220, champion=HOSTILE, shifts=(Shift(HOSTILE, "psi", 9.0, 0.0, True),)))
    state.fold_story(
        StoryEvent(
            id="x", kind="promoted", time=day(219), version=HOSTILE, parent=HOSTILE, cause=HOSTILE, verdict=HOSTILE
        )
    )
    state.fold_metric(a_metric(HOSTILE, "1d", 219, 0.5))
    state.fold_metric(a_metric(HOSTILE, "run", 219, 0.5))
    commit = {"topic": HOSTILE, "partition": 0, "next": 1, "group_watermark": 0, "watermark": 0}
    state.fold_commits([commit | {"outcomes": {"event_dead_letter": 1}}])
    open_all = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    for width in (380, 1280):
        found = shown(chromium, state, width=width, act=open_all).found
        assert HOSTILE in found["culprits"] and found["app"] == HOSTILE
        assert (found["title"], found["images"], found["scripts"]) == (f"{HOSTILE} · Tidemill", 0, 1)
        assert HOSTILE in found["moment"] and found["outside"] <= 0


def test_arrow_keys_move_through_time_and_are_said_aloud(chromium: str, year: WebState) -> None:
    press = """at("chart").focus();
        for (const key of ["End", "PageDown", "ArrowRight"])
          at("chart").dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));"""
    found = shown(chromium, year, act=press).found
    assert found["focus"] == "chart"
    assert found["moment"].startswith("10 Dec 2013 · v004 serves")  # six days before the newest
    assert found["value"].startswith("10 Dec 2013") and "log loss of the blend" in found["value"]


def test_a_series_can_be_hidden_and_the_button_keeps_the_focus(chromium: str, year: WebState) -> None:
    press = """const wanted = all => all.find(one => one.textContent.startsWith("booster"));
        const button = wanted([...document.querySelectorAll("#legend button")]); button.focus(); button.click();"""
    found = shown(chromium, year, act=press).found
    assert "booster" not in found["shown"] and "blend" in found["shown"]
    assert found["focus"] == "series booster"


def test_an_open_detail_stays_open_when_the_state_changes(chromium: str) -> None:
    board_state = fill(WebState("mill"))
    act = (
        "document.querySelector('.alert details').open = true; const next = structuredClone(state);"
        "next.alerts[0].told = 7; const told = new MessageEvent('state', { data: JSON.stringify(next) });"
        "frames(2, () => source.dispatchEvent(told));"
    )
    found = shown(chromium, board_state, act=act).found
    assert found["open"] == 1


def test_trouble_is_shown(chromium: str, year: WebState) -> None:
    board = Board(year)
    board.set_trouble("TM-3010 Kafka at nowhere:9092 did not list its topics")
    web = serve(WebServer("127.0.0.1", 0, board, WebTelemetry()), lambda: None)
    seen = visit(chromium, web.url, width=380, script=LOOK.replace("ACT", ""))
    web.close()
    assert seen.found["trouble"].startswith("TM-3010") and seen.found["outside"] <= 0


def test_a_lost_connection_is_said_and_the_last_state_stays(chromium: str) -> None:
    act = "source.close(); source.dispatchEvent(new Event('error'));"
    found = shown(chromium, fill(WebState("mill")), act=act).found
    assert "connection to tidemill web is lost" in found["status"] and "0.4487" in found["tiles"]


def test_the_checks_see_what_they_look_for(chromium: str, year: WebState, tmp_path: Path) -> None:
    """An address elsewhere, a script in the page and a page that is too wide are noticed."""
    act = (
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'http://127.0.0.1:1/x'; document.body.append(i);"
        "const d = document.createElement('div'); d.style.width = '5000px'; d.textContent = 'wide';"
        "document.body.append(d);"
    )
    web = serve(WebServer("127.0.0.1", 0, Board(year), WebTelemetry()), lambda: None)
    seen = visit(chromium, web.url, width=380, script=LOOK.replace("ACT", act))
    web.close()
    assert len(seen.complaints) >= 2  # the policy stops both
    assert seen.found["outside"] > 4_000 and seen.found["title"] != "1"


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_levels_of_drift_differ_for_every_kind_of_eye(scheme: int) -> None:
    """Also in grey: what a print or a projector leaves of a colour."""
    css = (PAGE_FOLDER / "page.css").read_text()
    colours = [re.findall(rf"--{name}: (#[0-9a-f]{{6}})", css)[scheme] for name in ("calm", "uneasy", "drift", "torn")]
    eyes = (
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    )
    for eye in eyes:
        labs = [seen_by(colour, eye) for colour in colours]
        for one, other in combinations(range(4), 2):
            assert np.linalg.norm(labs[one] - labs[other]) > 14
            assert abs(labs[one][0] - labs[other][0]) > 5
