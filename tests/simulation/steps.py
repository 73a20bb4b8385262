"""What workers did, as the oracle keeps it: a step, the batch that the store applied, slices that wait to be published.

In: records in the order in which a worker took them, the commit, its outputs. Out: nothing. Invariant: what was seen;
what must be is worked out elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.simulation.expected import Source
from tidemill.core.records import Commit, Output, Partition


class Slice(NamedTuple):
    """Outputs of one partition that are applied and not published yet."""

    serial: int
    start: int
    next: int
    outputs: list[Output]


@dataclass
class Step:
    """What a worker's pipeline made of a turn: which records in which order, and what is to be published."""

    order: list[Source]
    group_watermark: int
    owned: frozenset[Partition]
    worker: str
    commit: Commit
    outputs: Mapping[Partition, Sequence[Output]] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        return self.worker != "roll-forward"


@dataclass
class Batch:
    """A batch as the store applied it; `ids`: whose rows it touched."""

    serial: int
    step: Step
    spans: dict[Partition, tuple[int, int]]
    ids: set[str]
    served: dict[Source, dict[str, Any]]
    parts: set[Partition]  # those that publish something
