"""What is measured beside the models that serve: a constant, no change, boosters of another age or other features.

In: measured examples in the order of the log. Out: one probability per example and comparator, NaN where it says
nothing. Invariant: what an example is compared with was known at its event's time: labels that stand before it in the
log and had come by then, models trained by then; where the log is cut into pieces does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tidemill.core.examples import rows
from tidemill.core.metrics import NO_CHANGE_CERTAINTY
from tidemill.core.records import ExampleColumns, FeatureBatch, Float64s, Int64s
from tidemill.core.spec import ComparatorSpec
from tidemill.errors import InvariantError

MODELS_KEPT = 4  # of a retrained comparator: an event is scored by the model of its time, however late its label


class Predictor(Protocol):
    """A trained model."""

    def probability(self, features: FeatureBatch) -> Float64s:
        """Of the positive class, shape (rows,)."""
        ...


class Training(Protocol):
    """The examples so far and how boosters are made of them; the app provides it."""

    def append(self, examples: ExampleColumns) -> None:
        """Consecutive examples of the log."""
        ...

    def train(self, spec: ComparatorSpec, before_ms: int) -> Predictor | None:
        """A model of the appended examples whose label came before `before_ms`; None: there are too few."""
        ...


class Baselines(NamedTuple):
    """What knowing only labels says of each example, shape (rows,)."""

    constant: Float64s  # the share of positives among the labels known, (positives + 1) / (n + 2)
    no_change: Float64s  # the latest known label again; .5 before the first


class KnownLabels:
    """The labels of a log so far, by time. It grows by 17 bytes an example."""

    def __init__(self) -> None:
        self._count = 0
        self._time = np.empty(1 << 12, dtype=np.int64)  # ascending; of the same time in the order of the log
        self._is_positive = np.empty(1 << 12, dtype=np.bool_)
        self._positives = np.zeros((1 << 12) + 1, dtype=np.int64)  # among the first i labels

    def fold(self, event_time: Int64s, label_time: Int64s, is_positive: npt.NDArray[np.bool_]) -> Baselines:
        """The baselines of the next examples; a label is known from its time on, to the examples behind it.

        For a log in the order of its label times, each after its event, they are those of
        `core.metrics.constant_at_delay` and `no_change_at_delay` over the whole log.
        """
        constant, no_change = np.empty(len(label_time)), np.empty(len(label_time))
        # Labels of several workers interleave: each ascending run is answered at once.
        cuts = np.flatnonzero(np.diff(label_time) < 0) + 1
        for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(label_time)], strict=True):
            run = slice(start, end)
            constant[run], no_change[run] = self._answer(event_time[run], label_time[run], is_positive[run])
            self._insert(label_time[run], is_positive[run])
        return Baselines(constant, no_change)

    def _answer(
        self, event_time: Int64s, label_time: Int64s, is_positive: npt.NDArray[np.bool_]
    ) -> tuple[Float64s, Float64s]:
        """Of examples whose label times ascend."""
        before = np.searchsorted(self._time[: self._count], event_time, side="right")
        within = np.minimum(np.searchsorted(label_time, event_time, side="right"), np.arange(len(label_time)))
        positives_within = np.concatenate(([0], np.cumsum(is_positive, dtype=np.int64)))
        known = before + within
        constant = (self._positives[before] + positives_within[within] + 1) / (known + 2)

        no_change = np.full(len(label_time), 0.5)
        latest_before, latest_within = np.maximum(before, 1) - 1, np.maximum(within, 1) - 1
        # Of the same time the later in the log counts.
        is_within = (within > 0) & ((before == 0) | (label_time[latest_within] >= self._time[latest_before]))
        latest = np.where(is_within, is_positive[latest_within], self._is_positive[latest_before])
        has_any = known > 0
        no_change[has_any] = np.where(latest[has_any], NO_CHANGE_CERTAINTY, 1 - NO_CHANGE_CERTAINTY)
        return np.asarray(constant, dtype=np.float64), no_change

    def _insert(self, label_time: Int64s, is_positive: npt.NDArray[np.bool_]) -> None:
        """Labels whose times ascend; what comes before them is not touched."""
        if not len(label_time):
            return
        end = self._count + len(label_time)
        if end > len(self._time):
            size = max(end, 2 * len(self._time))
            self._time, self._is_positive = _grown(self._time, size), _grown(self._is_positive, size)
            self._positives = _grown(self._positives, size + 1)
        first = int(np.searchsorted(self._time[: self._count], label_time[0], side="right"))
        times = np.concatenate((self._time[first : self._count], label_time))
        positive = np.concatenate((self._is_positive[first : self._count], is_positive))
        order = np.argsort(times, kind="stable")
        self._time[first:end], self._is_positive[first:end] = times[order], positive[order]
        self._positives[first + 1 : end + 1] = self._positives[first] + np.cumsum(positive[order], dtype=np.int64)
        self._count = end


class Comparators:
    """All declared comparators of an app, along its examples log.

    Raises:
        InvariantError: TM-9605, a booster is declared and nothing can train it.
    """

    def __init__(self, specs: Sequence[ComparatorSpec], training: Training | None) -> None:
        self.names = tuple(spec.name for spec in specs)
        self._specs = specs
        self._labels = KnownLabels()
        self._training = training
        self._boosters = {spec.name: _TrainedInTime(spec) for spec in specs if spec.kind == "booster"}
        if self._boosters and training is None:
            raise InvariantError("TM-9605", f"nothing trains the comparator {next(iter(self._boosters))}; a bug")

    def fold(self, examples: ExampleColumns) -> tuple[Baselines, Mapping[str, Float64s]]:
        """What every comparator says of the next measured examples: the baselines, and all declared ones by name."""
        baselines = self._labels.fold(examples.event_time, examples.label_time, examples.label == 1)
        boosters = self._fold_boosters(examples)
        by_kind = {"constant": baselines.constant, "no_change": baselines.no_change}
        return baselines, {
            spec.name: boosters[spec.name] if spec.kind == "booster" else by_kind[spec.kind] for spec in self._specs
        }

    def _fold_boosters(self, examples: ExampleColumns) -> dict[str, Float64s]:
        """Train at the first label at or past a booster's time; what stands before it in the log is what it knows."""
        said = {name: np.full(len(examples), np.nan) for name in self._boosters}
        if self._training is None:
            return said
        start = 0
        while start < len(examples):
            dues = [one.due_ms for one in self._boosters.values() if one.due_ms is not None]
            is_due = examples.label_time[start:] >= min(dues) if dues else np.zeros(1, dtype=np.bool_)
            end = start + int(np.argmax(is_due)) if is_due.any() else len(examples)
            part = rows(examples, start, end)
            for name, booster in self._boosters.items():
                said[name][start:end] = booster.probability(part)
            if len(part):
                self._training.append(part)
            if end < len(examples):
                for booster in self._boosters.values():
                    booster.train_if_due(self._training, int(examples.label_time[end]))
            start = end
        return said


class _TrainedInTime:
    """One comparator of kind booster, with its last models."""

    def __init__(self, spec: ComparatorSpec) -> None:
        self._spec = spec
        self.due_ms = spec.trained_until_ms
        self._models: list[tuple[int, Predictor]] = []  # (trained until, model), ascending

    def train_if_due(self, training: Training, now_ms: int) -> None:
        if self.due_ms is None or self.due_ms > now_ms:
            return
        every = self._spec.retrain_every_ms
        # After a gap in the log only the newest of several due models would ever be asked about what follows.
        until = self.due_ms if every is None else self.due_ms + (now_ms - self.due_ms) // every * every
        self.due_ms = None if every is None else until + every
        model = training.train(self._spec, until)
        if model is not None:
            self._models = [*self._models, (until, model)][-MODELS_KEPT:]

    def probability(self, examples: ExampleColumns) -> Float64s:
        """Each event by the newest model that was trained until its time or before; NaN where there is none."""
        column = np.full(len(examples), np.nan)
        untils = np.array([until for until, _ in self._models], dtype=np.int64)
        model_of = np.searchsorted(untils, examples.event_time, side="right") - 1
        for index, (_, model) in enumerate(self._models):
            places = np.flatnonzero(model_of == index)
            if len(places):
                categories = tuple(tuple(one[at] for at in places.tolist()) for one in examples.features.categories)
                said = model.probability(FeatureBatch(examples.features.numeric[places], categories))
                column[places] = np.clip(said, 0.0, 1.0)
        return column


def _grown(column: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    grown = np.zeros(size, dtype=column.dtype)
    grown[: len(column)] = column
    return grown
