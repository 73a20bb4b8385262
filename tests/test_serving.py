"""The models as a replicated state machine: a function of the prefix of the log, whoever folds it and how."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.folded_log import COUNT, FEATURES, IDS, a_models_spec, a_serving, command, examples
from tidemill.core.examples import no_examples
from tidemill.core.roles import INITIAL, RoleHistory, Roles
from tidemill.core.spec import CostSpec
from tidemill.errors import InvariantError, ModelRefusedError
from tidemill.models.serving import Serving

COMMANDS = [
    command(31, "prepare", "m1"),
    command(63, "promote", "m1"),
    command(91, "freeze", expects="m1"),
    command(121, "thaw", expects="m1"),
    command(131, "promote", "m9", expects="m1"),  # not prepared: ignored
    command(151, "prepare", "m22", expects="m1"),
    command(181, "promote", "m22", expects=INITIAL),  # another champion: ignored
]


def folded(serving: Serving, cuts: list[int]) -> list:
    """Fold everything in pieces that end before the given offsets; the snapshots on the way."""
    found = []
    n = serving.n
    for until in [*sorted(cuts), 2 * COUNT]:
        if until <= n:
            continue
        part = examples(-(-n // 2), -(-until // 2))
        found += serving.fold(part, [c for c in COMMANDS if n <= c.offset < until], until)
        n = until
    return found


def same_scores(one: Serving, other: Serving) -> bool:
    a, b = one.score(FEATURES, IDS), other.score(FEATURES, IDS)
    names = ("learner", "base_rate", "blend")
    return a.model_version == b.model_version and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in names
    )


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 2 * COUNT - 1), max_size=6), looks=st.integers(0, 3))
def test_state_is_a_function_of_the_prefix_whatever_the_pieces_and_however_often_it_scored(cuts, looks):
    whole, pieces = a_serving(), a_serving()
    folded(whole, [])
    for _ in range(looks):
        pieces.score(FEATURES, IDS)
    folded(pieces, cuts)

    assert pieces.digest() == whole.digest()
    assert same_scores(pieces, whole)


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 2 * COUNT - 1))
def test_resuming_from_a_snapshot_is_bit_exact_challenger_and_blend_included(cut):
    straight, before = a_serving(), a_serving()
    folded(straight, [])
    before.fold(examples(0, -(-cut // 2)), [c for c in COMMANDS if c.offset < cut], cut)
    resumed = a_serving(snapshot=before.snapshot())
    folded(resumed, [])

    assert resumed.digest() == straight.digest()
    assert resumed.roles == straight.roles
    assert same_scores(resumed, straight)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 2 * COUNT - 1), max_size=5))
def test_snapshots_fall_due_at_the_same_n_with_the_same_digest_whatever_the_pieces(cuts):
    spec = a_models_spec(snapshot_every=50)
    whole = folded(a_serving(spec), [])
    pieces = folded(a_serving(spec), cuts)

    assert [one.n for one in whole] == [50, 100, 150, 200]
    assert [(one.n, one.digest) for one in pieces] == [(one.n, one.digest) for one in whole]


def test_version_that_scores_is_told_by_n_alone():
    history = RoleHistory.of(COMMANDS)
    serving = a_serving()
    for until in range(10, 2 * COUNT, 10):
        part = examples(-(-serving.n // 2), -(-until // 2))
        serving.fold(part, [c for c in COMMANDS if serving.n <= c.offset < until], until)
        assert serving.score(FEATURES, IDS).model_version == history.at(until).champion
    assert [c.offset for c in history.ignored] == [131, 181]
    assert serving.ignored == 2
    assert history.now == Roles(champion="m1", challenger="m22", parent=INITIAL)


def test_promoted_learner_has_seen_the_last_examples_with_its_own_booster():
    warm, cold = a_serving(a_models_spec(warm_offsets=40)), a_serving(a_models_spec(warm_offsets=0))
    for serving in (warm, cold):
        serving.fold(examples(0, 40), [command(31, "prepare", "m1"), command(63, "promote", "m1")], 80)
    assert warm.digest() != cold.digest()
    assert warm.score(FEATURES, IDS).booster is not None


def test_version_that_is_prepared_before_the_first_example_has_nothing_to_warm_up_with():
    serving = a_serving(a_models_spec(warm_offsets=0))
    serving.fold(no_examples(), [command(1, "prepare", "m1"), command(3, "promote", "m1")], 5)
    assert serving.score(FEATURES, IDS).model_version == "m1"


def test_frozen_learner_learns_nothing_until_it_thaws():
    frozen = a_serving()
    frozen.fold(examples(0, 20), [command(21, "freeze")], 40)
    assert frozen.roles.is_frozen
    stopped = frozen.score(FEATURES, IDS).learner
    frozen.fold(examples(60, 80), [], 160)
    assert np.array_equal(frozen.score(FEATURES, IDS).learner, stopped)
    frozen.fold(examples(80, 100), [command(161, "thaw")], 200)
    assert not np.array_equal(frozen.score(FEATURES, IDS).learner, stopped)


def test_worker_that_lacks_the_champion_serves_the_one_before_degraded_and_makes_no_snapshots():
    spec = a_models_spec(snapshot_every=50)
    serving = a_serving(spec, lacks=("m1",))
    made = serving.fold(examples(0, 20), [command(31, "prepare", "m1")], 40)
    assert made == () and "TM-5011" in serving.missing["m1"]
    assert not serving.score(FEATURES, IDS).is_degraded
    made = serving.fold(examples(20, 80), [command(63, "promote", "m1")], 160)

    assert made == ()
    assert serving.roles.champion == "m1"
    scores = serving.score(FEATURES, IDS)
    assert (scores.model_version, scores.is_degraded) == (INITIAL, True)
    assert not serving.is_complete


def test_first_scores_are_the_declared_default_and_degraded():
    scores = a_serving().score(FEATURES, IDS)
    assert scores.is_degraded and scores.n == 0
    assert np.all(scores.blend == a_models_spec().default_probability)


def test_few_positive_decisions_of_a_batch_name_their_top_features():
    spec = replace(a_models_spec(), costs=CostSpec(false_alarm=1, miss=99))
    serving = a_serving(spec)
    serving.fold(examples(0, 40), [command(31, "prepare", "m1"), command(63, "promote", "m1")], 80)
    scores = serving.score(FEATURES, IDS)
    assert len(scores.top_features) == 20
    assert all(scores.blend[row] > spec.costs.threshold for row in scores.top_features)


@pytest.mark.parametrize("offsets", [[4, 4], [6, 4], [2, 300]])
def test_fold_refuses_offsets_out_of_order_or_past_the_end(offsets):
    serving = a_serving()
    part = replace(examples(0, 2), offset=np.array(offsets))
    with pytest.raises(InvariantError, match="TM-9502"):
        serving.fold(part, [], 200)


def test_label_that_is_neither_0_nor_1_is_refused():
    part = replace(examples(0, 2), label=np.array([0.5, 1], dtype=np.float32))
    with pytest.raises(InvariantError, match="TM-9503"):
        a_serving().fold(part, [], 4)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"digest": "0" * 32}, "TM-5001"), ({"learners": (b"x",)}, "TM-5001"), ({"champion": "m9"}, "TM-5001")],
)
def test_broken_snapshot_is_refused(change, code):
    serving = a_serving()
    serving.fold(examples(0, 20), [], 40)
    with pytest.raises(ModelRefusedError, match=code):
        a_serving(snapshot=replace(serving.snapshot(), **change))


@pytest.mark.parametrize("change", [{"engine": "another 1.0"}, {"arguments": "-b 3"}, {"feature_digest": "g"}])
def test_snapshot_of_another_engine_arguments_or_features_is_refused(change):
    serving = a_serving()
    serving.fold(examples(0, 20), [], 40)
    with pytest.raises(ModelRefusedError, match="TM-5002"):
        a_serving(snapshot=replace(serving.snapshot(), **change))
