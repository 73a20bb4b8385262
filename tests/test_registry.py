"""The registry refuses whatever is not, byte by byte, what a trusted key signed; the last good version serves on."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boosters import CATEGORIES, DIGEST, NUMERIC, SHAPE, a_trained, some_examples
from builders import a_spec
from obstore.exceptions import GenericError, PermissionDeniedError

from tidemill.core.manifest import Manifest, model_digest
from tidemill.core.records import Command, ExampleColumns
from tidemill.core.roles import INITIAL
from tidemill.errors import ModelRefusedError, UnavailableError
from tidemill.io.registry import MANIFEST, MODEL, SIGNATURE, Registry
from tidemill.io.signing import SigningKey, format_signature, load_or_create_key
from tidemill.models import booster as booster_module
from tidemill.models.booster import Booster
from tidemill.models.booster_training import Trained
from tidemill.models.replica import LogPart
from tidemill.models.serving import Serving

APP = "shop"
FILES = (MODEL, MANIFEST, SIGNATURE)
MUTATIONS = 1_000
GOOD, OTHER = a_trained(), a_trained(seed=2)
FEATURES = some_examples(50, seed=9).features
IDS = [str(row) for row in range(50)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, SigningKey]:
    """Ours, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    return load_or_create_key(folder / "ours.pem"), load_or_create_key(folder / "theirs.pem")


class Shelf:
    """A registry in a folder, with those whom it trusts."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self.folder, self.key, self.trusted = folder, key, [key.public_key()]
        self.registry = Registry(folder)

    def put(self, trained: Trained) -> str:
        self.registry.put(trained.manifest, trained.model, self.key)
        return trained.manifest.version

    def file(self, version: str, name: str) -> Path:
        return self.folder / APP / version / name

    def booster(self, version: str) -> Booster:
        """As a worker loads it."""
        manifest, model = self.registry.load(APP, version, self.trusted)
        return Booster.load(model, manifest, **SHAPE)


@pytest.fixture
def shelf(tmp_path: Path, keys: tuple[SigningKey, SigningKey]) -> Shelf:
    return Shelf(tmp_path, keys[0])


def signed(key: SigningKey, data: bytes) -> bytes:
    return format_signature(key.public_key(), key.sign(data))


# Put and load ----------------------------------------------------------------------------------------------------


def test_loaded_model_scores_as_the_trained_one_bit_by_bit(shelf: Shelf) -> None:
    for trained in (GOOD, OTHER):
        found = shelf.booster(shelf.put(trained)).outputs(FEATURES)
        direct = Booster.load(trained.model, trained.manifest, **SHAPE).outputs(FEATURES)
        assert found.margin.tobytes() == direct.margin.tobytes()
        assert found.leaves.tobytes() == direct.leaves.tobytes()
    assert shelf.registry.load(APP, GOOD.manifest.version, shelf.trusted) == (GOOD.manifest, GOOD.model)


def test_putting_again_changes_nothing(shelf: Shelf) -> None:
    assert shelf.registry.put(GOOD.manifest, GOOD.model, shelf.key) is True
    times = [shelf.file(GOOD.manifest.version, name).stat().st_mtime_ns for name in FILES]
    assert shelf.registry.put(GOOD.manifest, GOOD.model, shelf.key) is False
    assert [shelf.file(GOOD.manifest.version, name).stat().st_mtime_ns for name in FILES] == times


@pytest.mark.parametrize("name", FILES)
def test_putting_again_mends_what_is_broken(shelf: Shelf, name: str) -> None:
    version = shelf.put(GOOD)
    for harm in (lambda path: path.write_bytes(b"harm"), lambda path: path.unlink()):
        harm(shelf.file(version, name))
        assert shelf.registry.put(GOOD.manifest, GOOD.model, shelf.key) is True
        assert shelf.booster(version).version == version


@pytest.mark.parametrize("written", [(), (MODEL,), (MODEL, MANIFEST)])
def test_version_whose_writer_died_before_the_signature_does_not_exist(shelf: Shelf, written: tuple[str, ...]) -> None:
    version = shelf.put(GOOD)
    for name in set(FILES) - set(written):
        shelf.file(version, name).unlink()
    assert shelf.registry.versions(APP) == []
    with pytest.raises(ModelRefusedError, match="TM-5015"):
        shelf.booster(version)


def test_signature_is_written_last(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Watched:
        def __init__(self, store) -> None:
            self._store = store

        def put(self, path: str, *given, **more):
            written.append(path.rpartition("/")[2])
            return self._store.put(path, *given, **more)

        def __getattr__(self, name: str):
            return getattr(self._store, name)

    monkeypatch.setattr(shelf.registry, "_store", Watched(shelf.registry._store))
    shelf.put(GOOD)
    assert sorted(written[:2]) == sorted([MODEL, MANIFEST]) and written[2:] == [SIGNATURE]


def test_model_that_is_not_the_manifests_is_not_put(shelf: Shelf) -> None:
    with pytest.raises(ModelRefusedError, match="TM-5011"):
        shelf.registry.put(GOOD.manifest, OTHER.model, shelf.key)
    assert shelf.registry.versions(APP) == []


def test_list_shows_the_newest_first_and_the_refused_with_their_reason(shelf: Shelf) -> None:
    newer = replace(GOOD, manifest=replace(GOOD.manifest, created=9))
    older = replace(GOOD, manifest=replace(GOOD.manifest, created=3))
    versions = [shelf.put(one) for one in (newer, OTHER, older, GOOD)]
    shelf.put(replace(GOOD, manifest=replace(GOOD.manifest, app="another")))
    shelf.file(OTHER.manifest.version, MODEL).write_bytes(b"harm")

    assert sorted(shelf.registry.versions(APP)) == sorted(versions)
    listed = shelf.registry.ls(APP, shelf.trusted)
    assert [one.manifest and one.manifest.created for one in listed] == [9, 7, 3, None]
    assert listed[-1].version == OTHER.manifest.version and "TM-5011" in listed[-1].refused
    assert shelf.registry.ls("nobody", shelf.trusted) == []


@pytest.mark.parametrize("version", ["", "initial", "../m012345678901", "m0123456789ab/..", "m0123456789abc", "M" * 13])
def test_name_that_is_no_version_is_refused_before_anything_is_read(shelf: Shelf, version: str) -> None:
    with pytest.raises(ModelRefusedError, match="TM-5015"):
        shelf.registry.load(APP, version, shelf.trusted)


@pytest.mark.parametrize("error", [GenericError("timed out"), PermissionDeniedError("403"), OSError("no space left")])
def test_object_store_that_does_not_answer_is_not_a_refusal(shelf: Shelf, monkeypatch, error: Exception) -> None:
    class Silent:
        def __getattr__(self, name: str):
            def fail(*given, **more):
                raise error

            return fail

    monkeypatch.setattr(shelf.registry, "_store", Silent())
    for ask in (
        lambda: shelf.booster(GOOD.manifest.version),
        lambda: shelf.put(GOOD),
        lambda: shelf.registry.versions(APP),
    ):
        with pytest.raises(UnavailableError, match="TM-3401"):
            ask()


def test_registry_may_be_at_a_url(keys) -> None:
    registry = Registry("memory:///models")
    registry.put(GOOD.manifest, GOOD.model, keys[0])
    assert registry.versions(APP) == [GOOD.manifest.version]
    assert registry.load(APP, GOOD.manifest.version, [keys[0].public_key()])[1] == GOOD.model


# A thousand ways to break it -------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, Shelf, SigningKey], str]  # breaks a version; its name


def flipped_bits(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    path = shelf.file(GOOD.manifest.version, chance.choice(FILES))
    data = bytearray(path.read_bytes())
    for at in chance.sample(range(len(data)), chance.randint(1, 3)):
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return GOOD.manifest.version


def cut(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    path = shelf.file(GOOD.manifest.version, chance.choice(FILES))
    data = path.read_bytes()
    length = chance.randrange(len(data))
    path.write_bytes(chance.choice([data[:length], data[length + 1 :], data[:length] + data[length + 1 :]]))
    return GOOD.manifest.version


def appended(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    path = shelf.file(GOOD.manifest.version, chance.choice(FILES))
    more = chance.choice([b"\n", b"\0", b" ", b"}", path.read_bytes(), chance.randbytes(chance.randint(1, 99))])
    path.write_bytes(chance.choice([path.read_bytes() + more, more + path.read_bytes()]))
    return GOOD.manifest.version


def deleted(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    for name in chance.sample(FILES, chance.randint(1, 3)):
        shelf.file(GOOD.manifest.version, name).unlink()
    return GOOD.manifest.version


def swapped(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    """Files of two good versions, also all of them."""
    for name in chance.sample(FILES, chance.randint(1, 3)):
        mine, theirs = shelf.file(GOOD.manifest.version, name), shelf.file(OTHER.manifest.version, name)
        content = mine.read_bytes()
        mine.write_bytes(theirs.read_bytes())
        theirs.write_bytes(content)
    return chance.choice([GOOD, OTHER]).manifest.version


def signed_by_a_stranger(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    """Also under our name."""
    data = GOOD.manifest.to_bytes()
    signer = chance.choice([stranger, shelf.key]).public_key()
    shelf.file(GOOD.manifest.version, SIGNATURE).write_bytes(format_signature(signer, stranger.sign(data)))
    return GOOD.manifest.version


def signed_for_other_bytes(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    other = chance.choice([GOOD.model, OTHER.manifest.to_bytes(), GOOD.manifest.version.encode(), b""])
    shelf.file(GOOD.manifest.version, SIGNATURE).write_bytes(signed(shelf.key, other))
    return GOOD.manifest.version


def edited(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    """A consistent version of a stranger's: another manifest, its digest as name, another model with its digest."""
    model = chance.choice([GOOD.model, OTHER.model, chance.randbytes(chance.randint(0, 200))])
    change = chance.choice([{"cause": "theirs"}, {"created": chance.randint(0, 99)}, {"leaf_trees": 0}])
    manifest = replace(GOOD.manifest, model_digest=model_digest(model), **change)
    shelf.registry.put(manifest, model, stranger)
    if chance.random() < 0.5:  # with a signature of ours, which is for another manifest
        ours = shelf.file(GOOD.manifest.version, SIGNATURE).read_bytes()
        shelf.file(manifest.version, SIGNATURE).write_bytes(ours)
    return manifest.version


def edited_in_place(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    content = json.loads(GOOD.manifest.to_bytes())
    field = chance.choice(sorted(content))
    if chance.random() < 0.5:
        del content[field]
    else:
        content[field] = chance.choice([None, "", 0, -1, 1e308, [], {}, [[]], "x" * 50, True])
    data = json.dumps(content).encode()
    shelf.file(GOOD.manifest.version, MANIFEST).write_bytes(data)
    if chance.random() < 0.7:  # signed by either: ours would be a bug of ours, and is refused for its name or form
        signer = chance.choice([stranger, shelf.key])
        shelf.file(GOOD.manifest.version, SIGNATURE).write_bytes(signed(signer, data))
    return GOOD.manifest.version


def of_other_features(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    """Ours in every respect, but made for another declaration."""
    change = chance.choice(
        [{"feature_digest": f"f{chance.randint(2, 99)}"}, {"features": ("x", "y", "other", *CATEGORIES)},
         {"features": (*NUMERIC, "kind", "other"), "category_features": ("kind", "other")}]
    )  # fmt: skip
    return shelf.put(replace(GOOD, manifest=replace(GOOD.manifest, **change)))


def of_another_engine(chance: random.Random, shelf: Shelf, stranger: SigningKey) -> str:
    engine = chance.choice(["xgboost 2.1.4", "xgboost 9.0.0", "lightgbm 4.6.0", "", "xgboost"])
    return shelf.put(replace(GOOD, manifest=replace(GOOD.manifest, engine=engine)))


MUTATED: tuple[Mutation, ...] = (
    flipped_bits,
    cut,
    appended,
    deleted,
    swapped,
    signed_by_a_stranger,
    signed_for_other_bytes,
    edited,
    edited_in_place,
    of_other_features,
    of_another_engine,
)


class NeverParses:
    """Stands for XGBoost, which aborts the process on some bytes."""

    def __init__(self) -> None:
        raise AssertionError("XGBoost was asked to parse a model that should have been refused")


def test_a_thousand_mutations_are_refused_before_any_byte_is_parsed_and_the_last_good_one_serves(
    shelf: Shelf, keys: tuple[SigningKey, SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = shelf.booster(shelf.put(GOOD))
    shelf.put(OTHER)
    margins = good.outputs(FEATURES).margin.tobytes()
    monkeypatch.setattr(booster_module.xgboost, "Booster", NeverParses)
    reasons: Counter[str] = Counter()
    before = _files(shelf)
    for seed in range(MUTATIONS):
        mutation = MUTATED[seed % len(MUTATED)]
        version = mutation(random.Random(seed), shelf, keys[1])
        after = _files(shelf)
        assert after != before, f"seed={seed} {mutation.__name__} changed nothing"
        with pytest.raises(ModelRefusedError) as refused:
            shelf.booster(version)
            pytest.fail(f"seed={seed} {mutation.__name__} was not refused")
        assert version in refused.value.message, f"seed={seed} {mutation.__name__}: {refused.value}"
        reasons[refused.value.code] += 1
        for path in after.keys() - before.keys():
            os.unlink(path)
        for path, content in before.items():
            if after.get(path) != content:
                Path(path).write_bytes(content)
    assert good.outputs(FEATURES).margin.tobytes() == margins
    assert reasons.keys() >= {"TM-5011", "TM-5012", "TM-5013", "TM-5014", "TM-5015", "TM-5016"}
    monkeypatch.undo()
    assert shelf.booster(GOOD.manifest.version).outputs(FEATURES).margin.tobytes() == margins


def _files(shelf: Shelf) -> dict[str, bytes]:
    return {
        file.path: Path(file.path).read_bytes()
        for folder in os.scandir(shelf.folder / APP)
        for file in os.scandir(folder.path)
    }


@pytest.mark.parametrize("mutation", MUTATED)
def test_worker_goes_on_with_the_last_good_version(shelf: Shelf, keys, mutation: Mutation) -> None:
    """A broken version is prepared and promoted: what served before serves on, and says why."""
    first = replace(GOOD, manifest=replace(GOOD.manifest, cause="the first"))
    last_good = shelf.put(first)
    shelf.put(GOOD)
    shelf.put(OTHER)
    broken = mutation(random.Random(1), shelf, keys[1])
    nothing = some_examples(0)
    serving = Serving(
        replace(a_spec(), name=APP),
        NUMERIC,
        CATEGORIES,
        feature_digest=DIGEST,
        load=shelf.booster,
        history=Nothing(),
    )
    _promote(serving, nothing, last_good, INITIAL)
    served = serving.score(FEATURES, IDS)
    assert served.model_version == last_good and not served.is_degraded
    _promote(serving, nothing, broken, last_good)
    after = serving.score(FEATURES, IDS)
    assert after.model_version == last_good and after.is_degraded
    assert served.booster is not None and np.array_equal(after.booster, served.booster)
    assert broken in serving.missing[broken]


class Nothing:
    """A log without examples."""

    def first_offset(self) -> int:
        return 0

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        return iter(())


def _promote(serving: Serving, nothing: ExampleColumns, version: str, expects: str) -> None:
    commands = [
        Command(serving.n + at, f"c{serving.n + at}", kind, expects, version, "a test", 0)
        for at, kind in enumerate(("prepare", "promote"))
    ]
    serving.fold(nothing, commands, serving.n + 2)


def test_version_signed_by_us_but_put_in_anothers_place_is_refused(shelf: Shelf) -> None:
    manifest: Manifest = replace(GOOD.manifest, app="another")
    shelf.registry.put(manifest, GOOD.model, shelf.key)
    (shelf.folder / APP).mkdir(parents=True, exist_ok=True)
    (shelf.folder / "another" / manifest.version).rename(shelf.folder / APP / manifest.version)
    with pytest.raises(ModelRefusedError, match="TM-5016"):
        shelf.booster(manifest.version)
