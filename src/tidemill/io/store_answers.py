"""What every store answers to a claim, and the errors that every store raises in the same words.

In: what was expected and what was found. Out: values and errors. Invariant: a message names the check that failed, the
partition, both sides, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidemill.core.records import Partition
from tidemill.errors import ConfigError, FencedError, StateLostError, UnavailableError

_CHECKS = {
    "owner": ("TM-4101", "another worker claimed it"),
    "position": ("TM-4102", "another commit moved it"),
    "incarnation": ("TM-4103", "the store was emptied or replaced"),
}


@dataclass(frozen=True, slots=True)
class ClaimedPartition:
    """What the store knows of a partition at its claim.

    applied: the next offset to apply; None = nothing was applied yet, though a start may have been recorded.
    committed: the next offset known to be published; None = none yet.
    slices: (start, next, outputs) of the outbox, in order.
    attempts: claims that found the partition at this position, this one included; an owner of another slot that never
        gave it back counts as one, for it died or hangs.
    sequel: the mark of the last slice applied that moved no offset, "" = none yet (io/slices.py).
    """

    applied: int | None
    committed: int | None
    slices: tuple[tuple[int, int, bytes], ...] = ()
    attempts: int = field(default=1, compare=False)  # how often it was tried is no part of where it stands
    sequel: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ClaimView:
    """The answer to a claim. incarnation None = the store was emptied, and nothing was claimed."""

    incarnation: str | None
    lineage: frozenset[str]
    partitions: Mapping[Partition, ClaimedPartition] = field(default_factory=dict)


def lost_view(partitions: tuple[Partition, ...]) -> ClaimView:
    return ClaimView(None, frozenset(), {partition: ClaimedPartition(None, None) for partition in partitions})


def fenced(check: str, partition: Partition | None, *, expected: str, found: str) -> FencedError:
    """`check` is "owner", "position" or "incarnation"; the last one concerns no single partition."""
    code, reason = _CHECKS[check]
    where = "store" if partition is None else str(partition)
    return FencedError(
        code,
        f"{where}: {check} is {found or 'none'}, expected {expected or 'none'}: {reason}; nothing was written, "
        "claim again",
    )


def other_configuration(app: str, *, ours: str, found: str) -> ConfigError:
    return ConfigError(
        "TM-4104",
        f"app {app}: this worker's configuration is {ours}, the store's is {found}; workers of one app need the same "
        "YAML, schemas and platform. To change it, stop all workers and run `tidemill reset --config` (features: raise "
        "the group's version and run `tidemill features fill`), or choose a new app name",
    )


def store_not_empty(app: str, partition: Partition) -> StateLostError:
    return StateLostError(
        "TM-4105",
        f"app {app}: the store has no incarnation but holds a position of {partition}: part of it was deleted, so a "
        "rebuild would count records twice; restore the store from a backup, or empty it with `tidemill reset --to "
        "committed`",
    )


def being_restored(app: str) -> UnavailableError:
    return UnavailableError(
        "TM-4108",
        f"app {app}: the store is being restored or emptied; a worker claims again once that is over, a command "
        "is to be given again (if that process is dead, in a minute)",
    )
