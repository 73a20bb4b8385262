"""Documentation that can be wrong is tested: generated pages, names of tests, links, codes, commands, YAML."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_lines import complaint_about, console_lines

from tidemill import config_models
from tidemill.apps import cli, config_meanings
from tidemill.apps.config_reference import SECTIONS, config_reference
from tidemill.config import load_app
from tidemill.config_checks import SERVED_EXPERTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PAYMENTS = ROOT / "tests" / "streams" / "payments"
CHEAP = ("config", "backtest")  # what runs without servers


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


# --- the configuration reference


def test_reference_is_the_one_that_the_code_makes() -> None:
    """Renew it with `tidemill config reference > docs/configuration.md`."""
    assert (DOCS / "configuration.md").read_text() == config_reference()


def test_reference_names_the_experts_that_a_trigger_compares_with() -> None:
    assert re.findall("`(.+?)`", config_meanings.TRIGGER["worse_than"]) == list(SERVED_EXPERTS)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model.__name__)
def test_every_key_has_a_meaning_and_every_meaning_a_key(section) -> None:
    keys = {field.alias or name for name, field in section.model.model_fields.items()}
    assert set(section.meanings) == keys
    assert all(text.endswith(".") for text in section.meanings.values())


def test_every_part_of_the_file_has_a_table() -> None:
    models = {
        found
        for found in vars(config_models).values()
        if isinstance(found, type) and issubclass(found, config_models.Closed) and found is not config_models.Closed
    }
    assert {section.model for section in SECTIONS} == models


def test_every_variable_of_the_environment_is_in_the_reference() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(path for path in (ROOT / "scripts").iterdir() if path.is_file())]
    names = re.findall(r"\b(TIDEMILL_[A-Z_]+|XDG_[A-Z_]+)\b", "\n".join(path.read_text() for path in sources))
    assert set(names) == set(config_meanings.ENVIRONMENT)


@pytest.mark.parametrize(
    ("key", "type_and_default"),
    [
        ("max_skew", "duration | `10m`"),
        ("average_run_length", "whole number, >= 2 | `365`"),
        ("stall_after", "duration | `1m`"),
        ("trained_until", "day or time | none"),
        ("role", "`event` `label` `context` | **required**"),
        ("min_severity", "`page` `ticket` `info` | `info`"),
    ],
)
def test_types_and_defaults_are_those_that_people_write(key: str, type_and_default: str) -> None:
    assert f"| `{key}` | {type_and_default} |" in config_reference()


# --- names, links, codes


def test_every_guarantee_names_tests_that_exist() -> None:
    page = (DOCS / "guarantees.md").read_text()
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        functions = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text())) if _is_test(node)}
        assert test in functions, f"docs/guarantees.md names {file}::{test}"
    for line in page.splitlines():
        cells = line.strip("|").split("|")
        if line.startswith("| ") and len(cells) == 4 and cells[0].strip() != "guarantee":
            assert "::" in cells[2], f"no test shows: {cells[0]}"


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for target in re.findall(r"`((?:tests|scripts|docs|config|schemas|benchmarks)/[\w./-]+)`", page.read_text()):
        assert (ROOT / target).exists(), f"{name_of(page)} names {target}"


def test_every_code_in_a_page_is_one_of_ours() -> None:
    sources = [*(ROOT / "src" / "tidemill").rglob("*.py"), *(ROOT / "src").rglob("*.lua"), ROOT / "scripts" / "_setup"]
    ours = set(re.findall(r"TM-\d{4}", "\n".join(path.read_text() for path in sources)))
    for page in PAGES:
        assert set(re.findall(r"TM-\d{4}", page.read_text())) <= ours, name_of(page)


def test_every_name_with_our_prefix_is_one_of_ours() -> None:
    """Headers, comparators, loggers: a producer that follows a misspelt name is not understood."""
    ours = set(
        re.findall(r'"(tidemill\.[a-z.]+)"', "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py")))
    )
    for page in PAGES:
        assert set(re.findall(r"`(tidemill[.-][\w.-]+)`", page.read_text())) <= ours, name_of(page)


# --- commands and YAML


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    for arguments in console_lines(page):
        assert complaint_about(arguments) is None, f"tidemill {shlex.join(arguments)}: {complaint_about(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_exist(page: Path) -> None:
    for line in re.findall(r"`tidemill ([a-z]+(?: [a-z]+)*)", page.read_text()):
        command = typer.main.get_command(cli.app)
        for word in line.split():
            if hasattr(command, "commands"):  # else it is an argument
                assert word in command.commands, f"{name_of(page)}: there is no `tidemill {line}`"
                command = command.commands[word]


def test_own_stream_runs_as_its_page_says(tmp_path: Path) -> None:
    app = tmp_path / "payments"
    shutil.copytree(PAYMENTS, app)
    lines = [line for line in console_lines(DOCS / "own-stream.md") if line[0] in CHEAP]
    assert len(lines) == 2
    for line in lines:
        command = [sys.executable, "-m", "tidemill", *line]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (app / "results" / "report.html").exists()
    assert json.loads((app / "results" / "results.json").read_text())


def test_yaml_of_the_own_stream_is_an_app(tmp_path: Path) -> None:
    shutil.copytree(PAYMENTS, tmp_path, dirs_exist_ok=True)
    app, loop = blocks_of(DOCS / "own-stream.md", "yaml")
    (tmp_path / "own.yaml").write_text(app + loop)
    found = load_app(tmp_path / "own.yaml")
    assert found.retrain is not None and [trigger.kind for trigger in found.retrain.any_of] == ["alert", "schedule"]
    (schema,) = blocks_of(DOCS / "own-stream.md", "json")
    (tmp_path / "payment.avsc").write_text(schema)
    load_app(tmp_path / "own.yaml")


def test_yaml_of_the_readme_is_an_app(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "streams" / "shop", tmp_path, dirs_exist_ok=True)
    for number, block in enumerate(blocks_of(ROOT / "README.md", "yaml")):
        (tmp_path / f"{number}.yaml").write_text(block)
        load_app(tmp_path / f"{number}.yaml")


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
