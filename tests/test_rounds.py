"""One round of retraining: which rows it learns from, whom it is compared with on what, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shop_log import HOUR_MS, MINUTE_MS, shop_examples

from tidemill.apps.boosters import load_for
from tidemill.apps.rounds import Round, RoundTask, choose_rows, story_of_failure, story_of_round, train_and_gate
from tidemill.config import load_app
from tidemill.core.features import FeaturePlan
from tidemill.core.gate import is_holdout
from tidemill.core.loop_spec import RetrainSpec
from tidemill.core.roles import INITIAL
from tidemill.core.spec import AppSpec, BoosterSpec
from tidemill.core.steering import Steering
from tidemill.errors import ModelRefusedError
from tidemill.models.booster import Booster
from tidemill.models.training_examples import TrainingExamples

COUNT = 3_000
BOOSTER = BoosterSpec(rounds=20, max_depth=3, learning_rate=0.3, min_child_weight=2, leaf_trees=5, column_share=1)
SPEC = RetrainSpec(holdout=0.1, slice_examples=50, gate_margin=0.02, slice_margin=0.1)
SHOP = load_app(Path(__file__).parent / "streams" / "shop" / "shop.yaml")
APP: AppSpec = replace(SHOP, booster=BOOSTER, retrain=SPEC)
PLAN = FeaturePlan(APP)
END = COUNT * MINUTE_MS + HOUR_MS
TASK = RoundTask(time=END, offset_next=COUNT, parent=INITIAL, cause="trigger/schedule@1", due=END + 7)


def kept(*, count: int = COUNT, flipped_from: int | None = None) -> TrainingExamples:
    """`flipped_from`: labels are turned round from this offset on."""
    given = shop_examples(PLAN, COUNT)
    given = replace(given, is_learned=given.offset < count)
    if flipped_from is not None:
        given = replace(given, label=np.where(given.offset >= flipped_from, 1 - given.label, given.label))
    examples = TrainingExamples(PLAN.numeric_names, PLAN.category_names)
    examples.append(given)
    return examples


def run(examples: TrainingExamples, task: RoundTask = TASK, *, app: AppSpec = APP, **more) -> Round:
    return train_and_gate(app, PLAN, examples, task, **{"champion": None, "threads": 1, **more})


def loaded(done: Round) -> Booster:
    return load_for(PLAN, done.trained.model, done.trained.manifest)


FIRST = run(kept(), replace(TASK, time=HOUR_MS + 2_000 * MINUTE_MS, offset_next=2_000))


def test_a_round_is_a_function_of_log_and_task() -> None:
    again = run(kept(), replace(TASK, time=HOUR_MS + 2_000 * MINUTE_MS, offset_next=2_000))
    assert again.trained == FIRST.trained and again.verdict == FIRST.verdict
    assert again.trained.manifest.created == HOUR_MS + 2_000 * MINUTE_MS
    assert again.trained.manifest.offset_next <= 2_000


def test_what_stands_behind_the_tick_changes_nothing() -> None:
    """A live log goes on while the trainer trains; a restarted one would read more."""
    task = replace(TASK, time=HOUR_MS + 2_000 * MINUTE_MS, offset_next=2_000)
    short, long = run(kept(count=2_000), task), run(kept(flipped_from=2_000), task)
    assert short.trained == long.trained and short.verdict == long.verdict


@pytest.mark.parametrize("window", ["all", "last", "decayed"])
def test_rows_are_those_of_the_window_without_holdout_and_excised(window) -> None:
    spec = replace(SPEC, window=window, window_ms=1_000 * MINUTE_MS)
    rows, holdout = choose_rows(kept(), spec, replace(TASK, excised=((2_500, 2_600),)), ((100, 200), (2_500, 2_600)))
    assert not is_holdout(rows.offset, SPEC.holdout).any() and is_holdout(holdout.offset, SPEC.holdout).all()
    time = END - np.arange(COUNT) * MINUTE_MS - HOUR_MS  # from label to training
    first = {"all": 0, "last": 2_000, "decayed": 0}[window]
    first_judged = {"all": 0, "last": 2_000, "decayed": 1_000}[window]
    excised = [*range(100, 200), *range(2_500, 2_600)]
    for found, start in ((rows, first), (holdout, first_judged)):
        assert not set(found.offset.tolist()) & set(excised)
        is_of_kind = is_holdout(np.arange(COUNT), SPEC.holdout) == (found is holdout)
        wanted = [at for at in range(start, COUNT) if is_of_kind[at] and at not in excised]
        assert found.offset.tolist() == wanted
    if window == "decayed":
        assert rows.weight is not None
        assert np.allclose(rows.weight, 0.5 ** (time[rows.offset] / (1_000 * MINUTE_MS)), rtol=1e-5)
        assert rows.digest() != replace(rows, weight=None).digest()
    else:
        assert rows.weight is None


def test_decayed_weights_follow_what_came_last() -> None:
    flipped = kept(flipped_from=2_000)
    losses = {}
    for name, spec in (("all", SPEC), ("decayed", replace(SPEC, window="decayed", window_ms=200 * MINUTE_MS))):
        done = run(flipped, app=replace(APP, retrain=spec))
        losses[name] = done.trained.manifest.metrics["log_loss"]
    assert losses["decayed"] < losses["all"] - 0.05


def test_a_good_challenger_passes_on_rows_that_neither_has_seen() -> None:
    done = run(kept(), champion=loaded(FIRST))
    assert done.verdict.is_passed, done.verdict.reasons
    champion_end = FIRST.trained.manifest.offset_next
    newest = sorted(offset for offset in range(COUNT) if not is_holdout(np.array([offset]), SPEC.holdout)[0])[-268:]
    evidence = done.verdict.evidence
    assert min(newest) >= champion_end and evidence["recent/rows"] == pytest.approx(len(newest), abs=3)
    assert evidence["holdout/rows"] == is_holdout(np.arange(COUNT), SPEC.holdout).sum()
    assert evidence["recent/challenger/log_loss"] < evidence["recent/constant/log_loss"]
    assert evidence["recent/challenger/log_loss"] == pytest.approx(done.trained.manifest.metrics["log_loss"])


def test_what_the_champion_knows_by_heart_is_no_test_of_it() -> None:
    """A champion that has learned all of the newest rows leaves nothing to compare on."""
    champion = loaded(run(kept()))
    verdict = run(kept(), champion=champion).verdict
    assert not verdict.is_passed and "no recent rows" in verdict.reasons[0]


def test_a_challenger_of_inverted_labels_is_refused_with_the_figures() -> None:
    """Its newest rows are right again: it cannot have learned that."""
    examples = shop_examples(PLAN, COUNT)
    is_wrong = (examples.offset >= 400) & (examples.offset < 2_700)
    turned = TrainingExamples(PLAN.numeric_names, PLAN.category_names)
    turned.append(replace(examples, label=np.where(is_wrong, 1 - examples.label, examples.label)))
    champion = loaded(run(kept(count=390), replace(TASK, offset_next=390)))
    done = run(turned, replace(TASK, parent="m0"), champion=champion)
    assert not done.verdict.is_passed and any("recent: log loss" in reason for reason in done.verdict.reasons)
    trained, gated = story_of_round(done, replace(TASK, parent="m0"))
    assert (trained.kind, gated.kind) == ("trained", "gated")
    assert gated.version == trained.version == done.trained.manifest.version and gated.parent == "m0"
    assert gated.verdict == "; ".join(done.verdict.reasons) and gated.evidence == done.verdict.evidence


def test_the_story_of_a_round_leads_the_steering_on() -> None:
    events = story_of_round(run(kept()), TASK)
    assert [event.kind for event in events] == ["trained"] and events[0].due == TASK.due
    failure = story_of_failure("too few", TASK)
    for told, phase in ((events, "waiting"), ((failure,), "idle")):
        steering = Steering(SPEC)
        steering.tell(replace(failure, kind="triggered", id="t"))
        assert steering.phase == "training"
        for event in told:
            steering.tell(event)
        assert steering.phase == phase


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ModelRefusedError, match="TM-5030"):
        run(kept(count=150))
