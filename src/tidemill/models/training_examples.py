"""Examples kept for training: columns that grow, categories as small numbers.

In: runs of the examples log. Out: matrices of what was learned, by label time. Invariant: rows keep the order of the
log; what does not teach is not here; a view shares the columns it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from tidemill.core.gate import is_holdout
from tidemill.core.records import ExampleColumns, FeatureBatch, Float32s, Int64s
from tidemill.core.roles import OffsetRange

Int32s = npt.NDArray[np.int32]
START_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Chosen examples as arrays of equal length, in the order of the log.

    numeric: (rows, F). codes: (rows, C), indexes into `vocabularies`. label_time: ms. weight: None = all count
    the same.
    """

    numeric: Float32s
    codes: Int32s
    label: Float32s
    offset: Int64s
    label_time: Int64s
    vocabularies: tuple[tuple[str, ...], ...]
    weight: Float32s | None = None

    def __len__(self) -> int:
        return len(self.offset)

    def digest(self) -> str:
        """BLAKE2b-128 in hex of everything that training reads; the same for equal rows, whatever came beside them."""
        state = blake2b(digest_size=16)
        for column in (self.numeric, self.label, self.offset, self.label_time):
            state.update(np.ascontiguousarray(column).data)
        if self.weight is not None:
            state.update(np.ascontiguousarray(self.weight).data)
        for at, values in enumerate(self.vocabularies):
            used = sorted(np.flatnonzero(np.bincount(self.codes[:, at])).tolist(), key=lambda code: values[code])
            places = np.zeros(len(values), dtype=np.int32)
            places[used] = np.arange(len(used))
            for value in used:
                text = values[value].encode("utf-8", "surrogatepass")
                state.update(len(text).to_bytes(4, "big") + text)
            state.update(places[self.codes[:, at]].data)
        return state.hexdigest()

    def features(self, is_chosen: npt.NDArray[np.bool_]) -> FeatureBatch:
        """The features of some rows as they were served."""
        categories = (
            np.array(values, dtype=object)[self.codes[is_chosen, at]].tolist()
            for at, values in enumerate(self.vocabularies)
        )
        return FeatureBatch(self.numeric[is_chosen], tuple(map(tuple, categories)))

    def decayed(self, half_life_ms: int, until_ms: int) -> TrainingRows:
        """The same rows, each with half the weight for every half-life from its label to `until_ms`."""
        age = (until_ms - self.label_time) / half_life_ms
        return replace(self, weight=np.exp2(-age).astype(np.float32))


class _Vocabulary(dict[str, int]):
    """Value to code, by first appearance."""

    def __missing__(self, value: str) -> int:
        code = self[value] = len(self)
        return code


class TrainingExamples:
    """Appends examples in log order. 152 bytes a row with 28 numbers and 5 categories."""

    def __init__(self, feature_names: tuple[str, ...], category_names: tuple[str, ...]) -> None:
        self.feature_names = feature_names
        self.category_names = category_names
        self._count = 0
        self._numeric = np.empty((START_ROWS, len(feature_names)), dtype=np.float32)
        self._codes = np.empty((START_ROWS, len(category_names)), dtype=np.int32)
        self._label = np.empty(START_ROWS, dtype=np.float32)
        self._offset = np.empty(START_ROWS, dtype=np.int64)
        self._label_time = np.empty(START_ROWS, dtype=np.int64)
        self._vocabularies = [_Vocabulary() for _ in category_names]

    def __len__(self) -> int:
        return self._count

    def append(self, examples: ExampleColumns) -> None:
        """The rows that teach, of the next run of the log."""
        rows = np.flatnonzero(examples.is_learned)
        if not len(rows):
            return
        start, end = self._count, self._count + len(rows)
        self._make_room(end)
        self._numeric[start:end] = examples.features.numeric[rows]
        for at, (known, column) in enumerate(zip(self._vocabularies, examples.features.categories, strict=True)):
            values = column if len(rows) == len(examples) else [column[row] for row in rows.tolist()]
            self._codes[start:end, at] = list(map(known.__getitem__, values))
        self._label[start:end] = examples.label[rows]
        self._offset[start:end] = examples.offset[rows]
        self._label_time[start:end] = examples.label_time[rows]
        self._count = end

    def before(self, time_ms: int) -> TrainingRows:
        """The examples whose label came before an event time."""
        return self.rows(before_ms=time_ms)

    def rows(
        self,
        *,
        before_ms: int | None = None,
        since_ms: int | None = None,
        offset_next: int | None = None,
        excised: Sequence[OffsetRange] = (),
        holdout: float = 0.0,
    ) -> TrainingRows:
        """The examples whose label came at or after `since_ms` and before `before_ms`; None = any.

        Args:
            offset_next: only those before it in the log.
            excised: ranges of offsets that are left out.
            holdout: the share that is left out for judging (`core.gate.is_holdout`).
        """
        is_chosen = self._are_chosen(before_ms, since_ms, offset_next, excised)
        if holdout > 0:
            is_chosen &= ~is_holdout(self._offset[: self._count], holdout)
        return self._rows(is_chosen)

    def holdout_rows(
        self,
        share: float,
        *,
        before_ms: int | None = None,
        since_ms: int | None = None,
        offset_next: int | None = None,
        excised: Sequence[OffsetRange] = (),
    ) -> TrainingRows:
        """The examples that `rows` leaves out for judging."""
        is_chosen = self._are_chosen(before_ms, since_ms, offset_next, excised)
        return self._rows(is_chosen & is_holdout(self._offset[: self._count], share))

    def _are_chosen(
        self, before_ms: int | None, since_ms: int | None, offset_next: int | None, excised: Sequence[OffsetRange]
    ) -> npt.NDArray[np.bool_]:
        time, offset = self._label_time[: self._count], self._offset[: self._count]
        is_chosen = np.ones(self._count, dtype=np.bool_)
        if before_ms is not None:
            is_chosen &= time < before_ms
        if since_ms is not None:
            is_chosen &= time >= since_ms
        if offset_next is not None:
            is_chosen &= offset < offset_next
        for first, end in excised:
            is_chosen &= (offset < first) | (offset >= end)
        return is_chosen

    def _rows(self, is_chosen: npt.NDArray[np.bool_]) -> TrainingRows:
        # A prefix of the log is the usual case, and needs no copy.
        last = self._count if is_chosen.all() else int(np.argmin(is_chosen))
        chosen: slice | npt.NDArray[np.intp] = (
            slice(0, last) if not is_chosen[last:].any() else np.flatnonzero(is_chosen)
        )
        return TrainingRows(
            numeric=self._numeric[: self._count][chosen],
            codes=self._codes[: self._count][chosen],
            label=self._label[: self._count][chosen],
            offset=self._offset[: self._count][chosen],
            label_time=self._label_time[: self._count][chosen],
            vocabularies=tuple(tuple(known) for known in self._vocabularies),
        )

    def _make_room(self, count: int) -> None:
        size = len(self._offset)
        if count <= size:
            return
        size = max(count, size + size // 2)
        for name in ("_numeric", "_codes", "_label", "_offset", "_label_time"):
            column = getattr(self, name)
            grown = np.empty((size, *column.shape[1:]), dtype=column.dtype)
            grown[: self._count] = column[: self._count]
            setattr(self, name, grown)
