"""Snapshots in the object store: whole or not there, and which of them the log can go on from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemill.apps import restoring
from tidemill.apps.restoring import ALL, past_of, unfit
from tidemill.core.records import Partition
from tidemill.errors import StateLostError, UnavailableError
from tidemill.io.cut_store import CutHead, PartitionCut
from tidemill.io.store_snapshots import MANIFEST, Descent, StoreSnapshot, StoreSnapshots

A = Partition("events", 0)
B = Partition("labels", 0)

Offsets = dict[Partition, tuple[int | None, str]]


def a_snapshot(id_: str, parts: Any = (), *, applied: int = 4, slices: dict[str, bytes] | None = None) -> StoreSnapshot:
    head = CutHead(
        "inc",
        frozenset({"older"}),
        "digest",
        "groups",
        {A: PartitionCut({"applied": str(applied), "watermark": "9"}, slices or {}), B: PartitionCut({})},
    )
    return StoreSnapshot(id_, 1_000, head, {"log": (1, 2)}, {A: (3, 1), B: (0, 0)}, 2, tuple(parts))


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    pages = [[(b"s:a", b"\x00\xff" * 100), (b"r:b", b"")], [(b"s:c", b"x")]]
    parts = place.put_parts("1", pages)
    snapshot = a_snapshot("1", parts, slices={"4": b"\x00raw"})
    place.put_manifest(snapshot)
    assert place.ids() == ["1"]
    assert place.load("1") == snapshot
    assert [pair for page in place.pages(place.load("1")) for pair in page] == [pair for page in pages for pair in page]


def test_a_snapshot_without_manifest_does_not_exist_and_retention_clears_it_away(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    for id_ in "123456":
        parts = place.put_parts(id_, [[(b"s:a", b"v")]])
        if id_ not in "26":  # these were never finished
            place.put_manifest(a_snapshot(id_, parts))
    assert place.ids() == ["5", "4", "3", "1"]
    assert sorted(place.drop_old(2, taken="5")) == ["1", "2", "3"]
    assert place.ids() == ["5", "4"]
    assert (tmp_path / "app" / "6").exists()  # it may be in the making
    assert not list((tmp_path / "app" / "2").glob("*"))


def test_the_snapshot_just_taken_is_the_newest_though_a_clock_was_ahead(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    now = 1_700_000_000_000
    assert re.fullmatch(rf"00{now}-[0-9a-f]{{8}}", place.new_id(now))
    ahead = [place.new_id(now + 3_600_000), place.new_id(now + 7_200_000)]
    place.put_manifest(a_snapshot(ahead[0]))
    place.put_parts(ahead[1], [[(b"s:a", b"v")]])  # never finished
    taken = [place.new_id(now)]
    place.put_manifest(a_snapshot(taken[0]))
    taken.append(place.new_id(now))
    place.put_manifest(a_snapshot(taken[1]))
    assert place.ids() == [taken[1], taken[0], ahead[0]] and taken[0] > ahead[1]
    assert place.drop_old(1, taken=taken[1]) == [taken[0], ahead[1], ahead[0]]


def test_the_snapshot_just_taken_is_never_dropped(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    for id_ in ("1", "2", "3"):
        place.put_manifest(a_snapshot(id_))
    assert place.drop_old(1, taken="1") == ["2"]
    assert place.ids() == ["3", "1"]


@pytest.mark.parametrize("what", ["part", "manifest"])
def test_one_changed_byte_is_found_before_anything_is_restored(tmp_path: Path, what: str) -> None:
    place = StoreSnapshots(tmp_path, "app")
    place.put_manifest(a_snapshot("1", place.put_parts("1", [[(b"s:a", b"v" * 50)]])))
    path = tmp_path / "app" / "1" / ("part-00000" if what == "part" else MANIFEST)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StateLostError, match="TM-4115"):
        place.check(place.load("1"))


def test_a_snapshot_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    place.put_manifest(a_snapshot("1"))
    with pytest.raises(StateLostError, match="TM-4115 there is no snapshot 2; there is 1"):
        place.load("2")


def test_a_store_that_lost_a_second_reads_the_logs_from_its_newest_snapshot_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StoreSnapshots(tmp_path, "app")
    place.put_manifest(a_snapshot("1", applied=4))
    place.put_manifest(replace(a_snapshot("2", applied=8), log_ends={"log": (7, 7)}))
    monkeypatch.setattr(restoring, "snapshots_of", lambda _settings: place)

    class Store:
        incarnation = "inc"

        def restored(self) -> dict[str, Any]:
            return {"log_ends": {"log": [0, 1]}, "partitions": []}

    said: list[str] = []
    last_cut = restoring.LastCut(None, Store(), said.append)  # type: ignore[arg-type]
    assert last_cut({A: (9, 12), B: (0, 3)}) == last_cut({A: (8, 12)}) == {"log_ends": {"log": [7, 7]}}
    assert last_cut({A: (7, 12)}) == {"log_ends": {"log": [1, 2]}}
    assert last_cut({A: (3, 12)}) == Store().restored()
    assert said == []

    def away(_id: str) -> StoreSnapshot:
        raise UnavailableError("TM-3104", "object store: no answer")

    with monkeypatch.context() as patched:  # the claim goes on: it can do without
        patched.setattr(place, "load", away)
        assert last_cut({A: (9, 12)}) == Store().restored()
        assert len(said) == 1 and "TM-3104" in said[0]
    monkeypatch.setattr(Store, "incarnation", "another")
    assert last_cut({A: (9, 12)}) == Store().restored()


def test_a_snapshot_fits_the_group_whose_log_it_was_cut_from(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")

    def unfit_of(snapshot: StoreSnapshot, digest: str, committed: Offsets, starts: dict[Partition, int]) -> str | None:
        return unfit(snapshot, digest, committed, past_of(place, committed), starts)

    snapshot, starts = a_snapshot("1"), {A: 0, B: 0}
    assert unfit_of(snapshot, "digest", {A: (7, "inc"), B: (None, "")}, starts) is None
    assert unfit_of(snapshot, "digest", {A: (4, "inc/mark"), B: (None, "")}, starts) is None
    assert "configuration" in str(unfit_of(snapshot, "other", {A: (7, "inc")}, starts))
    assert "the group's offsets are of another" in str(unfit_of(snapshot, "digest", {A: (7, "another")}, starts))
    assert "moved back" in str(unfit_of(snapshot, "digest", {A: (3, "inc")}, starts))
    assert unfit_of(a_snapshot("1", slices={"4": b"unsent"}), "digest", {A: (3, "inc")}, starts) is None
    # A log that was cut behind the snapshot cannot lead on from it, where the group went on.
    applied = 4
    assert unfit_of(snapshot, "digest", {A: (7, "inc"), B: (None, "")}, {A: applied, B: 9}) is None
    assert "begins at 5" in str(unfit_of(snapshot, "digest", {A: (7, "inc"), B: (None, "")}, {A: applied + 1, B: 9}))
    assert unfit_of(snapshot, "digest", {A: (applied, "inc")}, {A: applied + 1}) is None
    assert "stands at 0 of labels[0]" in str(unfit_of(snapshot, "digest", {A: (7, "inc"), B: (3, "inc")}, {A: 0, B: 2}))


def test_a_store_that_was_restored_comes_from_the_snapshots_up_to_its_own(tmp_path: Path) -> None:
    place = StoreSnapshots(tmp_path, "app")
    place.put_descent("third", Descent("second", "5"))
    place.put_descent("second", Descent("inc", "2"))
    place.put_descent("aside", Descent("inc", "1"))
    offsets: Offsets = {A: (7, "third/mark"), B: (None, "")}
    assert past_of(place, offsets) == {"third": ALL, "second": "5", "inc": "2"}
    assert place.ids() == []  # no snapshot is seen in them

    def reason(id_: str, offsets: Offsets) -> str:
        return unfit(a_snapshot(id_), "digest", offsets, past_of(place, offsets), {A: 0, B: 0}) or ""

    assert reason("1", offsets) == reason("2", offsets) == ""
    assert "went on from snapshot 2" in reason("3", offsets)  # it holds what "inc" did not publish any more
    # A partition that has rested since names the first store still; those with two successors go the shorter way.
    assert "went on from snapshot 2" in reason("3", {A: (7, "second"), B: (4, "inc")})
    assert past_of(place, {A: (7, "second"), B: (4, "aside")}) == {"second": ALL, "aside": ALL, "inc": "1"}
    # What was computed from the log alone, or again from the first record, comes from no snapshot.
    assert "the group's offsets are of rebuilt" in reason("1", {A: (7, "rebuilt"), B: (None, "")})
    (tmp_path / "app" / "descents" / "second" / "descent.json").write_bytes(b"{}\ncut")
    assert past_of(place, offsets) == {"third": ALL, "second": "5"}
