"""Variants of an app side by side: the same past, each in a process of its own.

In: what to run, by variant. Out: the first variant's results with a comparison of all. Invariant: a difference is taken
on the same days, and its standard error is that of day blocks: events of one day are not independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tidemill.apps.backtest import Measured
from tidemill.apps.backtest_results import Comparison, Results
from tidemill.errors import ConfigError

DAYS_MIN = 2  # a standard error needs two blocks


def run_variants(jobs: Mapping[str, Callable[[], Measured]], *, processes: int) -> Results:
    """Run every job; a job is a picklable call. The first one is what the others are compared with.

    Raises:
        ConfigError: TM-1810, the variants were measured on other events.
    """
    # A fresh interpreter each: neither memory nor threads of this one come along.
    with ProcessPoolExecutor(max_workers=processes, mp_context=get_context("spawn")) as pool:
        running = {name: pool.submit(job) for name, job in jobs.items()}
        measured = {name: each.result() for name, each in running.items()}
    return with_comparisons(measured)


def with_comparisons(measured: Mapping[str, Measured]) -> Results:
    """The first variant's results, compared with the others."""
    first_name, first = next(iter(measured.items()))
    comparisons = []
    for name, one in measured.items():
        served = one.results.served
        if served is None:
            raise ConfigError("TM-1810", f"variant {name}: no label came, so there is nothing to compare")
        if name == first_name:
            comparisons.append(Comparison(name=name, figures=served.figures))
            continue
        difference, error, days = difference_by_days(one.losses_by_day, first.losses_by_day, name, first_name)
        comparisons.append(
            Comparison(name=name, figures=served.figures, difference=difference, standard_error=error, days=days)
        )
    return dataclasses.replace(first.results, comparisons=tuple(comparisons))


def difference_by_days(
    ours: Mapping[int, tuple[int, float]], theirs: Mapping[int, tuple[int, float]], name: str, other: str
) -> tuple[float, float | None, int]:
    """Mean loss of `ours` less that of `theirs`, its standard error by blocks of days, and the days.

    The ratio estimator of a cluster sample: sum of d_day / sum of n_day, with the variance of d_day - n_day * ratio.
    """
    days: Sequence[int] = sorted(ours)
    if [(day, ours[day][0]) for day in days] != [(day, theirs[day][0]) for day in sorted(theirs)]:
        raise ConfigError("TM-1810", f"variants {name} and {other} were measured on other events; give them one past")
    count = sum(ours[day][0] for day in days)
    gaps = [ours[day][1] - theirs[day][1] for day in days]
    ratio = sum(gaps) / count
    if len(days) < DAYS_MIN:
        return ratio, None, len(days)
    squares = sum((gap - ours[day][0] * ratio) ** 2 for day, gap in zip(days, gaps, strict=True))
    return ratio, math.sqrt(squares * len(days) / (len(days) - 1)) / count, len(days)
