"""The independent verifier: judges a finished run from Kafka's topics and the raw data, with nothing of Tidemill.

In: a broker, an app's name, its YAML. Out: a `Report`. Invariant: no module of this package imports `tidemill`,
so a bug there cannot hide itself here.

`log` reads the topics; `inputs` and `outputs` turn them into columns; `outcomes` and `features` compute what must be;
`tiles` and `compare` find where it is not; `judge` is all of that in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from tests.verify.declared import read_declared
from tests.verify.judge import judge
from tests.verify.log import Log, Record, TopicLog, read_log
from tests.verify.raw import flight_labels
from tests.verify.report import Finding, Report

__all__ = ["Finding", "Log", "Record", "Report", "TopicLog", "judge", "read_declared", "read_log", "verify"]


def verify(
    bootstrap_servers: str,
    app: str,
    config: str | Path,
    *,
    until: date | None = None,
    is_flights: bool = True,
    sample: int = 1_000,
    seed: int = 1,
    order: str = "auto",
    kafka: Mapping[str, str] | None = None,
) -> Report:
    """Read the topics of a finished run and judge it.

    Args:
        until: the day that the producer was given; then every flight before it must have been sent.
        is_flights: labels are compared with the raw data of 2013's flights too.
        sample, seed, order: see `judge`.
        kafka: more settings for librdkafka.
    Raises:
        ConnectionError: no broker answers.
    """
    declared = read_declared(config)
    outputs = [f"{app}.{kind}.v1" for kind in ("predictions", "examples", "commits")]
    inputs = [topic.name for topic in declared.topics]
    log = read_log(bootstrap_servers, [*inputs, *outputs, *[f"{name}.dlq" for name in inputs]], kafka)
    raw_labels = flight_labels() if is_flights else None
    sent_ids = frozenset(flight_labels(until)) if is_flights and until is not None else None
    return judge(
        log, declared, app, raw_labels=raw_labels, sent_ids=sent_ids, sample=sample, seed=seed, order=order
    )  # fmt: skip
