"""A second stream through the command line: YAML, Avro and CSV files, no Python; every feature against pandas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import payments_oracle as oracle
import pytest
from pyarrow import parquet
from shop import Shop

from tidemill.apps.status import Status
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import load_app, load_settings
from tidemill.core.features import FeaturePlan
from tidemill.io.embedded import Servers

ROOT = Path(__file__).parents[1]
FILE_OPTIONS = [part for topic, path in oracle.FILES.items() for part in ("--file", f"{topic}={path}")]


def tidemill(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_features_are_those_of_pandas(predictions: list[dict[str, Any]]) -> None:
    """One prediction per payment, and each of its features as brute force has it."""
    by_id = {int(row["id"]): row for row in predictions}
    expected = oracle.expected_features()
    assert len(by_id) == len(predictions) == len(expected)
    rows = [by_id[number] for number in expected["payment_no"].tolist()]
    plan = FeaturePlan(load_app(oracle.CONFIG))
    assert {*plan.numeric_names, *plan.category_names} == {*expected.columns} - {"payment_no"}
    served = np.array([row["numeric"] for row in rows], dtype=np.float32)
    for at, name in enumerate(plan.numeric_names):
        np.testing.assert_array_equal(served[:, at], expected[name].to_numpy(dtype=np.float32), err_msg=name)
    for at, name in enumerate(plan.category_names):
        assert [row["categories"][at] for row in rows] == expected[name].tolist(), name


@pytest.mark.servers
@pytest.mark.timeout(180)
def test_payments_go_through_produce_and_worker_and_every_feature_is_that_of_pandas(servers: Servers, tmp_path: Path):
    environment = {
        "TIDEMILL_BOOTSTRAP_SERVERS": servers.bootstrap_servers,
        "TIDEMILL_REDIS_URL": servers.redis_url,
        "TIDEMILL_DATA": str(tmp_path),
    }
    config = str(oracle.CONFIG)

    sent = tidemill("produce", config, *FILE_OPTIONS, "--end", "-o", "json", environment=environment)
    assert sent.returncode == 0, sent.stderr
    counts = json.loads(sent.stdout)
    assert counts["records"] == {
        "payments.cards": len(oracle.cards()),
        "payments.settlements": len(oracle.settlements()),
        "payments.presented": len(oracle.payments()),
    }
    settings = load_settings(
        oracle.CONFIG, bootstrap_servers=servers.bootstrap_servers, redis_url=servers.redis_url, data_folder=tmp_path
    )
    ensure_app_topics(settings)  # the worker would, but its status is looked at from the start
    worker = Shop(settings, oracle.CONFIG, tmp_path)
    worker.start("--bounded")
    wanted = oracle.outcomes()
    try:
        status = worker.until(lambda now: is_done(now, wanted), deadline_s=120)
        assert all(balance.is_closed for balance in status.balances), status.balances
        assert not any(name.endswith("dead_letter") and count for name, count in status.outcomes.items())
        assert worker.stop() == 0
    finally:
        worker.kill()
    assert_features_are_those_of_pandas(worker.read("predictions"))


def is_done(now: Status, wanted: Mapping[str, int]) -> bool:
    return all(now.outcomes.get(name) == count for name, count in wanted.items()) and all(
        balance.is_closed for balance in now.balances
    )


def test_backtest_of_the_files_serves_the_features_of_pandas(tmp_path: Path):
    ended = tidemill("backtest", str(oracle.CONFIG), *FILE_OPTIONS, "--out", str(tmp_path), "--predictions", "-q")
    assert ended.returncode == 0, ended.stderr

    assert_features_are_those_of_pandas(parquet.read_table(tmp_path / "predictions.parquet").to_pylist())
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["counts"]["examples"], results["counts"]["expired"]) == tuple(oracle.outcomes().values())
    learner = next(one for one in results["series"] if one["name"] == "learner")
    assert learner["figures"]["auc"] > 0.7


def test_stream_of_payments_is_yaml_schemas_and_csv_only():
    assert {path.suffix for path in oracle.FOLDER.iterdir()} == {".yaml", ".avsc", ".csv"}
    table = oracle.payments()
    answers = oracle.settlements()
    assert len(table) == 5_000
    assert str(table["payment_no"].dtype) == "int64" and table["payment_no"].min() > 2**62
    unanswered = 1 - len(answers) / len(table)
    assert 0.08 < unanswered < 0.12
    delay = answers.merge(table[["payment_no", "_time"]], on="payment_no", suffixes=("", "_asked"))
    seconds = (delay["_time"] - delay["_time_asked"]) / 1_000
    assert seconds.min() >= 0.2 and seconds.max() <= 5.01


def test_no_field_of_the_payments_is_known_to_the_product():
    names = {
        field["name"] for schema in oracle.FOLDER.glob("*.avsc") for field in json.loads(schema.read_text())["fields"]
    }
    assert len(names) == 14
    words = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    found = [
        f"{path}:{number} {line.strip()}"
        for path in sorted((ROOT / "src").rglob("*"))
        if path.suffix in (".py", ".lua", ".js", ".css")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*FILE_OPTIONS, "--until", "2013-02-01"], 2, "--until is for the example"),
        (["--end"], 2, "go with --file"),
        (["--file", "payments.card=x.csv"], 3, "has no topic 'payments.card'"),
        (["--file", f"payments.cards={oracle.CONFIG}"], 3, "files end in .avro, .csv, .parquet"),
    ],
)
def test_produce_refuses_what_makes_no_sense(arguments: list[str], code: int, words: str):
    ended = tidemill("produce", str(oracle.CONFIG), *arguments, "--bootstrap-servers", "127.0.0.1:1")
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
