"""Features as served and a booster's outputs become hashed features of Vowpal Wabbit, without its text format.

In: a `FeatureBatch`, margins, leaves. Out: per row one list a namespace, of (hash, value), or of a bare hash where the
value is 1. Invariant: a row's lists are a function of that row and the names alone, and no value can forge anything:
there is no text to break out of.

Why not text: Vowpal Wabbit's parser rounds (14.375 becomes 14.374999), a `|` in a value opens a namespace, a newline a
second example, trailing blanks vanish and "012" equals "12". A hash of our own has none of these, costs half as much,
and hands over float32 bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from operator import getitem

import numpy as np
import numpy.typing as npt

from tidemill.core.records import FeatureBatch, Float32s
from tidemill.errors import InvariantError

NUMERIC_MAX = 1e6  # clips infinity and outliers: their square still fits float32 with 26 decades to spare
CACHED_VALUES_MAX = 50_000  # per category column, about 7 MB; then the cache starts anew

Features = list[int | tuple[int, float]]
Tokens = list[int]  # features whose value is 1; an int instead of a pair halves what the engine's binding takes for it


def feature_hash(kind: str, name: str, value: str = "") -> int:
    """The 32-bit hash of one feature; the engine keeps its lowest bits.

    Lengths are part of it, so that ("a", "b=c") and ("a=b", "c") differ.
    """
    encoded_name = name.encode("utf-8", "surrogatepass")
    text = b"%s:%d:%s:%s" % (kind.encode(), len(encoded_name), encoded_name, value.encode("utf-8", "surrogatepass"))
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "little")


MARGIN_HASH = feature_hash("margin", "")  # log odds of whatever booster: its weight carries over


def margin_features(margin: Float32s) -> list[Features]:
    """One feature per row. Clipped like numbers; NaN says nothing, like even odds."""
    clipped = np.nan_to_num(np.clip(margin, -NUMERIC_MAX, NUMERIC_MAX), nan=0.0)
    return [[(MARGIN_HASH, value)] for value in clipped.tolist()]


class LeafTokens:
    """The tokens of one booster's leaves, made once each; they carry the booster's version."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._tables: list[Tokens] = []  # by tree, by leaf

    def encode(self, leaves: npt.NDArray[np.int32]) -> Iterator[Tokens]:
        """One list per row, in order of the trees. Leaves are numbered from 0, below the size of their tree."""
        if len(leaves):
            for tree, highest in enumerate(leaves.max(axis=0).tolist()):
                self._grow(tree, highest)
        tables = self._tables
        return (list(map(getitem, tables, row)) for row in leaves.tolist())

    def _grow(self, tree: int, highest: int) -> None:
        if tree == len(self._tables):
            self._tables.append([])
        table = self._tables[tree]
        table += [feature_hash("leaf", f"{self.version}:{tree}", str(at)) for at in range(len(table), highest + 1)]


class ExampleEncoder:
    """Knows the hash of every column; remembers those of the categories' values."""

    def __init__(self, feature_names: Sequence[str], category_names: Sequence[str]) -> None:
        self._hashes = [feature_hash("numeric", name) for name in feature_names]
        self._missing = [feature_hash("missing", name) for name in feature_names]
        self._tokens = [_ValueTokens(name) for name in category_names]

    def encode(
        self, features: FeatureBatch, rows: npt.NDArray[np.intp] | None = None
    ) -> tuple[Iterator[Features], Iterator[Tokens]]:
        """The numbers of each row, and the categories of each row, in order; only `rows` (positions) when given.

        Numbers are clipped to ±NUMERIC_MAX; a missing one is left out and its "missing" token stands for it. A missing
        category is a value like any other. Zero carries nothing in a linear model and the engine leaves it out.

        Raises:
            InvariantError: the batch has other columns than the names.
        """
        numeric, categories = features.numeric, features.categories
        if numeric.ndim != 2 or numeric.shape[1] != len(self._hashes) or len(categories) != len(self._tokens):
            raise InvariantError(
                "TM-9501",
                f"learner: features have shape {numeric.shape} and {len(categories)} categories, declared are "
                f"{len(self._hashes)} and {len(self._tokens)}; this is a bug, please report it",
            )
        if rows is not None:
            numeric = numeric[rows]
            categories = tuple(tuple(column[row] for row in rows.tolist()) for column in categories)
        tokens = [known.of(values) for known, values in zip(self._tokens, categories, strict=True)]
        by_row = zip(*tokens, strict=True) if tokens else iter([()] * len(numeric))
        return self._numbers(numeric), map(list, by_row)

    def _numbers(self, numeric: Float32s) -> Iterator[Features]:
        """One row after the other: rows that are kept together cost the garbage collector more than they cost here."""
        hashes, missing = self._hashes, self._missing
        clipped = np.clip(numeric, -NUMERIC_MAX, NUMERIC_MAX)  # NaN stays NaN
        is_missing = np.isnan(clipped)
        gaps: list[int] = np.nonzero(is_missing)[1].tolist()  # columns of all missing values, row after row
        gap_ends: list[int] = is_missing.sum(axis=1).cumsum().tolist()
        gap = 0
        for values, gap_end in zip(clipped.tolist(), gap_ends, strict=True):
            present: Features = list(zip(hashes, values, strict=True))
            while gap < gap_end:
                present[gaps[gap]] = missing[gaps[gap]]
                gap += 1
            yield present


class _ValueTokens(dict[str, int]):
    """Value to hash, of one column; a pure function, remembered."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, value: str) -> int:
        if len(self) >= CACHED_VALUES_MAX:
            self.clear()  # forgetting costs time, never a different hash
        token = self[value] = feature_hash("category", self._name, value)
        return token

    def of(self, values: Sequence[str]) -> Tokens:
        return list(map(self.__getitem__, values))
