"""The pure monitor: ticks, roles along the log, and an alert of each kind from its opening to its resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import a_category, a_group, a_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.drift.reference import Reference, reference_of
from tidemill.core.examples import between
from tidemill.core.loop_spec import DAY_MS, MonitorSpec, RetrainSpec, RolloutSpec, TriggerSpec
from tidemill.core.loss_window import EXAMPLES_MIN, LearnerGuard, LossWindow, expected_loss_units
from tidemill.core.metrics import LOSS_UNIT, log_loss
from tidemill.core.records import Command, ExampleColumns, FeatureBatch
from tidemill.core.roles import INITIAL
from tidemill.core.surveillance import Surveillance
from tidemill.core.ticks import Tick
from tidemill.errors import InvariantError

MONITOR = MonitorSpec(window_ms=3 * DAY_MS, reference_ticks=8, quiet_ms=4 * DAY_MS, cooldown_ms=2 * DAY_MS)
ROLLOUT = RolloutSpec(examples_min=200, examples_max=9_000, canary_examples=900, probation_examples=600)
RETRAIN = RetrainSpec(
    any_of=(TriggerSpec(kind="alert", alert_kind="concept"),), examples_min=500, cooldown_ms=DAY_MS, rollout=ROLLOUT
)
SHOPS = ("a", "b", "c", "d")
NUMERIC, CATEGORIES = ("amount", "age"), ("shop",)
APP = replace(
    a_spec(a_group("shop", ["shop"], a_category("shop", "shop"))),
    monitor=MONITOR,
    retrain=RETRAIN,
)
ROWS = 300  # of a day
WAIT_MS = APP.label.wait_ms


def some_features(random: np.random.Generator, rows: int = ROWS) -> FeatureBatch:
    numeric = random.normal(size=(rows, 2)).astype(np.float32)
    return FeatureBatch(numeric, (tuple(np.array(SHOPS)[random.integers(0, 4, rows)].tolist()),))


def said_of(features: FeatureBatch) -> np.ndarray:
    return 1 / (1 + np.exp(-1.5 * features.numeric[:, 0].astype(np.float64)))


def a_reference(days: int = 40) -> Reference:
    random = np.random.Generator(np.random.PCG64(1))
    features = some_features(random, rows := days * ROWS)
    said = said_of(features)
    codes = np.array([SHOPS.index(shop) for shop in features.categories[0]])[:, None]
    return reference_of(
        features.numeric,
        codes,
        (random.random(rows) < said).astype(np.float32),
        said,
        np.repeat(np.arange(days) * DAY_MS, ROWS),
        numeric_names=NUMERIC,
        category_names=CATEGORIES,
        vocabularies=[SHOPS],
        spec=MONITOR,
    )


REFERENCE = a_reference()


class Baselines:
    """Counts ticks in place of alarms."""

    def __init__(self) -> None:
        self.adwin = 0
        self.page_hinkley = 0

    def add(self, loss: float) -> None:
        self.adwin += 1
        self.page_hinkley += 2


class Watch:
    """A world in which the model is right, unless a day is told otherwise."""

    def __init__(self, app=APP, champion: str = "v1", **given) -> None:
        self.random = np.random.Generator(np.random.PCG64(5))
        self.of = Surveillance(app, NUMERIC, CATEGORIES, reference_of={"v1": REFERENCE}.get, **given)
        self.offset, self.champion, self.now = 0, INITIAL, 0
        self.ticks: list[Tick] = []
        if champion != INITIAL:
            self.command("prepare", champion)
            self.command("promote", champion)
            self.champion = champion

    def command(self, kind: str, version: str, cause: str = "test") -> None:
        command = Command(self.offset, f"c{self.offset}", kind, self.champion, version, cause, 0)
        self.offset += 1
        self.of.fold_examples(an_example_batch(0), [command], self.offset)

    def day(
        self,
        features: FeatureBatch | None = None,
        *,
        truth=None,
        is_degraded=False,
        dead_letters: int = 0,
        events: int = ROWS,
        label=None,
        **columns,
    ) -> Tick:
        """One tick with examples of all its predictions. truth: probability of a positive; columns: of the examples."""
        features = some_features(self.random, events) if features is None else features
        said = said_of(features)
        rows = len(features)
        if label is None:
            label = (self.random.random(rows) < (said if truth is None else truth(said, features))).astype(np.float32)
        times = self.now + np.linspace(0, DAY_MS - WAIT_MS, rows).astype(np.int64)
        self.of.fold_predictions(times, columns.get("blend", said), np.full(rows, is_degraded), features)
        examples = ExampleColumns(
            **{
                "offset": self.offset + np.arange(rows),
                "features": features,
                "label": label,
                "is_learned": np.ones(rows, dtype=np.bool_),
                "event_time": times,
                "label_time": times + 1_000,
                "learner": said,
                "booster": said,
                "base_rate": np.full(rows, 0.5),
                "blend": said,
                "model_version": (self.champion,) * rows,
                **{name: value(said) if callable(value) else value for name, value in columns.items()},
            }
        )
        self.offset += rows
        self.of.fold_examples(examples, [], self.offset)
        self.of.fold_records({"events": rows, "outcomes": rows, "readings": 10}, dead_letters)
        return self.close()

    def close(self) -> Tick:
        self.now += DAY_MS
        self.ticks.append(self.of.close(self.now))
        return self.ticks[-1]

    def days(self, count: int, **given) -> list[Tick]:
        return [self.day(**given) for _ in range(count)]

    def story(self, key: str = "") -> list[tuple[int, str, str]]:
        """(day, key, event) of all alert records."""
        return [
            (record.time // DAY_MS, record.key, record.event)
            for tick in self.ticks
            for record in tick.alerts
            if record.key.startswith(key)
        ]

    def events(self, key: str) -> list[str]:
        return [event for _, _, event in self.story(key)]


def an_example_batch(rows: int, **columns) -> ExampleColumns:
    """Examples of day 0 with the probability one half, each labelled at once."""
    nothing = np.full(rows, 0.5)
    numeric = np.zeros((rows, 2), dtype=np.float32)
    return ExampleColumns(
        **{
            "offset": np.arange(rows),
            "features": FeatureBatch(numeric, (("a",) * rows,)),
            "label": np.zeros(rows, dtype=np.float32),
            "is_learned": np.ones(rows, dtype=np.bool_),
            "event_time": np.arange(rows),
            "label_time": np.arange(rows) + 1,
            "learner": nothing,
            "booster": nothing,
            "base_rate": nothing,
            "blend": nothing,
            **columns,
        }
    )


# Ticks ------------------------------------------------------------------------------------------------------------


def test_days_without_drift_make_no_alert() -> None:
    watch = Watch()
    watch.days(40)

    assert watch.story() == []
    assert all(not tick.is_learner_bad and tick.rollout is None for tick in watch.ticks)


def test_a_tick_says_what_was_counted_in_it() -> None:
    watch = Watch()
    label = np.zeros(ROWS, dtype=np.float32)
    features = some_features(watch.random)
    tick = watch.day(features, label=label)
    said = said_of(features)

    assert (tick.time, tick.offset_next, tick.champion, tick.challenger) == (DAY_MS, ROWS + 2, "v1", "")
    assert (tick.events, tick.examples, tick.examples_total) == (ROWS, ROWS, ROWS)
    expected = -(said * np.log(said) + (1 - said) * np.log(1 - said)).mean()
    assert tick.log_loss == pytest.approx(log_loss(said, label), abs=1e-9)
    assert tick.excess == pytest.approx(log_loss(said, label) - expected, abs=1e-9)
    assert tick.losses == pytest.approx(
        {name: log_loss(said, label) for name in ("blend", "learner", "booster")} | {"base_rate": np.log(2)}
    )


def test_only_what_was_served_before_its_label_is_measured_and_all_that_is_learned_counts() -> None:
    watch = Watch()
    first = np.arange(ROWS) >= ROWS - 10
    times = np.linspace(0, DAY_MS - WAIT_MS, ROWS).astype(np.int64)
    tick = watch.day(
        is_learned=~(np.arange(ROWS) < 5),
        label_time=np.where(first, times - 1, times + 1),
        blend=np.where(np.arange(ROWS) < 20, np.nan, 0.5),
    )

    assert (tick.examples, tick.examples_total) == (ROWS - 30, ROWS - 5)
    assert tick.log_loss == pytest.approx(np.log(2))


def test_the_open_tick_is_known_from_the_earliest_record_and_moves_on_by_one() -> None:
    watch = Surveillance(APP, NUMERIC, CATEGORIES, reference_of=lambda _: None)
    assert watch.next_end is None
    features = FeatureBatch(np.zeros((1, 2), dtype=np.float32), (("a",),))
    for day in (5, 3):
        watch.fold_predictions(np.array([day * DAY_MS + 7]), np.array([0.5]), np.array([False]), features)
    assert watch.next_end == 4 * DAY_MS
    assert watch.close(4 * DAY_MS).events == 2
    assert watch.next_end == 5 * DAY_MS
    with pytest.raises(InvariantError, match="TM-9611"):
        watch.close(4 * DAY_MS)
    with pytest.raises(InvariantError, match="TM-9611"):
        watch.close(6 * DAY_MS)


def test_shown_detectors_count_on_through_a_change_of_champion() -> None:
    watch = Watch(make_baselines=Baselines)
    watch.days(3)
    watch.command("prepare", "v2")
    watch.command("promote", "v2")
    watch.champion = "v2"

    assert [(tick.adwin, tick.page_hinkley) for tick in watch.days(2)] == [(4, 8), (5, 10)]
    assert watch.close().adwin == 5


# Alerts -----------------------------------------------------------------------------------------------------------


def moved(watch: Watch, by: float) -> FeatureBatch:
    features = some_features(watch.random)
    numeric = features.numeric.copy()
    numeric[:, 1] += by  # what the model does not look at
    return FeatureBatch(numeric, features.categories)


def test_covariate_alert_names_the_feature_that_moved_and_is_resolved_when_it_is_back() -> None:
    watch = Watch()
    watch.days(5)
    for _ in range(7):
        watch.day(moved(watch, 1.5))
    watch.days(8)

    assert watch.events("covariate") == ["opened", "repeated", "repeated", "repeated", "resolved"]
    opened = next(a for tick in watch.ticks for a in tick.alerts if a.key == "covariate/features")
    assert opened.culprits == ("age",) and opened.evidence["effect"] > opened.evidence["threshold"]
    assert opened.window_end - opened.window_start == MONITOR.window_ms
    assert opened.summary.startswith("1 of 3 features moved; most of all age, by a PSI of ")
    assert watch.events("prediction") == []


def test_prediction_alert_opens_repeats_and_resolves() -> None:
    watch = Watch()
    watch.days(5)
    for _ in range(6):
        features = some_features(watch.random)
        low = np.full(ROWS, 0.05)
        watch.day(features, truth=lambda said, _: 0.05, blend=low)
    watch.days(8)

    assert watch.events("prediction/blend")[0] == "opened" and watch.events("prediction/blend")[-1] == "resolved"
    assert "repeated" in watch.events("prediction/blend")
    assert watch.events("covariate") == []


def test_label_alert_opens_repeats_and_resolves() -> None:
    watch = Watch()
    watch.days(5)
    watch.days(7, truth=lambda said, _: np.clip(said + 0.3, 0, 1))
    watch.days(8)

    events = watch.events("label/share")
    assert (events[0], events[1], events[-1]) == ("opened", "repeated", "resolved") and events.count("opened") == 1
    opened = next(a for tick in watch.ticks for a in tick.alerts if a.key == "label/share")
    assert opened.evidence["effect"] > 0.05


def inverted_in(*shops: str):
    def truth(said, features):
        return np.where(np.isin(features.categories[0], shops), 1 - said, said)

    return truth


def test_inverted_labels_make_one_concept_alert_with_the_worst_slices_and_one_resolution() -> None:
    watch = Watch()
    watch.days(14)
    watch.days(12, truth=inverted_in("b", "d"))
    watch.days(12)

    events = watch.events("concept")
    assert events.count("opened") == events.count("resolved") == 1 and "repeated" in events
    assert (events[0], events[-1]) == ("opened", "resolved")
    opened = next(a for tick in watch.ticks for a in tick.alerts if a.kind == "concept")
    assert opened.severity == "page" and opened.time // DAY_MS <= 14 + 3
    assert set(opened.culprits[:2]) == {"shop=b", "shop=d"}
    assert opened.evidence["e_value"] >= opened.evidence["threshold"] == MONITOR.average_run_length
    assert opened.evidence["excess"] > 0.1


def test_a_concept_alert_is_resolved_although_examples_have_stopped() -> None:
    watch = Watch()
    watch.days(14)
    while not watch.events("concept"):
        watch.day(truth=inverted_in(*SHOPS))
    for _ in range(MONITOR.quiet_ms // DAY_MS):
        watch.close()

    assert watch.events("concept") == ["opened", "resolved"]


def test_a_concept_alert_triggers_a_training_in_the_same_tick_behind_it() -> None:
    watch = Watch()
    watch.days(14)
    watch.days(6, truth=inverted_in(*SHOPS))

    tick = next(tick for tick in watch.ticks if any(a.kind == "concept" for a in tick.alerts))
    concept, trigger = tick.alerts[0], tick.alerts[-1]
    assert (concept.key, trigger.key) == ("concept/blend", "trigger/concept")
    assert trigger.culprits == (concept.id,)
    assert trigger.evidence["examples_total"] == tick.examples_total


def without(features: FeatureBatch) -> FeatureBatch:
    numeric = features.numeric.copy()
    numeric[:, 1] = np.nan
    return FeatureBatch(numeric, features.categories)


def test_quality_alert_opens_repeats_and_resolves() -> None:
    watch = Watch()
    watch.days(5)
    for _ in range(5):
        assert "missing/age" in watch.day(without(some_features(watch.random))).quality
    watch.days(5)

    assert watch.events("quality/missing/age") == ["opened", "repeated", "repeated", "resolved"]
    opened = next(a for tick in watch.ticks for a in tick.alerts if a.kind == "quality")
    assert opened.culprits == ("age",) and opened.window_end - opened.window_start == DAY_MS


def test_performance_alert_opens_repeats_and_resolves() -> None:
    watch = Watch()
    watch.days(4, base_rate=np.full(ROWS, 0.5))
    watch.days(4, truth=lambda said, _: 1 - said)
    watch.days(10)

    events = watch.events("performance/blend")
    assert (events[0], events[1], events[-1]) == ("opened", "repeated", "resolved") and events.count("opened") == 1
    opened = next(a for tick in watch.ticks for a in tick.alerts if a.kind == "performance")
    assert opened.evidence["blend"] - opened.evidence["base_rate"] == pytest.approx(opened.evidence["effect"])


def test_dead_letters_and_degraded_predictions_are_alerts_of_operations() -> None:
    watch = Watch()
    watch.days(2)
    watch.days(3, dead_letters=40, is_degraded=True)  # of 610 records
    watch.days(5)

    assert watch.events("operations/dead_letters") == ["opened", "repeated", "resolved"]
    assert watch.events("operations/degraded") == ["opened", "repeated", "resolved"]


def test_a_share_of_dead_letters_at_the_limit_is_no_alert() -> None:
    watch = Watch()
    watch.day(events=295, dead_letters=30)  # of 600 records

    assert watch.story() == []


def test_a_tick_of_a_few_records_is_no_alert_of_operations() -> None:
    watch = Watch()
    watch.day(events=4, dead_letters=5, is_degraded=True)  # of 18 records

    assert watch.story("operations") == []


def test_degraded_predictions_are_expected_before_a_booster_has_served() -> None:
    watch = Watch(champion=INITIAL)
    none = np.full(ROWS, np.nan)
    watch.days(3, is_degraded=True, booster=none)
    assert watch.story("operations") == []
    watch.day()
    watch.day(is_degraded=True, booster=none)
    assert watch.events("operations/degraded") == ["opened"]


def test_an_acknowledgement_counts_from_the_first_tick_behind_it() -> None:
    watch = Watch()
    watch.days(2, dead_letters=100)
    watch.of.acknowledge(watch.ticks[0].alerts[0].id, "ann", 3 * DAY_MS)
    watch.days(5, dead_letters=100)

    assert watch.story() == [(1, "operations/dead_letters", "opened"), (3, "operations/dead_letters", "repeated")]


def test_labels_that_stop_are_seen_although_ticks_hold_no_examples() -> None:
    watch = Watch()
    watch.days(30)
    for _ in range(10):
        features = some_features(watch.random)
        times = np.full(ROWS, watch.now)
        watch.of.fold_predictions(times, said_of(features), np.zeros(ROWS, dtype=np.bool_), features)
        watch.of.fold_records({"events": ROWS, "readings": 10}, 0)
        tick = watch.close()

    assert (tick.examples, tick.log_loss, tick.excess, tick.losses) == (0, None, None, {})
    assert {key for _, key, _ in watch.story()} == {"quality/fresh/outcomes"}


def test_a_silent_app_goes_on_ticking() -> None:
    watch = Watch()
    watch.days(30)
    ticks = [watch.close() for _ in range(5)]

    assert [tick.events for tick in ticks] == [0] * 5
    assert "quality/volume" in {key for _, key, _ in watch.story()}


# The learner ------------------------------------------------------------------------------------------------------


def test_a_learner_worse_than_booster_and_base_rate_over_a_full_window_is_bad_since_its_first_example() -> None:
    watch = Watch()
    ticks = watch.days(4, learner=lambda said: 1 - said)

    assert [tick.is_learner_bad for tick in ticks] == [False, False, True, True]
    assert [tick.bad_since for tick in ticks] == [-1, -1, 2, 2 + ROWS]


def test_a_learner_that_beats_the_base_rate_or_the_booster_is_not_bad() -> None:
    watch = Watch()
    worse_than_booster = watch.days(4, learner=lambda said: 0.5 + 0.5 * (said - 0.5))
    even = {"label": np.arange(ROWS, dtype=np.float32) % 2, "booster": np.full(ROWS, 0.5)}
    worse_than_both_but_for_the_margin = watch.days(4, learner=np.full(ROWS, 0.57), **even)  # by .0099

    assert not any(tick.is_learner_bad for tick in (*worse_than_booster, *worse_than_both_but_for_the_margin))


@pytest.mark.parametrize("kind", ["thaw", "excise", "promote"])
def test_another_learner_is_judged_by_its_own_window(kind: str) -> None:
    watch = Watch()
    watch.days(4, learner=lambda said: 1 - said)
    assert watch.ticks[-1].is_learner_bad
    if kind == "promote":
        watch.command("prepare", "v2")
    watch.command(kind, {"excise": "0-50", "promote": "v2"}.get(kind, ""))
    watch.champion = "v2" if kind == "promote" else "v1"

    after = watch.days(4, learner=lambda said: 1 - said)
    assert [tick.is_learner_bad for tick in after] == [False, False, True, True]
    assert after[2].bad_since == after[0].offset_next - ROWS


def test_examples_of_another_model_do_not_judge_the_learner() -> None:
    watch = Watch()
    watch.days(5, learner=lambda said: 1 - said, model_version=("v0",) * ROWS)

    assert not any(tick.is_learner_bad for tick in watch.ticks)


# Roles and rollouts -----------------------------------------------------------------------------------------------


def test_a_challenger_is_compared_from_the_command_on_and_only_with_rows_of_both() -> None:
    watch = Watch()
    watch.days(2)
    watch.command("prepare", "v2")
    versions = {"other": lambda said: said, "other_version": ("v2",) * ROWS}
    half = np.where(np.arange(ROWS) % 2, 0.5, np.nan)
    first = watch.day(**versions).rollout
    second = watch.day(other=half, other_version=("v2",) * ROWS).rollout
    third = watch.day(other=lambda said: said, other_version=("v3",) * ROWS).rollout
    last = watch.close().rollout

    assert first is not None and (first.other, first.stage_start) == ("v2", 2 * ROWS + 2)
    assert first.mean == 0.0 and first.verdict == "open"
    assert second is not None and third is not None and last is not None
    assert second.examples > first.examples and last.examples == ROWS + ROWS // 2


def test_rows_of_a_canary_are_turned_round() -> None:
    watch = Watch()
    watch.command("prepare", "v2")
    watch.command("canary", "v2")
    is_canary = np.arange(ROWS) % 3 == 0
    bad = np.full(ROWS, 0.5)
    features = some_features(watch.random)
    said = said_of(features)
    watch.day(
        features,
        blend=np.where(is_canary, bad, said),
        other=np.where(is_canary, said, bad),
        model_version=tuple(np.where(is_canary, "v2", "v1").tolist()),
        other_version=tuple(np.where(is_canary, "v1", "v2").tolist()),
        label=(said > 0.5).astype(np.float32),
    )
    rollout = watch.close().rollout

    assert rollout is not None and rollout.examples == ROWS
    assert rollout.mean == pytest.approx(log_loss(said, said > 0.5) - np.log(2), abs=1e-5)
    assert rollout.stage_start == 3


def test_a_swap_compares_with_the_former_champion_and_a_drop_ends_it() -> None:
    watch = Watch()
    watch.days(2)
    watch.command("prepare", "v2")
    watch.day(other=lambda said: said, other_version=("v2",) * ROWS)
    start = watch.offset
    watch.command("swap", "v2")
    watch.champion = "v2"
    both = {"other": np.full(ROWS, 0.5), "other_version": ("v1",) * ROWS}
    watch.days(2, **both)
    tick = watch.day(**both)

    assert (tick.champion, tick.challenger) == ("v2", "v1") and tick.rollout is not None
    assert (tick.rollout.other, tick.rollout.stage_start) == ("v1", start)
    assert tick.rollout.mean < 0 and tick.rollout.verdict == "worse"
    watch.command("drop", "v1")
    assert (watch.close().rollout, watch.ticks[-1].challenger) == (None, "")


@pytest.mark.parametrize("kind, examples_max", [("prepare", 600), ("canary", 900), ("swap", 300)])
def test_each_stage_of_a_rollout_has_its_own_length(kind: str, examples_max: int) -> None:
    spec = RolloutSpec(examples_min=100, examples_max=600, canary_examples=900, probation_examples=300)
    watch = Watch(replace(APP, retrain=replace(RETRAIN, rollout=spec)))
    watch.command("prepare", "v2")
    if kind != "prepare":
        watch.command(kind, "v2")
    if kind == "swap":
        watch.champion = "v2"
    equal = {"other": lambda said: said, "other_version": ("v1" if kind == "swap" else "v2",) * ROWS}
    found = [watch.day(**equal).rollout for _ in range(5)]

    counts = [rollout.examples for rollout in found if rollout is not None and rollout.verdict == "undecided"]
    assert counts and examples_max <= counts[0] < examples_max + ROWS


def test_events_of_before_the_stage_do_not_count_however_late_their_label_is() -> None:
    watch = Watch()
    watch.days(2)
    watch.command("prepare", "v2")
    old = np.full(ROWS, watch.now - 1)
    watch.day(other=lambda said: said, other_version=("v2",) * ROWS, event_time=old)
    rollout = watch.close().rollout

    assert rollout is not None and rollout.examples == 0


def test_growth_counts_from_the_offset_of_the_challenger_that_a_person_prepared() -> None:
    grown = RetrainSpec(any_of=(TriggerSpec(kind="volume", growth=0.5),), examples_min=1, cooldown_ms=0)
    watch = Surveillance(replace(APP, retrain=grown), NUMERIC, CATEGORIES, reference_of=lambda _: None)
    examples = an_example_batch(30, offset=np.arange(30) + (np.arange(30) >= 8))
    watch.fold_examples(examples, [Command(8, "c", "prepare", INITIAL, "v2", "ann", 0)], 31)
    (trigger,) = [alert for alert in watch.close(DAY_MS).alerts if alert.kind == "trigger"]

    assert (trigger.key, trigger.evidence["examples_before"]) == ("trigger/volume", 8)


def test_a_command_that_expects_another_champion_changes_nothing() -> None:
    watch = Watch()
    watch.champion = "v0"
    watch.command("prepare", "v2")
    watch.champion = "v1"
    tick = watch.day()

    assert (tick.champion, tick.challenger, tick.rollout) == ("v1", "", None)


def test_the_tick_of_a_change_is_judged_by_no_reference_and_the_new_one_begins_behind_it() -> None:
    watch = Watch()
    watch.days(4)
    assert watch.ticks[-1].shifts
    watch.command("prepare", "v2")
    watch.command("swap", "v2")
    watch.champion = "v2"
    assert [tick.shifts for tick in watch.days(4)] == [()] * 4  # v2 has no reference
    watch.command("swap", "v1")
    watch.champion = "v1"
    assert [bool(tick.shifts) for tick in watch.days(4)] == [False, False, False, True]


# The invariant ----------------------------------------------------------------------------------------------------


def a_log(days: int = 5) -> tuple[list[ExampleColumns], list[Command]]:
    """Days of examples with one command in each but the first, in the middle of the day's offsets."""
    random = np.random.Generator(np.random.PCG64(3))
    found, offset = [], 0
    commands = []
    kinds = [("prepare", "v1", INITIAL), ("swap", "v1", INITIAL), ("freeze", "v1", "v1"), ("drop", INITIAL, "v1")]
    for day in range(days):
        rows = 40
        features = some_features(random, rows)
        said = said_of(features)
        offsets = offset + np.arange(rows)
        if day:
            kind, version, expects = kinds[day - 1]
            commands.append(Command(offset + 20, f"c{day}", kind, expects, version, "test", 0))
            offsets = offsets + (np.arange(rows) >= 20)
        times = day * DAY_MS + np.sort(random.integers(0, DAY_MS, rows))
        champion, other = (INITIAL, "v1") if day < 3 else ("v1", INITIAL)
        found.append(
            an_example_batch(
                rows,
                offset=offsets,
                features=features,
                label=(random.random(rows) < said).astype(np.float32),
                is_learned=random.random(rows) < 0.9,
                event_time=times - random.integers(-5, DAY_MS // 2, rows),
                label_time=times,
                blend=said,
                learner=random.random(rows),
                booster=np.where(random.random(rows) < 0.1, np.nan, said),
                other=np.where(random.random(rows) < 0.1, np.nan, random.random(rows)),
                model_version=(champion,) * rows,
                other_version=(other,) * rows,
            )
        )
        offset = int(offsets[-1]) + 1
    return found, commands


LOG = a_log()
THIN = replace(APP, monitor=replace(MONITOR, window_ms=2 * DAY_MS, reference_ticks=2, average_run_length=2))


def ticks_of(cuts: Sequence[Sequence[int]], order: Sequence[bool]) -> list[Tick]:
    """The log in pieces that end at these offsets within each day; `order`: whether predictions come first."""
    watch = Surveillance(THIN, NUMERIC, CATEGORIES, reference_of=lambda _: REFERENCE)
    ticks, start = [], 0
    for day, (examples, inner, is_first) in enumerate(zip(LOG[0], cuts, order, strict=True)):
        end = int(examples.offset[-1]) + 1
        calls = []
        offsets = sorted({start, end, *(start + cut for cut in inner if start + cut < end)})
        for first, last in pairwise(offsets):
            commands = [command for command in LOG[1] if first <= command.offset < last]
            piece = between(examples, first, last)
            calls.append(lambda piece=piece, commands=commands, last=last: watch.fold_examples(piece, commands, last))
            served = [
                lambda piece=piece: watch.fold_predictions(
                    piece.label_time, piece.blend, np.zeros(len(piece), dtype=np.bool_), piece.features
                ),
                lambda: watch.fold_records({"events": 0}, 0),
            ]
            calls = [*served, *calls] if is_first else [*calls, *served]
        for call in calls:
            call()
        watch.fold_records({"events": 40, "outcomes": 40}, day)
        ticks.append(watch.close((day + 1) * DAY_MS))
        start = end
    return [*ticks, watch.close(6 * DAY_MS)]


WHOLE = ticks_of([[]] * 5, [False] * 5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 40), max_size=5), min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_how_a_tick_was_cut_into_calls_changes_nothing(cuts, order) -> None:
    assert ticks_of(cuts, order) == WHOLE


def test_the_log_of_that_law_has_rollouts_changes_of_champion_and_shifts() -> None:
    assert [tick.champion for tick in WHOLE] == [INITIAL, INITIAL, "v1", "v1", "v1", "v1"]
    assert [tick.rollout is not None for tick in WHOLE] == [False, True, True, True, False, False]
    assert any(tick.shifts for tick in WHOLE)


# Windows ----------------------------------------------------------------------------------------------------------


def test_expected_losses_are_entropies_and_finite_at_the_ends() -> None:
    units = expected_loss_units(np.array([0.0, 0.5, 1.0]))
    assert (units * LOSS_UNIT).tolist() == pytest.approx([0, np.log(2), 0], abs=1e-9)


def test_a_window_forgets_the_ticks_before_it() -> None:
    window = LossWindow(CATEGORIES, 2)
    for said in (0.1, 0.5, 0.5):
        window.add(an_example_batch(EXAMPLES_MIN // 2, blend=np.full(EXAMPLES_MIN // 2, said)))
        window.close_tick()

    assert window.examples == EXAMPLES_MIN and window.is_judged
    assert window.losses["blend"] == pytest.approx(np.log(2))
    window.close_tick()
    assert not window.is_judged and window.gaps == {}


def test_a_gap_compares_the_same_examples_only() -> None:
    window = LossWindow(CATEGORIES, 1)
    rows = 2 * EXAMPLES_MIN
    is_late = np.arange(rows) >= EXAMPLES_MIN
    # The booster came when the days had become easy: on its rows the blend is as good.
    window.add(an_example_batch(rows, blend=np.where(is_late, 0.2, 0.7), booster=np.where(is_late, 0.2, np.nan)))
    window.close_tick()

    assert window.losses["blend"] > window.losses["booster"]
    assert window.gaps["booster"] == 0.0

    window.add(an_example_batch(rows, booster=np.where(np.arange(rows) > EXAMPLES_MIN, 0.5, np.nan)))
    window.close_tick()
    assert set(window.gaps) == {"learner", "base_rate"}


def test_values_of_a_category_behind_the_first_ones_are_one_rest() -> None:
    window = LossWindow(CATEGORIES, 1)
    rows = 60_000
    shops = tuple(f"s{at % 1_000}" for at in range(rows))
    features = FeatureBatch(np.zeros((rows, 2), dtype=np.float32), (shops,))
    window.add(an_example_batch(rows, features=features, blend=np.full(rows, 0.9)))
    easy = FeatureBatch(np.zeros((100, 2), dtype=np.float32), (("s1",) * 100,))
    window.add(an_example_batch(100, features=easy, blend=np.full(100, 0.3)))  # better than it expects
    window.close_tick()

    slices = window.worst_slices(count=1_000, rows_min=50)
    assert len(slices) == 256 and slices[0][0] == "shop=s0"
    assert slices[0][1] == pytest.approx(-np.log(0.1) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1), abs=1e-6)
    assert [name for name, _ in window.worst_slices(count=3, rows_min=61)] == ["shop=s1"]

    window.add(an_example_batch(100, features=easy, blend=np.full(100, 0.3)))
    window.close_tick()
    assert window.worst_slices(count=3, rows_min=50) == ()


def test_the_guard_needs_enough_examples_of_all_three() -> None:
    guard = LearnerGuard(2)
    bad = {"learner": np.full(400, 0.9)}
    for known in (True, False):
        guard.add(an_example_batch(400, **bad, booster=np.full(400, 0.5 if known else np.nan)))
        verdict = guard.close_tick()
    assert not verdict.is_bad
    guard.add(an_example_batch(400, **bad, offset=np.arange(7, 407)))
    guard.close_tick()
    guard.add(an_example_batch(400, **bad, offset=np.arange(500, 900)))
    assert guard.close_tick() == (True, 7)
