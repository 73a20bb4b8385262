"""What the loop does to a year of the example: left alone, with a fault, and with its days shuffled.

In: the example's records. Out: the story on stderr, a table on stdout. Run `python -m benchmarks.loop` for the year as
it was, `--fault labels` for two weeks of inverted labels (see apps/flights_faults.py), `--shuffled 5` for false alarms:
what was served is judged again with its days in random orders: nothing drifts, and days keep what happened in them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tidemill.apps import flights_files
from tidemill.apps.backtest import BacktestOptions, Measured, run_backtest
from tidemill.apps.backtest_loop import MemoryLoop
from tidemill.apps.flights_data import flight_records
from tidemill.apps.flights_faults import Fault, parse_fault, with_faults
from tidemill.apps.input_files import file_lanes
from tidemill.config import load_settings
from tidemill.core.drift.reference import Reference, reference_of
from tidemill.core.examples import chosen, joined
from tidemill.core.features import FeaturePlan
from tidemill.core.records import ExampleColumns
from tidemill.core.spec import AppSpec
from tidemill.core.surveillance import Surveillance
from tidemill.models.drift_baselines import DriftBaselines
from tidemill.models.training_examples import TrainingExamples

DAY_MS = 86_400_000
JUDGED_FROM_MS = 1_364_774_400_000  # 2013-04-01: before it everything learns
REFERENCE_DAYS = 90  # of shuffled days: what a model would have been trained on
COLD_DAYS = 28  # in January windows fill and the learner begins: those days are not like others, so they are left out
CONFIG = Path(__file__).parents[1] / "config" / "flights.yaml"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_year(
    app: AppSpec, fault: Fault | None, *, has_loop: bool
) -> tuple[Measured, MemoryLoop | None, list[ExampleColumns]]:
    """The year in memory; what was measured, the loop, the examples as published."""
    examples: list[ExampleColumns] = []
    loops: list[MemoryLoop] = []
    former = flights_files.flight_records
    flights_files.flight_records = lambda until: with_faults(flight_records(until), [] if fault is None else [fault])
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = flights_files.write_files(app, Path(folder))
            lanes = file_lanes(app, {topic: [path] for topic, path in paths.items()})
            options = BacktestOptions(
                has_loop=has_loop,
                measured_from_ms=JUDGED_FROM_MS,
                threads=2,
                report=say,
                on_examples=examples.append,
                on_loop=loops.append,
            )
            return run_backtest(app, lanes, [], options), loops[0] if loops else None, examples
    finally:
        flights_files.flight_records = former


def print_year(app: AppSpec, fault: Fault | None) -> None:
    started = time.monotonic()
    measured, loop, _ = run_year(app, fault, has_loop=True)
    assert loop is not None
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{'series':<12}{'n':>9}{'log loss':>10}{'AUC':>8}   (events from April on)")
    for one in measured.results.series:
        print(f"{one.name:<12}{one.figures.n:>9,}{one.figures.log_loss:>10.4f}{one.figures.auc or 0:>8.4f}")
    served = next(one for one in measured.results.series if one.name == "blend")
    constant = next(one for one in measured.results.series if one.name == "constant")
    by_week = {week.start_ms: week.log_loss or 0.0 for week in constant.windows}
    worse = [week for week in served.windows if (week.log_loss or 0.0) > by_week[week.start_ms]]
    print(f"weeks in which the blend was worse than the constant: {len(worse)} of {len(served.windows)}")
    alerts = Counter((alert.key, alert.event) for tick in loop.ticks for alert in tick.alerts)
    for (key, event), count in sorted(alerts.items()):
        print(f"alert {key} {event}: {count}")
    print(
        "story: " + ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(e.kind for e in loop.story).items()))
    )
    if fault is not None:
        print_fault(fault, measured, loop)


def print_fault(fault: Fault, measured: Measured, loop: MemoryLoop) -> None:
    """How soon the alarm came, and how the loss went."""
    labels_by_day = {day: n for day, (n, _) in measured.losses_by_day.items()}
    for tick in loop.ticks:
        for alert in tick.alerts:
            if alert.kind == "concept":
                days = range(fault.start // DAY_MS, tick.time // DAY_MS)
                labels = sum(labels_by_day.get(day, 0) for day in days)
                print(f"{alert.key} {alert.event} {labels:,} labels after the fault began")
    first, last = fault.start // DAY_MS, fault.end // DAY_MS
    for name, start, end in (
        ("14 days before", first - 14, first),
        ("during", first, last),
        ("days 0-7 after", last, last + 7),
        ("days 7-14 after", last + 7, last + 14),
        ("days 14-21 after", last + 14, last + 21),
        ("days 21-28 after", last + 21, last + 28),
    ):
        counted = [measured.losses_by_day[day] for day in range(start, end) if day in measured.losses_by_day]
        n, nats = sum(n for n, _ in counted), sum(nats for _, nats in counted)
        print(f"log loss {name}: {nats / n:.4f} over {n:,} labels")


def print_shuffled(app: AppSpec, seeds: int) -> None:
    """Alerts in a year without drift, of each seed."""
    app = replace(app, comparators=(), retrain=None)
    _, _, examples = run_year(app, None, has_loop=False)
    served = joined(examples)
    served = chosen(served, served.is_learned & (served.label_time >= served.event_time))
    days = served.label_time // DAY_MS
    plan = FeaturePlan(app)
    for seed in range(seeds):
        order = np.random.Generator(np.random.PCG64(seed)).permutation(np.unique(days)[COLD_DAYS:])
        alerts = Counter(alerts_of(app, plan, list(shuffled(served, days, order))))
        opened = {key: count for key, count in alerts.items() if not key.endswith("repeated")}
        print(f"seed {seed}: {sum(n for key, n in opened.items() if key.endswith('opened'))} opened: {dict(alerts)}")


def shuffled(served: ExampleColumns, days: np.ndarray, order: np.ndarray) -> Iterator[ExampleColumns]:
    """One piece for each day of a new year, in the new order, at its new times."""
    first = int(order.min())
    for place, day in enumerate(order.tolist()):
        of_day = chosen(served, days == day)
        moved = (first + place - day) * DAY_MS
        yield replace(of_day, label_time=of_day.label_time + moved, event_time=of_day.event_time + moved)


def alerts_of(app: AppSpec, plan: FeaturePlan, days: list[ExampleColumns]) -> Iterator[str]:
    """Of the days behind the reference."""
    training = TrainingExamples(plan.numeric_names, plan.category_names)
    for day in days[:REFERENCE_DAYS]:
        training.append(day)
    rows = training.rows()
    reference: Reference = reference_of(
        rows.numeric,
        rows.codes,
        rows.label,
        np.concatenate([day.blend for day in days[:REFERENCE_DAYS]]),
        rows.label_time,
        numeric_names=plan.numeric_names,
        category_names=plan.category_names,
        vocabularies=rows.vocabularies,
        spec=app.monitor,
    )
    surveillance = Surveillance(
        app,
        plan.numeric_names,
        plan.category_names,
        reference_of=lambda version: reference,
        make_baselines=DriftBaselines,
    )
    offset = 0
    for day in days[REFERENCE_DAYS:]:
        end = int(day.label_time.max()) // DAY_MS * DAY_MS + DAY_MS
        nobody = np.zeros(len(day), dtype=np.bool_)
        surveillance.fold_predictions(day.label_time, day.blend, nobody, day.features)
        moved = replace(day, offset=np.arange(offset, offset + len(day)))
        offset += len(day)
        surveillance.fold_examples(moved, [], offset)
        for alert in surveillance.close(end).alerts:
            yield f"{alert.key} {alert.event}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", help="carrier, labels or sensor, with @DAY to move it")
    parser.add_argument("--shuffled", type=int, metavar="SEEDS", help="false alarms on shuffled days")
    given = parser.parse_args()
    app = load_settings(CONFIG).app
    if given.shuffled:
        print_shuffled(app, given.shuffled)
    else:
        app = replace(app, comparators=tuple(one for one in app.comparators if one.name in ("constant", "frozen")))
        print_year(app, None if given.fault is None else parse_fault(given.fault))


if __name__ == "__main__":
    main()
