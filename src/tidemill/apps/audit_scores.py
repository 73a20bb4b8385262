"""Every prediction scored once more: from the features as served, by the models that the log makes up to its N.

In: predictions by N, the examples log, the registry. Out: findings. Invariant: the models that judge are folded from
the first record of the log (or the snapshot that stands in for what the log no longer holds) and nothing else; no
score that was published goes into them except as the examples carry it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.apps.audit_outcomes import LABEL_FIRST, Example
from tidemill.apps.audit_outputs import SCORES, TEXTS, ExampleLot, Predictions, same_floats, same_lists, same_rows
from tidemill.apps.audit_report import AuditReport
from tidemill.core.examples import between, no_examples
from tidemill.core.records import Command, ExampleColumns, Float64s, Scores
from tidemill.core.snapshot import ModelSnapshot
from tidemill.models.serving import Serving

DEGRADED = "degraded"
CLOSE = 1e-5  # how far apart platforms are: they differ in the last bits of a sum
SCORE_ROWS_MAX = 20_000  # of one N: bounds the memory of their features

Mask = npt.NDArray[np.bool_]


class ScoreAudit:
    """Folds the log once; at each N that a prediction names, scores it again."""

    def __init__(
        self,
        models: Serving,
        predictions: Predictions,
        report: AuditReport,
        *,
        threshold: float,
        stored: Mapping[int, str],
    ) -> None:
        """
        Args:
            predictions: those to recompute, all of the features that the models read.
            threshold: a blend above it is a positive decision.
            stored: the digest of each snapshot at hand, by N.
        """
        self._models = models
        self._predictions = predictions
        self._stored = stored
        self._report = report
        self._threshold = threshold
        self._stops = np.unique(predictions.n).tolist()

    def run(self, lots: Iterable[ExampleLot], end: int) -> Iterator[ExampleLot]:
        """Fold the lots, up to `end`; each is passed on once it is folded."""
        stops = iter(self._stops)
        stop = next(stops, None)
        for lot in lots:
            while stop is not None and stop <= lot.next:
                self._fold(lot.part.examples, lot.part.commands, stop)
                self._compare(stop)
                stop = next(stops, None)
            self._fold(lot.part.examples, lot.part.commands, lot.next)
            yield lot
        while stop is not None and stop <= end:  # markers are all that is left of the log
            self._fold(no_examples(), [], stop)
            self._compare(stop)
            stop = next(stops, None)
        if stop is not None:
            start, behind = int(np.searchsorted(self._predictions.n, stop)), len(self._predictions)
            name = self._predictions.ids[start]
            self._add_mismatches(behind - start, f"{name} has N = {stop}, but the examples log ends at {end}")
        for version, reason in self._models.missing.items():
            self._report.checks["models"].add(f"{version} cannot be loaded: {reason}")

    def _fold(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> None:
        start = self._models.n
        if offset_next <= start:
            return
        due = [command for command in commands if start <= command.offset < offset_next]
        for snapshot in self._models.fold(between(examples, start, offset_next), due, offset_next):
            self._check_snapshot(snapshot)

    def _check_snapshot(self, snapshot: ModelSnapshot) -> None:
        stored = self._stored.get(snapshot.n)
        if stored is None:
            return
        self._report.snapshots += 1
        if stored != snapshot.digest:
            self._report.checks["models"].add(
                f"the snapshot at N = {snapshot.n} has digest {stored}, the log makes {snapshot.digest}"
            )

    # Scores ------------------------------------------------------------------------------------------------------

    def _compare(self, n: int) -> None:
        first, behind = np.searchsorted(self._predictions.n, [n, n + 1]).tolist()
        for start in range(first, behind, SCORE_ROWS_MAX):
            self._compare_rows(n, start, min(start + SCORE_ROWS_MAX, behind))

    def _compare_rows(self, n: int, start: int, end: int) -> None:
        ids = self._predictions.ids[start:end]
        features = self._predictions.features(start, end)
        again = self._models.score(features, ids)
        published = self._predictions.table.slice(start, end - start)
        differs, close, texts = differences(again, published, self._report.tolerance, self._threshold)
        if not differs.any():
            self._report.predictions += end - start
            return
        # A worker that lacked the champion's model served another one, and said so.
        flags = published.column("flags").to_pylist()
        is_degraded = np.array([DEGRADED in mine for mine in flags], dtype=np.bool_) & (not again.is_degraded)
        self._report.degraded += int((differs & is_degraded).sum())
        self._report.predictions += end - start - int((differs & is_degraded).sum())
        wrong = np.flatnonzero(differs & ~is_degraded)
        self._report.close += int(close[wrong].sum())
        for row in wrong.tolist():
            self._add_mismatches(1, f"{ids[row]} at N = {n}: {texts(row)}")

    def _add_mismatches(self, count: int, text: str) -> None:
        self._report.mismatched += count
        self._report.checks["scores"].add(text, count)


def differences(
    again: Scores, published: pa.RecordBatch, tolerance: float, threshold: float
) -> tuple[Mask, Mask, _Texts]:
    """The rows that differ, those of them that are close, and what differs in a row, in words."""
    count = published.num_rows
    chosen = again.is_canary if again.is_canary is not None and again.other is not None else np.zeros(count, np.bool_)
    nothing = np.full(count, np.nan)
    other = nothing if again.other is None else np.where(chosen, again.blend, again.other)
    numbers: dict[str, Float64s] = {
        "blend": again.served,
        "learner": again.learner,
        "booster": nothing if again.booster is None else again.booster,
        "base_rate": again.base_rate,
        "other": other,
    }
    versions = {
        "model_version": np.where(chosen, again.other_version, again.model_version),
        "other_version": np.where(chosen, again.model_version, again.other_version),
    }
    differs, is_close = np.zeros(count, dtype=np.bool_), np.ones(count, dtype=np.bool_)
    found: dict[str, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]] = {}
    for name in SCORES:
        theirs = published.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        near = same_floats(theirs, numbers[name])
        beside = near | (np.abs(theirs - numbers[name]) <= max(tolerance, CLOSE))
        differs |= ~(beside if tolerance else near)
        is_close &= beside
        found[name] = (theirs, numbers[name])
    for name in TEXTS:
        theirs = np.array(published.column(name).to_pylist(), dtype=object)
        same = theirs == versions[name]
        differs |= ~same
        is_close &= same
        found[name] = (theirs, versions[name])
    decided = published.column("decision").to_numpy(zero_copy_only=False)
    expected = found["blend"][0] > threshold  # of the blend as published: its own difference is told above
    differs |= decided != expected
    is_close &= decided == expected
    found["decision"] = (decided, expected)
    return differs, is_close, _Texts(found)


@dataclass(frozen=True, slots=True)
class _Texts:
    """What differs in a row, in words."""

    columns: Mapping[str, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]

    def __call__(self, row: int) -> str:
        parts = []
        for name, (published, again) in self.columns.items():
            theirs, ours = published[row].item() if hasattr(published[row], "item") else published[row], again[row]
            if theirs != ours and not (theirs != theirs and ours != ours):
                parts.append(f"{name} {theirs!r}, recomputed {ours.item() if hasattr(ours, 'item') else ours!r}")
        return "; ".join(parts) or "bits of a NaN differ"


# Copies ----------------------------------------------------------------------------------------------------------


class CopyAudit:
    """Examples carry features and scores of their prediction: held against each other, bit by bit."""

    def __init__(self, predictions: Predictions, report: AuditReport) -> None:
        self._predictions = predictions
        self._report = report
        columns = (predictions.ids, predictions.numbers("event_time").tolist())
        self._row_of = {key: row for row, key in enumerate(zip(*columns, strict=True))}

    def examples(self, lot: ExampleLot) -> list[Example]:
        """The lot's records, each with the row of its prediction; their copies are checked."""
        table = lot.table
        names = ("kind", "id", "event_time", "label_time", "label", "flags")
        columns = [table.column(name).to_pylist() for name in names]
        found = [
            Example(offset, kind, id_, time, label_time, label, LABEL_FIRST in flags, self._row_of.get((id_, time), -1))
            for offset, kind, id_, time, label_time, label, flags in zip(
                lot.part.examples.offset.tolist(), *columns, strict=True
            )
        ]
        at = np.array(
            [place for place, one in enumerate(found) if one.kind == "example" and one.row >= 0], dtype=np.int64
        )
        if len(at):
            self._compare(lot, at, np.array([found[place].row for place in at.tolist()], dtype=np.int64))
        return found

    def _compare(self, lot: ExampleLot, at: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        mine, theirs = lot.table.take(pa.array(at)), self._predictions.table.take(pa.array(rows))
        differs: dict[str, Mask] = {}
        for name in SCORES:
            one, other = (t.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for t in (mine, theirs))
            differs[name] = ~same_floats(one, other)
        for name in ("n", *TEXTS, "feature_digest"):
            differs[name] = ~np.asarray(
                mine.column(name).to_numpy(zero_copy_only=False) == theirs.column(name).to_numpy(zero_copy_only=False)
            )
        differs["categories"] = ~same_lists(mine.column("categories"), theirs.column("categories"))
        differs["numeric"] = ~_same_numbers(mine.column("numeric"), theirs.column("numeric"))
        wrong = np.logical_or.reduce(list(differs.values()))
        for place in np.flatnonzero(wrong).tolist():
            what = ", ".join(name for name, rows_ in differs.items() if rows_[place])
            offset = lot.part.examples.offset[at[place]]
            id_ = mine.column("id")[place].as_py()
            self._report.checks["copies"].add(
                f"example {id_} at offset {offset} of the examples log differs from its prediction in {what}"
            )


def _same_numbers(one: pa.ListArray, other: pa.ListArray) -> Mask:
    lengths = one.value_lengths().to_numpy(), other.value_lengths().to_numpy()
    width = int(lengths[0].max(initial=0))
    if (lengths[0] != width).any() or (lengths[1] != width).any():  # of several declarations
        rows = zip(one, other, strict=True)
        return np.array(
            [a.values.to_numpy().tobytes() == b.values.to_numpy().tobytes() for a, b in rows], dtype=np.bool_
        )
    flat = [column.flatten().to_numpy().reshape(len(one), width) for column in (one, other)]
    same: Mask = same_rows(*flat)
    return same
