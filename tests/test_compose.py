"""docker-compose.yml against what it names: commands, variables, files, ports. Docker itself does not run here."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import complaint_about

from tidemill import config

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "bin/tidemill" in one.get("command", "")}


def arguments_of(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["command"])[1:]


def option(service: dict[str, Any], name: str) -> str:
    arguments = arguments_of(service)
    return arguments[arguments.index(name) + 1]


def volumes_of(service: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(source, place in the container, is it read-only)."""
    parts = [one.split(":") for one in service.get("volumes", ())]
    return [(one[0], one[1], one[2:] == ["ro"]) for one in parts]


def test_the_whole_system_is_there() -> None:
    assert set(OURS) == {"worker", "monitor", "trainer", "web"}
    assert set(SERVICES) - set(OURS) == {"kafka", "valkey", "install", "prometheus", "grafana"}


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_of_the_command_line(name: str) -> None:
    arguments = arguments_of(OURS[name])
    assert arguments[0] == name
    assert complaint_about(arguments) is None
    assert arguments[1].startswith("/app/") and (ROOT / arguments[1].removeprefix("/app/")).exists()


def test_a_wrong_command_is_noticed() -> None:
    assert complaint_about(["worker", "app.yaml", "--web-prot", "9401"])
    assert complaint_about(["work", "app.yaml"])
    assert complaint_about(["web", "app.yaml", "--port", "many"])


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_read_by_the_settings(name: str) -> None:
    read = set(re.findall(r"TIDEMILL_[A-Z_]+", inspect.getsource(config)))
    assert set(OURS[name]["environment"]) <= read
    assert {"TIDEMILL_BOOTSTRAP_SERVERS", "TIDEMILL_REDIS_URL", "TIDEMILL_DATA"} <= set(OURS[name]["environment"])


def test_the_settings_of_the_containers_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OURS["worker"]["environment"].items():
        monkeypatch.setenv(name, value)
    found = config.load_settings(ROOT / "config/flights.yaml")
    assert found.bootstrap_servers == "kafka:9094" and found.redis_url == "redis://valkey:6379/0"
    assert str(found.data_folder) in {place for _, place, _ in volumes_of(OURS["worker"])}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    for source, _, is_read_only in volumes_of(SERVICES[name]):
        if source.startswith("."):
            assert (ROOT / source).exists() and is_read_only
        else:
            assert source in COMPOSE["volumes"]


def test_files_of_prometheus_and_grafana_lie_where_they_are_looked_for() -> None:
    (prometheus,) = [source for source, place, _ in volumes_of(SERVICES["prometheus"]) if place == "/etc/prometheus"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    settings = yaml.safe_load((ROOT / prometheus / "prometheus.yml").read_text())
    assert all((ROOT / prometheus / one).exists() for one in settings["rule_files"])

    places = {place: ROOT / source for source, place, _ in volumes_of(SERVICES["grafana"])}
    provisioning = places["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/tidemill.yml").read_text())["providers"]
    assert list(places[provider["options"]["path"]].glob("*.json"))
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (places[str(Path(home).parent)] / Path(home).name).exists()
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"].removeprefix("$") in SERVICES["grafana"]["environment"]


def test_prometheus_asks_the_ports_that_the_commands_open() -> None:
    settings = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())
    asked = {one["job_name"]: one["static_configs"][0]["targets"] for one in settings["scrape_configs"]}
    for name, name_of_option in {
        "worker": "--web-port", "monitor": "--metrics-port", "trainer": "--metrics-port", "web": "--port"
    }.items():  # fmt: skip
        assert asked[f"tidemill-{name}"] == [f"127.0.0.1:{option(OURS[name], name_of_option)}"]
        # 127.0.0.1 is the same place for both only in one network namespace.
        assert OURS[name]["network_mode"] == "service:prometheus"


def test_nothing_is_published_beyond_this_machine_and_every_port_once() -> None:
    ports = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(ports) == len({port.split(":")[1] for port in ports})
    assert any(port.endswith(f":{option(OURS['web'], '--port')}") for port in SERVICES["prometheus"]["ports"])
    assert not any("ports" in one for one in OURS.values())  # they have no network of their own


def test_processes_wait_for_what_they_need() -> None:
    for one in OURS.values():
        assert one["depends_on"]["install"] == {"condition": "service_completed_successfully"}
        assert {"kafka", "valkey", "prometheus"} <= set(one["depends_on"])
        assert "venv" in {source for source, _, _ in volumes_of(one)}
        assert shlex.split(one["command"])[0].startswith("/venv/")
    for one in SERVICES.values():
        assert set(one.get("depends_on", ())) <= set(SERVICES)


def test_addresses_are_listeners_of_the_servers() -> None:
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert OURS["worker"]["environment"]["TIDEMILL_BOOTSTRAP_SERVERS"] in listeners
    assert "//valkey:" in OURS["worker"]["environment"]["TIDEMILL_REDIS_URL"]
    assert SERVICES["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
