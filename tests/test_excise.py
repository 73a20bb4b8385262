"""What was excised was never learned: the models are those of a log in which the range taught nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.folded_log import COUNT, FEATURES, IDS, Log, a_models_spec, command
from tests.folded_log import a_serving as a_new_serving
from tests.test_backtest_run import Past, a_past, a_shop, lanes_of
from tidemill.core.records import Command
from tidemill.core.roles import INITIAL, OffsetRange, RoleHistory, Roles, offsets_of, ranges_of
from tidemill.core.snapshot import ModelSnapshot
from tidemill.errors import ModelRefusedError
from tidemill.models.serving import Serving

END = 2 * COUNT
COMMANDS = (
    command(31, "prepare", "m1"),
    command(63, "swap", "m1"),
    command(75, "drop", INITIAL, "m1"),
    command(91, "freeze", expects="m1"),
    command(121, "thaw", expects="m1"),
    command(131, "promote", "m9", expects="m1"),  # not prepared: ignored
    command(151, "prepare", "m22", expects="m1"),
    command(165, "canary", "m22", expects="m1"),
    command(201, "promote", "m22", expects="m1"),
)


def a_serving(log: Log, snapshots: Sequence[ModelSnapshot] = (), snapshot: ModelSnapshot | None = None) -> Serving:
    def newest(at_most: int) -> ModelSnapshot | None:
        return max((one for one in snapshots if one.n <= at_most), key=lambda one: one.n, default=None)

    return a_new_serving(a_models_spec(snapshot_every=30), log=log, snapshot=snapshot, newest_snapshot=newest)


def fold(serving: Serving, log: Log, until: int = END) -> list[ModelSnapshot]:
    part = log.part(serving.n, until)
    return list(serving.fold(part.examples, part.commands, until))


def folded(log: Log, snapshots: list[ModelSnapshot] | None = None) -> Serving:
    """Step by step, as a worker does, keeping the snapshots that fall due in `snapshots`."""
    kept = [] if snapshots is None else snapshots
    serving = a_serving(log, kept)
    for until in range(20, END + 1, 20):
        kept += fold(serving, log, until)
    return serving


def state_of(serving: Serving) -> tuple:
    """Everything but the ranges themselves."""
    found = serving.snapshot()
    return found.learners, found.blend, found.learned, found.positives, replace(serving.roles, excised=())


def with_excisions(ranges: Sequence[tuple[int, OffsetRange]]) -> list[Command]:
    """The commands of the module, and one at each odd offset that excises a range."""
    champion = {offset: RoleHistory.of(COMMANDS).at(offset).champion for offset, _ in ranges}
    cuts = [command(offset, "excise", f"{a}-{b}", champion[offset]) for offset, (a, b) in ranges]
    taken = {one.offset for one in cuts}
    return sorted([*(one for one in COMMANDS if one.offset not in taken), *cuts])


@st.composite
def excisions(draw) -> list[tuple[int, OffsetRange]]:
    """One or two commands, each about something before it."""
    free = [offset for offset in range(3, END, 2) if offset not in {one.offset for one in COMMANDS}]
    found = []
    for offset in sorted(draw(st.sets(st.sampled_from(free), min_size=1, max_size=2))):
        start = draw(st.integers(0, offset - 1))
        found.append((offset, (start, draw(st.integers(start + 1, offset)))))
    return found


@settings(max_examples=40, deadline=None)
@given(given_ranges=excisions(), keeps=st.booleans())
def test_models_are_those_of_a_log_in_which_the_ranges_taught_nothing(given_ranges, keeps):
    log = Log(with_excisions(given_ranges))
    never = Log(COMMANDS, untaught=[range_ for _, range_ in given_ranges])
    excised, clean = folded(log, [] if keeps else None), folded(never)

    assert excised.roles.excised == tuple(range_ for _, range_ in given_ranges)
    assert state_of(excised) == state_of(clean)
    one, other = excised.score(FEATURES, IDS), clean.score(FEATURES, IDS)
    assert np.array_equal(one.blend, other.blend) and one.model_version == other.model_version


@settings(max_examples=25, deadline=None)
@given(given_ranges=excisions(), data=st.data())
def test_worker_that_resumes_anywhere_becomes_the_same(given_ranges, data):
    log, snapshots = Log(with_excisions(given_ranges)), []
    straight = folded(log, snapshots)
    kept = data.draw(st.lists(st.sampled_from(snapshots), unique_by=lambda one: one.n))
    begins = data.draw(st.sampled_from([None, *kept]))
    resumed = a_serving(log, kept, snapshot=begins)
    made = fold(resumed, log)

    assert resumed.digest() == straight.digest() and resumed.roles == straight.roles
    digests = {one.n: one.digest for one in snapshots}
    assert {one.n: one.digest for one in made}.items() <= digests.items()


def test_excision_changes_what_it_should():
    taught = folded(Log(COMMANDS))
    excised = folded(Log(with_excisions([(211, (100, 140))])))
    assert excised.learned < taught.learned and state_of(excised) != state_of(taught)


def test_log_is_folded_again_from_the_newest_snapshot_before_all_ranges():
    ranges = [(211, (100, 140)), (221, (40, 60)), (231, (120, 150))]
    log, snapshots = Log(with_excisions(ranges)), []
    excised = folded(log, snapshots)
    rebuilt = [(start, end) for start, end in log.asked if end > 201]
    assert rebuilt == [(90, 211), (30, 221), (30, 231)]  # the snapshot at 120 has learned what the second one took out
    assert state_of(excised) == state_of(folded(Log(COMMANDS, untaught=[range_ for _, range_ in ranges])))


def test_new_challenger_is_warmed_up_without_what_was_excised_before():
    later = [command(125, "excise", "100-124", INITIAL), command(131, "prepare", "m1")]
    log = Log(later)
    never = Log(later[1:], untaught=[(100, 124)])
    assert state_of(folded(log)) == state_of(folded(never))
    assert len(folded(log).snapshot().learners) == 2


def test_same_range_again_is_obeyed_and_changes_nothing():
    once, twice = Log(with_excisions([(211, (100, 140))])), Log(with_excisions([(211, (100, 140)), (221, (100, 140))]))
    assert state_of(folded(once)) == state_of(folded(twice))
    assert [end for _, end in twice.asked].count(221) == 0


@pytest.mark.parametrize("text", ["", "5", "9-5", "5-5", "-5", "x-9", "100-214"])
def test_range_that_is_none_or_is_not_in_the_log_yet_is_ignored(text: str):
    serving = folded(Log([command(211, "excise", text)]))
    assert serving.ignored == 1 and serving.roles == Roles()


def test_log_that_begins_too_late_is_refused_before_anything_changes():
    log = Log(with_excisions([(211, (100, 140))]))
    serving = a_serving(log)
    log.first = 50
    fold(serving, log, 211)
    before = serving.digest()
    with pytest.raises(ModelRefusedError, match=r"TM-5005.*begins at 50"):
        fold(serving, log, 212)
    assert serving.digest() == before


def test_snapshot_stands_in_for_a_log_that_begins_late():
    log, snapshots = Log(with_excisions([(211, (100, 140))])), []
    whole = folded(log, snapshots)
    log.first = 61
    assert folded(log, [one for one in snapshots if one.n == 90]).digest() == whole.digest()


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda pair: (pair[0], sum(pair)))))
def test_ranges_are_read_as_they_are_written(ranges):
    assert ranges_of(Roles(excised=tuple(ranges)).excised_text) == tuple(ranges)
    assert all(offsets_of(f"{a}-{b}") == (a, b) for a, b in ranges)


# In a backtest --------------------------------------------------------------------------------------------------------


def excise_midway(past: Past, text: str) -> None:
    """A command after the first of two halves of the events."""
    time = 24 * 3_600_000 + 20 * 3_600_000
    past.run.at(time, lambda: past.run.log.command("excise", version=text, expects=INITIAL, cause="test", time=time))


def test_backtest_that_keeps_its_log_excises_and_one_that_does_not_refuses():
    inputs = a_past(a_shop())
    kept = Past(a_shop(), keeps_log=True)
    excise_midway(kept, "0-6")
    kept.run.run(lanes_of(inputs))
    plain = Past(a_shop())
    plain.run.run(lanes_of(inputs))
    assert kept.run.serving.roles.excised == ((0, 6),)
    gone = sum(int(np.count_nonzero(one.is_learned & (one.offset < 6))) for one in kept.examples)
    assert 0 < gone == plain.run.serving.learned - kept.run.serving.learned

    short = Past(replace(a_shop(), batch_records=5, learner=replace(a_shop().learner, warm_offsets=4)))
    excise_midway(short, "0-6")
    with pytest.raises(ModelRefusedError, match="TM-5005"):
        short.run.run(lanes_of(inputs))
