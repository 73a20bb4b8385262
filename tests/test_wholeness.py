"""State that is being rebuilt elsewhere: scoring waits for it, or says that it did not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tidemill.apps import wholeness as wholeness_module
from tidemill.apps.wholeness import FlaggedScorer, Wholeness
from tidemill.core.records import FeatureBatch, Mark, Partition, Scores
from tidemill.errors import FencedError, UnavailableError

A, B = Partition("events", 0), Partition("events", 1)
COMMITTED = {A: 10, B: 20, Partition("labels", 0): None, Partition("prices", 0): 0}


class Champion:
    n = 3

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        same = np.zeros(len(ids))
        return Scores(learner=same, base_rate=same, booster=None, blend=same, n=self.n, model_version="v")


def marks(**applied: int) -> Mapping[Partition, Mark]:
    return {Partition("events", "ab".index(name)): Mark("", at, at, 5, False) for name, at in applied.items()}


def is_degraded(scorer: FlaggedScorer) -> bool:
    return scorer.score(FeatureBatch(np.zeros((1, 0), np.float32), ()), ["x"]).is_degraded


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wholeness_module, "LOOK_EVERY_S", 0.0)


def test_with_stop_nobody_scores_before_every_partition_is_where_the_group_stands() -> None:
    said: list[str] = []
    whole = Wholeness("stop", said.append)
    whole.begin(COMMITTED, marks(a=10))  # nobody has claimed the other one yet
    assert not whole.is_whole
    answers = [marks(a=10), marks(a=10, b=0), marks(a=10, b=19), marks(a=11, b=20), marks(a=99, b=99)]
    asked = iter(answers)
    whole.wait(lambda: next(asked), lambda: True)
    assert whole.is_whole and len(list(asked)) == 1
    assert "1 partitions of other workers are still being rebuilt: waiting" in said[0] and "whole again" in said[-1]


def test_who_waits_for_a_rebuild_that_nobody_does_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may believe that it has nothing to do: a worker that waits for it for ever is no worker."""
    monkeypatch.setattr(wholeness_module, "REBUILT_WITHIN_S", 0.02)
    whole = Wholeness("stop", lambda message: None)
    whole.begin(COMMITTED, marks(a=10))
    moving = (marks(a=10, b=at) for at in range(19))

    def slowly() -> Mapping[Partition, Mark]:
        time.sleep(0.015)
        return next(moving)

    with pytest.raises(StopIteration):  # whatever moves is waited for, here 0.3 s
        whole.wait(slowly, lambda: True)
    with pytest.raises(UnavailableError, match=r"TM-3017 events\[1\] have to be rebuilt and came no further"):
        whole.wait(lambda: marks(a=10, b=19), lambda: True)


def test_with_degraded_every_score_is_flagged_until_all_is_whole() -> None:
    whole = Wholeness("degraded", lambda message: None)
    scorer = FlaggedScorer(Champion(), whole)
    assert not is_degraded(scorer)
    whole.begin(COMMITTED, marks(a=10, b=3))
    whole.wait(lambda: pytest.fail("it waited"), lambda: True)
    assert is_degraded(scorer) and scorer.n == 3
    whole.see(marks(a=12, b=19))
    assert is_degraded(scorer)
    whole.see(marks(a=12, b=20))
    assert not is_degraded(scorer)


def test_whoever_waits_lets_go_when_the_group_takes_partitions_away() -> None:
    whole = Wholeness("stop", lambda message: None)
    whole.begin(COMMITTED, marks())
    current = iter([True, True, False])
    with pytest.raises(FencedError, match="TM-4002"):
        whole.wait(lambda: marks(), lambda: next(current))


def test_a_healthy_group_never_waits() -> None:
    said: list[str] = []
    whole = Wholeness("stop", said.append)
    whole.begin(COMMITTED, marks(a=12, b=20))
    assert whole.is_whole and said == []
