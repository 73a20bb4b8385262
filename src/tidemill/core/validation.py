"""Progressive validation: how good every series was, from what was served before its label was known.

In: the examples log and predictions, as columns. Out: rows of `metrics.v1` for windows and slices. Invariant: the rows
are a function of the examples log as a sequence and of the predictions as a set; how either was cut does not matter.

Measured is what is learned: examples without a flag, whose label came no earlier than their event. Amendments have no
features and no scores; an example whose label came first, or whose event came late or broke an entry rule, was not
served on the terms that the figures describe. They are counted (`unmeasured`), so nothing disappears.

A window holds the examples whose label came in it. Days and slices keep 512 bins of the probability, all else 4,096;
`auc_error_max` says what that may cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.comparators import Baselines, Comparators, Training
from tidemill.core.examples import chosen, rows
from tidemill.core.metrics import BINS, LOSS_UNIT
from tidemill.core.records import ExampleColumns, Float64s, Int64s
from tidemill.core.spec import AppSpec
from tidemill.core.validation_cells import Cells, ScoredRows, Tally
from tidemill.core.validation_rows import COMPARED, WINDOWS, Row, ServedCounts, Slice, score_row, served_row

SERVED_SERIES = ("blend", "learner", "booster", "base_rate")
SLICED_WINDOWS = ("run", "28d")
SLICE_BINS = 512  # 4 kB a cell: there are thousands of them
SLICE_VALUES = 20  # of a feature that have rows of their own, the most frequent of the run
VALUES_MAX = 256  # of a feature that are counted apart, in the order in which they come; the others are the rest
FOLD_ROWS = 16_384  # bounds memory


class Window(NamedTuple):
    """A fixed slice of event time: [number * width, (number + 1) * width)."""

    name: str
    number: int


class _Group(NamedTuple):
    """Cells of one window; column -1 = all examples, code VALUES_MAX = a value that is not counted apart."""

    window: Window
    column: int = -1
    code: int = 0


@dataclass(frozen=True, slots=True)
class PredictionColumns:
    """Predictions as published, one entry each."""

    event_time: Int64s
    blend: Float64s
    is_alarm: npt.NDArray[np.bool_]
    is_degraded: npt.NDArray[np.bool_]
    is_outlier: npt.NDArray[np.bool_]


class Validation:
    """Folds the topics of one app into figures.

    Args:
        category_names: of the features, in the order of `FeatureBatch.categories`.
        training: trains comparators of kind booster; needed when one is declared.
        sliced_windows: the widths that are sliced; slices are most of the memory.
        measured_from_ms: earlier events teach the comparators and are not measured; None = all are.
    """

    def __init__(
        self,
        spec: AppSpec,
        category_names: Sequence[str],
        training: Training | None = None,
        *,
        measured_from_ms: int | None = None,
        sliced_windows: Sequence[str] = SLICED_WINDOWS,
    ) -> None:
        self._measured_from_ms = measured_from_ms
        self._sliced_windows = tuple(sliced_windows)
        trained = [one.trained_until_ms for one in spec.comparators if one.trained_until_ms is not None]
        self._compared_from_ms = max(trained, default=None)
        self._costs = spec.costs
        self._comparators = Comparators(spec.comparators, training)
        self.series = (*SERVED_SERIES, *self._comparators.names)
        self._columns = tuple(category_names)
        self._values: tuple[dict[str, int], ...] = tuple({} for _ in category_names)
        self._cells = Cells(series=len(self.series), bins=BINS)
        self._slice_cells = Cells(series=len(self.series), bins=SLICE_BINS)
        self._served: defaultdict[Window, ServedCounts] = defaultdict(ServedCounts)
        self._measured: set[Window] = set()  # windows with a measured example
        self._changed: set[Window] = set()
        self._slices_changed: set[Window] = set()
        self._values_shown: tuple[tuple[str, ...], ...] = ()

    def fold(self, examples: ExampleColumns) -> None:
        """The next records of the examples log."""
        for start in range(0, len(examples), FOLD_ROWS):
            self._fold(rows(examples, start, start + FOLD_ROWS))

    def fold_predictions(self, predictions: PredictionColumns) -> None:
        """Predictions in any order, each once."""
        said = np.rint(predictions.blend / LOSS_UNIT)
        for window, at in _windows(predictions.event_time):
            counts = self._served[window]
            counts.served += int(at.sum())
            counts.said += int(said[at].astype(np.int64).sum())
            counts.alarms += int(predictions.is_alarm[at].sum())
            counts.degraded += int(predictions.is_degraded[at].sum())
            counts.outliers += int(predictions.is_outlier[at].sum())
            self._changed.add(window)

    def windows(self, name: str) -> list[Window]:
        """The windows of one width that hold a measured example, by time."""
        return sorted(window for window in self._measured if window.name == name)

    def tally(self, window: Window, series: str) -> Tally:
        """What was counted of one series over all examples of a window; empty where nothing was."""
        return self._cells_of(_Group(window)).tally(_Group(window), self.series.index(series))

    def changed_windows(self) -> list[Window]:
        """Windows whose rows may have changed since they were last asked for; asking again gives none."""
        changed, self._changed = self._changed, set()
        return sorted(changed)

    def changed_slices(self) -> list[Window]:
        """The same for rows of slices: all of them when another value has become one of the most frequent."""
        shown = self._shown_values()
        changed, self._slices_changed = self._slices_changed, set()
        if shown != self._values_shown:
            self._values_shown = shown
            changed = {window for window in self._measured if window.name in self._sliced_windows}
        return sorted(changed)

    def window_rows(self, window: Window) -> Iterator[Row]:
        """Of all examples of a window: one for each series that said something, and one for the predictions."""
        if window in self._served:
            counts = self._served[window]
            yield served_row(window=window.name, number=window.number, counts=counts, costs=self._costs)
        if window in self._measured:
            for index, series in enumerate(self.series):
                tally = self._cells_of(_Group(window)).tally(_Group(window), index)
                if tally.running.count:
                    yield self._row(series, window, Slice(), tally, None)

    def slice_rows(self, window: Window) -> Iterator[Row]:
        """Of the slices of a window that has slices, by series and feature; the rest last."""
        shown = self._shown_values()
        for index, series in enumerate(self.series):
            overall = self._cells_of(_Group(window)).tally(_Group(window), index).running
            for slice_, tally in self._slices(window, index, shown) if overall.count else ():
                yield self._row(series, window, slice_, tally, overall.log_loss)

    def _row(self, series: str, window: Window, slice_: Slice, tally: Tally, global_log_loss: float | None) -> Row:
        return score_row(
            series=series,
            window=window.name,
            number=window.number,
            slice_=slice_,
            tally=tally,
            costs=self._costs,
            global_log_loss=global_log_loss,
        )

    def _fold(self, examples: ExampleColumns) -> None:
        is_measured = examples.is_learned & (examples.label_time >= examples.event_time) & ~np.isnan(examples.blend)
        self._count_labels(examples, is_measured)
        measured = chosen(examples, is_measured)
        if not len(measured):
            return
        baselines, compared = self._comparators.fold(measured)
        if self._measured_from_ms is not None:
            kept = measured.event_time >= self._measured_from_ms
            if not kept.any():
                return
            measured, baselines = chosen(measured, kept), Baselines(*(each[kept] for each in baselines))
            compared = {name: column[kept] for name, column in compared.items()}
        series = [*(getattr(measured, name) for name in SERVED_SERIES), *compared.values()]
        scored = self._scored(measured, series, baselines)
        codes = [self._codes(column, values) for column, values in enumerate(measured.features.categories)]
        for name in WINDOWS:
            if name == COMPARED:
                self._add_compared(scored, measured.event_time)
                continue
            numbers, number_of_row = np.unique(_numbers(measured.label_time, name), return_inverse=True)
            windows = [Window(name, number) for number in numbers.tolist()]
            groups = [_Group(window) for window in windows]
            self._cells_of(groups[0]).add(scored, groups, number_of_row)
            self._measured.update(windows)
            self._changed.update(windows)
            if name in self._sliced_windows:
                self._slices_changed.update(windows)
                for column, code in enumerate(codes):
                    pairs, pair_of_row = np.unique(number_of_row * (VALUES_MAX + 1) + code, return_inverse=True)
                    at = [divmod(pair, VALUES_MAX + 1) for pair in pairs.tolist()]
                    groups = [_Group(windows[place], column, value) for place, value in at]
                    self._slice_cells.add(scored, groups, pair_of_row)

    def _add_compared(self, scored: ScoredRows, event_time: Int64s) -> None:
        if self._compared_from_ms is None or not (at := event_time >= self._compared_from_ms).any():
            return
        window = Window(COMPARED, 0)
        self._cells_of(_Group(window)).add(scored.where(at), [_Group(window)], np.zeros(int(at.sum()), dtype=np.intp))
        self._measured.add(window)
        self._changed.add(window)

    def _scored(self, measured: ExampleColumns, series: Sequence[Float64s], baselines: Baselines) -> ScoredRows:
        return ScoredRows.of(
            series=series,
            constant=baselines.constant,
            no_change=baselines.no_change,
            is_positive=measured.label == 1,
            delay_ms=measured.label_time - measured.event_time,
            offset=measured.offset,
            threshold=self._costs.threshold,
        )

    def _count_labels(self, examples: ExampleColumns, is_measured: npt.NDArray[np.bool_]) -> None:
        """An amendment is no second label: it alone has neither features nor scores."""
        is_amendment = ~examples.is_learned & (examples.blend == 0) & np.isnan(examples.base_rate)
        for window, at in _windows(examples.event_time[~is_amendment]):
            counts = self._served[window]
            counts.labelled += int(at.sum())
            counts.positives += int((examples.label[~is_amendment][at] == 1).sum())
            counts.unmeasured += int((~is_measured[~is_amendment][at]).sum())
            self._changed.add(window)

    def _codes(self, column: int, values: Sequence[str]) -> npt.NDArray[np.int64]:
        """The number of each row's value; one that comes after VALUES_MAX others has none of its own."""
        known = self._values[column]
        if len(known) < VALUES_MAX:
            for value in dict.fromkeys(values):
                if len(known) < VALUES_MAX:
                    known.setdefault(value, len(known))
        return np.array([known.get(value, VALUES_MAX) for value in values], dtype=np.int64)

    def _shown_values(self) -> tuple[tuple[str, ...], ...]:
        """The most frequent values of each feature over the run, ties by name."""
        shown = []
        for column, values in enumerate(self._values):
            run = Window("run", 0)
            sizes = {value: self._slice_cells.size(_Group(run, column, code)) for value, code in values.items()}
            ranked = sorted((-size, value) for value, size in sizes.items())
            shown.append(tuple(value for _, value in ranked[:SLICE_VALUES]))
        return tuple(shown)

    def _slices(self, window: Window, series: int, shown: Sequence[Sequence[str]]) -> Iterator[tuple[Slice, Tally]]:
        """The slices of one series that hold an example of it."""
        for column, feature in enumerate(self._columns):
            rest = []
            for value, code in (*self._values[column].items(), (None, VALUES_MAX)):
                group = _Group(window, column, code)
                if group in self._slice_cells:
                    tally = self._slice_cells.tally(group, series)
                    if value is None or value not in shown[column]:
                        rest.append(tally)
                    elif tally.running.count:
                        yield Slice(feature, value), tally
            others = reduce(add, rest) if rest else None
            if others is not None and others.running.count:
                yield Slice(feature, None), others

    def _cells_of(self, group: _Group) -> Cells:
        return self._slice_cells if group.column >= 0 or group.window.name == "1d" else self._cells


def _numbers(time_ms: Int64s, window: str) -> Int64s:
    """Which slice [k w, (k + 1) w) of event time each time is in; 0 for the run."""
    width = WINDOWS[window]
    return np.zeros_like(time_ms) if width is None else time_ms // width


def _windows(time_ms: Int64s) -> Iterator[tuple[Window, npt.NDArray[np.bool_]]]:
    """Every window that has a time in it, and which ones are."""
    for name in WINDOWS:
        if name == COMPARED:
            continue
        numbers = _numbers(time_ms, name)
        for number in np.unique(numbers).tolist():
            yield Window(name, number), numbers == number
