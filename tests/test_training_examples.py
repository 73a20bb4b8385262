"""Examples kept for training: what teaches, in little memory, by label time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from boosters import CATEGORIES, NUMERIC, kept, rows_of, some_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.models.training_examples import TrainingExamples, TrainingRows

EXAMPLES = some_examples(300)


def part(start: int, end: int, examples: ExampleColumns = EXAMPLES) -> ExampleColumns:
    columns = ("offset", "label", "is_learned", "event_time", "label_time", "learner", "booster", "base_rate", "blend")
    return ExampleColumns(
        features=rows_of(examples.features, list(range(start, end))),
        **{name: getattr(examples, name)[start:end] for name in columns},
    )


def values_of(rows: TrainingRows) -> list[tuple[str, ...]]:
    return [
        tuple(values[code] for values, code in zip(rows.vocabularies, codes, strict=True))
        for codes in rows.codes.tolist()
    ]


def same(one: TrainingRows, other: TrainingRows) -> bool:
    names = ("numeric", "label", "offset", "label_time")
    return values_of(one) == values_of(other) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names
    )


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6))
def test_what_is_kept_is_what_came_whatever_the_pieces(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), 300]
    rows = kept(*(part(start, end) for start, end in pairwise(ends))).rows()
    assert np.array_equal(rows.numeric, EXAMPLES.features.numeric, equal_nan=True)
    assert values_of(rows) == list(zip(*EXAMPLES.features.categories, strict=True))
    assert np.array_equal(rows.label, EXAMPLES.label) and np.array_equal(rows.offset, EXAMPLES.offset)
    assert rows.digest() == kept(EXAMPLES).rows().digest()


def test_what_does_not_teach_is_left_out_with_its_values() -> None:
    is_learned = np.arange(300) % 3 > 0
    strange = ["strange" if not teaches else kind for teaches, kind in zip(is_learned, EXAMPLES.features.categories[0],
               strict=True)]  # fmt: skip
    features = FeatureBatch(EXAMPLES.features.numeric, (tuple(strange), EXAMPLES.features.categories[1]))
    examples = kept(replace(EXAMPLES, is_learned=is_learned, features=features))
    assert len(examples) == 200
    assert np.array_equal(examples.rows().offset, EXAMPLES.offset[is_learned])
    assert "strange" not in examples.rows().vocabularies[0]
    assert len(kept(replace(EXAMPLES, is_learned=np.zeros(300, dtype=np.bool_)))) == 0


@settings(max_examples=30, deadline=None)
@given(
    delays=st.lists(st.integers(0, 4_000), min_size=300, max_size=300),
    since=st.none() | st.integers(0, 5_000),
    before=st.none() | st.integers(0, 8_000),
)
def test_range_of_label_times_holds_those_and_no_others(
    delays: list[int], since: int | None, before: int | None
) -> None:
    label_time = EXAMPLES.event_time + np.array(delays)
    rows = kept(replace(EXAMPLES, label_time=label_time)).rows(since_ms=since, before_ms=before)
    expected = [
        offset
        for offset, time in zip(EXAMPLES.offset.tolist(), label_time.tolist(), strict=True)
        if (since is None or time >= since) and (before is None or time < before)
    ]
    assert rows.offset.tolist() == expected


def test_rows_and_their_digest_do_not_depend_on_what_came_beside_them() -> None:
    time = int(EXAMPLES.label_time[100])
    alone, beside = kept(part(0, 100)), kept(EXAMPLES)
    assert same(alone.rows(), beside.before(time))
    assert alone.rows().digest() == beside.before(time).digest()
    assert kept(part(50, 300)).rows().digest() == beside.rows(since_ms=int(EXAMPLES.label_time[50])).digest()


def test_view_stays_as_it_was_while_more_comes() -> None:
    examples = kept(part(0, 100))
    view = examples.rows()
    digest = view.digest()
    for at in range(20):
        examples.append(some_examples(1_000, seed=at, first_offset=1_000 * (at + 1)))
    assert len(examples) == 20_100
    assert (len(view), view.digest()) == (100, digest)


def test_digest_tells_apart_every_column() -> None:
    digest = kept(EXAMPLES).rows().digest()
    numeric = EXAMPLES.features.numeric.copy()
    numeric[17, 2] = 0.25
    kinds, places = EXAMPLES.features.categories
    other = (*kinds[:-1], "green" if kinds[-1] != "green" else "red")
    changes = [
        {"features": FeatureBatch(numeric, (kinds, places))},
        {"features": FeatureBatch(EXAMPLES.features.numeric, (other, places))},
        {"features": FeatureBatch(EXAMPLES.features.numeric, (tuple(f"{kind}!" for kind in kinds), places))},
        {"label": 1 - EXAMPLES.label},
        {"offset": EXAMPLES.offset + 1},
        {"label_time": EXAMPLES.label_time + 1},
    ]
    digests = [kept(replace(EXAMPLES, **change)).rows().digest() for change in changes]
    assert len({digest, *digests}) == 1 + len(changes)


def test_year_of_examples_fits_in_little_memory() -> None:
    examples = TrainingExamples(tuple(f"n{at}" for at in range(28)), tuple(f"c{at}" for at in range(5)))
    count, parts = 5_000, 20
    columns = some_examples(count)
    wide = FeatureBatch(np.zeros((count, 28), dtype=np.float32), columns.features.categories[:1] * 5)
    for at in range(parts):
        examples.append(replace(columns, features=wide, offset=columns.offset + 2 * count * at))
    rows = examples.rows()
    size = sum(one.nbytes for one in (rows.numeric, rows.codes, rows.label, rows.offset, rows.label_time))
    assert size / len(rows) * 336_776 < 60e6


def test_names_are_those_of_the_columns() -> None:
    assert (kept().feature_names, kept().category_names) == (NUMERIC, CATEGORIES)
