"""When a training is due: any and all, alerts, schedule, volume, performance, cooldown."""

from __future__ import annotations

from dataclasses import replace

from tidemill.core.alert_book import Firing
from tidemill.core.alerts import Alert
from tidemill.core.loop_spec import DAY_MS, RetrainSpec, TriggerSpec
from tidemill.core.triggers import TriggerFacts, TriggerWatch

CONCEPT = TriggerSpec(kind="alert", alert_kind="concept")
WEEKLY = TriggerSpec(kind="schedule", every_ms=7 * DAY_MS)
GROWN = TriggerSpec(kind="volume", growth=0.5)
WORSE = TriggerSpec(kind="performance", comparator="base_rate")


def a_spec(**given) -> RetrainSpec:
    return RetrainSpec(**{"examples_min": 100, "cooldown_ms": 3 * DAY_MS, **given})


def an_alert(day: int, *, kind="concept", event="opened", told: int | None = None) -> Alert:
    firing = Firing(kind=kind, subject="blend", summary="It fires.", window_start=0, window_end=day * DAY_MS)
    return replace(firing.opened(day * DAY_MS, "v1"), event=event, time=(told or day) * DAY_MS)


def facts(day: int, examples: int = 1_000, *, records=(), open_alerts=(), gaps=None) -> TriggerFacts:
    return TriggerFacts(
        time=day * DAY_MS,
        champion="v1",
        examples_total=examples,
        window_start=(day - 7) * DAY_MS,
        offset_start=5,
        offset_next=50,
        records=records,
        open_alerts=open_alerts,
        gaps=gaps or {},
    )


def keys(watch: TriggerWatch, *ticks: TriggerFacts) -> list[str | None]:
    found = [watch.judge(tick) for tick in ticks]
    return [None if trigger is None else trigger.key for trigger in found]


def test_a_trigger_names_its_reason_its_evidence_and_the_alerts_that_caused_it() -> None:
    alert = an_alert(8)
    trigger = TriggerWatch(a_spec(any_of=(CONCEPT,))).judge(facts(8, records=[alert], open_alerts=[alert]))

    assert trigger is not None
    assert (trigger.id, trigger.key) == (f"trigger/concept@{8 * DAY_MS}", "trigger/concept")
    assert (trigger.kind, trigger.event, trigger.severity) == ("trigger", "opened", "info")
    assert trigger.culprits == (alert.id,)
    assert trigger.summary == "A training is due: concept/blend is open."
    assert trigger.evidence == {"examples_total": 1_000.0, "alerts_concept": 1.0}
    assert (trigger.offset_start, trigger.offset_next, trigger.runbook) == (5, 50, "docs/runbooks/trigger.md")


def test_an_alert_of_another_kind_or_one_that_is_resolved_is_no_reason() -> None:
    watch = TriggerWatch(a_spec(any_of=(CONCEPT,)))
    label, resolved = an_alert(8, kind="label"), an_alert(4, event="resolved", told=8)

    assert keys(watch, facts(8, records=[label], open_alerts=[label]), facts(9, records=[resolved])) == [None, None]


def test_an_open_alert_waits_for_enough_examples() -> None:
    watch, alert = TriggerWatch(a_spec(any_of=(CONCEPT,))), an_alert(8)

    few = facts(8, 99, records=[alert], open_alerts=[alert])
    assert keys(watch, few, facts(9, 100, open_alerts=[alert])) == [None, "trigger/concept"]


def test_an_alert_is_answered_by_one_training_and_asks_again_when_it_repeats() -> None:
    watch, alert = TriggerWatch(a_spec(any_of=(CONCEPT,))), an_alert(8)
    repeated = an_alert(8, event="repeated", told=15)

    quiet = [facts(day, open_alerts=[alert]) for day in range(9, 15)]
    again = facts(15, records=[repeated], open_alerts=[repeated])
    assert keys(watch, facts(8, records=[alert], open_alerts=[alert])) == ["trigger/concept"]
    assert keys(watch, *quiet, again) == [None] * 6 + ["trigger/concept"]


def test_an_alert_that_opens_during_the_cooldown_triggers_when_it_is_over() -> None:
    watch = TriggerWatch(a_spec(any_of=(CONCEPT, WEEKLY)))
    watch.note_example(DAY_MS)
    alert = an_alert(9)

    assert keys(watch, facts(8)) == ["trigger/schedule"]
    assert keys(watch, facts(9, records=[alert], open_alerts=[alert])) == [None]
    assert keys(watch, facts(10, open_alerts=[alert]), facts(11, open_alerts=[alert])) == [None, "trigger/concept"]


def test_a_schedule_counts_from_the_first_example_and_then_from_the_last_training() -> None:
    watch = TriggerWatch(a_spec(any_of=(WEEKLY,)))
    watch.note_example(DAY_MS)
    watch.note_example(6 * DAY_MS)

    due = [tick for tick in range(1, 25) if watch.judge(facts(tick)) is not None]
    assert due == [8, 15, 22]


def test_a_challenger_that_a_person_prepared_counts_as_a_training() -> None:
    watch = TriggerWatch(a_spec(any_of=(WEEKLY,)))
    watch.note_example(DAY_MS)
    watch.note_prepare("by hand", 5 * DAY_MS, 900)

    assert [tick for tick in range(1, 15) if watch.judge(facts(tick)) is not None] == [12]


def test_the_challenger_of_a_trigger_does_not_count_again() -> None:
    watch = TriggerWatch(a_spec(any_of=(WEEKLY,)))
    watch.note_example(DAY_MS)
    trigger = watch.judge(facts(8))
    assert trigger is not None
    watch.note_prepare(trigger.id, 9 * DAY_MS, 1_100)

    assert keys(watch, facts(14), facts(15)) == [None, "trigger/schedule"]


def test_volume_is_growth_since_the_last_training() -> None:
    watch = TriggerWatch(a_spec(any_of=(GROWN,)))

    counts = (100, 149, 150, 224, 225)
    ticks = [facts(10 * (at + 1), examples) for at, examples in enumerate(counts)]
    assert keys(watch, *ticks) == ["trigger/volume", None, "trigger/volume", None, "trigger/volume"]


def test_performance_compares_the_blend_with_the_declared_series() -> None:
    watch = TriggerWatch(a_spec(any_of=(WORSE,)))

    better, other = facts(8, gaps={"base_rate": -0.1}), facts(9, gaps={"booster": 0.1})
    assert keys(watch, better, other, facts(10)) == [None, None, None]
    trigger = watch.judge(facts(11, gaps={"base_rate": 0.02}))
    assert trigger is not None and trigger.key == "trigger/performance"
    assert trigger.evidence["gap_base_rate"] == 0.02


def test_all_of_needs_every_reason_at_one_tick() -> None:
    watch, alert = TriggerWatch(a_spec(all_of=(CONCEPT, WEEKLY))), an_alert(3)
    watch.note_example(DAY_MS)

    assert keys(watch, facts(3, records=[alert], open_alerts=[alert]), facts(8)) == [None, None]
    assert keys(watch, facts(9, open_alerts=[alert])) == ["trigger/concept+schedule"]


def test_all_of_and_any_of_together_need_one_more() -> None:
    watch = TriggerWatch(a_spec(all_of=(WEEKLY,), any_of=(CONCEPT, WORSE)))
    watch.note_example(DAY_MS)

    assert keys(watch, facts(8), facts(7, gaps={"base_rate": 0.1})) == [None, None]
    assert keys(watch, facts(9, gaps={"base_rate": 0.1})) == ["trigger/schedule+performance"]


def test_without_declared_triggers_nothing_is_due() -> None:
    alert = an_alert(8)
    watch = TriggerWatch(a_spec())
    watch.note_example(0)

    assert keys(watch, facts(400, 10**6, records=[alert], open_alerts=[alert], gaps={"base_rate": 1.0})) == [None]


def test_one_tick_makes_one_trigger_however_many_alerts_open() -> None:
    alerts = [replace(an_alert(8), id=f"concept/blend@{n}") for n in range(50)]
    watch = TriggerWatch(a_spec(any_of=(CONCEPT, WEEKLY, GROWN)))
    watch.note_example(0)

    trigger = watch.judge(facts(8, records=alerts, open_alerts=alerts))
    assert trigger is not None and trigger.key == "trigger/concept" and len(trigger.culprits) == 50
    assert keys(watch, facts(9, open_alerts=alerts)) == [None]


def test_triggers_that_are_published_take_the_place_of_those_that_were_judged() -> None:
    watch = TriggerWatch(a_spec(any_of=(GROWN,)))
    assert keys(watch, facts(8, 1_000)) == ["trigger/volume"]
    watch.take_over([])  # nobody has heard of it
    assert keys(watch, facts(9, 1_000)) == ["trigger/volume"]

    published = TriggerWatch(a_spec(any_of=(WEEKLY, GROWN))).judge(facts(5, 900))
    assert published is not None
    watch.take_over([published])
    assert keys(watch, facts(9, 1_300), facts(10, 1_350)) == [None, "trigger/volume"]


def test_preparations_keep_their_place_between_the_triggers_that_are_published() -> None:
    """Only one without its trigger counts as a training of its own, and only where no trigger came behind it."""
    watch = TriggerWatch(a_spec(any_of=(GROWN,)))
    first = TriggerWatch(a_spec(any_of=(GROWN,))).judge(facts(4, 500))
    second = TriggerWatch(a_spec(any_of=(GROWN,))).judge(facts(9, 1_000))
    assert first is not None and second is not None
    watch.note_prepare("by hand", 3 * DAY_MS, 400)
    watch.note_prepare(first.id, 4 * DAY_MS, 600)
    watch.take_over([first])
    assert keys(watch, facts(8, 749)) == [None]
    watch.take_over([first])
    assert keys(watch, facts(8, 750)) == ["trigger/volume"]

    watch.note_prepare("by hand", 8 * DAY_MS, 800)
    watch.take_over([first, second])
    assert keys(watch, facts(12, 1_499), facts(12, 1_500)) == [None, "trigger/volume"]
    watch.note_prepare("by hand", 10 * DAY_MS, 2_000)
    watch.take_over([first, second])
    assert keys(watch, facts(13, 2_999), facts(13, 3_000)) == [None, "trigger/volume"]
