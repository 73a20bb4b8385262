"""How often the drift detectors are wrong, and how soon they are right: ours beside ADWIN and Page-Hinkley.

In: made-up streams, seeded. Out: tables. Invariant: every detector sees the same streams; one that has to be found
comes once a stream has been quiet for the reference of the concept detector.

Blocks are days of the excess loss, with a spread of .06 nats, as in the flights. Streams of features have days of
1,000 events whose rows share an effect of their day, itself correlated from day to day (AR).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.drift.concept import BETS, played, scale_of
from tidemill.core.drift.reference import Reference, reference_of
from tidemill.core.drift.shifts import ShiftJudge
from tidemill.core.loop_spec import DAY_MS, MonitorSpec
from tidemill.core.records import FeatureBatch, Float64s
from tidemill.models.drift_baselines import DriftBaselines

SPEC = MonitorSpec()
SPREAD = 0.06
QUIET = 30  # days between the reference and a change
DAY_EVENTS, TRAINING_DAYS, WINDOW = 1_000, 90, SPEC.window_ms // SPEC.every_ms
DAY_SHARES = (0.0, 0.0, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5)  # of a column's variance
NUMBERS = tuple(f"number_{at}" for at in range(len(DAY_SHARES)))
CATEGORIES = {"few": 5, "many": 60}
VALUES = {name: np.array([f"{name}_{at}" for at in range(count)]) for name, count in CATEGORIES.items()}


def blocks(source: np.random.Generator, streams: int, days: int, *, correlation: float, law: str) -> Float64s:
    """Streams of blocks with mean 0 and a spread of 1, shape (streams, days)."""
    days += QUIET  # for the correlation to settle
    shape = (streams, days)
    noise = source.normal(size=shape) if law == "normal" else (source.gamma(2, size=shape) - 2) / 2**0.5
    for day in range(1, days):
        noise[:, day] = correlation * noise[:, day - 1] + (1 - correlation**2) ** 0.5 * noise[:, day]
    return noise[:, QUIET:]


def e_detector_delay(streams: Float64s) -> Float64s:
    """Blocks behind the reference until the first alarm, by stream; NaN = there was none."""
    level, spread = scale_of(streams[:, : SPEC.reference_ticks])
    capital = np.zeros((len(streams), len(BETS)))
    first = np.full(len(streams), np.nan)
    for at, block in enumerate(streams[:, SPEC.reference_ticks :].T, start=1):
        capital = np.minimum(played(capital, (block - level) / spread), 1e100)
        first[np.isnan(first) & (capital.mean(axis=1) >= SPEC.average_run_length)] = at
    return first


def river_delays(streams: Float64s) -> tuple[Float64s, Float64s]:
    """The same of ADWIN and of Page-Hinkley, which see the reference, too; alarms within it count for nothing."""
    first = np.full((2, len(streams)), np.nan)
    for row, stream in enumerate((0.45 + streams).tolist()):
        detectors = DriftBaselines()
        for at, block in enumerate(stream, start=1 - SPEC.reference_ticks):
            before = detectors.adwin, detectors.page_hinkley
            detectors.add(block)
            for which, count in enumerate((detectors.adwin, detectors.page_hinkley)):
                if at > 0 and count > before[which] and np.isnan(first[which, row]):
                    first[which, row] = at
            if not np.isnan(first[:, row]).any():
                break
    return first[0], first[1]


def run_length(first: Float64s, days: int) -> tuple[float, float]:
    """Days watched per alarm, and the share of streams with an alarm within the setting."""
    alarms = int(np.isfinite(first).sum())
    watched = float(np.where(np.isnan(first), days, first).sum())
    return watched / max(1, alarms), float((first <= SPEC.average_run_length).mean())


def print_run_lengths(streams: int, river_streams: int, days: int) -> None:
    print(f"\nRun length without drift; the setting is {SPEC.average_run_length} ticks, {streams} streams of {days}")
    print(f"{'blocks':<22}{'detector':<14}{'run length':>11}{'ratio':>8}{'alarm within the setting':>26}")
    source = np.random.Generator(np.random.PCG64(1))
    for law, correlation in (("normal", 0.0), ("normal", 0.3), ("gamma", 0.0), ("gamma", 0.3)):
        noise = SPREAD * blocks(source, streams, SPEC.reference_ticks + days, correlation=correlation, law=law)
        adwin, page_hinkley = river_delays(noise[:river_streams])
        for name, first in (("e-detector", e_detector_delay(noise)), ("ADWIN", adwin), ("Page-Hinkley", page_hinkley)):
            length, share = run_length(first, days)
            label = f"{law}, AR({correlation})"
            at_least = "" if np.isfinite(first).any() else "> "  # nobody has cried
            ratio = f"{at_least}{length / SPEC.average_run_length:.1f}"
            print(f"{label:<22}{name:<14}{f'{at_least}{length:,.0f}':>11}{ratio:>8}{share:>26.1%}")


def print_delays(streams: int) -> None:
    days = SPEC.reference_ticks + QUIET + 120
    print(f"\nTicks from a change to its alarm, median / 9 of 10, normal blocks, AR(0.3), {streams} streams of a size")
    print(f"{'change, spreads':<18}{'nats':>6}{'e-detector':>14}{'ADWIN':>14}{'Page-Hinkley':>14}")
    source = np.random.Generator(np.random.PCG64(2))
    for size in (1, 2, 3, 5, 8, 12):
        noise = SPREAD * blocks(source, streams, days, correlation=0.3, law="normal")
        noise[:, SPEC.reference_ticks + QUIET :] += SPREAD * size
        cells = [_delay(first) for first in (e_detector_delay(noise), *river_delays(noise))]
        print(f"{size:<18}{size * SPREAD:>6.2f}" + "".join(f"{cell:>14}" for cell in cells))
    print("\nOne bad day: streams in which the e-detector fires on it or on the next two")
    for size in (4, 8, 12, 20):
        noise = SPREAD * blocks(source, streams * 5, SPEC.reference_ticks + QUIET + 3, correlation=0.0, law="normal")
        noise[:, SPEC.reference_ticks + QUIET] += SPREAD * size
        print(f"{size:>4} spreads: {np.mean(e_detector_delay(noise) > QUIET):.1%}")


def _delay(first: Float64s) -> str:
    delay = first[~(first <= QUIET)] - QUIET  # streams that had cried before the change have nothing to tell
    delay = np.where(np.isnan(delay), np.inf, delay)
    middle, most = np.quantile(delay, (0.5, 0.9), method="higher")
    return " / ".join("-" if np.isinf(value) else f"{value:.0f}" for value in (middle, most))


class Day(NamedTuple):
    features: FeatureBatch
    codes: npt.NDArray[np.int64]
    probability: Float64s
    label: npt.NDArray[np.float32]


def made_days(source: np.random.Generator, correlation: float) -> Iterator[Day]:
    """Days without end, all of one law."""
    share = np.array(DAY_SHARES)
    effect = source.normal(size=len(share))
    tilt = source.normal()
    while True:
        keep = (1 - correlation**2) ** 0.5
        effect = correlation * effect + keep * source.normal(size=len(share))
        tilt = correlation * tilt + keep * source.normal()
        numeric = source.standard_normal((DAY_EVENTS, len(share)), dtype=np.float32)
        numeric = numeric * np.sqrt(1 - share).astype(np.float32) + (np.sqrt(share) * effect).astype(np.float32)
        numeric[source.random(DAY_EVENTS) < 0.02, 1] = np.nan
        codes = np.empty((DAY_EVENTS, len(VALUES)), dtype=np.int64)
        for at, count in enumerate(CATEGORIES.values()):
            weight = np.exp(-np.arange(count) / (count / 4) + 0.15 * tilt * np.cos(np.arange(count)))
            codes[:, at] = np.searchsorted(np.cumsum(weight / weight.sum())[:-1], source.random(DAY_EVENTS))
        columns = tuple(tuple(values[codes[:, at]].tolist()) for at, values in enumerate(VALUES.values()))
        probability = 1 / (1 + np.exp(1.5 - 0.4 * tilt - numeric[:, 0].astype(np.float64)))
        label = (source.random(DAY_EVENTS) < probability).astype(np.float32)
        yield Day(FeatureBatch(numeric, columns), codes, probability, label)


def reference_of_days(days: list[Day]) -> Reference:
    """As training makes it: the probability is known of the newest tenth only."""
    every = np.concatenate([day.probability for day in days])
    probability = every.copy()
    probability[: len(probability) * 9 // 10] = np.nan
    return reference_of(
        np.concatenate([day.features.numeric for day in days]),
        np.concatenate([day.codes for day in days]),
        np.concatenate([day.label for day in days]),
        probability,
        np.repeat(np.arange(len(days)) * DAY_MS, DAY_EVENTS),
        seen_probability=every,
        numeric_names=NUMBERS,
        category_names=tuple(VALUES),
        vocabularies=tuple(tuple(values.tolist()) for values in VALUES.values()),
        spec=SPEC,
    )


def print_shifts(seeds: int, days: int) -> None:
    events = seeds * (TRAINING_DAYS + days) * DAY_EVENTS
    print(f"\nShifts without drift: {seeds} seeds, {events / 1e6:.1f} M events, days of {DAY_EVENTS:,}")
    print(
        f"{'days':<12}{'judged':>8}{'alerts':>8}{'incidents':>11}"
        f"{'ticks with a discovery':>24}{'p < .01':>9}{'largest PSI':>13}"
    )
    for correlation in (0.0, 0.3):
        judged = alerts = incidents = discoveries = tests = small = 0
        largest = 0.0
        for seed in range(seeds // 2):
            source = made_days(np.random.Generator(np.random.PCG64(100 + seed)), correlation)
            reference = reference_of_days([next(source) for _ in range(TRAINING_DAYS)])
            last = -days
            for shifts in judged_days(reference, source, days):
                p_value = np.array([shift.p_value for shift in shifts])
                judged += 1
                if any(shift.is_drift for shift in shifts):
                    alerts += 1
                    incidents += judged - last > SPEC.quiet_ms // DAY_MS
                    last = judged
                ordered = np.sort(p_value) * len(p_value) / np.arange(1, len(p_value) + 1)
                discoveries += bool((ordered <= 1 / SPEC.average_run_length).any())
                tests += len(p_value)
                small += int((p_value < 0.01).sum())
                largest = max(largest, *(shift.effect for shift in shifts if shift.subject != "label"))
        rate = f"{discoveries} (1 in {judged / max(1, discoveries):,.0f})"
        print(
            f"AR({correlation})".ljust(12)
            + f"{judged:>8,}{alerts:>8}{incidents:>11}{rate:>24}{small / tests:>9.2%}{largest:>13.2f}"
        )


def judged_days(reference: Reference, source: Iterator[Day], days: int) -> Iterator[tuple]:
    judge = ShiftJudge(reference, SPEC, NUMBERS, tuple(VALUES))
    for tick in range(days):
        day = next(source)
        judge.add(tick, day.features, day.probability)
        judge.add_labels(tick, day.label)
        if shifts := judge.judge(tick):
            yield shifts


def print_cost() -> None:
    """A day of 1,000 events and a bulk of 100,000, with 40 columns."""
    source = np.random.Generator(np.random.PCG64(3))
    names, kinds = tuple(f"n{at}" for at in range(30)), tuple(f"c{at}" for at in range(10))
    vocabulary = tuple(f"value {at}" for at in range(100))
    numeric = source.standard_normal((100_000, 30), dtype=np.float32)
    codes = np.minimum(source.geometric(0.05, (100_000, 10)), 100) - 1
    label, probability = (source.random(100_000) < 0.3).astype(np.float32), source.random(100_000)
    time_ms = np.repeat(np.arange(100), 1_000) * DAY_MS
    started = time.perf_counter()
    reference = reference_of(
        numeric,
        codes,
        label,
        probability,
        time_ms,
        numeric_names=names,
        category_names=kinds,
        vocabularies=(vocabulary,) * 10,
        spec=SPEC,
    )
    made = time.perf_counter() - started
    texts = np.array(vocabulary)
    whole = FeatureBatch(numeric, tuple(tuple(texts[codes[:, at]].tolist()) for at in range(10)))
    day = FeatureBatch(numeric[:1_000], tuple(column[:1_000] for column in whole.categories))
    judge = ShiftJudge(reference, SPEC, names, kinds)
    tick = 0
    lines = [f"reference of 100,000 rows {made * 1e3:.0f} ms"]
    for what, features, repeats in (("add of 1,000 rows", day, 50), ("add of 100,000 rows", whole, 3)):
        spent = []
        for _ in range(repeats):
            tick += 1
            started = time.perf_counter()
            judge.add(tick, features, probability[: len(features)])
            spent.append(time.perf_counter() - started)
        lines.append(f"{what} {np.median(spent) * 1e3:.2f} ms")
    started = time.perf_counter()
    judge.judge(tick)
    print("\nCost, 40 columns: " + ", ".join(lines) + f", judge {(time.perf_counter() - started) * 1e3:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams: seconds, rough numbers")
    scale = 10 if parser.parse_args().quick else 1
    started = time.perf_counter()
    print_run_lengths(streams=2_000 // scale, river_streams=100 // scale, days=2_000)
    print_delays(streams=400 // scale)
    print_shifts(seeds=10, days=910 // scale)
    print_cost()
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
