"""What the system published, as columns: predictions, examples, commits, dead letters.

In: the log. Out: `Outputs`. Invariant: every published record is either in a column or named in `broken`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.verify.avro import BadRecordError, Decoder, read_schema
from tests.verify.log import Log, Record


class Served(NamedTuple):
    """Features and scores of a prediction or an example; numbers as bytes, so that equal means bit for bit."""

    numeric: bytes  # float32
    categories: tuple[str, ...]
    scores: bytes  # blend, learner, booster, base rate; float64, a null is marked
    n: int
    model_version: str
    feature_digest: str
    flags: tuple[str, ...]


class Prediction(NamedTuple):
    id: str
    event_time: int
    source: tuple[str, int, int]  # topic, partition, offset
    blend: float
    served: Served


class Example(NamedTuple):
    kind: str
    id: str
    label: int
    event_time: int
    label_time: int
    is_learned: bool
    served: Served
    offset: int  # its own, in the examples log


class Commit(NamedTuple):
    topic: str
    partition: int
    start: int
    next: int
    worker: str
    batch: int
    n: int
    watermark: int
    group_watermark: int
    merge_rank: int
    outcomes: Mapping[str, int]
    joined: Sequence[int] = ()
    waiting: Sequence[int] = ()
    settled: Sequence[int] = ()


@dataclass
class Outputs:
    predictions: list[Prediction] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    dead_letters: dict[str, list[Record]] = field(default_factory=dict)  # by input topic
    broken: list[str] = field(default_factory=list)


def read_outputs(log: Log, app: str, input_names: Sequence[str]) -> Outputs:
    out = Outputs()
    prediction, example, command = (Decoder([read_schema(one)], is_finite_only=False) for one in _VALUES)
    known: dict[Any, Any] = {}
    for record, fields in _decoded(log, f"{app}.predictions.v1", prediction, out):
        source = (fields["topic"], fields["partition"], fields["offset"])
        served = _served(fields, known)
        out.predictions.append(Prediction(fields["id"], fields["event_time"], source, fields["blend"], served))
        if record.key != fields["id"].encode():
            out.broken.append(f"{app}.predictions.v1[{record.partition}]@{record.offset}: key is not the id")
    for record, fields in _decoded(log, f"{app}.examples.v1", example, out, passed_over=command):
        out.examples.append(
            Example(
                fields["kind"],
                fields["id"],
                fields["label"],
                fields["event_time"],
                fields["label_time"],
                fields["is_learned"],
                _served(fields, known),
                record.offset,
            )
        )
    commit = Decoder([read_schema("commit")], is_finite_only=False)
    out.commits = [Commit(**fields) for _, fields in _decoded(log, f"{app}.commits.v1", commit, out)]
    out.dead_letters = {name: list(log.topic(f"{name}.dlq").records) for name in input_names}
    return out


_VALUES = ("prediction", "example", "command")


def _decoded(log: Log, topic: str, decoder: Decoder, out: Outputs, passed_over: Decoder | None = None) -> Any:
    decode = decoder.decode
    for record in log.topic(topic).records:
        value = record.value or b""
        if passed_over is not None and passed_over.knows(value):
            continue
        try:
            fields = decode(value)
        except BadRecordError as error:
            out.broken.append(f"{topic}[{record.partition}]@{record.offset}: {error}")
            continue
        yield record, fields


def _served(fields: Mapping[str, Any], known: dict[Any, Any]) -> Served:
    """`known` lets equal texts be one object: a year of predictions has few different ones."""
    scores = b"".join(
        b"-" if score is None else struct.pack("<d", score)
        for score in (fields["blend"], fields["learner"], fields["booster"], fields["base_rate"])
    )
    categories = tuple(fields["categories"])
    return Served(
        array("f", fields["numeric"]).tobytes(),
        known.setdefault(categories, categories),
        scores,
        fields["n"],
        known.setdefault(fields["model_version"], fields["model_version"]),
        known.setdefault(fields["feature_digest"], fields["feature_digest"]),
        tuple(fields["flags"]),
    )


def numbers(served: Served) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(served.numeric, dtype=np.float32)
