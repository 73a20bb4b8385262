"""Entry rules: which records of a topic are not as declared, and what the dead letter of one says.

In: rules, columns of one topic. Out: per record the first rule that it breaks. Invariant: a function of the record
alone, but for bursts, which are a matter of a batch; a null breaks no rule but `is_missing: false`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Float64s, Int64s
from tidemill.core.spec import RuleSpec

Bools = npt.NDArray[np.bool_]

SHOWN_CHARACTERS = 60  # of a value in a message; the dead letter holds all of it
_OTHER_FIELD = ("not_after", "not_before", "differs_from")
_TESTS = ("at_least", "above", "at_most", "below", "one_of", "matches", "is_missing", "burst_above", *_OTHER_FIELD)


def first_broken(rules: Sequence[RuleSpec], columns: pa.RecordBatch) -> Int64s | None:
    """The place in `rules` of the first rule that each record breaks, -1 = none; None when no record breaks any."""
    found: Int64s | None = None
    for place, rule in enumerate(rules):
        broken = is_broken(rule, columns)
        if broken.any():
            found = np.full(columns.num_rows, -1, dtype=np.int64) if found is None else found
            found[broken & (found < 0)] = place
    return found


def outliers(rules: Sequence[RuleSpec], columns: pa.RecordBatch) -> list[bool]:
    """Per record, whether it breaks one of the rules; empty when none does."""
    broken = first_broken(rules, columns)
    return [] if broken is None else (broken >= 0).tolist()


def is_broken(rule: RuleSpec, columns: pa.RecordBatch) -> Bools:
    """True for each record that does not satisfy the rule."""
    column = columns.column(rule.field)
    if rule.is_missing is not None:
        return _as_mask(column.is_valid() if rule.is_missing else column.is_null())
    if rule.burst_above is not None:
        counts = pc.value_counts(column.drop_null())
        bursts = counts.field("values").filter(pc.greater(counts.field("counts"), rule.burst_above))
        return _as_mask(pc.is_in(column, value_set=bursts))
    if rule.matches is not None:
        return ~_as_mask(pc.fill_null(pc.match_substring_regex(column, whole_text(rule.matches)), True))
    if rule.one_of is not None:
        wide = column.cast(pa.int64()) if pa.types.is_integer(column.type) else column
        return ~_as_mask(pc.or_(pc.is_in(wide, value_set=pa.array(rule.one_of, wide.type)), wide.is_null()))
    if rule.differs_from is not None and pa.types.is_string(column.type):
        return _as_mask(pc.fill_null(pc.equal(column, columns.column(rule.differs_from)), False))
    values, is_null = _numbers(column)
    other = rule.not_after or rule.not_before or rule.differs_from
    if other is not None:
        others, is_other_null = _numbers(columns.column(other))
        compare = np.greater if rule.not_after else np.less if rule.not_before else np.equal
        breaks: Bools = compare(values, others)
        return breaks & ~is_null & ~is_other_null
    return ~(_is_within(rule, values) | is_null)


def whole_text(pattern: str) -> str:
    """The pattern that matches where `pattern` matches the text from its begin to its end."""
    return rf"\A(?:{pattern})\z"


def broken_text(rule: RuleSpec, record: pa.RecordBatch) -> str:
    """What is wrong with a record of one row that breaks the rule, in words."""
    parts = []
    for name in _TESTS:
        wanted = getattr(rule, name)
        if wanted is None:
            continue
        if name in _OTHER_FIELD:
            wanted = f"{wanted} ({_shown(record.column(wanted)[0].as_py())})"
        elif name == "one_of":
            wanted = _shown(list(wanted))
        elif name == "is_missing":
            wanted = str(wanted).lower()
        parts.append(f"{name} {wanted}")
    return f"field {rule.field} is {_shown(record.column(rule.field)[0].as_py())}; the rule: {', '.join(parts)}"


def _is_within(rule: RuleSpec, values: Int64s | Float64s) -> Bools:
    """Bounds of whole numbers are whole: a float64 would not tell the largest ones apart."""
    is_whole = values.dtype.kind == "i"
    within = np.ones(len(values), dtype=bool)
    if rule.at_least is not None:
        within &= values >= (math.ceil(rule.at_least) if is_whole else rule.at_least)
    if rule.above is not None:
        within &= values > (math.floor(rule.above) if is_whole else rule.above)
    if rule.at_most is not None:
        within &= values <= (math.floor(rule.at_most) if is_whole else rule.at_most)
    if rule.below is not None:
        within &= values < (math.ceil(rule.below) if is_whole else rule.below)
    return within


def _numbers(column: pa.Array) -> tuple[Int64s | Float64s, Bools]:
    """Values as int64 or float64 (null: 0), and where they are null."""
    wide = column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.float64())
    return wide.fill_null(0).to_numpy(zero_copy_only=False), _as_mask(column.is_null())


def _as_mask(values: pa.Array) -> Bools:
    mask: Bools = values.to_numpy(zero_copy_only=False)
    return mask


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
