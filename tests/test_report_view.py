"""The backtest's results in a terminal of 100 columns, and for programs."""

from __future__ import annotations

import io
import json

import pytest
from backtest_samples import some_results

from tidemill.apps.backtest_results import Results
from tidemill.apps.backtest_view import print_results
from tidemill.apps.results import Form


def text_of(results: Results) -> str:
    file = io.StringIO()
    print_results(results, Form.TABLE, file=file)
    return file.getvalue()


def test_table_fits_a_hundred_columns_with_any_name() -> None:
    for results in (some_results(windows=3), some_results(windows=3, text=" [red]with a name that goes on and on" * 3)):
        assert max(map(len, text_of(results).splitlines())) <= 100


def test_every_series_stands_with_its_n_and_the_delay_of_the_labels() -> None:
    results = some_results(windows=3)
    lines = text_of(results).splitlines()

    for series in results.series:
        (row,) = [line for line in lines if line.startswith(f"│ {series.name} ")]
        assert f"{series.figures.n:,}" in row
        assert f"{series.figures.log_loss:.4f}" in row
        assert f"{series.figures.cost:.4f}" in row
    assert any("label delay p50 3.5 h, p95 9 h" in line for line in lines)
    assert any("-0.0031" in line and "0.0011" in line for line in lines)


def test_names_are_no_markup() -> None:
    assert "[bold]" in text_of(some_results(windows=2, text="[bold]"))


@pytest.mark.parametrize("form", [Form.JSON, Form.JSONL])
def test_programs_get_the_whole_value(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    results = some_results(windows=2)
    print_results(results, form)
    out = capsys.readouterr().out
    assert Results.from_json(json.loads(out)) == results
    assert (out.count("\n") == 1) == (form is Form.JSONL)
