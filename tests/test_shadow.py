"""A challenger is scored beside the champion, serves a share as a canary, and changes places with the champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.folded_log import (
    COUNT,
    FEATURES,
    IDS,
    ABooster,
    a_models_spec,
    a_serving,
    command,
    examples,
)
from tests.in_memory import App, ConstantScorer, Machinery, Worker, a_shop
from tests.memory_kafka import kafka_in_memory
from tidemill.core.blend import blend
from tidemill.core.examples import chosen, joined, rows
from tidemill.core.loop_spec import RetrainSpec, RolloutSpec
from tidemill.core.records import Command, FeatureBatch, Scores
from tidemill.core.roles import INITIAL, Roles
from tidemill.core.spec import AppSpec, CostSpec
from tidemill.io.outputs import decode_examples
from tidemill.models.serving import Serving

SHARE = 0.3


def a_canary_spec(share: float = SHARE) -> AppSpec:
    return replace(a_models_spec(), retrain=RetrainSpec(rollout=RolloutSpec(canary_share=share)))


def with_challenger(*more: Command, spec: AppSpec | None = None) -> Serving:
    """The champion is m1, the challenger m22; `more` follow after offset 100."""
    serving = a_serving(spec or a_canary_spec())
    given = [command(31, "prepare", "m1"), command(63, "promote", "m1"), command(81, "prepare", "m22", "m1"), *more]
    serving.fold(examples(0, 60), given, 120)
    return serving


# Scores ---------------------------------------------------------------------------------------------------------------


def test_challenger_is_scored_with_its_own_booster_and_learner_and_the_champions_weights():
    serving, promoted = with_challenger(), with_challenger(command(119, "promote", "m22", "m1"))
    shadow, champion = serving.score(FEATURES, IDS), promoted.score(FEATURES, IDS)

    assert (shadow.model_version, shadow.other_version) == ("m1", "m22")
    assert champion.other is None and champion.other_version == ""
    assert np.array_equal(shadow.other, champion.blend)
    assert np.array_equal(
        champion.blend,
        blend(
            serving.blend_weights,
            {"booster": champion.booster, "learner": champion.learner, "base_rate": shadow.base_rate},
        ),
    )
    assert not np.array_equal(shadow.other, shadow.blend)


def test_champion_serves_the_same_bits_with_a_challenger_as_without():
    alone = a_serving(a_canary_spec())
    alone.fold(examples(0, 60), [command(31, "prepare", "m1"), command(63, "promote", "m1")], 120)
    one, both = alone.score(FEATURES, IDS), with_challenger().score(FEATURES, IDS)
    for name in ("learner", "booster", "base_rate", "blend", "served"):
        assert np.array_equal(getattr(one, name), getattr(both, name)), name
    assert one.other is None and one.other_version == ""


def test_canary_serves_the_rows_that_a_hash_of_their_ids_chooses_whatever_the_batch():
    serving = with_challenger(command(111, "canary", "m22", "m1"))
    whole = serving.score(FEATURES, IDS)
    assert 0.1 < whole.is_canary.mean() < 0.5
    assert np.array_equal(whole.served, np.where(whole.is_canary, whole.other, whole.blend))
    one_by_one = [
        bool(
            serving.score(
                FeatureBatch(FEATURES.numeric[row : row + 1], tuple(c[row : row + 1] for c in FEATURES.categories)),
                [IDS[row]],
            ).is_canary[0]
        )
        for row in range(20)
    ]
    assert one_by_one == whole.is_canary[:20].tolist()


def test_share_of_a_canary_grows_and_never_changes_sides():
    few = with_challenger(command(111, "canary", "m22", "m1"), spec=a_canary_spec(0.2)).score(FEATURES, IDS)
    many = with_challenger(command(111, "canary", "m22", "m1"), spec=a_canary_spec(0.6)).score(FEATURES, IDS)
    assert few.is_canary.sum() < many.is_canary.sum() and not (few.is_canary & ~many.is_canary).any()
    none = with_challenger(command(111, "canary", "m22", "m1"), spec=a_canary_spec(0.0)).score(FEATURES, IDS)
    assert not none.is_canary.any() and np.array_equal(none.served, none.blend)


def test_positive_decisions_are_explained_by_who_served_them(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, list[int]] = {}

    def told(self: ABooster, features: FeatureBatch, rows: list[int], count: int = 5) -> dict:
        asked[self.version] = rows
        return {}

    monkeypatch.setattr(ABooster, "top_features", told)
    spec = replace(a_canary_spec(), costs=CostSpec(false_alarm=1, miss=10**6))
    scores = with_challenger(command(111, "canary", "m22", "m1"), spec=spec).score(FEATURES, IDS)
    assert asked.keys() == {"m1", "m22"} and len(asked["m1"]) + len(asked["m22"]) == 20
    assert scores.is_canary[asked["m22"]].all() and not scores.is_canary[asked["m1"]].any()


def test_challenger_that_cannot_be_loaded_is_no_other_and_serves_nobody():
    serving = a_serving(a_canary_spec(), lacks=("m1",))
    serving.fold(examples(0, 60), [command(31, "prepare", "m1"), command(63, "canary", "m1")], 120)
    scores = serving.score(FEATURES, IDS)
    assert serving.roles.is_canary and not serving.is_complete
    assert (scores.other, scores.other_version, scores.is_canary) == (None, "", None)
    assert not scores.is_degraded


def test_worker_without_the_new_champion_goes_on_with_the_former_one_through_a_swap_and_back():
    serving = a_serving(a_canary_spec(), lacks=("m1",))
    serving.fold(examples(0, 40), [command(31, "prepare", "m1"), command(63, "swap", "m1")], 80)
    assert serving.roles.champion == "m1" and serving.score(FEATURES, IDS).model_version == INITIAL
    assert serving.score(FEATURES, IDS).is_degraded
    serving.fold(examples(40, 60), [command(91, "swap", INITIAL, "m1")], 120)
    assert serving.roles.champion == INITIAL and serving.score(FEATURES, IDS).model_version == INITIAL
    assert not serving.is_complete


# Commands -------------------------------------------------------------------------------------------------------------


def test_swap_and_drop_end_as_a_promotion_with_the_same_learner():
    promoted, swapped = with_challenger(command(101, "promote", "m22", "m1")), with_challenger()
    swapped = with_challenger(command(101, "swap", "m22", "m1"), command(115, "drop", "m1", "m22"))
    assert swapped.roles == promoted.roles == Roles(champion="m22", parent="m1")
    assert swapped.digest() == promoted.digest()


def test_former_champion_goes_on_learning_on_probation_so_that_a_swap_back_costs_nothing():
    there_and_back = with_challenger(
        command(101, "swap", "m22", "m1"), command(111, "swap", "m1", "m22"), command(117, "drop", "m22", "m1")
    )
    never = with_challenger(command(117, "drop", "m22", "m1"))
    assert there_and_back.roles == Roles(champion="m1", parent="m22")
    assert there_and_back.snapshot().learners == never.snapshot().learners
    assert np.array_equal(there_and_back.score(FEATURES, IDS).served, never.score(FEATURES, IDS).served)
    on_probation = with_challenger(command(101, "swap", "m22", "m1")).score(FEATURES, IDS)
    assert (on_probation.model_version, on_probation.other_version) == ("m22", "m1")


def test_commands_about_another_challenger_are_ignored():
    late = [command(101 + 2 * at, kind, "m9", "m1") for at, kind in enumerate(("canary", "promote", "swap", "drop"))]
    serving = with_challenger(*late)
    assert serving.ignored == 4 and serving.roles == Roles(champion="m1", challenger="m22", parent=INITIAL)


def test_canary_ends_with_every_change_of_the_challenger():
    on = Roles(champion="a", challenger="b", is_canary=True)
    for kind, version in (("prepare", "c"), ("promote", "b"), ("swap", "b"), ("drop", "b")):
        after = on.after(command(9, kind, version, "a"))
        assert after is not None and not after.is_canary, kind
    frozen = on.after(command(9, "freeze", expects="a"))
    assert frozen is not None and frozen.is_canary


def test_snapshot_of_a_canary_resumes_as_a_canary():
    before = with_challenger(command(111, "canary", "m22", "m1"))
    resumed = a_serving(a_canary_spec(), snapshot=before.snapshot())
    assert resumed.roles == before.roles and resumed.digest() == before.digest()
    one, other = before.score(FEATURES, IDS), resumed.score(FEATURES, IDS)
    assert np.array_equal(one.served, other.served) and np.array_equal(one.is_canary, other.is_canary)


# Records --------------------------------------------------------------------------------------------------------------


class TwoModels(ConstantScorer):
    """The champion says 0.2, the challenger 0.9; the canary serves the ids that it is given."""

    def __init__(self, canary: frozenset[str] | None) -> None:
        super().__init__(0.2)
        self.canary = canary

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        is_canary = None if self.canary is None else np.array([id_ in self.canary for id_ in ids], dtype=bool)
        scores = super().score(features, ids)
        return replace(scores, other=np.full(len(ids), 0.9), other_version="challenger", is_canary=is_canary)


@pytest.mark.parametrize("canary", [None, frozenset("b")])
def test_prediction_and_example_say_who_served_and_what_the_other_would_have(canary: frozenset[str] | None):
    app = App(machinery=Machinery(a_shop()))
    for at, id_ in enumerate("ab"):
        app.inputs.add("events", 1_000 + at, id=id_, shop="x", user=1, amount=1.0)
        app.inputs.add("outcomes", 2_000 + at, id=id_, outcome=1)
    with kafka_in_memory():
        Worker(app, scorer=TwoModels(canary)).claim().run_all([2])  # the rows wait in the store for their labels
    expected = {
        "a": (0.2, "constant", 0.9, "challenger"),
        "b": (0.2, "constant", 0.9, "challenger") if canary is None else (0.9, "challenger", 0.2, "constant"),
    }
    names = ("blend", "model_version", "other", "other_version")
    for schema in ("prediction.v1", "example.v1"):
        found = app.log.rows(schema)
        assert {row["id"]: tuple(row[name] for name in names) for row in found} == expected
        assert all((row["learner"], row["base_rate"]) == (0.2, 0.1) for row in found)  # the champion's in every row
    decisions = {row["id"]: row["decision"] for row in app.log.rows("prediction.v1")}
    assert decisions == {"a": False, "b": canary is not None}

    columns, _ = decode_examples([one.value or b"" for one in app.log.outputs("shop.examples.v1")], [0, 2])
    assert dict(zip("ab", zip(*(getattr(columns, name) for name in names), strict=True), strict=True)) == expected


def test_examples_keep_who_served_them_when_they_are_cut_and_put_together():
    one = replace(
        examples(),
        other=np.linspace(0, 1, COUNT),
        model_version=tuple(f"m{row % 3}" for row in range(COUNT)),
        other_version=("",) * COUNT,
    )
    again = joined([rows(one, 0, 7), rows(one, 7, 7), rows(one, 7, COUNT)])
    assert again.model_version == one.model_version and np.array_equal(again.other, one.other)
    odd = chosen(one, np.arange(COUNT) % 2 == 1)
    assert odd.model_version == one.model_version[1::2] and np.array_equal(odd.other, one.other[1::2])
    nobody = examples()
    assert np.isnan(nobody.other).all() and nobody.model_version == nobody.other_version == ("",) * COUNT
