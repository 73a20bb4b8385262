"""The pure monitor: ticks, the learner's guard, roles along the log, and that cutting the log changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_days import (
    APP,
    CATEGORIES,
    MONITOR,
    NUMERIC,
    REFERENCE,
    RETRAIN,
    ROWS,
    WAIT_MS,
    Watch,
    an_example_batch,
    said_of,
    some_features,
)

from tidemill.core.examples import between
from tidemill.core.loop_spec import DAY_MS, RetrainSpec, RolloutSpec, TriggerSpec
from tidemill.core.metrics import log_loss
from tidemill.core.records import Command, ExampleColumns, FeatureBatch
from tidemill.core.roles import INITIAL
from tidemill.core.surveillance import Surveillance
from tidemill.core.ticks import Tick
from tidemill.errors import InvariantError


class Baselines:
    """Counts ticks in place of alarms."""

    def __init__(self) -> None:
        self.adwin = 0
        self.page_hinkley = 0

    def add(self, loss: float) -> None:
        self.adwin += 1
        self.page_hinkley += 2


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


def test_a_learner_that_a_person_has_frozen_is_left_to_them_and_judged_anew_once_it_is_thawed() -> None:
    watch = Watch()
    watch.days(2)
    watch.command("freeze", "v1", cause="labels inverted since Monday")
    frozen = watch.days(5, learner=lambda said: 1 - said)
    watch.command("thaw", "v1")
    thawed = watch.days(3, learner=lambda said: 1 - said)

    assert [(tick.is_learner_bad, tick.bad_since) for tick in frozen] == [(False, -1)] * 5
    assert [tick.is_learner_bad for tick in thawed] == [False, False, True]
    assert thawed[2].bad_since == thawed[0].offset_next - ROWS


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


def test_a_stage_in_which_no_worker_scores_the_challenger_ends_undecided() -> None:
    watch = Watch()
    watch.days(2)
    watch.command("prepare", "v2")
    found = [tick.rollout for tick in watch.days(9)]

    assert 0 < 2 * WAIT_MS <= DAY_MS
    assert [one.verdict for one in found if one is not None] == ["open"] * 7 + ["undecided"] * 2


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
