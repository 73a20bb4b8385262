"""What Prometheus and Grafana are told exists: metrics, labels, runbooks, targets."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import complaint_about, console_lines

from tidemill.core.alerts import ALERT_KINDS
from tidemill.core.records import Outcome
from tidemill.core.validation_rows import WINDOWS
from tidemill.io import telemetry

ROOT = Path(__file__).parents[1]
PROMETHEUS, GRAFANA, RUNBOOKS = ROOT / "config/prometheus", ROOT / "config/grafana", ROOT / "docs/runbooks"
EVERY_METRIC = {"job", "instance", "le"}
SEVERITIES = {"page", "ticket", "info"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@cache
def metrics() -> dict[str, set[str]]:
    """Names that a scrape of any of our processes can hold, with their labels."""
    found: dict[str, set[str]] = {"up": set()}
    for _, kind in inspect.getmembers(telemetry, inspect.isclass):
        if kind.__module__ == telemetry.__name__:
            for one in vars(kind(["events"]) if kind is telemetry.Telemetry else kind()).values():
                if hasattr(one, "_labelnames"):
                    for suffix in SUFFIXES[one._type]:
                        found[one._name + suffix] = set(one._labelnames)
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((GRAFANA / "dashboards/tidemill.json").read_text())
    return [one for one in dashboard["panels"] if one["type"] != "row"]


def expressions() -> dict[str, str]:
    of_rules = {rule["alert"]: rule["expr"] for rule in rules()}
    return of_rules | {
        f"{one['title']}[{target['refId']}]": target["expr"] for one in panels() for target in one["targets"]
    }


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:tidemill_\w+|up)\b", re.sub(r'"[^"]*"', "", expression)))


@pytest.mark.parametrize("where", expressions())
def test_every_metric_and_label_exists(where: str) -> None:
    expression = expressions()[where]
    used = names_in(expression)
    assert used and used <= metrics().keys(), f"{where}: {used - metrics().keys()}"
    for name, selectors in re.findall(r"\b(tidemill_\w+|up)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selectors)))
        assert labels <= metrics()[name] | EVERY_METRIC, f"{where}: {name}{labels}"
    of_all = set().union(*(metrics()[name] for name in used)) | EVERY_METRIC
    for grouped in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression):
        assert {one.strip() for one in grouped.split(",")} <= of_all, f"{where}: ({grouped})"


@pytest.mark.parametrize("where", expressions())
def test_values_of_labels_are_those_that_are_told(where: str) -> None:
    outcomes = {one.name.lower() for one in Outcome} | set(telemetry._ROLE_OF_OUTCOME.values())
    known = {
        "window": set(WINDOWS),
        "outcome": outcomes | set(telemetry._RETRAIN_OUTCOMES) | {"taken", "refused", "failed", "passed_over"},
        "verdict": {verdict for _, verdict in telemetry._GATES.values()},
        "severity": SEVERITIES,
        "quantile": {"0.5", "0.95"},
    }
    for label, _, text in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', expressions()[where]):
        if label in known:
            assert set(text.split("|")) <= known[label], where


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_what_a_rule_counts_of_workers_is_there_at_zero_from_the_start(rule: dict[str, Any]) -> None:
    """The rate of a series that is not there is nothing, so a rule that asks whether it is 0 would never fire."""
    registry = telemetry.Telemetry(["events", "outcomes"]).registry
    samples = [each for metric in registry.collect() for each in metric.samples]
    counted = {metric.name + "_total" for metric in registry.collect() if metric.type == "counter"}
    for name, selectors in re.findall(r"\b(tidemill_\w+)(?:\{([^}]*)\})?\[", rule["expr"]):
        if name not in counted:
            continue
        found = [one for one in samples if one.name == name]
        assert found and {one.value for one in found} == {0.0}, name
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selectors):
            assert set(values.split("|")) <= {one.labels[label] for one in found}, f"{name}{{{label}}}"


def test_the_rules_on_silence_ask_for_what_workers_count() -> None:
    silent = {rule["alert"] for rule in rules() if re.search(r"rate\(.*\) == 0", rule["expr"])}
    assert silent == {"TidemillNoRecords", "TidemillNoLabels"}
    registry = telemetry.Telemetry(["events", "outcomes"]).registry
    for topic in ("events", "outcomes"):
        for outcome in Outcome:
            counted = {"topic": topic, "outcome": outcome.name.lower()}
            assert registry.get_sample_value("tidemill_events_total", counted) == 0


def test_brackets_of_expressions_close() -> None:
    for where, expression in expressions().items():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), where


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_says_when_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in SEVERITIES
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert all(len(notes[name]) > 20 for name in notes)
    external = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["external_labels"]
    for name in ("runbook_url", "dashboard_url"):
        used = re.match(r"\{\{ \$externalLabels\.(\w+) \}\}/", notes[name])
        assert used is not None and used[1] in external
    page = ROOT / notes["runbook_url"].replace("{{ $externalLabels.docs }}", "docs")
    assert page.exists() and rule["alert"] in page.read_text()
    assert notes["dashboard_url"].endswith(
        "/d/" + json.loads((GRAFANA / "dashboards/tidemill.json").read_text())["uid"]
    )


def test_names_of_rules_are_theirs_alone() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) and all(name.startswith("Tidemill") for name in names)


@pytest.mark.parametrize("kind", ALERT_KINDS)
def test_every_kind_of_alert_has_its_page(kind: str) -> None:
    text = (RUNBOOKS / f"{kind}.md").read_text()
    for part in (f"`{kind}`", "## First look", "## What to do", "## When it is over"):
        assert part in text


def test_every_page_is_of_an_alert() -> None:
    told = {rule["annotations"]["runbook_url"].rsplit("/", 1)[1] for rule in rules()} | {
        f"{kind}.md" for kind in ALERT_KINDS
    }
    assert {one.name for one in RUNBOOKS.iterdir()} == told


@pytest.mark.parametrize("page", [*sorted(RUNBOOKS.iterdir()), ROOT / "docs/operations.md"], ids=lambda page: page.name)
def test_pages_name_commands_and_pages_that_exist(page: Path) -> None:
    for arguments in console_lines(page):
        assert complaint_about(arguments) is None, f"{page.name}: tidemill {' '.join(arguments)}"
    for link in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_prometheus_asks_every_process_and_loads_the_rules() -> None:
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert {one["job_name"] for one in settings["scrape_configs"]} == {
        f"tidemill-{name}" for name in ("worker", "monitor", "trainer", "web")
    }
    assert settings["rule_files"] == ["alerts.yml"]
    jobs = {job for rule in rules() for job in re.findall(r'job=~?"([^"]*)"', rule["expr"])}
    for job in settings["scrape_configs"]:
        assert any(re.fullmatch(pattern, job["job_name"]) for pattern in jobs), f"nobody notices when {job} is down"


def test_dashboard_is_provisioned_and_its_panels_do_not_overlap() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/tidemill.yml").read_text())
    assert sources["apiVersion"] == providers["apiVersion"] == 1
    uid = sources["datasources"][0]["uid"]
    dashboard = json.loads((GRAFANA / "dashboards/tidemill.json").read_text())
    ids = [one["id"] for one in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for one in dashboard["panels"]:
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, one["title"]
        taken |= cells
    for one in panels():
        assert one["datasource"]["uid"] == uid and one["description"]
        assert all(target["datasource"]["uid"] == uid for target in one["targets"])


def test_every_metric_is_documented_and_nothing_else_is() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    documented = set(re.findall(r"^\| `(tidemill_\w+)`", text, re.M))
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics() if name != "up"}
    assert documented == ours


def test_dashboards_ship_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert project["wheel"]["force-include"]["config"] == "tidemill/shipped/config"


def test_a_metric_that_nobody_exports_is_noticed() -> None:
    assert not names_in("sum(rate(tidemill_events_totall[1m]))") <= metrics().keys()
    assert names_in('up{job="tidemill-worker"} == 0') == {"up"}
