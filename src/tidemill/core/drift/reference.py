"""What a training set looked like, and how far windows of it stray by themselves.

In: the columns that a booster was trained on, with their times. Out: a small Reference that travels in the manifest as
JSON. Invariant: a function of its arguments, of the rows as a set per tick; no row can be read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tidemill.core.drift.laws import ONE, Law, Ticks, chi2, psi, rounded
from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.records import Float32s, Float64s, Int64s

FORMAT = 1
BINS_MAX = 10
VALUES_MAX = 50  # of a category, the most frequent ones; the rest is one cell
NUMBER_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class NumericReference:
    """Cells are (-inf, edge], ..., (last edge, inf], missing; shares are above 0 and have one entry per cell.

    span: the smallest and the largest value; None = all were missing. missing_high: see `Ticks.high`.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    span: tuple[float, float] | None
    missing_high: float
    law: Law


@dataclass(frozen=True, slots=True)
class CategoryReference:
    """Cells are the values, all others, missing (""); `other_high` and `missing_high`: see `Ticks.high`."""

    values: tuple[str, ...]
    shares: tuple[float, ...]
    other_high: float
    missing_high: float
    law: Law


@dataclass(frozen=True, slots=True)
class LabelReference:
    """The share of positive labels."""

    share: float
    law: Law


@dataclass(frozen=True, slots=True)
class Reference:
    """score: of the booster's probability on rows that it was not trained on; None = there were none."""

    numeric: Mapping[str, NumericReference]
    categories: Mapping[str, CategoryReference]
    score: NumericReference | None
    label: LabelReference

    def to_json(self) -> dict[str, Any]:
        """Of dictionaries, lists, texts and finite numbers only."""
        return {
            "format": FORMAT,
            "numeric": {name: _numeric_to_json(column) for name, column in self.numeric.items()},
            "categories": {name: _category_to_json(column) for name, column in self.categories.items()},
            "score": None if self.score is None else _numeric_to_json(self.score),
            "label": {"share": self.label.share, "law": list(self.label.law)},
        }

    @classmethod
    def from_json(cls, content: object) -> Self:
        """The inverse.

        Raises:
            ValueError: it is not what `to_json` gives.
        """
        try:
            reference = cls._read(content)
            is_same = reference.to_json() == content
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"reference cannot be read: {error!r}") from error
        if not is_same:
            raise ValueError("reference holds more, or other types, than one of its format")
        return reference

    @classmethod
    def _read(cls, content: Any) -> Self:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        score = content["score"]
        return cls(
            numeric={name: _numeric_from_json(column) for name, column in content["numeric"].items()},
            categories={name: _category_from_json(column) for name, column in content["categories"].items()},
            score=None if score is None else _numeric_from_json(score),
            label=LabelReference(_finite(content["label"]["share"]), _law(content["label"]["law"])),
        )


def reference_of(
    numeric: Float32s,
    codes: npt.NDArray[np.integer[Any]],
    label: Float32s,
    probability: Float64s,
    time: Int64s,
    *,
    seen_probability: Float64s | None = None,
    numeric_names: Sequence[str],
    category_names: Sequence[str],
    vocabularies: Sequence[Sequence[str]],
    spec: MonitorSpec,
) -> Reference:
    """Describe a training set.

    Args:
        numeric: (rows, F), NaN = missing. codes: (rows, C), indexes into `vocabularies`, in which "" is missing.
        label: 0 or 1. time: ms; rows of one tick (`spec.every_ms`) belong together.
        probability: of a booster that did not see the row; NaN = there is none.
        seen_probability: for the rows without one, of a booster that saw them: too certain to be the reference, but
            its windows tell how far a score strays, which a few newest ticks cannot.
    """
    _, tick = np.unique(time // spec.every_ms, return_inverse=True)
    ticks = Ticks(tick, spec.window_ms // spec.every_ms)
    numbers = {name: _of_numbers(numeric[:, at], ticks) for at, name in enumerate(numeric_names)}
    return Reference(
        numeric=numbers,
        categories={name: _of_codes(codes[:, at], vocabularies[at], ticks) for at, name in enumerate(category_names)},
        score=_of_scores(probability, seen_probability, ticks),
        label=_of_labels(label, ticks),
    )


def cells_of(values: npt.NDArray[np.floating[Any]], edges: Sequence[float]) -> npt.NDArray[np.intp]:
    """The cell of each value; the last one is for NaN, which sorts behind infinity."""
    return np.searchsorted(np.asarray([*edges, np.inf], dtype=values.dtype), values, side="left")


def edges_of(ordered: npt.NDArray[np.floating[Any]]) -> tuple[float, ...]:
    """Inner edges of at most BINS_MAX cells with about as many values each; ties share a cell, none is empty.

    `ordered`: ascending, finite.
    """
    is_first = np.ones(len(ordered), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    distinct = ordered[is_first]
    if len(distinct) <= BINS_MAX:
        return tuple(distinct[:-1].tolist())
    deciles = ordered[np.arange(1, BINS_MAX) * len(ordered) // BINS_MAX]
    return tuple(np.unique(np.minimum(deciles, distinct[-2])).tolist())


def _of_numbers(values: npt.NDArray[np.floating[Any]], ticks: Ticks) -> NumericReference:
    ordered = np.sort(np.clip(values[~np.isnan(values)], -NUMBER_MAX, NUMBER_MAX))
    edges = edges_of(ordered)
    cells = len(edges) + 2
    by_tick = ticks.counts(cells_of(values, edges), cells)
    shares = _smoothed(by_tick)
    span = (float(ordered[0]), float(ordered[-1])) if len(ordered) else None
    law = ticks.law(by_tick, lambda counts: psi(counts, np.array(shares), ONE))
    return NumericReference(edges, shares, span, ticks.high(by_tick, cells - 1), law)


def _of_scores(probability: Float64s, seen_probability: Float64s | None, ticks: Ticks) -> NumericReference | None:
    is_new = ~np.isnan(probability)
    if not is_new.any():
        return None
    newest, rest = ticks.of(is_new), ticks.of(~is_new)
    found = _of_numbers(probability[is_new], newest)
    if seen_probability is None or rest.count <= newest.count:
        return found
    by_tick = rest.counts(cells_of(seen_probability[~is_new], found.edges), len(found.shares))
    shares = np.array(_smoothed(by_tick))
    law = rest.law(by_tick, lambda counts: psi(counts, shares, ONE), newest)
    return replace(found, law=law)


def _of_codes(codes: npt.NDArray[np.integer[Any]], vocabulary: Sequence[str], ticks: Ticks) -> CategoryReference:
    counts = np.bincount(codes, minlength=len(vocabulary))
    kept = [code for code in np.flatnonzero(counts).tolist() if vocabulary[code]]
    kept = sorted(kept, key=lambda code: (-counts[code], vocabulary[code]))[:VALUES_MAX]
    cell = np.full(len(vocabulary), len(kept))
    cell[kept] = np.arange(len(kept))
    cell[[code for code, value in enumerate(vocabulary) if not value]] = len(kept) + 1
    by_tick = ticks.counts(cell[codes], len(kept) + 2)
    shares = _smoothed(by_tick)
    law = ticks.law(by_tick, lambda found: chi2(found, np.array(shares), ONE))
    other_high, missing_high = (ticks.high(by_tick, at) for at in (len(kept), len(kept) + 1))
    return CategoryReference(tuple(vocabulary[code] for code in kept), shares, other_high, missing_high, law)


def _of_labels(label: Float32s, ticks: Ticks) -> LabelReference:
    by_tick = ticks.counts((label > 0.5).astype(np.int64), 2)
    share = rounded(float(by_tick[:, 1].sum() / max(1, by_tick.sum())))
    squared = ticks.law(by_tick, lambda counts: (counts[:, 1] / np.maximum(1, counts.sum(axis=1)) - share) ** 2)
    return LabelReference(share, squared._replace(mean=0.0, sd=rounded(squared.mean**0.5)))


def _smoothed(by_tick: Int64s) -> tuple[float, ...]:
    """Shares with half an event more in each cell: none is 0."""
    counts = by_tick.sum(axis=0) + 0.5
    return tuple(rounded(share) for share in (counts / counts.sum()).tolist())


def _numeric_to_json(column: NumericReference) -> dict[str, Any]:
    return {
        "edges": list(column.edges),
        "shares": list(column.shares),
        "span": None if column.span is None else list(column.span),
        "missing_high": column.missing_high,
        "law": list(column.law),
    }


def _numeric_from_json(column: Any) -> NumericReference:
    edges = tuple(_finite(edge) for edge in column["edges"])
    if any(left >= right for left, right in pairwise(edges)):
        raise ValueError("edges do not ascend")
    span = column["span"]
    if span is not None:
        low, high = map(_finite, span)
        span = (low, high)
    shares = _shares(column["shares"], len(edges) + 2)
    return NumericReference(edges, shares, span, _finite(column["missing_high"]), _law(column["law"]))


def _category_to_json(column: CategoryReference) -> dict[str, Any]:
    return {
        "values": list(column.values),
        "shares": list(column.shares),
        "other_high": column.other_high,
        "missing_high": column.missing_high,
        "law": list(column.law),
    }


def _category_from_json(column: Any) -> CategoryReference:
    values = _values(column["values"])
    shares = _shares(column["shares"], len(values) + 2)
    other_high, missing_high = _finite(column["other_high"]), _finite(column["missing_high"])
    return CategoryReference(values, shares, other_high, missing_high, _law(column["law"]))


def _values(values: Any) -> tuple[str, ...]:
    if not all(isinstance(value, str) and value for value in values) or len(set(values)) != len(values):
        raise ValueError("values are not different texts")
    return tuple(values)


def _shares(shares: Any, count: int) -> tuple[float, ...]:
    found = tuple(_finite(share) for share in shares)
    if len(found) != count or not all(0 < share <= 1 for share in found):
        raise ValueError(f"there are not {count} shares within 0 and 1")
    return found


def _law(numbers: Any) -> Law:
    *measured, events = numbers
    mean, sd, window_events, windows = map(_finite, measured)
    if type(events) is not int or not 0 <= events < 2**63 or min(mean, sd, window_events, windows) < 0:
        raise ValueError("a law has other numbers")
    return Law(mean, sd, window_events, windows, events)


def _finite(value: Any) -> float:
    if type(value) is not float or not np.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return value
