"""The pure monitor: an alert of each kind from its opening to its resolution."""

from __future__ import annotations

import numpy as np
import pytest
from watched_days import MONITOR, ROWS, SHOPS, Watch, said_of, some_features

from tidemill.core.loop_spec import DAY_MS
from tidemill.core.records import FeatureBatch
from tidemill.core.roles import INITIAL


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


def test_ticks_with_few_labels_are_judged_together() -> None:
    watch = Watch()
    before = watch.days(14)[-1]
    few = watch.days(24, events=ROWS // 16, truth=inverted_in(*SHOPS))  # half of the usual labels in nine ticks

    assert {tick.e_value for tick in few[:8]} == {before.e_value} and few[8].e_value > before.e_value
    opened = next(a for tick in few for a in tick.alerts if a.event == "opened" and a.kind == "concept")
    assert "in the last 9 ticks" in opened.summary and opened.evidence["excess"] > 0.3
    assert all(tick.excess is not None for tick in few)


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
    assert "resolved" not in {event for _, _, event in watch.story()}, "not one label has come since"


def test_a_silent_app_goes_on_ticking() -> None:
    watch = Watch()
    watch.days(30)
    ticks = [watch.close() for _ in range(5)]

    assert [tick.events for tick in ticks] == [0] * 5
    assert "quality/volume" in {key for _, key, _ in watch.story()}
