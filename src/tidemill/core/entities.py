"""The entity of a record as text, and as a small number within a batch.

In: Arrow columns. Out: texts, codes. Invariant: equal texts have equal codes; codes count up by first appearance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Int64s

SEPARATOR = "\x1f"  # between the values of an entity of several fields
MISSING_ENTITY = "\x18"  # stands for an entity with a null field where a text must be: it feeds and reads nothing


def entity_texts(columns: pa.RecordBatch, fields: tuple[str, ...]) -> pa.Array:
    """One text per record, null where a field is null; without fields all records have the entity ""."""
    if not fields:
        return pa.repeat(pa.scalar("", pa.string()), columns.num_rows)
    parts = [columns.column(field).cast(pa.string()) for field in fields]
    if len(parts) > 1:
        return _unambiguous(pc.binary_join_element_wise(*parts, SEPARATOR), parts)
    is_missing = pc.equal(parts[0], MISSING_ENTITY)
    return pc.if_else(is_missing, None, parts[0]) if is_missing.true_count else parts[0]


def _unambiguous(joined: pa.Array, parts: Sequence[pa.Array]) -> pa.Array:
    """Where a value holds the separator itself, the text ends with the lengths of the values: no two read alike."""
    has_more = pc.greater(pc.count_substring(joined, SEPARATOR), len(parts) - 1)
    if not has_more.true_count:
        return joined
    lengths = [pc.utf8_length(part).cast(pa.string()) for part in parts]
    return pc.if_else(has_more, pc.binary_join_element_wise(joined, *lengths, SEPARATOR), joined)


def texts_with_missing(texts: pa.Array) -> list[str]:
    """Texts as they are kept beside a prediction."""
    kept: list[str] = texts.fill_null(MISSING_ENTITY).to_pylist()
    return kept


def texts_as_kept(texts: Sequence[str | None]) -> pa.Array:
    """The inverse of `texts_with_missing`."""
    if MISSING_ENTITY in texts:
        texts = [None if text == MISSING_ENTITY else text for text in texts]
    return pa.array(texts, pa.string())


@dataclass(frozen=True, slots=True)
class Coded:
    """Entities of several lists of records. codes: per list, -1 = without entity. texts: by code.

    rank: place of each code in the order of texts (by code points, as Python and Redis sort them).
    """

    texts: list[str]
    rank: Int64s
    codes: tuple[Int64s, ...]


def encode(lists: Sequence[pa.Array]) -> Coded:
    """Number the texts of all lists together; those of the first list come first."""
    encoded = pa.concat_arrays(lists).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    texts = encoded.dictionary
    rank = np.empty(len(texts), dtype=np.int64)
    rank[pc.sort_indices(texts).to_numpy()] = np.arange(len(texts))
    ends = np.cumsum([len(one) for one in lists])
    return Coded(texts.to_pylist(), rank, tuple(np.split(codes, ends[:-1])))
