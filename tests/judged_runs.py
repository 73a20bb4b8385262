"""Right runs that a test spoils in one place, and what the verifier says of them.

In: a run, and what to change in one published record. Out: a report. Invariant: all else stays byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import fastavro

from tests.verify import Report, judge
from tests.verify.avro import encode, read_schema
from tests.verify.example_run import APP, DECLARED, Run

PREDICTIONS, EXAMPLES, COMMITS = (f"{APP}.{kind}.v1" for kind in ("predictions", "examples", "commits"))


def judged(run: Run, **given: Any) -> Report:
    return judge(run.log(), DECLARED, APP, **given)


def fields_of(run: Run, topic: str, place: int) -> dict[str, Any]:
    schema = fastavro.parse_schema(read_schema(_kind(topic)))
    value = run.topics[topic][place].value or b""
    found: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[10:]), schema)  # type: ignore[assignment]
    return found


def put(run: Run, topic: str, place: int, /, **changed: Any) -> dict[str, Any]:
    """Change fields of one published record; returns them as they were."""
    fields = fields_of(run, topic, place)
    value = encode(read_schema(_kind(topic)), {**fields, **changed})
    run.topics[topic][place] = run.topics[topic][place]._replace(value=value)
    return fields


def place_of(run: Run, topic: str, is_wanted: Callable[[dict[str, Any]], bool], skip: int = 0) -> int:
    places = [at for at in range(len(run.topics[topic])) if is_wanted(fields_of(run, topic, at))]
    return places[skip]


def _kind(topic: str) -> str:
    return topic.split(".")[1][:-1]


def is_example(fields: dict[str, Any]) -> bool:
    return bool(fields["kind"] == "example" and fields["is_learned"] and fields["n"] > 5)


def only(report: Report, *names: str) -> None:
    assert set(report.failed) == set(names), str(report)
