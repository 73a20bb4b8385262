"""The learner is a function of the examples folded: resume, batches, scoring and saving leave no trace."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pylibvw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.metrics import auc, log_loss
from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.core.snapshot import LearnerSnapshot, state_digest
from tidemill.core.spec import LearnerSpec
from tidemill.errors import ConfigError, InvariantError, ModelRefusedError
from tidemill.models import example_encoder, learner
from tidemill.models.example_encoder import NUMERIC_MAX, ExampleEncoder, feature_hash
from tidemill.models.learner import Learner, checked_arguments

LOGISTIC = "--loss_function logistic --link logistic"
SPEC = LearnerSpec(arguments=f"{LOGISTIC} -b 14 -l 0.05", snapshot_every=1_000_000)
NUMERIC_NAMES = tuple(f"number_{at}" for at in range(6))
CATEGORY_NAMES = ("colour", "size")
COUNT = 2_000


def made_examples(count: int) -> ExampleColumns:
    """Numbers of all magnitudes, a tenth of them missing; labels that depend on numbers and categories."""
    random = np.random.default_rng(11)
    numeric = random.normal(size=(count, 6)) * np.logspace(-3, 3, 6)
    colour, size = random.integers(0, 40, count), random.integers(0, 5, count)
    label = numeric[:, 2] * 3 + colour / 20 - 1 + random.normal(size=count) > 0
    numeric[random.random(numeric.shape) < 0.1] = np.nan
    categories = (tuple(f"c{code}" for code in colour), tuple(str(code) if code else "" for code in size))
    return ExampleColumns(
        offset=np.arange(count, dtype=np.int64),
        features=FeatureBatch(numeric.astype(np.float32), categories),
        label=label.astype(np.float32),
        is_learned=np.ones(count, dtype=np.bool_),
    )


EXAMPLES = made_examples(COUNT)


def part(start: int, stop: int, examples: ExampleColumns = EXAMPLES) -> ExampleColumns:
    return ExampleColumns(
        offset=examples.offset[start:stop],
        features=rows_of(examples.features, start, stop),
        label=examples.label[start:stop],
        is_learned=examples.is_learned[start:stop],
    )


def rows_of(features: FeatureBatch, start: int, stop: int) -> FeatureBatch:
    return FeatureBatch(features.numeric[start:stop], tuple(column[start:stop] for column in features.categories))


def a_learner(spec: LearnerSpec = SPEC, snapshot: LearnerSnapshot | None = None) -> Learner:
    return Learner(spec, NUMERIC_NAMES, CATEGORY_NAMES, feature_digest="f1", default_probability=0.3, snapshot=snapshot)


def a_folded(count: int, spec: LearnerSpec = SPEC) -> Learner:
    made = a_learner(spec)
    made.fold(part(0, count), count)
    return made


def with_arguments(arguments: str) -> LearnerSpec:
    return replace(SPEC, arguments=f"{LOGISTIC} -b 14 {arguments}")


# ---- resume


@pytest.mark.parametrize(
    "arguments",
    [
        "-l 0.05",
        "-l 0.5 -q nc -q cc",
        "-l 0.05 --interactions=nnc --noconstant",
        "--l1 1e-6 --l2 1e-6",
        "--ftrl --ftrl_alpha 0.1 --ftrl_beta 0.5",
        "--coin",
    ],
)
def test_resumed_learner_is_the_same_bit_for_bit(arguments: str) -> None:
    spec = with_arguments(arguments)
    through = a_folded(COUNT, spec)
    resumed = a_learner(spec, a_folded(1_000, spec).snapshot())
    resumed.fold(part(1_000, COUNT), COUNT)

    assert (resumed.n, resumed.learned) == (through.n, through.learned) == (COUNT, COUNT)
    assert resumed.digest() == through.digest()
    assert resumed.snapshot() == through.snapshot()
    assert resumed.score(EXAMPLES.features).blend.tolist() == through.score(EXAMPLES.features).blend.tolist()


IN_ANOTHER_PROCESS = """
import sys, pickle
sys.path[:0] = {paths!r}
import test_learner as here
resumed = here.a_learner(snapshot=pickle.load(sys.stdin.buffer))
resumed.fold(here.part(1_000, here.COUNT), here.COUNT)
print(resumed.digest(), resumed.score(here.EXAMPLES.features).blend.tobytes().hex())
"""


def test_another_process_resumes_to_the_same_bits() -> None:
    program = IN_ANOTHER_PROCESS.format(paths=[str(Path(__file__).parent), *sys.path])
    state = pickle.dumps(a_folded(1_000).snapshot())
    answer = subprocess.run([sys.executable, "-c", program], input=state, capture_output=True, timeout=60)
    assert answer.returncode == 0, answer.stderr.decode()

    through = a_folded(COUNT)
    blend = through.score(EXAMPLES.features).blend
    assert answer.stdout.decode().split() == [through.digest(), blend.tobytes().hex()]


def test_resume_without_its_arguments_is_another_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `-i` alone is not enough, and why a snapshot of other arguments is refused."""
    snapshot = a_folded(1_000).snapshot()
    with monkeypatch.context() as cut:
        cut.setattr(learner, "checked_arguments", lambda _arguments: [])
        resumed = a_learner(snapshot=snapshot)
    resumed.fold(part(1_000, COUNT), COUNT)
    through = a_folded(COUNT)

    assert resumed.digest() != through.digest()
    assert resumed.score(EXAMPLES.features).blend.tolist() != through.score(EXAMPLES.features).blend.tolist()


# ---- a function of the examples alone


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_batches_leave_no_trace(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 300]
    folded = a_learner()
    for start, stop in pairwise(bounds):
        folded.fold(part(start, stop), stop)
    assert folded.digest() == a_folded(300).digest()


def test_scoring_and_saving_leave_no_trace() -> None:
    disturbed = a_learner()
    for start in range(0, 500, 100):
        disturbed.score(EXAMPLES.features)
        disturbed.digest()
        disturbed.fold(part(start, start + 100), start + 100)
        disturbed.score(rows_of(EXAMPLES.features, 0, start))
        disturbed.snapshot()
    assert disturbed.snapshot() == a_folded(500).snapshot()


def test_row_is_scored_by_itself() -> None:
    folded = a_folded(500)
    together = folded.score(rows_of(EXAMPLES.features, 0, 60)).blend.tolist()
    one_by_one = [folded.score(rows_of(EXAMPLES.features, at, at + 1)).blend[0] for at in reversed(range(60))]
    assert together == one_by_one[::-1]


def test_example_folded_twice_changes_the_digest() -> None:
    twice = a_folded(100)
    twice.fold(replace(part(99, 100), offset=np.array([100])), 101)
    assert twice.digest() != a_folded(100).digest()


def test_order_of_examples_matters() -> None:
    backwards = a_learner()
    order = np.arange(50)[::-1]
    features = FeatureBatch(
        EXAMPLES.features.numeric[order], tuple(tuple(c[i] for i in order) for c in EXAMPLES.features.categories)
    )
    backwards.fold(replace(part(0, 50), features=features, label=EXAMPLES.label[order]), 50)
    assert backwards.digest() != a_folded(50).digest()


def test_n_is_no_part_of_the_digest() -> None:
    later = a_folded(100)
    before = later.digest()
    later.fold(part(0, 0), 5_000)
    assert (later.n, later.digest()) == (5_000, before)


def test_amendment_is_passed_over() -> None:
    folded = a_learner()
    is_learned = np.ones(100, dtype=np.bool_)
    is_learned[[3, 60]] = False
    label = EXAMPLES.label[:100].copy()
    label[3] = np.nan  # what an amendment carries is nobody's business
    folded.fold(replace(part(0, 100), is_learned=is_learned, label=label), 100)

    without = a_learner()
    kept = np.flatnonzero(is_learned)
    numeric, categories = EXAMPLES.features.numeric[kept], EXAMPLES.features.categories
    features = FeatureBatch(numeric, tuple(tuple(column[i] for i in kept) for column in categories))
    without.fold(ExampleColumns(kept, features, EXAMPLES.label[kept], np.ones(98, dtype=np.bool_)), 100)
    assert (folded.learned, folded.digest()) == (98, without.digest())


# ---- what it answers


def test_until_the_first_example_the_default_answers() -> None:
    new = a_learner()
    scores = new.score(rows_of(EXAMPLES.features, 0, 3))
    assert scores.is_degraded and scores.booster is None
    assert scores.blend.tolist() == scores.learner.tolist() == scores.base_rate.tolist() == [0.3] * 3

    new.fold(part(0, 1), 1)
    scores = new.score(rows_of(EXAMPLES.features, 0, 3))
    assert not scores.is_degraded and scores.n == 1
    assert scores.base_rate.tolist() == [(float(EXAMPLES.label[0]) + 0.3) / 2] * 3


def test_it_learns() -> None:
    blend = a_folded(1_500).score(rows_of(EXAMPLES.features, 1_500, COUNT)).blend
    label = EXAMPLES.label[1_500:]
    assert auc(blend, label) > 0.65
    assert log_loss(blend, label) < log_loss(np.full(len(label), label.mean()), label)
    assert ((blend > 0) & (blend < 1)).all()


def test_missing_number_is_not_zero() -> None:
    folded = a_folded(COUNT)
    numeric = np.zeros((2, 6), dtype=np.float32)
    numeric[1, 2] = np.nan
    zero, missing = folded.score(FeatureBatch(numeric, (("c1", "c1"), ("1", "1")))).blend
    assert zero != missing


# ---- snapshots that fall due


def test_snapshot_is_taken_before_the_first_example_past_the_multiple() -> None:
    spec = replace(SPEC, snapshot_every=100)
    folded, offsets = a_learner(spec), np.array([0, 50, 99, 103, 180, 420, 421], dtype=np.int64)
    columns = replace(part(0, 7), offset=offsets)

    due = folded.fold(columns, 500)

    assert [(snapshot.n, snapshot.learned) for snapshot in due] == [(100, 3), (400, 5)]
    assert due[0].digest == a_folded(3).digest()
    assert folded.n == 500


def test_snapshots_are_the_same_whatever_the_batches() -> None:
    spec = replace(SPEC, snapshot_every=100)
    at_once = a_learner(spec).fold(part(0, 450), 450)
    piecewise, found = a_learner(spec), []
    for start in range(0, 450, 50):
        found += piecewise.fold(part(start, start + 50), start + 50)
    resumed = a_learner(spec, at_once[1])

    assert [snapshot.n for snapshot in at_once] == [100, 200, 300, 400]
    assert found == list(at_once)
    assert list(resumed.fold(part(200, 450), 450)) == list(at_once[2:])


# ---- what it refuses


def test_cut_snapshot_is_refused_before_the_engine_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = a_folded(50).snapshot()
    monkeypatch.setattr(learner, "_resumed", lambda *_: pytest.fail("the engine was given broken bytes"))
    for broken in (snapshot.model[:-1], b"", snapshot.model[:60] + b"\xff" + snapshot.model[61:]):
        with pytest.raises(ModelRefusedError, match="TM-5001"):
            a_learner(snapshot=replace(snapshot, model=broken))
    with pytest.raises(ModelRefusedError, match="TM-5001"):
        a_learner(snapshot=replace(snapshot, learned=49))


@pytest.mark.parametrize("change", [{"engine": "other 1"}, {"arguments": "-b 14"}, {"feature_digest": "f2"}])
def test_snapshot_of_another_configuration_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ModelRefusedError, match="TM-5002"):
        a_learner(snapshot=replace(a_folded(50).snapshot(), **change))


@pytest.mark.parametrize(
    "arguments",
    [
        f"{LOGISTIC} --sgd",  # its rate advances by predictions too
        f"{LOGISTIC} --nn 4",  # does not resume bit by bit
        f"{LOGISTIC} --power_t 0.3",
        f"{LOGISTIC} -f /tmp/model",
        f"{LOGISTIC} -i model.vw",
        f"{LOGISTIC} --predict_only_model",
        f"{LOGISTIC} stray",
        f"{LOGISTIC} -b",
        "--loss_function squared --link logistic",
        "--link logistic",
        "--loss_function logistic",
        "",
    ],
)
def test_arguments_that_break_a_promise_are_refused(arguments: str) -> None:
    with pytest.raises(ConfigError, match="TM-150"):
        a_learner(replace(SPEC, arguments=arguments))


def test_default_arguments_are_allowed() -> None:
    assert checked_arguments(LearnerSpec().arguments)


def test_fold_takes_each_offset_once_and_in_order() -> None:
    folded = a_folded(100)
    before = folded.digest()
    two = part(100, 102)
    for columns, offset_next in (
        (part(99, 101), 101),  # the first is folded already
        (replace(two, offset=np.array([101, 100])), 102),
        (replace(two, offset=np.array([101, 101])), 102),
        (two, 101),
        (part(0, 0), 99),
    ):
        with pytest.raises(InvariantError, match="TM-9502"):
            folded.fold(columns, offset_next)
    assert (folded.n, folded.digest()) == (100, before)


@pytest.mark.parametrize("label", [0.5, -1.0, 2.0, float("nan")])
def test_label_is_zero_or_one(label: float) -> None:
    with pytest.raises(InvariantError, match="TM-9503"):
        a_learner().fold(replace(part(0, 1), label=np.array([label], dtype=np.float32)), 1)


def test_rows_of_other_columns_are_refused() -> None:
    features = rows_of(EXAMPLES.features, 0, 2)
    for wrong in (FeatureBatch(features.numeric[:, :5], features.categories), FeatureBatch(features.numeric, ())):
        with pytest.raises(InvariantError, match="TM-9501"):
            list(ExampleEncoder(NUMERIC_NAMES, CATEGORY_NAMES).encode(wrong))


# ---- the encoder

NASTY = st.text(st.sampled_from("|:' \n\t\r\0\u2028\u00a0\x1b,#ab01") | st.characters(), max_size=12)
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e38])


class Recorded:
    """Takes a row as Vowpal Wabbit sees it, once set up."""

    def __init__(self) -> None:
        self.learner = a_learner()
        self.engine = self.learner._engine

    def namespaces(self, row: example_encoder.Row) -> dict[int, list[tuple[int, float]]]:
        example = self.learner._unlabelled
        self.learner._fill(example, *row)
        seen = {}
        for namespace in (example.namespace(at) for at in range(example.num_namespaces())):
            places = range(example.num_features_in(namespace))
            seen[namespace] = [(example.feature(namespace, i), example.feature_weight(namespace, i)) for i in places]
        self.learner._empty(example)
        assert example.num_namespaces() == 0, "the next row would inherit something"
        return seen


RECORDED = Recorded()
CONSTANT = 128  # Vowpal Wabbit's own namespace


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=6, max_size=6), NASTY, NASTY)
def test_no_value_forges_a_feature(numbers: list[float], colour: str, size: str) -> None:
    """The engine sees one token per category and one number or token per numeric column, whatever the values."""
    numeric = np.array([numbers], dtype=np.float32)
    (row,) = ExampleEncoder(NUMERIC_NAMES, CATEGORY_NAMES).encode(FeatureBatch(numeric, ((colour,), (size,))))
    seen = RECORDED.namespaces(row)

    assert set(seen) <= {ord("n"), ord("c"), CONSTANT}
    assert [weight for _, weight in seen[ord("c")]] == [1.0, 1.0]
    clipped = np.clip(numeric[0], -NUMERIC_MAX, NUMERIC_MAX).tolist()
    expected = [1.0 if value != value else value for value in clipped if value != 0]
    assert [weight for _, weight in seen.get(ord("n"), [])] == expected, "float32 comes through bit for bit"
    assert len(seen[CONSTANT]) == 1


@given(NASTY, NASTY)
def test_different_values_are_different_features(one: str, other: str) -> None:
    # 32 bits: among the values that hypothesis finds an equal hash is a defect, not bad luck.
    assert (feature_hash("category", "a", one) == feature_hash("category", "a", other)) == (one == other)


def test_name_and_value_do_not_run_into_each_other() -> None:
    hashes = {feature_hash("category", "a", "b=c"), feature_hash("category", "a=b", "c"), feature_hash("numeric", "a")}
    hashes |= {feature_hash("missing", "a"), feature_hash("category", "a"), feature_hash("category", "", "a")}
    assert len(hashes) == 6


def test_hashes_are_the_same_on_every_machine() -> None:
    assert feature_hash("category", "colour", "grün|\n") == 4_222_269_368


def test_full_cache_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    features = rows_of(EXAMPLES.features, 0, 200)
    expected = list(ExampleEncoder(NUMERIC_NAMES, CATEGORY_NAMES).encode(features))
    monkeypatch.setattr(example_encoder, "CACHED_VALUES_MAX", 3)
    encoder = ExampleEncoder(NUMERIC_NAMES, CATEGORY_NAMES)
    assert repr(list(encoder.encode(features))) == repr(expected)
    assert max(len(known) for known in encoder._tokens) <= 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[NUMBERS] * 6), min_size=1, max_size=5), st.lists(st.integers(0, 1), min_size=5, max_size=5))
def test_extreme_numbers_leave_probabilities(rows: list[tuple[float, ...]], labels: list[int]) -> None:
    numeric, count = np.array(rows, dtype=np.float32), len(rows)
    features = FeatureBatch(numeric, (("c1",) * count, ("",) * count))
    folded = a_folded(20)
    label = np.array(labels[:count], dtype=np.float32)
    folded.fold(ExampleColumns(np.arange(20, 20 + count), features, label, np.ones(count, dtype=np.bool_)), 20 + count)
    for scored in (features, rows_of(EXAMPLES.features, 0, 50)):
        blend = folded.score(scored).blend
        assert ((blend >= 0) & (blend <= 1)).all()


def test_rows_mean_the_same_as_vowpal_wabbits_own_text() -> None:
    """Integers survive its parser; fed with its hashes, our way and its way learn the same weights."""
    arguments = [*checked_arguments(SPEC.arguments), "--quiet"]
    by_text, by_lists = pylibvw.vw(arguments), a_learner()
    random = np.random.default_rng(3)
    for _ in range(300):
        numbers, colour, label = random.integers(-50, 50, 3).tolist(), int(random.integers(0, 9)), random.integers(0, 2)
        line = " ".join(f"f{at}:{number}" for at, number in enumerate(numbers))
        example = by_text._parse(f"{2 * label - 1} |n {line} |c v{colour}")[0]
        by_text.learn(example)
        by_text._finish_example(example)
        spaces = by_text.hash_space("n"), by_text.hash_space("c")
        row = [(by_text.hash_feature(f"f{at}", spaces[0]), float(number)) for at, number in enumerate(numbers)]
        kept = by_lists._by_label[label]
        by_lists._fill(kept, row, [(by_text.hash_feature(f"v{colour}", spaces[1]), 1.0)])
        by_lists._engine.learn(kept)
        by_lists._empty(kept)
    weights = range(1 << 14)
    assert [by_text.get_weight(at, 0) for at in weights] == [by_lists._engine.get_weight(at, 0) for at in weights]


def test_digest_covers_weights_and_counters() -> None:
    digests = {state_digest(b"w", 2, 1), state_digest(b"v", 2, 1), state_digest(b"w", 3, 1), state_digest(b"w", 2, 2)}
    assert len(digests) == 4
