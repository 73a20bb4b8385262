"""Shipped files are found by name, in a checkout as in an installed wheel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill import resources
from tidemill.errors import ConfigError
from tidemill.resources import schema_text, shipped_path


@pytest.mark.parametrize("name", ["prediction.v1", "example.v1", "commit.v1", "row.v1"])
def test_schema_is_found_by_its_name(name: str) -> None:
    assert json.loads(schema_text(name))["type"] == "record"


def test_installed_files_win_over_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shipped" / "config").mkdir(parents=True)
    (tmp_path / "shipped" / "config" / "flights.yaml").write_text("name: installed\n")
    monkeypatch.setattr(resources, "_ROOTS", (tmp_path / "shipped", *resources._ROOTS[1:]))
    assert shipped_path("config/flights.yaml").read_text() == "name: installed\n"


def test_unknown_name_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"TM-1307.*nothing\.v9"):
        schema_text("nothing.v9")
