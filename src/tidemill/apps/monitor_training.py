"""Boosters that are only compared with: trained by the monitor from what it folds, never registered, never served.

In: measured examples as they are folded, the declaration of a comparator. Out: models in memory. Invariant: a model is
a function of the log before its training and of the declaration, so a restarted monitor makes the same again.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.apps.boosters import load_for, train_for
from tidemill.core.comparators import Predictor
from tidemill.core.features import FeaturePlan
from tidemill.core.records import ExampleColumns
from tidemill.core.spec import AppSpec, ComparatorSpec
from tidemill.errors import ModelRefusedError
from tidemill.models.training_examples import TrainingExamples


class ComparatorTraining:
    """Fulfils `core.comparators.Training`; all comparators share the examples."""

    def __init__(self, app: AppSpec, plan: FeaturePlan, *, threads: int, report: Callable[[str], None]) -> None:
        self._app, self._plan, self._threads, self._report = app, plan, threads, report
        self.examples = TrainingExamples(plan.numeric_names, plan.category_names)

    def append(self, examples: ExampleColumns) -> None:
        self.examples.append(examples)

    def train(self, spec: ComparatorSpec, before_ms: int) -> Predictor | None:
        plan = self._plan
        try:
            trained = train_for(
                self._app,
                plan,
                self.examples.before(before_ms),
                features=spec.features,
                parent="",
                cause=f"comparator {spec.name}",
                created=before_ms,  # event time: the model is the same whenever it is made
                threads=self._threads,
            )
        except ModelRefusedError as error:
            self._report(f"comparator {spec.name} says nothing yet: {error}")
            return None
        self._report(f"comparator {spec.name}: trained on {trained.manifest.examples:,} examples")
        return load_for(plan, trained.model, trained.manifest)
