"""What a backtest showed, as one value that JSON keeps and the page, the table and other programs read.

In: figures and sketches of a run. Out: `Results`, its JSON and back. Invariant: JSON and value say the same, to the
last bit; what could not be measured is None and null, never NaN and never zero. Times are milliseconds since the
epoch, UTC; losses are in nats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from tidemill.core.curves import (
    CalibrationBin,
    ThresholdPoint,
    brier,
    calibration,
    calibration_error,
    decide,
    thresholds,
)
from tidemill.core.metrics import RunningMetrics
from tidemill.core.spec import CostSpec
from tidemill.errors import ConfigError

SCHEMA_VERSION = 1  # grows when a name of the JSON changes
WINDOW_MS = 7 * 86_400_000

SeriesKind = Literal["blend", "booster", "learner", "challenger", "comparator", "constant", "no_change"]
BASELINES: frozenset[SeriesKind] = frozenset({"constant", "no_change"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where records came from: a file, or one partition of a topic with the offsets [start, next)."""

    name: str
    records: int
    offset_start: int | None = None
    offset_next: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of the whole run. An example is a prediction with its label; expired are predictions whose label never came."""

    records: int
    events: int
    labels: int
    examples: int
    expired: int
    dead_letters: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one series over all its examples; from accuracy to cost at the decision's threshold."""

    n: int
    positives: int
    log_loss: float | None
    auc: float | None
    brier: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    alarm_rate: float | None
    cost: float | None  # of an event on average
    calibration_error: float | None
    kappa: float | None = None  # (accuracy - that of no-change) / (1 - that of no-change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The examples of one span of event time, from `start_ms` to `Results.window_ms` later."""

    start_ms: int
    n: int
    log_loss: float | None
    auc: float | None
    base_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One source of probabilities, measured on what it said before the label came."""

    name: str
    kind: SeriesKind
    figures: Figures
    windows: tuple[Window, ...] = ()  # by time; a window without examples may be absent
    calibration: tuple[CalibrationBin, ...] = ()
    thresholds: tuple[ThresholdPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """From `time_ms` on a new version served."""

    time_ms: int
    version: str
    trained_examples: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The examples that share one value of one feature, scored by what served."""

    feature: str
    value: str
    n: int
    log_loss: float
    excess: float  # over the log loss of all examples
    auc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayBin:
    """Labels that came `delay_ms` after their event, start_ms <= delay_ms < end_ms."""

    start_ms: int
    end_ms: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPoint:
    """What the blend gave each expert at one time; the weights add up to 1."""

    time_ms: int
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One variant of `--compare`. `difference`: its log loss less that of the first variant on the same events, and the
    standard error of that by blocks of days; both None for the first."""

    name: str
    figures: Figures
    difference: float | None = None
    standard_error: float | None = None
    days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One backtest."""

    app: str
    config_digest: str
    made: str  # ISO 8601, as the caller was told
    command: str  # the command line
    sources: tuple[Source, ...]
    time_first_ms: int  # of events
    time_last_ms: int
    counts: Counts
    seconds: float  # of the wall clock
    records_per_s: float
    rss_bytes_max: int | None
    false_alarm_cost: float
    miss_cost: float
    label_delay_ms_p50: float | None
    label_delay_ms_p95: float | None
    series: tuple[Series, ...]  # the one that serves first
    promotions: tuple[Promotion, ...] = ()
    slices: tuple[Slice, ...] = ()  # the worst first
    label_delays: tuple[DelayBin, ...] = ()
    blend_weights: tuple[WeightPoint, ...] = ()
    blend_excess: float | None = None  # log loss of the blend less that of its best expert
    comparisons: tuple[Comparison, ...] = ()
    window_ms: int = WINDOW_MS

    @property
    def served(self) -> Series | None:
        """The series that decides: the blend, or the first one where nothing is blended."""
        return next((one for one in self.series if one.kind == "blend"), self.series[0] if self.series else None)

    @property
    def threshold(self) -> float:
        return CostSpec(false_alarm=self.false_alarm_cost, miss=self.miss_cost).threshold

    def to_json(self) -> dict[str, Any]:
        """JSON values: no NaN, no tuple, and `schema_version` first."""
        return {"schema_version": SCHEMA_VERSION, **_plain(dataclasses.asdict(self))}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Results:
        """The inverse of `to_json`.

        Raises:
            ConfigError: TM-1801, another schema version, or a field is missing, unknown or of another type.
        """
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                "TM-1801",
                f"results of a backtest: schema_version is {version}, this tidemill reads {SCHEMA_VERSION}; "
                "run the backtest again",
            )
        try:
            results = _adapter().validate_python({key: one for key, one in found.items() if key != "schema_version"})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                "TM-1801", f"results of a backtest: {where}: {first['msg']}; run the backtest again"
            ) from error
        if results.to_json() != found:  # a field that nobody knows, or a text where a number belongs
            raise ConfigError(
                "TM-1801", "results of a backtest: a field is unknown or of another type; run the backtest again"
            )
        return results


def series_of(
    name: str,
    kind: SeriesKind,
    overall: RunningMetrics,
    windows: Mapping[int, RunningMetrics],
    costs: CostSpec,
) -> Series:
    """Every figure of one series from its sketches; `windows` by start in milliseconds. `kappa` is still None."""
    return Series(
        name=name,
        kind=kind,
        figures=figures_of(overall, costs),
        windows=tuple(
            Window(
                start_ms=start,
                n=one.count,
                log_loss=_known(one.log_loss),
                auc=_known(one.auc),
                base_rate=_known(one.base_rate),
            )
            for start, one in sorted(windows.items())
        ),
        calibration=calibration(overall.positives, overall.negatives),
        thresholds=thresholds(overall.positives, overall.negatives, costs),
    )


def figures_of(overall: RunningMetrics, costs: CostSpec) -> Figures:
    """The overall figures of a sketch; `kappa` is still None."""
    positives, negatives = overall.positives, overall.negatives
    decision = decide(positives, negatives, costs) if overall.count else None
    return Figures(
        n=overall.count,
        positives=int(positives.sum()),
        log_loss=_known(overall.log_loss),
        auc=_known(overall.auc),
        brier=brier(positives, negatives),
        accuracy=decision.accuracy if decision else None,
        precision=decision.precision if decision else None,
        recall=decision.recall if decision else None,
        alarm_rate=decision.alarm_rate if decision else None,
        cost=decision.cost if decision else None,
        calibration_error=calibration_error(calibration(positives, negatives)),
    )


def with_kappa(series: Sequence[Series]) -> tuple[Series, ...]:
    """The same series, each with its kappa against the first no-change series; without one, as they are."""
    accuracy = next((one.figures.accuracy for one in series if one.kind == "no_change"), None)
    if accuracy is None or accuracy == 1:
        return tuple(series)
    return tuple(
        dataclasses.replace(
            one,
            figures=dataclasses.replace(one.figures, kappa=(one.figures.accuracy - accuracy) / (1 - accuracy)),
        )
        if one.figures.accuracy is not None
        else one
        for one in series
    )


@cache
def _adapter() -> TypeAdapter[Results]:
    """Built when it is first needed, as that takes some ms."""
    return TypeAdapter(Results)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
