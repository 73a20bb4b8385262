"""`tidemill alerts` as a person types it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from shop import Shop, a_shop

from tidemill.apps import cli
from tidemill.apps.alerts import alert_output, incident_named, incidents_of, read_alerts
from tidemill.apps.topics import ensure_loop_topics
from tidemill.core.alerts import Alert
from tidemill.errors import ConfigError
from tidemill.io.kafka_writer import TransactionalWriter

DAY = 86_400_000


def alert(key: str, opened: int, event: str = "opened", **changed: Any) -> Alert:
    """A record of an incident that began at the end of day `opened`."""
    made = Alert(
        id=f"{key}@{opened * DAY}",
        key=key,
        kind=key.split("/")[0],  # type: ignore[arg-type]
        event=event,  # type: ignore[arg-type]
        severity="ticket",
        time=opened * DAY,
        opened=opened * DAY,
        summary=f"about {key}",
        action="Repair the source.",
        runbook="docs/runbooks/quality.md",
        champion="initial",
        window_start=(opened - 7) * DAY,
        window_end=opened * DAY,
        offset_start=10,
        offset_next=90,
        culprits=("amount",),
        evidence={"missing": 0.25},
    )
    return dataclasses.replace(made, **changed)


QUALITY, CONCEPT = alert("quality/missing/amount", 20), alert("concept/blend", 22, severity="page")
RECORDS = (
    alert("covariate/product", 15),
    QUALITY,
    CONCEPT,
    alert("covariate/product", 15, "resolved", time=23 * DAY),
    alert("trigger/concept", 24, severity="info"),
    alert("concept/blend", 22, "repeated", severity="page", time=25 * DAY, summary="still worse"),
)


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path) as made:
        ensure_loop_topics(made.settings)
        writer = TransactionalWriter(made.clients, f"tests.{app_name}.alerts")
        writer.open()
        writer.publish([alert_output(made.settings.app, one) for one in RECORDS], {}, None)
        writer.abandon()
        yield made


def run(shop: Shop, verb: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What `tidemill alerts` prints to stdout and stderr."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        servers = ("--bootstrap-servers", shop.settings.bootstrap_servers or "")
        assert cli.run(("alerts", verb, str(shop.config), *arguments, *servers)) == code, error.getvalue()
    return out.getvalue(), error.getvalue()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.servers
def test_alerts_are_listed_followed_shown_and_acknowledged(shop: Shop) -> None:
    listed = lines(run(shop, "ls", "-o", "jsonl")[0])
    assert [(row["key"], row["status"], row["told"]) for row in listed] == [
        ("concept/blend", "open", 2),
        ("quality/missing/amount", "open", 1),
        ("trigger/concept", "resolved", 1),
        ("covariate/product", "resolved", 1),
    ]
    assert all(row["schema_version"] == 1 for row in listed)
    assert [one["event"] for one in listed[0]["records"]] == ["opened", "repeated"]
    assert [row["kind"] for row in lines(run(shop, "ls", "--open", "-o", "jsonl")[0])] == ["concept", "quality"]
    assert [row["kind"] for row in lines(run(shop, "ls", "--kind", "quality", "-o", "jsonl")[0])] == ["quality"]
    table, hint = run(shop, "ls")
    assert "about" in table and "tidemill alerts show" in hint
    assert "did you mean 'quality'" in run(shop, "ls", "--kind", "qualty", code=2)[1]

    followed = lines(run(shop, "tail", "--until-end", "-o", "jsonl")[0])
    assert [(one["id"], one["event"]) for one in followed] == [(one.id, one.event) for one in RECORDS]
    text = run(shop, "tail", "--until-end", "--kind", "concept")[0].splitlines()
    assert text == [
        f"1970-01-23T00:00Z page   opened       {CONCEPT.id}: about concept/blend",
        f"1970-01-26T00:00Z page   repeated     {CONCEPT.id}: still worse",
    ]

    shown = run(shop, "show", QUALITY.id)[0]
    for part in (
        "missing",
        "0.25",
        "[10, 90)",
        "amount",
        "Repair the source.",
        "docs/runbooks/quality.md",
        "1970-01-14",
    ):
        assert part in shown
    assert json.loads(run(shop, "show", "quality/missing/amount", "-o", "json")[0])["records"][0]["offset_next"] == 90
    assert f"did you mean {QUALITY.id!r}" in run(shop, "show", "quality/missing/amont", code=3)[1].replace("\n", " ")

    assert run(shop, "ack", QUALITY.id, "--by", "Ada", "--dry-run")[0].startswith("would acknowledge")
    assert len(read_alerts(shop.settings)) == len(RECORDS)
    assert "acknowledged by Ada" in run(shop, "ack", QUALITY.id, "--by", "Ada")[0]
    assert "as before" in run(shop, "ack", QUALITY.id, "--by", "Ada")[0]
    assert len(read_alerts(shop.settings)) == len(RECORDS) + 1
    last = read_alerts(shop.settings)[-1]
    assert (last.event, last.by, last.id, last.evidence) == ("acknowledged", "Ada", QUALITY.id, {"missing": 0.25})
    status = {row["key"]: (row["status"], row["by"]) for row in lines(run(shop, "ls", "-o", "jsonl")[0])}
    assert status["quality/missing/amount"] == ("acknowledged", "Ada")
    assert "TM-1067" in run(shop, "ack", "covariate/product", code=3)[1]
    assert "TM-1068" in run(shop, "forward", "--until-end", code=3)[1]


def test_a_key_names_its_newest_incident() -> None:
    again = alert("covariate/product", 40)
    assert incident_named(incidents_of((*RECORDS, again)), "covariate/product").id == again.id


def test_an_answer_to_an_unknown_incident_is_no_incident() -> None:
    assert incidents_of([alert("concept/blend", 3, "acknowledged", by="Ada")]) == []


def test_an_unknown_id_without_a_near_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TM-1066 .*alerts ls"):
        incident_named(incidents_of(RECORDS), "zzz")
