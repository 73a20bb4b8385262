"""`tidemill learner` on a real log: what is counted, written and obeyed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.shop import Shop, a_shop
from tidemill.apps.cli import run
from tidemill.apps.models import make_models
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.pipeline import Pipeline
from tidemill.core.records import Output
from tidemill.core.topic_names import examples_topic
from tidemill.io.codec import WireCodec
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.outputs import Encoder
from tidemill.io.wire import InputDecoder
from tidemill.models.serving import Serving

pytestmark = pytest.mark.servers

COUNT = 60  # examples, in transactions of ten: offsets 0-9, a marker, 11-20, ...


@pytest.fixture
def shop(servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(servers, app_name, tmp_path, more="learner: {snapshot_every: 20}\n") as made:
        yield made


def write_examples(settings: Settings, *, is_learned: np.ndarray) -> None:
    plan = FeaturePlan(settings.app)
    generator = np.random.Generator(np.random.PCG64(1))
    numeric = generator.normal(size=(COUNT, len(plan.numeric_names)))
    columns = {
        "kind": ["example"] * COUNT,
        "id": [str(row) for row in range(COUNT)],
        "label": (numeric[:, 0] > 0).astype(int).tolist(),
        "event_time": [row * 1_000 for row in range(COUNT)],
        "label_time": [row * 1_000 + 500 for row in range(COUNT)],
        "is_learned": is_learned.tolist(),
        "blend": [0.5] * COUNT,
        "learner": [0.5] * COUNT,
        "booster": [None] * COUNT,
        "base_rate": [0.4] * COUNT,
        "n": [0] * COUNT,
        "model_version": ["initial"] * COUNT,
        "other": [None] * COUNT,
        "other_version": [""] * COUNT,
        "feature_digest": [plan.digest] * COUNT,
        "numeric": numeric.astype(np.float32),
        "categories": [["x"] * len(plan.category_names)] * COUNT,
        "flags": [[]] * COUNT,
    }
    values = Encoder("example.v1").encode(columns)
    writer = TransactionalWriter({"bootstrap.servers": settings.bootstrap_servers}, f"test.{settings.app.name}")
    writer.open()
    for start in range(0, COUNT, 10):
        outputs = [Output(examples_topic(settings.app.name), b"k", one) for one in values[start : start + 10]]
        writer.publish(outputs, {}, None)
    writer.abandon()


def models_of(settings: Settings) -> Serving:
    """As a worker makes them, at the end of the log."""
    spec = settings.app
    pipeline = Pipeline(spec, FeaturePlan(spec), WireCodec(spec, InputDecoder(spec)))
    clients = {"bootstrap.servers": settings.bootstrap_servers}
    serving, fold = make_models(settings, pipeline, clients, on_roles=lambda roles: None, report=lambda line: None)
    fold.catch_up()
    fold.reader.close()
    return serving


def learner(shop: Shop, verb: str, *options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    servers = ["--bootstrap-servers", shop.settings.bootstrap_servers or "", "--data", str(shop.folder)]
    code = run(["learner", verb, str(shop.config), *options, *servers, "-o", "json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_range_is_counted_then_excised_from_the_models_of_every_worker(
    shop: Shop, servers, app_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    every = np.ones(COUNT, dtype=bool)
    write_examples(shop.settings, is_learned=every)
    taught = models_of(shop.settings)  # leaves snapshots at 20, 40, 60
    options = ("--from", "30", "--to", "40")  # the offset 32 is a marker
    code, said, _ = learner(shop, "excise", *options, "--dry-run", capsys=capsys)
    assert (code, taught.learned) == (0, COUNT)
    assert said["rows"] == [{"offsets": "30-40", "examples": 9, "learned": 9, "folded_again": "20-66"}]
    code, _, error = learner(shop, "excise", *options, capsys=capsys)
    assert code == 5 and "TM-1052" in error  # nobody can be asked here
    code, said, error = learner(shop, "excise", *options, "--yes", capsys=capsys)
    assert code == 0 and said["rows"][0]["excised"] == "30-40" and "cannot be undone" in error

    (tmp_path / "clean").mkdir()
    offsets = np.arange(COUNT) + np.arange(COUNT) // 10
    with a_shop(servers, f"{app_name}clean", tmp_path / "clean") as clean:
        write_examples(clean.settings, is_learned=(offsets < 30) | (offsets >= 40))
        expected = models_of(clean.settings)
    excised = models_of(shop.settings)  # resumes at 60 and folds again from 20
    assert excised.learned == expected.learned == COUNT - 9
    assert excised.snapshot().learners == expected.snapshot().learners != taught.snapshot().learners
    assert excised.blend_weights == expected.blend_weights

    code, said, _ = learner(shop, "excise", *options, "--dry-run", capsys=capsys)
    assert said["rows"][0]["learned"] == 0


def test_freeze_and_thaw_tell_how_to_undo_them_and_a_range_outside_of_the_log_is_refused(
    shop: Shop, capsys: pytest.CaptureFixture[str]
):
    code, said, error = learner(shop, "freeze", "--yes", capsys=capsys)
    assert code == 0 and said["rows"][0]["is_frozen"] and "to undo: tidemill learner thaw" in error
    assert models_of(shop.settings).roles.is_frozen
    code, said, error = learner(shop, "thaw", "--yes", capsys=capsys)
    assert code == 0 and not said["rows"][0]["is_frozen"] and "to undo: tidemill learner freeze" in error
    code, _, error = learner(shop, "excise", "--from", "2", "--to", "99", "--yes", capsys=capsys)
    assert code == 5 and "TM-5025" in error
