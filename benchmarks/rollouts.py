"""How often a rollout errs, and how long it takes: simulated champions and challengers, looked at every 100 labels.

In: nothing but seeds. Out: the share of equal challengers that are promoted, of clearly worse ones that are aborted,
and the examples until better ones are promoted. Invariant: the comparison is the product's own (`core/rollout.py`), fed
with labels that come later where they are positive.

    python -m benchmarks.rollouts [--rollouts 500]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from tidemill.core.loop_spec import RolloutSpec
from tidemill.core.records import Float64s, Int64s
from tidemill.core.rollout import RolloutWatch
from tidemill.core.ticks import Verdict

EVENT_MS = 60_000  # one event a minute
WAIT_MS = 36 * 3_600_000
LOOK_LABELS = 100
NOISE = 0.3  # of each model's log odds around the truth: costs about .007 nats
SPEC = RolloutSpec()
SHARED_ROWS = 240  # clustered: so many neighbours share part of the error


class Stream(NamedTuple):
    """A challenger's events in order of time."""

    event_time: Int64s
    label_time: Int64s
    champion: Float64s
    challenger: Float64s
    label: Float64s


class Ending(NamedTuple):
    verdict: Verdict
    examples: int


def simulate(*, seed: int, gain: float, shared: float = 0.0, spec: RolloutSpec = SPEC) -> Stream:
    """Two models of one truth, each with its own error of equal size; then the champion loses `gain` nats more.

    gain: mean difference of expected loss, negative = the challenger is worse; one model gets more error for it.
    shared: share of the error's variance that SHARED_ROWS neighbours have in common.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    rows = spec.examples_max + WAIT_MS // EVENT_MS + LOOK_LABELS
    truth = random.normal(-1.2, 1.0, rows)
    rate = _logistic(truth)
    champion_error, challenger_error = (_error(random, rows, shared) for _ in range(2))
    scales = _scale_of(abs(gain)), 1.0
    champion_scale, challenger_scale = scales if gain >= 0 else scales[::-1]
    label = random.random(rows) < rate
    event_time = np.arange(rows, dtype=np.int64) * EVENT_MS
    # Silence is known at once, a positive takes a day: whoever counts labels as they come sees too few positives.
    delay = random.integers(1, 3_600_000, rows) + np.where(label, 20 * 3_600_000, 0)
    return Stream(
        event_time,
        event_time + delay,
        _logistic(truth + champion_scale * champion_error),
        _logistic(truth + challenger_scale * challenger_error),
        label.astype(np.float64),
    )


def roll_out(stream: Stream, spec: RolloutSpec = SPEC) -> Ending:
    """Look every LOOK_LABELS labels, until there is a verdict."""
    watch = RolloutWatch(spec, WAIT_MS)
    watch.begin("challenger", 0, spec.examples_max)
    order = np.argsort(stream.label_time, kind="stable")
    for start in range(0, len(order) - LOOK_LABELS + 1, LOOK_LABELS):
        rows = order[start : start + LOOK_LABELS]
        watch.add(stream.event_time[rows], stream.champion[rows], stream.challenger[rows], stream.label[rows], rows)
        state = watch.look(int(stream.label_time[rows[-1]]) + 1)
        if state is not None and state.verdict != "open":
            return Ending(state.verdict, state.examples)
    return Ending("open", 0)


def endings(*, gain: float, seeds: Sequence[int], shared: float = 0.0) -> list[Ending]:
    return [roll_out(simulate(seed=seed, gain=gain, shared=shared)) for seed in seeds]


def share_of(verdict: Verdict, found: Sequence[Ending]) -> float:
    return sum(ending.verdict == verdict for ending in found) / len(found)


def _error(random: np.random.Generator, rows: int, shared: float) -> Float64s:
    groups = -(-rows // SHARED_ROWS)
    common = np.repeat(random.normal(0.0, 1.0, groups), SHARED_ROWS)[:rows]
    own = random.normal(0.0, 1.0, rows)
    return np.asarray(NOISE * (np.sqrt(shared) * common + np.sqrt(1 - shared) * own), dtype=np.float64)


def _logistic(log_odds: Float64s) -> Float64s:
    return np.asarray(1 / (1 + np.exp(-log_odds)), dtype=np.float64)


@cache
def _scale_of(gain: float) -> float:
    """The factor of a model's error at which its expected loss is `gain` above that of factor 1, by bisection."""
    random = np.random.Generator(np.random.PCG64(0))
    truth, error = random.normal(-1.2, 1.0, 200_000), NOISE * random.normal(0.0, 1.0, 200_000)
    rate = _logistic(truth)

    def loss(scale: float) -> float:
        score = _logistic(truth + scale * error)
        return float(-(rate * np.log(score) + (1 - rate) * np.log1p(-score)).mean())

    low, high = 1.0, 20.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) - loss(1.0) < gain else (low, middle)
    return (low + high) / 2 if gain else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=500, help="of equal models")
    count = parser.parse_args().rollouts
    equal = endings(gain=0.0, seeds=range(count))
    clustered = endings(gain=0.0, seeds=range(10_000, 10_000 + count * 2 // 5), shared=0.5)
    worse = endings(gain=-0.02, seeds=range(2_000, 2_050))
    figures: dict[str, float] = {
        "alpha": SPEC.alpha,
        "equal/rollouts": count,
        "equal/promoted": share_of("better", equal),
        "equal/aborted_as_worse": share_of("worse", equal),
        "clustered/rollouts": len(clustered),
        "clustered/promoted": share_of("better", clustered),
        "worse_by_.02/rollouts": len(worse),
        "worse_by_.02/aborted_as_worse": share_of("worse", worse),
        "worse_by_.02/examples_median": float(np.median([ending.examples for ending in worse])),
    }
    for gain in (0.002, 0.005, 0.01):
        better = endings(gain=gain, seeds=range(3_000, 3_030))
        examples = [ending.examples if ending.verdict == "better" else np.inf for ending in better]
        figures[f"better_by_{gain:g}/promoted"] = share_of("better", better)
        figures[f"better_by_{gain:g}/examples_median"] = float(np.median(examples))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
