"""What was published against what the inputs demand, record by record.

In: inputs, the outcomes that they demand, outputs. Out: findings, and which output answers which input. Invariant: an
output answers at most one input; what is left on either side is missing or extra.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tests.verify.declared import Declared
from tests.verify.inputs import Inputs
from tests.verify.log import Headers, Record
from tests.verify.outcomes import RECORD_OUTCOMES, Expected, ExpectedExample
from tests.verify.outputs import Example, Outputs, Prediction, numbers
from tests.verify.report import Report

Source = tuple[str, int, int]  # topic, partition, offset


def check_predictions(
    declared: Declared, inputs: Inputs, expected: Expected, predictions: Sequence[Prediction], report: Report
) -> dict[int, Prediction]:
    """Returns the prediction of each event row."""
    missing, extra, doubled, wrong = (
        report.check(f"predictions {name}") for name in ("missing", "extra", "duplicate", "with wrong event")
    )
    rows = np.flatnonzero(expected.outcome == RECORD_OUTCOMES.index("prediction")).tolist()
    row_of = {source_of(declared, inputs, row): row for row in rows}
    found: dict[int, Prediction] = {}
    for one in predictions:
        row = row_of.get(one.source)
        if row is None:
            extra.add(f"{one.id} from {_at(one.source)}")
        elif row in found:
            doubled.add(f"{one.id} from {_at(one.source)}")
        else:
            found[row] = one
            if one.id != _id(declared, inputs, row) or one.event_time != inputs.time[row]:
                wrong.add(f"{one.id} at {one.event_time} from {_at(one.source)}")
            if not 0 <= one.blend <= 1:
                wrong.add(f"{one.id}: blend {one.blend} is no probability")
    for row in rows:
        if row not in found:
            missing.add(f"{_id(declared, inputs, row)} from {inputs.name(row, declared)}")
    return found


def check_examples(
    declared: Declared,
    inputs: Inputs,
    expected: Expected,
    examples: Sequence[Example],
    by_source: Mapping[int, Prediction],
    report: Report,
    *,
    is_total_order: bool,
) -> list[tuple[Example, ExpectedExample]]:
    """Returns each example with the one that the inputs demand."""
    names = ("missing", "extra", "duplicate", "with wrong label", "with wrong times", "with wrong is_learned")
    missing, extra, doubled, label, times, learned = (report.check(f"examples {name}") for name in names)
    changed = report.check("examples not as served")
    left: dict[tuple[str, str], list[ExpectedExample]] = defaultdict(list)
    for wanted in expected.examples:
        left[wanted.kind, wanted.id].append(wanted)
    known = set(left)
    matched: list[tuple[Example, ExpectedExample]] = []
    for one in examples:
        choices = left.get((one.kind, one.id))
        if not choices:
            (doubled if (one.kind, one.id) in known else extra).add(f"{one.kind} of {one.id} @{one.offset}")
            continue
        # The nearest of several: a wrong label is then named as such, and not as one missing and one extra.
        best = max(choices, key=lambda w: (w.label_time == one.label_time) * 2 + (w.label == one.label))
        choices.remove(best)
        matched.append((one, best))
        if one.label != best.label:
            label.add(f"{one.kind} of {one.id}: expected {best.label}, got {one.label}")
        if (one.event_time, one.label_time) != (best.event_time, best.label_time):
            times.add(
                f"{one.id}: expected {best.event_time}, {best.label_time}, got {one.event_time}, {one.label_time}"
            )
        if one.kind != "example":
            if one.is_learned:
                learned.add(f"amendment of {one.id} is marked as learned")
            continue
        flags = one.served.flags
        is_label_first = best.is_label_first if is_total_order else "label_first" in flags
        if one.is_learned == is_label_first and (is_label_first or not flags):
            learned.add(f"{one.id}: is_learned {one.is_learned}, label first {is_label_first}, flags {list(flags)}")
        if is_label_first != ("label_first" in flags):
            learned.add(f"{one.id}: label first {is_label_first}, but flags {list(flags)}")
        prediction = by_source.get(best.event_row)
        if prediction is not None and prediction.served != one.served:
            changed.add(f"{one.id}: {_difference(declared, prediction, one)}")
    for choices in left.values():
        for wanted in choices:
            missing.add(f"{wanted.kind} of {wanted.id}, label {inputs.name(wanted.cause_row, declared)}")
    return matched


def _difference(declared: Declared, prediction: Prediction, example: Example) -> str:
    served, kept = prediction.served, example.served
    if served.numeric != kept.numeric:
        before, after = numbers(served), numbers(kept)
        if len(before) != len(after):
            return f"numeric has {len(after)} features, {len(before)} were served"
        at = int(np.flatnonzero(before.view(np.int32) != after.view(np.int32))[0])
        name = declared.numeric[at].name if at < len(declared.numeric) else str(at)
        return f"numeric {name} served {before[at]!s}, example has {after[at]!s}"
    names = [name for name in served._fields if getattr(served, name) != getattr(kept, name)]
    return f"{', '.join(names)} served {getattr(served, names[0])!r}, example has {getattr(kept, names[0])!r}"


def check_raw_labels(
    inputs: Inputs,
    declared: Declared,
    examples: Sequence[Example],
    raw_labels: Mapping[str, int] | None,
    sent_ids: frozenset[str] | None,
    report: Report,
) -> None:
    if raw_labels is not None:
        finding = report.check("labels against the raw data")
        for one in examples:
            if one.kind != "example":
                continue
            raw = raw_labels.get(one.id)
            if raw != one.label:
                finding.add(f"{one.id}: raw data say {'nothing' if raw is None else raw}, example has {one.label}")
    if sent_ids is not None:
        finding = report.check("events that were never sent")
        seen: set[str] = set()
        for index, topic in enumerate(declared.topics):
            if topic.role == "event" and topic.id_field is not None:
                seen.update(id_ for id_ in inputs.columns[index].fields[topic.id_field] if id_ is not None)
        for id_ in sorted(sent_ids - seen):
            finding.add(id_)


def check_dead_letters(declared: Declared, inputs: Inputs, outputs: Outputs, report: Report) -> None:
    missing, extra, doubled, changed = (
        report.check(f"dead letters {name}") for name in ("missing", "extra", "duplicate", "changed")
    )
    for index, topic in enumerate(declared.topics):
        wanted = {
            (record.partition, record.offset): (record, why) for record, why in inputs.columns[index].bad.values()
        }
        seen: set[tuple[int, int]] = set()
        for letter in outputs.dead_letters.get(topic.name, ()):
            place = _origin(letter.headers, topic.name)
            if place is None or place not in wanted:
                extra.add(f"{topic.name}.dlq[{letter.partition}]@{letter.offset} names {place}: no bad record is there")
                continue
            if place in seen:
                doubled.add(f"{topic.name}[{place[0]}]@{place[1]}")
                continue
            seen.add(place)
            difference = _letter_difference(wanted[place][0], letter)
            if difference:
                changed.add(f"{topic.name}[{place[0]}]@{place[1]}: {difference}")
        for place in sorted(set(wanted) - seen):
            missing.add(f"{topic.name}[{place[0]}]@{place[1]}: {wanted[place][1]}")


def _origin(headers: Headers, topic: str) -> tuple[int, int] | None:
    """Where the letter says that it comes from, by the headers of KIP-1034; None if they are not about this topic."""
    named = dict(headers)
    try:
        if (named["__streams.errors.topic"] or b"").decode() != topic:
            return None
        return int(named["__streams.errors.partition"] or b""), int(named["__streams.errors.offset"] or b"")
    except (KeyError, ValueError):
        return None


def _letter_difference(record: Record, letter: Record) -> str:
    for name in ("value", "key", "timestamp"):
        if getattr(record, name) != getattr(letter, name):
            return f"{name} is not the original"
    if tuple(letter.headers[: len(record.headers)]) != tuple(record.headers):
        rest = list(letter.headers)
        if any(header not in rest for header in record.headers):
            return "headers of the original are lost"
    return ""


def _id(declared: Declared, inputs: Inputs, row: int) -> str:
    return str(inputs.value(row, declared.topics[int(inputs.topic[row])].id_field or ""))


def source_of(declared: Declared, inputs: Inputs, row: int) -> Source:
    return declared.topics[int(inputs.topic[row])].name, int(inputs.partition[row]), int(inputs.offset[row])


def _at(source: Source) -> str:
    return f"{source[0]}[{source[1]}]@{source[2]}"
