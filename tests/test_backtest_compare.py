"""Variants side by side: the same past, the difference in loss with an error that knows that days hang together."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.apps.backtest_compare import difference_by_days
from tidemill.errors import ConfigError

PAYMENTS = Path(__file__).parent / "streams" / "payments"
FILES = {
    "payments.presented": "payments.csv",
    "payments.settlements": "settlements.csv",
    "payments.cards": "card_statuses.csv",
}


def test_difference_is_that_of_the_means_and_its_error_that_of_day_blocks():
    ours = {1: (10, 6.0), 2: (30, 15.0)}
    theirs = {1: (10, 5.0), 2: (30, 18.0)}
    difference, error, days = difference_by_days(ours, theirs, "a", "b")

    assert difference == pytest.approx((21 - 23) / 40)
    # Residuals of the days: 1 - 10 * -.05 = 1.5 and -3 - 30 * -.05 = -1.5; two days, 40 examples.
    assert error == pytest.approx(math.sqrt((1.5**2 + 1.5**2) * 2 / 1) / 40)
    assert days == 2


def test_one_day_has_a_difference_and_no_error():
    assert difference_by_days({1: (2, 1.0)}, {1: (2, 2.0)}, "a", "b") == (-0.5, None, 1)


@pytest.mark.parametrize("theirs", [{1: (3, 1.0)}, {2: (2, 1.0)}])
def test_variants_that_were_measured_on_other_events_are_refused(theirs: dict[int, tuple[int, float]]):
    with pytest.raises(ConfigError, match="TM-1810"):
        difference_by_days({1: (2, 1.0)}, theirs, "a", "b")


def test_two_declarations_run_side_by_side_on_one_past(tmp_path: Path):
    slow = tmp_path / "slow.yaml"
    text = (PAYMENTS / "payments.yaml").read_text().replace("schema: ", f"schema: {PAYMENTS}/")
    assert "-l " in text
    slow.write_text("".join(_slower(line) for line in text.splitlines(keepends=True)))
    files = [word for topic, name in FILES.items() for word in ("--file", f"{topic}={PAYMENTS / name}")]
    done = subprocess.run(
        [
            sys.executable, "-m", "tidemill", "backtest", str(PAYMENTS / "payments.yaml"), *files,
            "--compare", str(slow), "--out", str(tmp_path), "--quiet",
        ],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    first, second = results["comparisons"]

    assert (first["name"], first["difference"]) == ("payments", None)
    assert second["name"] == "slow"
    assert second["difference"] == pytest.approx(second["figures"]["log_loss"] - first["figures"]["log_loss"], abs=1e-6)
    assert second["difference"] > 0
    assert "slow" in (tmp_path / "report.html").read_text()


def test_an_error_in_a_variant_is_told_as_it_is(tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    files = [word for topic, name in FILES.items() for word in ("--file", f"{topic}={PAYMENTS / name}")]
    command = ["backtest", str(PAYMENTS / "payments.yaml"), *files, "--compare", str(broken), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", *command], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 3
    assert "TM-1001" in done.stderr and "broken.yaml:1" in done.stderr


def _slower(line: str) -> str:
    """The learner's rate, a thousandth of what it was."""
    if "arguments:" not in line:
        return line
    before, _, after = line.partition("-l ")
    rate, *rest = after.split()
    return " ".join([f"{before}-l {float(rate) / 1000:g}", *rest]) + "\n"
