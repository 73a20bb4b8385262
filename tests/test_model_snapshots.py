"""Snapshots on an object store: whole or refused, written once."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.snapshot import ModelSnapshot, digest_of
from tidemill.errors import ModelRefusedError
from tidemill.io.model_snapshots import ModelSnapshots, pack_snapshot, unpack_snapshot


def a_snapshot(n: int, *, model: bytes = b"weights\n\x00{}", feature_digest: str = "f1") -> ModelSnapshot:
    made = ModelSnapshot(
        n=n,
        learned=n // 2,
        positives=n // 4,
        champion="m1",
        challenger="m2",
        parent="",
        is_frozen=False,
        is_canary=True,
        excised="10-20",
        blend="a=0x1p-1",
        engine="engine 1",
        arguments="-b 10",
        feature_digest=feature_digest,
        learners=(model, b"other\n"),
        digest="",
    )
    return replace(made, digest=digest_of(made))


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@given(st.integers(0, 2**40), st.binary(max_size=200), st.text(max_size=20))
def test_snapshot_survives_the_way_to_the_store_and_back(n: int, model: bytes, arguments: str) -> None:
    snapshot = replace(a_snapshot(n, model=model), arguments=arguments)
    assert unpack_snapshot(pack_snapshot(snapshot), "s") == snapshot


def test_every_cut_and_every_changed_byte_is_refused() -> None:
    data = pack_snapshot(a_snapshot(8))
    broken = [data[:length] for length in range(len(data))]
    broken += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    for one in broken:
        with pytest.raises(ModelRefusedError, match=r"TM-5003 snapshot s: .* cut or changed"):
            unpack_snapshot(one, "s")


def test_weights_that_are_not_the_promised_ones_are_refused() -> None:
    data = pack_snapshot(replace(a_snapshot(8), digest="0" * 32))
    with pytest.raises(ModelRefusedError, match="promised was 0000"):
        unpack_snapshot(data, "s")


def test_another_format_is_refused() -> None:
    for body in (
        b"no json\nmodel",
        b"[1]\nmodel",
        b'{"format": "other"}\nmodel',
        b'{"format": "tidemill.models.v1"}\n',
    ):
        with pytest.raises(ModelRefusedError, match="TM-5003"):
            unpack_snapshot(body + blake2b(body, digest_size=16).digest(), "s")


def test_folder_is_made_and_the_first_snapshot_stays(tmp_path: Path) -> None:
    store = ModelSnapshots(tmp_path / "not" / "yet")
    assert store.put("app", a_snapshot(8)) is True
    assert store.put("app", a_snapshot(8)) is False
    assert len(objects(tmp_path)) == 1


def test_another_digest_at_the_same_multiple_is_refused_with_both(tmp_path: Path) -> None:
    store = ModelSnapshots(tmp_path)
    first, other = a_snapshot(8), a_snapshot(8, model=b"other")
    store.put("app", first)
    with pytest.raises(ModelRefusedError) as refused:
        store.put("app", other)
    assert refused.value.code == "TM-5004"
    assert first.digest in refused.value.message and other.digest in refused.value.message
    assert store.newest("app", None, "f1") == first


def test_newest_is_the_largest_n_at_most(tmp_path: Path) -> None:
    store = ModelSnapshots(tmp_path)
    for n in (900, 1_000, 10_000):
        store.put("app", a_snapshot(n))
    store.put("app2", a_snapshot(50_000))

    newest = [store.newest("app", at_most, "f1") for at_most in (None, 10_000, 9_999, 899)]
    assert [found.n if found else None for found in newest] == [10_000, 10_000, 1_000, None]


def test_broken_snapshot_is_passed_over_with_a_reason(tmp_path: Path) -> None:
    store, reasons = ModelSnapshots(tmp_path), list[str]()
    for n in (10, 20):
        store.put("app", a_snapshot(n))
    newest = objects(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])

    found = store.newest("app", None, "f1", on_refused=reasons.append)
    assert found is not None and found.n == 10
    assert len(reasons) == 1 and "cut or changed" in reasons[0]


def test_refusal_without_a_listener_is_not_silent(tmp_path: Path) -> None:
    store = ModelSnapshots(tmp_path)
    store.put("app", a_snapshot(10))
    objects(tmp_path)[0].write_bytes(b"cut")
    with pytest.warns(RuntimeWarning, match="TM-5003"):
        assert store.newest("app", None, "f1") is None


def test_broken_snapshot_gives_way_to_a_good_one(tmp_path: Path) -> None:
    """Else a worker that folds the log again stops at the same multiple each time."""
    store, good = ModelSnapshots(tmp_path), a_snapshot(10)
    store.put("app", good)
    objects(tmp_path)[0].write_bytes(b"cut")
    assert store.put("app", good) is True
    assert store.newest("app", None, "f1") == good


def test_snapshots_of_other_features_neither_collide_nor_push_out(tmp_path: Path) -> None:
    """After a change of features the log is folded from its start, below and then past the former multiples."""
    store = ModelSnapshots(tmp_path, kept=2)
    former = [a_snapshot(n) for n in (30, 40)]
    latter = [a_snapshot(n, model=b"other", feature_digest="f2") for n in (10, 30)]
    for snapshot in former + latter:
        assert store.put("app", snapshot) is True
        assert store.newest("app", None, snapshot.feature_digest) == snapshot
    assert store.newest("app", None, "f1") == former[-1]
    assert store.newest("app", None, "f3") is None


def test_snapshot_in_the_folder_of_other_features_is_passed_over(tmp_path: Path) -> None:
    store, reasons = ModelSnapshots(tmp_path), list[str]()
    store.put("app", a_snapshot(10))
    path = objects(tmp_path)[0]
    path.parent.rename(path.parent.with_name("f2"))
    assert store.newest("app", None, "f2", on_refused=reasons.append) is None
    assert len(reasons) == 1 and "features have digest f1" in reasons[0]


def test_snapshot_under_another_name_is_passed_over(tmp_path: Path) -> None:
    store, reasons = ModelSnapshots(tmp_path), list[str]()
    store.put("app", a_snapshot(10))
    path = objects(tmp_path)[0]
    path.rename(path.with_name(path.name.replace("10", "70")))
    assert store.newest("app", None, "f1", on_refused=reasons.append) is None
    assert "it holds N=10" in reasons[0]


def test_last_few_are_kept(tmp_path: Path) -> None:
    store = ModelSnapshots(tmp_path, kept=2)
    for n in (10, 20, 30, 40):
        store.put("app", a_snapshot(n))
    assert [int(path.stem) for path in objects(tmp_path)] == [30, 40]
