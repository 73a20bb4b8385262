"""A batch cut in two is the same records, and no partition of the worker is forgotten in either part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.in_memory import App, Machinery, a_shop
from tidemill.core.batches import split_batch
from tidemill.core.records import Batch, Partition, Span

MACHINERY = Machinery(a_shop())
NAMES = MACHINERY.pipeline.topic_names
EVENTS, OUTCOMES, READINGS = (Partition(name, 0) for name in ("events", "outcomes", "readings"))

Entry = tuple[str, int, int, bool]  # topic, time, partition, is sound


def a_whole(*entries: Entry) -> Batch:
    """In merged order; every partition has two holes at its end."""
    app = App(machinery=MACHINERY, partitions=2)
    for topic, time, partition, is_sound in sorted(entries, key=lambda entry: entry[1]):
        if is_sound:
            app.inputs.add(topic, time, partition=partition, id=f"{topic}{time}", shop="s")
        else:
            app.inputs.send(topic, time, b"?", partition=partition)
    starts = dict.fromkeys(app.partitions, 0)
    records = app.inputs.merged(starts)
    spans = app.inputs.spans(records, starts)
    spans = {p: span._replace(next=span.next + 2) if span.next else span for p, span in spans.items()}
    return MACHINERY.decoder.decode(records, spans)


def listed(*batches: Batch) -> list[tuple[Any, ...]]:
    """Every record with what it carries."""
    found: list[tuple[Any, ...]] = []
    for batch in batches:
        bodies: dict[int, Any] = {at: ("letter", letter) for at, letter in batch.dead_letters}
        for name, records in batch.records.items():
            rows = ((name, row) for row in records.columns.to_pylist())
            bodies |= dict(zip(records.row_index.tolist(), rows, strict=True))
        columns = (batch.time, batch.kind, batch.topic_index, batch.partition, batch.offset)
        places = zip(*(column.tolist() for column in columns), strict=True)
        found += [(*place, bodies[at]) for at, place in enumerate(places)]
    return found


def test_parts_of_a_small_batch() -> None:
    batch = a_whole(("readings", 1, 0, True), ("events", 2, 0, True), ("events", 3, 0, False), ("outcomes", 4, 0, True))
    head, tail = split_batch(batch, 2, NAMES)

    assert (len(head), len(tail)) == (2, 2)
    assert head.spans[READINGS] == Span(0, 3, 1, False)  # nothing of it is left: the holes at its end go along
    assert head.spans[EVENTS] == Span(0, 1, 2, True)
    assert tail.spans[EVENTS] == Span(1, 4, 3, False)
    assert tail.spans[OUTCOMES] == batch.spans[OUTCOMES]
    assert [at for at, _ in tail.dead_letters] == [0] and not head.dead_letters
    assert tail.records["outcomes"].row_index.tolist() == [1]
    assert set(head.records) == {"readings", "events"} and set(tail.records) == {"outcomes"}


def test_partition_without_records_in_a_part_is_named_there_and_teaches_nothing() -> None:
    batch = a_whole(("events", 2, 0, True), ("outcomes", 4, 0, True))
    head, tail = split_batch(batch, 1, NAMES)
    assert head.spans[OUTCOMES] == Span(0, 0, -1, False)
    assert tail.spans[EVENTS] == Span(3, 3, -1, False)
    assert tail.spans[READINGS] == head.spans[READINGS] == Span(0, 0, -1, False)


ENTRIES = st.tuples(
    st.sampled_from(("readings", "outcomes", "events")), st.integers(0, 5), st.integers(0, 1), st.booleans()
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, min_size=2, max_size=12), st.data())
def test_parts_hold_the_records_of_the_whole_and_their_spans_tile_it(entries: list[Entry], data: st.DataObject) -> None:
    batch = a_whole(*entries)
    position = data.draw(st.integers(1, len(batch) - 1))
    head, tail = split_batch(batch, position, NAMES)

    assert (len(head), len(tail)) == (position, len(batch) - position)
    assert listed(head, tail) == listed(batch)
    assert head.spans.keys() == tail.spans.keys() == batch.spans.keys()
    for place, span in batch.spans.items():
        first, second = head.spans[place], tail.spans[place]
        assert (first.start, second.start, second.next) == (span.start, first.next, span.next)
        assert max(first.watermark, second.watermark) == span.watermark
        is_left = bool(np.any((tail.topic_index == NAMES.index(place.topic)) & (tail.partition == place.number)))
        assert first.is_lagging == (is_left and first.next > first.start)
    for part in (head, tail):
        for at in range(len(part)):
            span = part.spans[Partition(NAMES[part.topic_index[at]], int(part.partition[at]))]
            assert span.start <= part.offset[at] < span.next
            assert part.time[at] <= span.watermark or part is tail


@pytest.mark.parametrize("position", [1, 2, 3])
def test_parts_can_be_cut_again(position: int) -> None:
    batch = a_whole(*(("events", time, time % 2, True) for time in range(4)))
    head, tail = split_batch(batch, position, NAMES)
    parts = [*(split_batch(head, 1, NAMES) if position > 1 else [head]), tail]
    assert listed(*parts) == listed(batch)
