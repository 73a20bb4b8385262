"""The backtest's page: small, silent, escaped, and sound in a real Chromium."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from backtest_samples import START_MS, some_results
from report_browser import Visit, browser, find_chromium, visit

from tidemill.apps.backtest_results import DelayBin, Results, Source, WeightPoint, Window
from tidemill.apps.report import PAGE_BYTES_MAX, render

HOSTILE = "<script>alert('x')</script>\"><img src=http://a.example/x onerror=alert(1)>&amp;\x00\u202e"
VOID = {"meta", "link", "img", "br", "input", "hr"}
CSS = Path(__file__).parents[1] / "src/tidemill/apps/report.css"


class Elements(html.parser.HTMLParser):
    """Every element with its attributes; `unclosed` is empty if each end tag closes the last open element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag, f"</{tag}> closes another element"


@cache
def ten_years() -> Results:
    names = ("blend", *(f"booster {one}" for one in range(9)), "constant", "no-change")
    return some_results(windows=522, names=names, promotions=130, slices=50)


@cache
def absurd() -> Results:
    """More of everything than anyone runs, with text that grows when it is escaped."""
    series = some_results(windows=3, names=tuple(f"{one}" for one in range(150)), text="<\"&'" * 500).series
    windows = tuple(
        Window(start_ms=START_MS + 604_800_000 * one, n=1, log_loss=one / 7e3, auc=0.123456789, base_rate=0.123456789)
        for one in range(4_000)
    )
    text = "<\"&'" * 2_000
    results = some_results(windows=2, promotions=3_000, slices=3_000, text=text)
    return dataclasses.replace(
        results,
        series=tuple(dataclasses.replace(one, windows=windows) for one in series),
        sources=tuple(Source(name=f"{one}{text}", records=1) for one in range(3_000)),
        comparisons=tuple(dataclasses.replace(results.comparisons[1], name=f"{one}{text}") for one in range(500)),
        label_delays=tuple(DelayBin(start_ms=one, end_ms=one + 1, n=1) for one in range(5_000)),
        blend_weights=tuple(
            WeightPoint(time_ms=START_MS + one, weights={f"{expert}{text}": 1 / 40 for expert in range(40)})
            for one in range(2_000)
        ),
    )


@cache
def a_year() -> Results:
    """The last month begins close to the right edge."""
    return some_results(windows=53)


def bare() -> Results:
    results = some_results(windows=1, promotions=0, slices=0)
    return dataclasses.replace(
        results,
        series=(),
        sources=(),
        label_delays=(),
        blend_weights=(),
        comparisons=(),
        blend_excess=None,
        rss_bytes_max=None,
        label_delay_ms_p50=None,
        label_delay_ms_p95=None,
    )


@pytest.mark.parametrize("make", [some_results, ten_years, absurd, bare])
def test_page_is_small_whatever_was_measured(make: object) -> None:
    page = render(make())  # type: ignore[operator]
    assert len(page.encode()) < PAGE_BYTES_MAX
    assert Elements(page).unclosed == []


def test_page_names_no_address() -> None:
    page = render(some_results())
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|\bsrc=", page)
    links = [attributes["href"] for _, attributes in Elements(page).found if "href" in attributes]
    assert links and all(link in ("data:,",) or str(link).startswith("#") for link in links)


def test_text_of_users_is_never_markup() -> None:
    clean, dirty = Elements(render(some_results())), Elements(render(some_results(text=HOSTILE)))

    assert Counter(tag for tag, _ in dirty.found) == Counter(tag for tag, _ in clean.found)
    assert {name for _, attributes in dirty.found for name in attributes} == {
        name for _, attributes in clean.found for name in attributes
    }
    page = render(some_results(text=HOSTILE))
    assert "<script>alert" not in page and "<img" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x00" not in page and "\u202e" not in page


def test_what_was_not_measured_is_a_dash_or_left_out() -> None:
    page = render(bare())
    assert "No prediction met its label" in page
    assert "Worst slices" not in page and "Calibration" not in page
    assert "None" not in page and "nan" not in page.replace("nance", "")


def test_figures_stand_with_their_n_delay_and_baselines() -> None:
    results = some_results()
    page = render(results)
    headline = page[page.index('id="figures"') : page.index('id="variants"')]

    for series in results.series:
        assert f">{series.name}</span>" in headline
        assert f"<td>{series.figures.n:,}</td>" in headline
        assert f"{series.figures.log_loss:.4f}" in headline
    assert "3.5\u202fh after their event at p50 and 9\u202fh at p95" in headline
    assert page.index('id="figures"') < page.index("<figure")


def test_promotions_and_the_decision_are_marked() -> None:
    page = render(some_results(promotions=3))
    flags = re.findall(r'<span class="flag promotion[^>]*>(\d+)</span>', page)
    assert flags == ["1", "2", "3"]
    assert page.count('class="mark promotion"') == 6  # in log loss and in AUC
    assert "decision 0.90" in page
    assert "3 promotions" in page


def test_slices_are_the_worst_twenty_and_the_rest_is_counted() -> None:
    results = some_results(slices=50)
    worse = dataclasses.replace(results.slices[49], value="worst of all", excess=0.9)
    page = render(dataclasses.replace(results, slices=(*results.slices[:49], worse)))
    slices = page[page.index('<section id="slices"') : page.index('<section id="label-delay"')]

    assert slices.count("<tr>") == 1 + 20
    assert "Shown are 20 of 50 slices" in slices
    assert slices.index("worst of all") < slices.index("s0")


def test_every_table_has_headers_and_every_chart_words() -> None:
    page = render(some_results())
    elements = Elements(page).found
    charts = [attributes for tag, attributes in elements if tag == "svg" and attributes.get("role") == "img"]
    pictures = [attributes for tag, attributes in elements if tag == "svg" and attributes.get("aria-hidden") == "true"]

    assert len(charts) >= 8 and all(len(str(one["aria-label"])) > 30 for one in charts)
    assert len(charts) + len(pictures) == sum(tag == "svg" for tag, _ in elements)
    assert page.count("<figure") == page.count("<figcaption><h3>") == len(charts)
    assert page.count("<table") == page.count("<caption>") == page.count("<thead>")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in elements if tag == "th")


def seen_by(colour: str, matrix: object) -> np.ndarray:
    """CIE Lab of a colour as an eye sees it whose cones mix as in `matrix` (Machado et al. 2009, full deficiency)."""
    coded = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    mixed = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ mixed
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_differ_for_every_kind_of_eye(scheme: int) -> None:
    eyes = {
        "full": np.eye(3),
        "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    colours = re.findall(r"--(s\d): (#[0-9a-f]{6})", CSS.read_text())
    names = dict(colours[6 * scheme : 6 * scheme + 6])
    assert len(names) == 6
    for eye, matrix in eyes.items():
        labs = [(name, seen_by(colour, matrix)) for name, colour in names.items()]
        close = [
            (eye, one, other, round(float(np.linalg.norm(first - second))))
            for one, first in labs
            for other, second in labs
            if one < other and np.linalg.norm(first - second) < 14
        ]
        assert not close


# --- in a real browser

CHECK = """(() => {
  const charts = [...document.querySelectorAll("figure.chart .field > svg")].map(one => one.getBoundingClientRect());
  const paper = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
  return {
    charts: charts.length, flat: charts.filter(one => one.width < 80 || one.height < 60).length,
    outside: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    is_dark: paper[0] + paper[1] + paper[2] < 200,
    tip: [...document.querySelectorAll(".tip")].filter(one => !one.hidden).map(one => one.textContent),
    title: document.title, alerts: document.querySelectorAll("img").length,
  };
})()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[str]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium to check the page in a real browser")
    with browser(program) as endpoint:
        yield endpoint


def opened(endpoint: str, folder: Path, results: Results, *, width: int, scheme: str, keys: str = "") -> Visit:
    page = folder / "page.html"
    page.write_text(render(results), encoding="utf-8")
    seen = visit(endpoint, page.as_uri(), width=width, scheme=scheme, script=CHECK, keys=keys)
    assert seen.complaints == []
    assert seen.requests == [page.as_uri(), "data:,"][: len(seen.requests)]  # the page itself, and its empty icon
    return seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("make", [a_year, ten_years])
def test_page_opens_in_a_browser(chromium: str, tmp_path: Path, width: int, scheme: str, make: object) -> None:
    found = opened(chromium, tmp_path, make(), width=width, scheme=scheme).found  # type: ignore[operator]

    assert found["charts"] >= 8
    assert found["flat"] == 0
    assert found["outside"] <= 0
    assert found["is_dark"] == (scheme == "dark")


def test_hostile_text_does_nothing_in_a_browser(chromium: str, tmp_path: Path) -> None:
    seen = opened(chromium, tmp_path, some_results(text=HOSTILE), width=380, scheme="light")
    assert seen.found["alerts"] == 0
    assert seen.found["outside"] <= 0
    assert seen.found["title"].startswith("mill<script>")


def test_arrow_keys_read_the_values_of_a_chart(chromium: str, tmp_path: Path) -> None:
    results = some_results()
    seen = opened(chromium, tmp_path, results, width=1280, scheme="light", keys="ArrowLeft")
    (tip,) = seen.found["tip"]
    last = results.series[0].windows[-1]
    assert last.log_loss is not None
    assert f"blend{round(last.log_loss, 4)}" in tip
    assert "14 May 2013" in tip


def test_broken_page_is_noticed(chromium: str, tmp_path: Path) -> None:
    """The checks above see what they look for: a request, an error, and a page that is too wide."""
    page = tmp_path / "page.html"
    broken = render(some_results()).replace(
        "</main>", '<img src="missing.png"><script>throw 1</script><div style="width:5000px">wide</div></main>'
    )
    page.write_text(broken, encoding="utf-8")
    seen = visit(chromium, page.as_uri(), width=380, script=CHECK)
    assert len(seen.complaints) >= 2  # the policy stops both
    assert seen.found["outside"] > 4_000
