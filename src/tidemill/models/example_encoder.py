"""Features as served become hashed features of Vowpal Wabbit, without its text format.

In: a `FeatureBatch`. Out: per row two lists of (hash, value), numeric and categories. Invariant: a row's lists are a
function of that row and the names alone, and no value can forge anything: there is no text to break out of.

Why not text: Vowpal Wabbit's parser rounds (14.375 becomes 14.374999), a `|` in a value opens a namespace, a newline a
second example, trailing blanks vanish and "012" equals "12". A hash of our own has none of these, costs half as much,
and hands over float32 bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from tidemill.core.records import FeatureBatch
from tidemill.errors import InvariantError

NUMERIC_MAX = 1e6  # clips infinity and outliers: their square still fits float32 with 26 decades to spare
CACHED_VALUES_MAX = 50_000  # per category column, about 8 MB; then the cache starts anew

Features = list[tuple[int, float]]
Row = tuple[Features, Features]


def feature_hash(kind: str, name: str, value: str = "") -> int:
    """The 32-bit hash of one feature; the engine keeps its lowest bits.

    Lengths are part of it, so that ("a", "b=c") and ("a=b", "c") differ.
    """
    encoded_name = name.encode("utf-8", "surrogatepass")
    text = b"%s:%d:%s:%s" % (kind.encode(), len(encoded_name), encoded_name, value.encode("utf-8", "surrogatepass"))
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "little")


class ExampleEncoder:
    """Knows the hash of every column; remembers those of the categories' values."""

    def __init__(self, feature_names: Sequence[str], category_names: Sequence[str]) -> None:
        self._hashes = [feature_hash("numeric", name) for name in feature_names]
        self._missing = [(feature_hash("missing", name), 1.0) for name in feature_names]
        self._category_names = tuple(category_names)
        self._tokens: list[dict[str, tuple[int, float]]] = [{} for _ in category_names]

    def encode(self, features: FeatureBatch, rows: npt.NDArray[np.intp] | None = None) -> Iterator[Row]:
        """One pair of lists per row, in order; only `rows` (positions) when given.

        Numbers are clipped to ±NUMERIC_MAX; a missing one is left out and its "missing" token stands for it. A missing
        category is a value like any other. Zero carries nothing in a linear model and the engine leaves it out.

        Raises:
            InvariantError: the batch has other columns than the names.
        """
        numeric, categories = features.numeric, features.categories
        if numeric.ndim != 2 or numeric.shape[1] != len(self._hashes) or len(categories) != len(self._category_names):
            raise InvariantError(
                "TM-9501",
                f"learner: features have shape {numeric.shape} and {len(categories)} categories, declared are "
                f"{len(self._hashes)} and {len(self._category_names)}; this is a bug, please report it",
            )
        if rows is not None:
            numeric = numeric[rows]
            categories = tuple(tuple(column[row] for row in rows.tolist()) for column in categories)
        clipped = np.clip(numeric, -NUMERIC_MAX, NUMERIC_MAX)  # NaN stays NaN
        has_missing: npt.NDArray[np.bool_] = np.asarray(np.isnan(clipped).any(axis=1))
        tokens = [self._column_tokens(column, values) for column, values in enumerate(categories)]
        by_row = zip(*tokens, strict=True) if tokens else iter([()] * len(numeric))
        for values, is_partial, row_tokens in zip(clipped.tolist(), has_missing, by_row, strict=True):
            if is_partial:
                pairs = zip(self._hashes, self._missing, values, strict=True)
                present = [(name, value) if value == value else missing for name, missing, value in pairs]
            else:
                present = list(zip(self._hashes, values, strict=True))
            yield present, list(row_tokens)

    def _column_tokens(self, column: int, values: Sequence[str]) -> Features:
        known = self._tokens[column]
        found = []
        for value in values:
            token = known.get(value)
            if token is None:
                if len(known) >= CACHED_VALUES_MAX:
                    known.clear()  # a pure function: forgetting costs time, never a different hash
                token = known[value] = (feature_hash("category", self._category_names[column], value), 1.0)
            found.append(token)
        return found
