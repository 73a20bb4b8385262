"""A worker's fold of the examples log: how far it goes, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_spec
from tests.folded_log import Log, a_serving
from tidemill.apps import folding
from tidemill.apps.folding import ExampleFold, barrier_of
from tidemill.core.loop_spec import MonitorSpec, RetrainSpec
from tidemill.errors import UnavailableError
from tidemill.io.model_snapshots import ModelSnapshots

TICK = 1_000


class Reader:
    """A log of nothing but markers: `end` offsets of them."""

    def __init__(self) -> None:
        self.end = self.position = 0

    def seek(self, offset: int) -> None:
        self.position = offset

    def end_offset(self) -> int:
        return self.end

    def read(self, *, until_offset: int | None, timeout_s: float, max_records: int) -> list[Any]:
        self.position = self.end if until_offset is None else min(self.end, until_offset)
        return []


def a_fold(reader: Reader, *, is_bounded: bool, barrier_ms: int | None = TICK) -> tuple[ExampleFold, Any]:
    serving = a_serving(log=Log())
    fold = ExampleFold(
        reader=reader,  # type: ignore[arg-type]
        serving=serving,
        snapshots=None,  # type: ignore[arg-type]
        app="shop",
        is_bounded=is_bounded,
        on_roles=lambda roles: None,
        barrier_ms=barrier_ms,
    )
    return fold, serving


def test_first_batch_behind_a_barrier_folds_what_was_written_while_the_producer_held():
    reader = Reader()
    fold, serving = a_fold(reader, is_bounded=True)
    seen = []
    for end, time in ((4, 900), (6, TICK), (8, TICK + 1), (10, 2 * TICK), (12, 3 * TICK)):
        reader.end = end
        fold.enter(time)
        seen.append(serving.n)
    assert seen == [4, 4, 8, 8, 12]  # a record at the tick's end belongs to the slice that ends there


@pytest.mark.parametrize(("is_bounded", "barrier_ms"), [(False, TICK), (True, None)])
def test_live_and_without_a_loop_nothing_is_waited_for(is_bounded: bool, barrier_ms: int | None):
    reader = Reader()
    fold, serving = a_fold(reader, is_bounded=is_bounded, barrier_ms=barrier_ms)
    reader.end = 4
    fold.enter(900)
    assert serving.n == 0


def test_app_without_a_loop_has_no_barrier():
    assert barrier_of(a_spec()) is None
    spec = replace(a_spec(), retrain=RetrainSpec(), monitor=MonitorSpec(every_ms=TICK))
    assert barrier_of(spec) == TICK


def test_a_snapshot_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path):
    (tmp_path / "shop").write_text("a file where a folder has to be: no object can be put")
    told: list[str] = []
    serving = a_serving(log=Log())
    fold = ExampleFold(
        reader=Reader(),  # type: ignore[arg-type]
        serving=serving,
        snapshots=ModelSnapshots(tmp_path),
        app="shop",
        is_bounded=True,
        on_roles=lambda roles: None,
        report=told.append,
    )
    for _ in range(2):
        fold._keep(serving.snapshot())
    assert fold.snapshots_failed == 2
    assert len(told) == 2 and all(text.startswith("TM-3306") for text in told)


@pytest.mark.parametrize("is_bounded", [True, False])
def test_a_log_whose_end_is_known_and_that_cannot_be_read_is_not_waited_for_for_ever(
    is_bounded: bool, monkeypatch: pytest.MonkeyPatch
):
    reader = Reader()
    fold, _ = a_fold(reader, is_bounded=is_bounded)
    monkeypatch.setattr(reader, "read", lambda **asked: [])  # the broker went away in between
    monkeypatch.setattr(folding, "CATCH_UP_STILL_S", 0.02)
    reader.end = 4
    with pytest.raises(UnavailableError, match=r"TM-3020 .* offset 4 .* \(read up to 0\)"):
        fold.catch_up()
