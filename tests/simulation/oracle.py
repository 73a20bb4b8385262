"""Judges every step: what the store applied, and what Kafka made visible.

In: records as they arrived, claims, commits as they took effect, transactions as they were committed. Out: nothing, or
a `Violation` that names the invariant of RELIABILITY.md. Invariant: what must be comes from `expected` and from the
records themselves; of the product only the bytes that it stored or published are looked at.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.simulation.broker import Broker, Transaction
from tests.simulation.expected import Played, Rules, Source
from tests.simulation.model import NOTHING, learn, probability
from tests.simulation.steps import Batch, Slice, Step
from tests.simulation.stream import Sent
from tests.verify.avro import Decoder, read_schema
from tidemill.core.records import Commit, Mark, Output, Partition
from tidemill.core.spec import AppSpec
from tidemill.io.memory import MemoryBackend

RANKS = {"context": 0, "label": 1, "event": 2}
PUNCTUATION_RANK = 3
SERVED = ("blend", "n", "numeric", "categories")  # what an example repeats of its prediction
_DECODERS = {name: Decoder([read_schema(name)], is_finite_only=False) for name in ("prediction", "example", "commit")}


class Violation(Exception):
    """An invariant does not hold."""


class Oracle:
    def __init__(self, spec: AppSpec, partitions: Sequence[Partition]) -> None:
        self.serial = 0
        self.counted: Counter[str] = Counter()
        self.read_examples: Callable[[], list[tuple[int, Output]]] = list
        self._roles = {topic.name: topic.role for topic in spec.topics}
        self._topics = [topic.name for topic in spec.topics]
        self._app = spec.name
        self._records: dict[Source, Sent] = {}
        self._owner: dict[Partition, str] = {}
        self._marks = dict.fromkeys(partitions, -1)
        self._newest = -1
        self._applied = dict.fromkeys(partitions, 0)
        self._published = dict.fromkeys(partitions, 0)
        self._unsent: dict[Partition, deque[Slice]] = defaultdict(deque)
        self._batches: list[Batch] = []
        self._rules = Rules()
        self._settled_before = -1  # the latest watermark that rows were settled with
        self._visible: set[Source] = set()  # events whose prediction is published

    # What happens in the world

    def sent(self, place: Partition, offset: int, one: Sent) -> None:
        self._records[place, offset] = one
        self._newest = max(self._newest, one.time)

    def claimed(self, token: str, partitions: Sequence[Partition]) -> None:
        self._owner.update(dict.fromkeys(partitions, token))

    def touched(self, token: str, marks: Mapping[Partition, Mark]) -> None:
        for partition, mark in marks.items():
            self._check_owner(token, partition, "showed a watermark of")
            if mark.watermark > self._newest:
                raise Violation(
                    f"I5 {partition} shows watermark {mark.watermark}, no record is newer than {self._newest}"
                )
            self._marks[partition] = max(self._marks[partition], mark.watermark)

    def applied(self, token: str, step: Step | None, seen: int, commit: Commit) -> None:
        """A script took effect. `seen`: the serial of the last one before the state was read."""
        self.serial += 1
        for partition in commit.spans:
            self._check_owner(token, partition, "applied a batch of")
        if step is None or not step.is_live:
            self._check_repeated(commit)
            return
        order = [(source, self._records[source]) for source in step.order]
        self._check_order(order)
        spans = {partition: (span.start, span.next) for partition, span in commit.spans.items()}
        for partition, (start, next_) in spans.items():
            if start != self._applied[partition]:
                raise Violation(
                    f"I1 {partition}: [{start}, {next_}) applied, the last one ended at {self._applied[partition]}"
                )
            inside = {o for p, o in self._records if p == partition and start <= o < next_}
            if inside != {o for (p, o), _ in order if p == partition}:
                raise Violation(f"I1 {partition}: [{start}, {next_}) does not hold the records of its batch")
            self._applied[partition] = next_
        low = min(self._marks.values())
        if step.group_watermark > low:
            raise Violation(
                f"I5 {step.worker} settles rows before {step.group_watermark}; the slowest partition is at {low}"
            )
        self._settled_before = max(self._settled_before, step.group_watermark)
        for partition, (_, next_) in spans.items():
            times = [one.time for (p, o), one in self._records.items() if p == partition and o < next_]
            self._marks[partition] = max([self._marks[partition], *times])
        decoded = {
            partition: [(output.topic, self._decoded(output)) for output in outputs]
            for partition, outputs in step.outputs.items()
        }
        served = {
            (Partition(row["topic"], row["partition"]), row["offset"]): row
            for outputs in decoded.values()
            for topic, row in outputs
            if topic.endswith("predictions.v1") and row is not None
        }
        played = self._rules.play(self.serial, order, step.group_watermark, step.owned, served)
        self._check_outputs(played, decoded, spans, step, order, seen)
        for _, made_by in played.joined:
            if made_by[0] not in step.owned and made_by not in self._visible:
                raise Violation(f"I5 a label joined the event {made_by} before its prediction was published")
        for partition, outputs in step.outputs.items():
            self._unsent[partition].append(Slice(self.serial, *spans[partition], list(outputs)))
        self._batches.append(Batch(self.serial, step, spans, played.ids, served, set(step.outputs)))

    def published(self, transaction: Transaction) -> None:
        """A transaction was committed: its outputs are those slices, once and in order."""
        left = list(transaction.outputs)
        for partition in sorted(transaction.offsets):
            offset, _ = transaction.offsets[partition]
            queue = self._unsent[partition]
            end = None
            while queue and queue[0].next <= offset and left[: len(queue[0].outputs)] == queue[0].outputs:
                sent = queue.popleft()
                left = left[len(sent.outputs) :]
                end = sent.next
                if not left and not (queue and queue[0].next <= offset and partition == max(transaction.offsets)):
                    break
            if end != offset:
                raise Violation(
                    f"I1 {transaction.writer} published {partition} up to {offset}; applied and not published: "
                    f"{[(each.start, each.next) for each in queue]}, published before: {self._published[partition]}"
                )
            self._published[partition] = offset
        if left:
            raise Violation(f"I1 {transaction.writer} published {len(left)} outputs that the store has not applied")
        rows = [(output.topic, self._decoded(output)) for output in transaction.outputs]
        for topic, row in rows:
            if topic.endswith("predictions.v1") and row is not None:
                source = (Partition(row["topic"], row["partition"]), row["offset"])
                if source in self._visible:
                    raise Violation(f"I1 the prediction of {source} was published twice")
                self._visible.add(source)
            elif topic.endswith("commits.v1") and row is not None:
                self.counted.update(row["outcomes"])

    # Stores that lose something

    def has_unsent(self) -> bool:
        return any(self._unsent.values())

    def can_forget(self, serial: int) -> bool:
        """Whether a store that goes back to `serial` (-1: to nothing) loses only batches that are published as a whole
        or not at all, and no later batch knew of one that it loses for good."""
        lost_ids: set[str] = set()
        for batch in self._batches:
            unsent = self._unsent_parts(batch)
            is_lost = bool(unsent) and (batch.serial > serial)
            if is_lost and unsent != batch.parts:
                return False
            if is_lost:
                lost_ids |= batch.ids
            elif lost_ids & batch.ids:
                return False
        return True

    def forget(self, serial: int) -> None:
        kept: list[Batch] = []
        known_later: set[str] = set()
        for batch in reversed(self._batches):
            if batch.serial > serial and (self._unsent_parts(batch) or not batch.parts):
                for partition, (start, _) in batch.spans.items():
                    self._applied[partition] = min(self._applied[partition], start)
                    self._unsent[partition] = deque(s for s in self._unsent[partition] if s.serial != batch.serial)
                # A batch without outputs forgot rows; where a later one found them gone, they are gone.
                if batch.parts or not batch.ids & known_later:
                    continue
                batch = replace(batch, ids=batch.ids & known_later)
            known_later |= batch.ids
            kept.append(batch)
        self._batches = kept[::-1]
        self._rules = Rules()
        for batch in self._batches:
            order = [(source, self._records[source]) for source in batch.step.order]
            watermark, owned = batch.step.group_watermark, batch.step.owned
            self._rules.play(batch.serial, order, watermark, owned, batch.served, batch.ids)

    def _unsent_parts(self, batch: Batch) -> set[Partition]:
        return {p for p in batch.parts if any(one.serial == batch.serial for one in self._unsent[p])}

    # The end

    def is_settled(self, ends: Mapping[Partition, int]) -> bool:
        return self._applied == ends == self._published and not any(self._unsent.values()) and not self._rules.rows

    def standing(self, ends: Mapping[Partition, int]) -> str:
        behind = [
            f"{p} applied {self._applied[p]} published {self._published[p]} of {end}"
            for p, end in ends.items()
            if not self._applied[p] == self._published[p] == end
        ]
        return "; ".join([*behind, f"{len(self._rules.rows)} rows open"])

    def judge_end(self, backend: MemoryBackend, broker: Broker, processes: Sequence[Any]) -> str | None:
        """What does not agree when everything is over."""
        reached: dict[Partition, int] = dict.fromkeys(self._applied, 0)
        for _, output in broker.read(f"{self._app}.commits.v1", 0)[0]:
            row = self._decoded(output)
            assert row is not None
            place = Partition(row["topic"], row["partition"])
            if row["start"] != reached[place]:
                return f"I1 {place}: a commit of [{row['start']}, {row['next']}) after {reached[place]}"
            reached[place] = row["next"]
        if reached != self._applied:
            return f"I1 commits reach {reached}, the inputs {self._applied}"
        predictions = [
            (Partition(row["topic"], row["partition"]), row["offset"])
            for row in map(self._decoded, (o for _, o in broker.read(f"{self._app}.predictions.v1", 0)[0]))
            if row is not None
        ]
        ids = Counter(self._records[source].fields["id"] for source in predictions)
        if len(set(predictions)) != len(predictions) or self.counted["prediction"] != len(predictions):
            return f"I1 {len(predictions)} predictions, {len(set(predictions))} sources, {ids.most_common(2)}"
        both = self.counted["example"] + self.counted["waiting_joined"]
        if self.counted["prediction"] != both + self.counted["expired"]:
            return f"I1 the balance of predictions is open: {dict(self.counted)}"
        if self.counted["waiting"] != self.counted["waiting_joined"] + self.counted["waiting_orphaned"]:
            return f"I1 the balance of labels is open: {dict(self.counted)}"
        # A zombie that claimed last keeps its successor from dropping what it published; its next commit mends that.
        owners = {process.engine._store._token for process in processes}
        for partition, record in backend.partitions.items():
            has_slices = bool(record.outbox) and record.owner in owners
            if record.applied != record.committed or record.applied != self._applied[partition] or has_slices:
                return f"I6 {partition}: {record} at the end"
        if backend.rows or any(backend.due.values()):
            return f"I6 rows are left: {sorted(backend.rows)}, due {dict(backend.due)}"
        wrong = self._wrong_state(backend)
        for process in processes:
            serving = process.serving
            if serving.state != self._learned(serving.n):
                return f"I2 {process} learned something else than the log holds before {serving.n}"
        return wrong

    # Checks

    def _check_owner(self, token: str, partition: Partition, did: str) -> None:
        if self._owner.get(partition) != token:
            raise Violation(f"I3 {token} {did} {partition}, which {self._owner.get(partition)} had claimed")

    def _check_repeated(self, commit: Commit) -> None:
        """A roll-forward applies what is published, and nothing else.

        A row that ended in a batch without outputs, which the store has lost, ends here again.
        """
        for partition, span in commit.spans.items():
            published = self._published[partition]
            if span.next > published:
                raise Violation(f"I1 {partition}: rolled forward to {span.next}, published is {published}")
        for due in commit.due_remove:
            row = self._rules.rows.get(due.id)
            if row is None or commit.rows.get(due.id, b"") is not None:
                continue
            is_same = (row.made_by[0], row.due()) == (due.partition, due.time)
            if is_same and row.state in ("joined", "expired") and due.time < self._settled_before:
                del self._rules.rows[due.id]

    def _check_order(self, order: Sequence[tuple[Source, Sent]]) -> None:
        """By time, but for records that came late in their partition."""
        last: tuple[int, ...] = ()
        for (place, offset), one in order:
            rank = PUNCTUATION_RANK if one.kind == "end" else RANKS[self._roles[one.topic]]
            key = (one.time, rank, self._topics.index(one.topic), place.number, offset)
            is_late = any(p == place and o < offset and r.time > one.time for (p, o), r in self._records.items())
            if is_late:
                continue
            if key < last:
                raise Violation(f"I5 {place}@{offset} of time {one.time} was taken after {last}")
            last = key

    def _check_outputs(
        self,
        played: Played,
        decoded: Mapping[Partition, Sequence[tuple[str, Any]]],
        spans: Mapping[Partition, tuple[int, int]],
        step: Step,
        order: Sequence[tuple[Source, Sent]],
        seen: int,
    ) -> None:
        for partition in {*played.outcomes, *decoded}:
            rows = decoded.get(partition, ())
            commits = [row for topic, row in rows if topic.endswith("commits.v1")]
            outcomes = {name: count for name, count in played.outcomes[partition].items() if count}
            if not commits and not outcomes:
                continue
            if len(commits) != 1 or commits[0]["outcomes"] != outcomes:
                found = [commit["outcomes"] for commit in commits]
                raise Violation(f"I1 {partition} {spans.get(partition)}: outcomes {found}, must be {outcomes}")
            named = [sorted(commits[0][name]) for name in ("joined", "waiting", "settled")]
            must_be = [sorted(of[partition]) for of in (played.met, played.waiting, played.settled)]
            if named != must_be:
                raise Violation(f"I1 {partition}: joined, waiting, settled are {named}, must be {must_be}")
            stated = (commits[0]["start"], commits[0]["next"], commits[0]["group_watermark"])
            if stated != (*spans[partition], step.group_watermark):
                raise Violation(f"I1 {partition}: the commit record says {stated}, applied was {spans[partition]}")
            predicted = [row for topic, row in rows if topic.endswith("predictions.v1")]
            wanted = played.predictions[partition]
            if [(row["id"], row["offset"], row["event_time"]) for row in predicted] != [one[:3] for one in wanted]:
                raise Violation(f"I1 {partition}: predictions {predicted}, must be {wanted}")
            for row, (_, offset, _, is_label_first, place) in zip(predicted, wanted, strict=True):
                if ("label_first" in row["flags"]) != is_label_first:
                    raise Violation(f"I5 {partition}@{offset}: flags {row['flags']}")
                self._check_served(row, place, order[place][1], seen)
            examples = [row for topic, row in rows if topic.endswith("examples.v1")]
            must = played.examples[partition]
            if [tuple(row[n] for n in ("id", "kind", "label", "event_time", "label_time")) for row in examples] != must:
                raise Violation(f"I1 {partition}: examples {examples}, must be {must}")
            for row, served in zip(examples, played.served[partition], strict=True):
                if served and any(not _same(row[name], served[name]) for name in SERVED):
                    raise Violation(f"I2 the example of {row['id']} is not as it was served: {row}, {served}")
            letters = [output for topic, output in rows if topic.endswith(".dlq")]
            if len(letters) != len(played.letters[partition]):
                raise Violation(f"I1 {partition}: {len(letters)} dead letters, must be {played.letters[partition]}")

    def _check_served(self, row: dict[str, Any], place: int, sent: Sent, seen: int) -> None:
        """Features as of the event and of what was read; the score a function of them and of N (D3)."""
        for found, must in zip(row["numeric"], self._rules.features(self.serial, place, seen, sent), strict=True):
            if must is not None and not _same(found, float(np.float32(must))):
                features = self._rules.features(self.serial, place, seen, sent)
                raise Violation(f"I2 {row['id']} was served with {row['numeric']}, must be {features}")
        numeric = np.array(row["numeric"], np.float32).tobytes()
        if row["blend"] != probability(self._learned(row["n"]), numeric, row["categories"]):
            raise Violation(f"I2 {row['id']}: {row['blend']} is not the score of its features at N = {row['n']}")

    def _learned(self, n: int) -> bytes:
        state = NOTHING
        for offset, output in self.read_examples():
            if offset < n:
                row = self._decoded(output)
                assert row is not None
                numeric = np.array(row["numeric"], np.float32).tobytes() if row["is_learned"] else b""
                state = learn(state, offset, row["label"], numeric)
        return state

    def _wrong_state(self, backend: MemoryBackend) -> str | None:
        expected = self._rules.state()
        found = {key: value for key, value in backend.state.items() if ".latest." not in key}
        for key in sorted({*expected, *found}):
            if expected.get(key, b"").rstrip(b"\0") != found.get(key, b"").rstrip(b"\0"):
                return f"I2 the state of {key} is not that of its records"
        return None

    def _decoded(self, output: Output) -> dict[str, Any] | None:
        name = output.topic.rpartition(".v1")[0].rpartition(".")[2].removesuffix("s")
        return _DECODERS[name].decode(output.value or b"") if name in _DECODERS else None


def _same(found: Any, must: Any) -> bool:
    if isinstance(found, list):
        return len(found) == len(must) and all(map(_same, found, must))
    if isinstance(found, float) and isinstance(must, float) and math.isnan(found):
        return math.isnan(must)
    return bool(found == must)
