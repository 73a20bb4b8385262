"""The learner is a function of the rows learned: resume, batches, scoring and saving leave no trace."""

from __future__ import annotations

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
from tidemill.core.records import FeatureBatch, Float32s, Float64s
from tidemill.core.spec import LearnerSpec
from tidemill.errors import ConfigError, InvariantError
from tidemill.models import learner
from tidemill.models.booster import BoosterOutputs
from tidemill.models.learner import Learner, checked_arguments

LOGISTIC = "--loss_function logistic --link logistic"
ARGUMENTS = f"{LOGISTIC} -b 14 -l 0.05"
NUMERIC_NAMES = tuple(f"number_{at}" for at in range(6))
CATEGORY_NAMES = ("colour", "size")
COUNT, TREES = 2_000, 4
BOOSTER = "m1"


def made_rows(count: int) -> tuple[FeatureBatch, Float32s, BoosterOutputs]:
    """Numbers of all magnitudes, a tenth of them missing; labels, margins and leaves that depend on the rows."""
    random = np.random.default_rng(11)
    numeric = random.normal(size=(count, 6)) * np.logspace(-3, 3, 6)
    colour, size = random.integers(0, 40, count), random.integers(0, 5, count)
    label = numeric[:, 2] * 3 + colour / 20 - 1 + random.normal(size=count) > 0
    margin = (numeric[:, 2] + random.normal(size=count)).astype(np.float32)
    leaves = (np.abs(numeric[:, :TREES]) * 100).astype(np.int32) % 16
    numeric[random.random(numeric.shape) < 0.1] = np.nan
    categories = (tuple(f"c{code}" for code in colour), tuple(str(code) if code else "" for code in size))
    outputs = BoosterOutputs(margin, np.full(count, 0.5), leaves)
    return FeatureBatch(numeric.astype(np.float32), categories), label.astype(np.float32), outputs


FEATURES, LABEL, OUTPUTS = made_rows(COUNT)


def rows_of(features: FeatureBatch, start: int, stop: int) -> FeatureBatch:
    return FeatureBatch(features.numeric[start:stop], tuple(column[start:stop] for column in features.categories))


def outputs_of(start: int, stop: int) -> BoosterOutputs:
    return BoosterOutputs(OUTPUTS.margin[start:stop], OUTPUTS.probability[start:stop], OUTPUTS.leaves[start:stop])


def a_learner(arguments: str = ARGUMENTS, model: bytes | None = None) -> Learner:
    return Learner(arguments, NUMERIC_NAMES, CATEGORY_NAMES, model=model)


def learn(learning: Learner, start: int, stop: int, *, has_booster: bool = True) -> Learner:
    rows = np.arange(stop - start)
    outputs = outputs_of(start, stop) if has_booster else None
    learning.learn(rows_of(FEATURES, start, stop), LABEL[start:stop], rows, outputs, BOOSTER)
    return learning


def learned(count: int, arguments: str = ARGUMENTS, *, has_booster: bool = True) -> Learner:
    return learn(a_learner(arguments), 0, count, has_booster=has_booster)


def scored(scoring: Learner, start: int = 0, stop: int = COUNT) -> Float64s:
    return scoring.score(rows_of(FEATURES, start, stop), outputs_of(start, stop), BOOSTER)


# ---- resume


@pytest.mark.parametrize("has_booster", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        "-l 0.05",
        "-l 0.5 -q nc -q cc",
        "-l 0.1 -q mc -q ct",
        "-l 0.05 --interactions=nnc --noconstant",
        "--l1 1e-6 --l2 1e-6",
        "--ftrl --ftrl_alpha 0.1 --ftrl_beta 0.5",
        "--coin",
    ],
)
def test_resumed_learner_is_the_same_bit_for_bit(arguments: str, has_booster: bool) -> None:
    whole = f"{LOGISTIC} -b 14 {arguments}"
    through = learned(COUNT, whole, has_booster=has_booster)
    resumed = a_learner(whole, learned(1_000, whole, has_booster=has_booster).save())
    learn(resumed, 1_000, COUNT, has_booster=has_booster)

    assert resumed.save() == through.save()
    assert scored(resumed).tolist() == scored(through).tolist()


IN_ANOTHER_PROCESS = """
import sys
sys.path[:0] = {paths!r}
import test_learner as here
resumed = here.a_learner(model=sys.stdin.buffer.read())
here.learn(resumed, 1_000, here.COUNT)
print(resumed.save().hex(), here.scored(resumed).tobytes().hex())
"""


def test_another_process_resumes_to_the_same_bits() -> None:
    program = IN_ANOTHER_PROCESS.format(paths=[str(Path(__file__).parent), *sys.path])
    model = learned(1_000).save()
    answer = subprocess.run([sys.executable, "-c", program], input=model, capture_output=True, timeout=60)
    assert answer.returncode == 0, answer.stderr.decode()

    through = learned(COUNT)
    assert answer.stdout.decode().split() == [through.save().hex(), scored(through).tobytes().hex()]


def test_resume_without_its_arguments_is_another_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `-i` alone is not enough, and why a snapshot of other arguments is refused."""
    model = learned(1_000).save()
    with monkeypatch.context() as cut:
        cut.setattr(learner, "checked_arguments", lambda _arguments: [])
        resumed = a_learner(model=model)
    learn(resumed, 1_000, COUNT)
    through = learned(COUNT)

    assert resumed.save() != through.save()
    assert scored(resumed).tolist() != scored(through).tolist()


# ---- a function of the rows alone


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_batches_leave_no_trace(cuts: list[int]) -> None:
    pieces = a_learner()
    for start, stop in pairwise([0, *sorted(cuts), 300]):
        learn(pieces, start, stop)
    assert pieces.save() == learned(300).save()


def test_scoring_and_saving_leave_no_trace() -> None:
    disturbed = a_learner()
    for start in range(0, 500, 100):
        scored(disturbed)
        disturbed.save()
        learn(disturbed, start, start + 100)
        disturbed.score(rows_of(FEATURES, 0, 50), outputs_of(0, 50), "another")
        disturbed.score(rows_of(FEATURES, 0, 50), None, "")
    assert disturbed.save() == learned(500).save()


def test_row_is_scored_by_itself() -> None:
    made = learned(500)
    one_by_one = [scored(made, at, at + 1)[0] for at in reversed(range(60))]
    assert scored(made, 0, 60).tolist() == one_by_one[::-1]


def test_only_the_given_rows_are_learned_in_their_order() -> None:
    rows = np.array([7, 3, 99, 50])
    some, one_by_one = a_learner(), a_learner()
    some.learn(rows_of(FEATURES, 0, 100), LABEL[:100], rows, outputs_of(0, 100), BOOSTER)
    for row in rows.tolist():
        learn(one_by_one, row, row + 1)
    assert some.save() == one_by_one.save()

    in_order = a_learner()
    in_order.learn(rows_of(FEATURES, 0, 100), LABEL[:100], np.sort(rows), outputs_of(0, 100), BOOSTER)
    assert some.save() != in_order.save()


def test_row_learned_twice_changes_the_bytes() -> None:
    assert learn(learned(100), 99, 100).save() != learned(100).save()


# ---- what it answers


def test_it_learns() -> None:
    probability = scored(learned(1_500), 1_500)
    label = LABEL[1_500:]
    assert auc(probability, label) > 0.65
    assert log_loss(probability, label) < log_loss(np.full(len(label), label.mean()), label)
    assert ((probability > 0) & (probability < 1)).all()


def test_missing_number_is_not_zero() -> None:
    made = learned(COUNT, has_booster=False)
    numeric = np.zeros((2, 6), dtype=np.float32)
    numeric[1, 2] = np.nan
    zero, missing = made.score(FeatureBatch(numeric, (("c1", "c1"), ("1", "1"))), None, "")
    assert zero != missing


def test_weight_of_the_margin_carries_over_to_another_booster_those_of_leaves_do_not() -> None:
    made = learned(COUNT)
    features = rows_of(FEATURES, 0, 1)
    none = np.zeros((1, 0), dtype=np.int32)

    def probability(margin: float, leaves: np.ndarray, booster: str) -> float:
        outputs = BoosterOutputs(np.array([margin], dtype=np.float32), np.array([0.5]), leaves)
        return float(made.score(features, outputs, booster)[0])

    assert probability(3, none, "another") == probability(3, none, BOOSTER) > probability(-3, none, BOOSTER)
    unknown = probability(1, OUTPUTS.leaves[:1], "another")
    assert unknown == probability(1, none, BOOSTER), "leaves that were never learned weigh nothing"
    assert unknown != probability(1, OUTPUTS.leaves[:1], BOOSTER)


def test_versions_that_take_turns_leave_no_trace_in_each_other() -> None:
    made = learned(COUNT)
    alone = scored(made).tolist()
    made.score(FEATURES, OUTPUTS, "another")
    assert scored(made).tolist() == alone


# ---- what it refuses


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
        a_learner(arguments)


def test_default_arguments_are_allowed() -> None:
    assert checked_arguments(LearnerSpec().arguments)


def test_shapes_that_do_not_fit_are_refused_before_anything_is_learned() -> None:
    made = learned(100)
    before = made.save()
    features, label, outputs, rows = rows_of(FEATURES, 0, 4), LABEL[:4], outputs_of(0, 4), np.arange(4)
    for wrong in (FeatureBatch(features.numeric[:, :5], features.categories), FeatureBatch(features.numeric, ())):
        with pytest.raises(InvariantError, match="TM-9501"):
            made.score(wrong, outputs, BOOSTER)
        with pytest.raises(InvariantError, match="TM-9501"):
            made.learn(wrong, label, rows, outputs, BOOSTER)
    for unfit in (
        replace(outputs, margin=outputs.margin[:3]),
        replace(outputs, leaves=outputs.leaves[:3]),
        replace(outputs, leaves=outputs.leaves[0]),
    ):
        with pytest.raises(InvariantError, match="TM-9501"):
            made.score(features, unfit, BOOSTER)
        with pytest.raises(InvariantError, match="TM-9501"):
            made.learn(features, label, rows, unfit, BOOSTER)
    with pytest.raises(InvariantError, match="TM-9501"):
        made.learn(features, label[:3], rows, outputs, BOOSTER)
    assert made.save() == before


# ---- as the engine sees a row


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e38])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[NUMBERS] * 7), min_size=1, max_size=5), st.lists(st.integers(0, 1), min_size=5, max_size=5))
def test_extreme_numbers_and_margins_leave_probabilities(rows: list[tuple[float, ...]], labels: list[int]) -> None:
    values, count = np.array(rows, dtype=np.float32), len(rows)
    features = FeatureBatch(values[:, :6], (("c1",) * count, ("",) * count))
    outputs = BoosterOutputs(values[:, 6], np.full(count, 0.5), np.zeros((count, TREES), dtype=np.int32))
    made = learned(20)
    made.learn(features, np.array(labels[:count], dtype=np.float32), np.arange(count), outputs, BOOSTER)
    for probability in (made.score(features, outputs, BOOSTER), scored(made, 0, 50)):
        assert ((probability >= 0) & (probability <= 1)).all()


def test_rows_mean_the_same_as_vowpal_wabbits_own_text() -> None:
    """Integers survive its parser; fed with its hashes, our way and its way learn the same weights."""
    by_text, by_lists = pylibvw.vw([*checked_arguments(ARGUMENTS), "--quiet"]), a_learner()
    random = np.random.default_rng(3)
    for _ in range(300):
        numbers, colour, label = random.integers(-50, 50, 3).tolist(), int(random.integers(0, 9)), random.integers(0, 2)
        margin, leaves = int(random.integers(-4, 5)), random.integers(0, 9, 3).tolist()
        line = " ".join(f"f{at}:{number}" for at, number in enumerate(numbers))
        tokens = " ".join(f"t{at}_{leaf}" for at, leaf in enumerate(leaves))
        example = by_text._parse(f"{2 * label - 1} |n {line} |c v{colour} |m margin:{margin} |t {tokens}")[0]
        by_text.learn(example)
        by_text._finish_example(example)
        number_space, category_space, margin_space, leaf_space = (by_text.hash_space(name) for name in "ncmt")
        kept, row = by_lists._by_label[label], (
            [(by_text.hash_feature(f"f{at}", number_space), float(number)) for at, number in enumerate(numbers)],
            [by_text.hash_feature(f"v{colour}", category_space)],
            [(by_text.hash_feature("margin", margin_space), float(margin))],
            [by_text.hash_feature(f"t{at}_{leaf}", leaf_space) for at, leaf in enumerate(leaves)],
        )  # fmt: skip
        by_lists._fill(kept, row)
        by_lists._engine.learn(kept)
        by_lists._empty(kept, row)
    weights = range(1 << 14)
    assert [by_text.get_weight(at, 0) for at in weights] == [by_lists._engine.get_weight(at, 0) for at in weights]
