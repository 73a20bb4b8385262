"""`tidemill retrain`, `models lineage|card|approve|reject`: what a person asks, and what is printed of a version."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from trainer_loop import FIRST, Loop, a_loop, ticks, until

from tidemill.apps import cli

pytestmark = pytest.mark.servers


@pytest.fixture
def loop(servers, app_name: str, tmp_path: Path) -> Iterator[Loop]:
    with a_loop(servers, app_name, tmp_path, needs_approval=True) as made:
        yield made


def printed(loop: Loop, *arguments: str, code: int = 0, has_data: bool = True) -> str:
    at = ["--bootstrap-servers", loop.settings.bootstrap_servers or ""]
    at += ["--data", str(loop.folder)] if has_data else []
    with redirect_stdout(io.StringIO()) as text, redirect_stderr(io.StringIO()) as errors:
        assert cli.run([*arguments, *at]) == code, errors.getvalue()
    return text.getvalue() if code == 0 else errors.getvalue()


def found(loop: Loop, *arguments: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(printed(loop, *arguments, "-o", "json", **more))
    return answer


def test_a_version_is_asked_for_approved_and_shown_with_its_causes(loop: Loop) -> None:
    config = str(loop.config)
    (asked,) = found(loop, "retrain", config, "--cause", "a new <catalogue> | here", has_data=False)["rows"]
    assert asked["id"].startswith("trigger/demand@") and asked["by"]
    loop.tell(*ticks(1, triggers=()))
    assert loop.train() == 0, loop.log()
    until(lambda: loop.kinds() == ["triggered", "trained"], loop)
    (version,) = loop.versions()

    loop.tell(*ticks(1, first=1, triggers=()))
    (approved,) = found(loop, "models", "approve", config, version, "--cause", "seen")["rows"]
    assert approved["version"] == version
    assert loop.train() == 0, loop.log()
    until(lambda: loop.kinds()[2:] == ["approved", "shadow"], loop)

    (step,) = found(loop, "models", "lineage", config, version)["rows"]
    trained = loop.story()[1]
    assert (step["version"], step["parent"], step["cause"]) == (version, "initial", asked["id"])
    assert (step["offset_start"], step["offset_next"]) == (trained.offset_start, trained.offset_next)
    assert [event["kind"] for event in step["events"]] == ["trained", "approved", "shadow"]
    assert step["events"][0]["evidence"]["recent/challenger/log_loss"] > 0 and step["time"] == FIRST
    table = printed(loop, "models", "lineage", config, version)
    assert "in shadow" in table and asked["id"] in table

    card = printed(loop, "models", "card", config, version)
    assert card.startswith("---\n") and f'version: "{version}"' in card and "## Story" in card
    assert 'status: "in shadow"' in card
    assert "TM-5020" in printed(loop, "models", "lineage", config, "m000000000000", code=5)
    for word in ("approve", "reject"):
        assert "TM-5020" in printed(loop, "models", word, config, "m000000000000", code=5)
    assert json.loads(printed(loop, "models", "show", config, version, "-o", "json"))["version"] == version


def test_a_version_that_is_rejected_makes_room_for_the_next_one(loop: Loop) -> None:
    config = str(loop.config)
    loop.tell(*ticks(1))
    trainer = loop.trainer()
    until(lambda: loop.kinds() == ["triggered", "trained"], loop)
    (version,) = loop.versions()
    (rejected,) = found(loop, "models", "reject", config, version, "--cause", "bad labels")["rows"]
    assert rejected["id"].startswith("trigger/rejection@") and rejected["version"] == version
    until(lambda: len(loop.kinds()) == 3, loop)
    found(loop, "models", "reject", config, version)  # too late
    until(lambda: len(loop.kinds()) == 4, loop)
    found(loop, "retrain", config, "--cause", "labels are right again", has_data=False)
    until(lambda: loop.kinds()[4:] == ["triggered", "trained"], loop)
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(90) == 0

    _, _, aborted, declined, _, _ = loop.story()
    assert (aborted.kind, aborted.version, aborted.cause) == ("aborted", version, rejected["id"])
    assert aborted.verdict == f"bad labels ({rejected['by']})"
    assert declined.verdict == f"{version} cannot be rejected: no version waits for approval"
    assert loop.commands() == []
    assert found(loop, "models", "lineage", config, version)["rows"][0]["status"] == "dropped"
