"""Taking partitions: before a worker reads one record it makes store, log and group agree.

In: the partitions that the group assigned. Out: the offset each starts from, with this worker as owner in the store.
Invariant: after `take` every claimed partition has applied == committed in the store and in the group, its outputs
published exactly once, and no script of an earlier owner can take effect any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.apps.failpoints import failpoint
from tidemill.apps.publishing import Publishing, is_published, knows_of, offset_metadata
from tidemill.apps.roll_forward import RollForward
from tidemill.core.records import Partition
from tidemill.core.recovery import Continue, Rebuild, SendSlices, StartNew, Stop, decide
from tidemill.core.recovery import RollForward as RollForwardAction
from tidemill.errors import StateLostError
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic
from tidemill.io.redis_store import ClaimView, RedisStore
from tidemill.io.slices import unpack_slice

Suspect = Callable[[Sequence[Partition], Mapping[Partition, tuple[int, int]]], None]


class Claims:
    """Runs the recovery table of core/recovery.py; the compute thread owns it."""

    def __init__(
        self,
        *,
        client_settings: Mapping[str, Any],
        group: str,
        commits_topic: str,
        partitions_of_app: Callable[[], Sequence[Partition]],
        store: RedisStore,
        publishing: Publishing,
        roll_forward: RollForward,
        report: Callable[[str], None],
        suspect: Suspect = lambda partitions, bounds: None,
        restore: Callable[[Mapping[Partition, tuple[int | None, str]]], bool] = lambda committed: False,
    ) -> None:
        """`suspect` hears which partitions an owner before has tried from the same position, and not moved, and the
        bounds of all. `restore` fills a lost store from a snapshot that fits the group's offsets, and says whether
        there was one."""
        self._restore = restore
        self.committed_of_app: Mapping[Partition, int | None] = {}  # at the last claim, of all partitions of the app
        self._suspect = suspect
        self._client_settings = client_settings
        self._group = group
        self._commits_topic = commits_topic
        self._partitions_of_app = partitions_of_app
        self._store = store
        self._publishing = publishing
        self._roll_forward = roll_forward
        self._report = report

    def take(self, partitions: frozenset[Partition], group_metadata: object) -> dict[Partition, int]:
        """Claim and recover; the offset to read from, for each partition.

        Raises:
            StateLostError: positions that no rule explains; nothing was published.
            FencedError, UnavailableError: claim again.
        """
        # The new producer ends whatever transaction its predecessor left open, before the offsets are read.
        self._publishing.renew()
        of_app = kafka.committed_offsets(self._client_settings, self._group, self._partitions_of_app())
        self.committed_of_app = {partition: at for partition, (at, _) in of_app.items()}
        is_new = all(at is None for at, _ in of_app.values())
        view = self._store.claim(sorted(partitions), may_create=is_new and not self._has_published())
        if view.incarnation is None and is_new:
            raise StateLostError(
                "TM-4208",
                f"topic {self._commits_topic} tells of batches, and neither the store nor group {self._group} knows of "
                "any: both were lost (Kafka forgets the offsets of a group that is away for a week), and a worker "
                "that begins anew would publish every output a second time; if readers can take that, `tidemill reset "
                "--to earliest`, else start an app of another name",
            )
        if view.incarnation is None:
            if not self._restore(of_app):
                self._report("the store is empty though the group has committed offsets: rebuilding it from the log")
                earlier = {metadata.partition("/")[0] for _, metadata in of_app.values()} - {""}
                self._store.open_rebuild(secrets.token_hex(8), *sorted(earlier))
            view = self._store.claim(sorted(partitions), may_create=False)
        committed = kafka.committed_offsets(self._client_settings, self._group, sorted(partitions))
        bounds = kafka.log_bounds(self._client_settings, sorted(partitions))
        # Where nothing was left to read, nothing has killed.
        stood_still = [p for p, at in view.partitions.items() if at.attempts > 1 and (at.applied or 0) < bounds[p][1]]
        self._suspect(stood_still, bounds)
        starts: dict[Partition, int] = {}
        to_replay: dict[Partition, tuple[int, int]] = {}
        for partition in sorted(partitions):
            found = view.partitions[partition]
            offset, metadata = committed[partition]
            unsure = [each for each in found.slices if not is_published(metadata, offset, *each)]
            action = decide(
                applied=found.applied,
                committed=offset,
                slices=[(start, next_) for start, next_, _ in unsure],
                store_incarnation=view.incarnation,
                committed_incarnation=metadata.partition("/")[0] or None,
                lineage=view.lineage,
                log_start=bounds[partition][0],
            )
            match action:
                case StartNew():
                    starts[partition] = bounds[partition][0]
                    self._store.set_start(partition, starts[partition])
                case Continue(offset=at):
                    starts[partition] = at
                    if not knows_of(metadata, found.sequel):  # the store went back, by a commit that settled rows only
                        to_replay[partition] = (at, at)
                case SendSlices(spans=spans):
                    to_send = [each for each in unsure if each[:2] in spans]
                    starts[partition] = self._send(view, partition, to_send, group_metadata)
                case RollForwardAction(start=start, end=end):
                    to_replay[partition] = (start, end)
                    starts[partition] = end
                case Rebuild(start=start, end=end):
                    self._store.set_start(partition, start)
                    to_replay[partition] = (start, end)
                    starts[partition] = end
                case Stop(code=code, message=message):
                    raise StateLostError(code, f"{partition}: {message}")
        if to_replay:
            self._report(f"rolling the store forward on {len(to_replay)} partitions")
            self._roll_forward.run(to_replay, frozenset(partitions))
        self._store.mark_published(starts)
        return starts

    def _has_published(self) -> bool:
        """Whether outputs of this app are in Kafka, whoever has forgotten it."""
        return any(map(bool, read_topic(self._client_settings, self._commits_topic)))

    def _send(
        self, view: ClaimView, partition: Partition, slices: Sequence[tuple[int, int, bytes]], group_metadata: object
    ) -> int:
        """Publish what the store applied and Kafka has not, with that partition's offset; where it ends."""
        assert view.incarnation is not None
        outputs = [output for _, _, packed in slices for output in unpack_slice(packed)]
        self._report(f"publishing {len(outputs)} outputs of {partition} that were applied before the last stop")
        end = slices[-1][1]
        offsets = {partition: (end, offset_metadata(view.incarnation, *slices[-1]))}
        self._publishing.publish_at({partition: outputs}, offsets, group_metadata)
        failpoint("F9")
        return end
