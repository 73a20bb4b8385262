"""`tidemill audit`: inputs against outcomes, and every score recomputed, from the logs and the stored models alone.

In: settings with a broker, a range of the commits log. Out: an `AuditReport`. Invariant: nothing is written anywhere;
the store of the app is not asked, so that an audit can be made by who holds the logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np

from tidemill.apps.audit_inputs import InputReader
from tidemill.apps.audit_logs import AuditHistory, KafkaLogs, Logs, whole
from tidemill.apps.audit_outcomes import Example, Outcomes
from tidemill.apps.audit_outputs import Predictions, letter_origins, read_examples, read_predictions
from tidemill.apps.audit_ranges import Committed, check_ranges, read_commits
from tidemill.apps.audit_report import AuditReport
from tidemill.apps.audit_scores import CopyAudit, ScoreAudit
from tidemill.apps.dead_letters import KafkaMessage
from tidemill.apps.models import booster_loader, feature_shape, store_place
from tidemill.apps.schema_lookup import open_schemas
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Partition
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.topic_names import commits_topic, dead_letter_topic, examples_topic, predictions_topic
from tidemill.errors import ConfigError, StateLostError
from tidemill.io.model_snapshots import ModelSnapshots
from tidemill.io.wire import InputDecoder
from tidemill.models.serving import Serving


def run_audit(
    settings: Settings,
    *,
    start: int | None = None,
    end: int | None = None,
    tolerance: float = 0.0,
    report: Callable[[str], None] = lambda message: None,
    logs: Logs | None = None,
) -> AuditReport:
    """Audit the batches whose commits lie at [start, end) of the app's commits log; None = from its first, to its end.

    Args:
        tolerance: 0 compares scores bit for bit; else they may be so far apart, as of workers on another platform.
        logs: the topics; None = those of the settings' broker.
    Raises:
        ConfigError: TM-1069, the range is empty or not in the log.
        StateLostError: TM-4130, the examples log no longer reaches back far enough, nor does a snapshot.
        UnavailableError: Kafka did not answer, or a log does not come forward.
    """
    return _Audit(settings, logs or KafkaLogs(settings), tolerance, report).run(start, end)


class _Audit:
    """One audit of one app."""

    def __init__(self, settings: Settings, logs: Logs, tolerance: float, say: Callable[[str], None]) -> None:
        self._settings, self._logs, self._say = settings, logs, say
        self._spec = settings.app
        self._plan = FeaturePlan(self._spec)
        self._report = AuditReport(app=self._spec.name, tolerance=tolerance)
        name = self._spec.name
        self._commits, self._examples = Partition(commits_topic(name), 0), Partition(examples_topic(name), 0)
        self._predictions_topic = predictions_topic(name)
        self._snapshots = ModelSnapshots(store_place(settings, "snapshots"))

    def run(self, start: int | None, end: int | None) -> AuditReport:
        report = self._report
        with self._timed("commits"):
            first, commits_end = self._logs.bounds(self._commits)
            report.start, report.next = first if start is None else start, commits_end if end is None else end
            if not first <= report.start < report.next <= commits_end:
                raise ConfigError(
                    "TM-1069",
                    f"[{report.start}, {report.next}) is no range of {self._commits.topic}, which holds "
                    f"[{first}, {commits_end}); give --from and --to as offsets of that topic",
                )
            is_whole = (report.start, report.next) == (first, commits_end)
            inputs = [p for topic in self._spec.topics for p in self._logs.partitions(topic.name)]
            committed = self._read_commits(inputs)
            bounds = {partition: self._logs.bounds(partition) for partition in inputs}
            check_ranges(committed, bounds, report, is_from_start=report.start == first)
            report.commits = committed.count
            if is_whole:
                report.without_commits = tuple(
                    str(partition)
                    for partition, (begin, behind) in bounds.items()
                    if begin < behind and not committed.ranges[partition].start
                )
        # Asked after the commits: the outputs of every commit that was read lie before these ends.
        ends = self._logs.ends(self._output_partitions())
        with self._timed("predictions"):
            predictions = read_predictions(whole(self._logs, self._predictions_topic, ends))
            mine = self._of_range(predictions, committed)
        with self._timed("scores"):
            examples = self._score(predictions, mine, ends[self._examples], is_whole=is_whole)
        with self._timed("outcomes"):
            letters = self._read_letters(ends)
            is_newer = self._logs.ends([self._commits])[self._commits] > commits_end
            outcomes = Outcomes(self._spec, committed, predictions, examples, letters, is_whole, is_newer)
            decoder = InputDecoder(self._spec, schemas=open_schemas(self._settings, self._say))
            reader = InputReader(self._spec, self._logs, decoder)
            read = {
                partition: reader.read(partition, *ranges.span, letters.get(partition, ()))
                for partition, ranges in committed.ranges.items()
                if ranges.start
            }
            outcomes.check(read, report)
        return report

    # Reading -------------------------------------------------------------------------------------------------------

    def _read_commits(self, inputs: Sequence[Partition]) -> Committed:
        batches = self._logs.read(self._commits, self._report.start, self._report.next)
        return read_commits(([m.value() or b"" for m in messages] for messages in batches), inputs)

    def _output_partitions(self) -> list[Partition]:
        topics = [self._predictions_topic, *(dead_letter_topic(topic.name) for topic in self._spec.topics)]
        return [self._examples, *chain.from_iterable(map(self._logs.partitions, topics))]

    def _read_letters(self, ends: Mapping[Partition, int]) -> dict[Partition, list[int]]:
        letters: dict[Partition, list[int]] = {}
        for topic in self._spec.topics:
            letters_of = whole(self._logs, dead_letter_topic(topic.name), ends)
            origins, unnamed = letter_origins(letters_of, topic.name, self._spec.name)
            letters.update(origins)
            for place in unnamed:
                self._report.checks["extra"].add(f"{place} does not name a record of {topic.name}")
        return letters

    def _of_range(self, predictions: Predictions, committed: Committed) -> Predictions:
        """The predictions of the audited ranges that the declared features were computed for."""
        inside = np.zeros(len(predictions), dtype=np.bool_)
        topics = np.array(predictions.texts("topic"), dtype=object)
        numbers, offsets = predictions.numbers("partition"), predictions.numbers("offset")
        for partition, ranges in committed.ranges.items():
            rows = np.flatnonzero((topics == partition.topic) & (numbers == partition.number))
            inside[rows[ranges.commit_of(offsets[rows]) >= 0]] = True
        chosen = predictions.chosen(inside)
        is_ours = np.array(chosen.texts("feature_digest"), dtype=object) == self._plan.digest
        if is_ours.all():
            return chosen
        # A declaration follows another: one of other features behind the first of ours is no history.
        begins = int(chosen.n[is_ours].min()) if is_ours.any() else None
        for row in np.flatnonzero(~is_ours).tolist():
            if begins is not None and chosen.n[row] > begins:
                self._report.mismatched += 1
                self._report.checks["scores"].add(
                    f"{chosen.ids[row]} at N = {chosen.n[row]} has features {chosen.texts('feature_digest')[row]}, "
                    f"declared are {self._plan.digest}"
                )
            else:
                self._report.earlier_features += 1
        return chosen.chosen(is_ours)

    # Scores --------------------------------------------------------------------------------------------------------

    def _score(self, predictions: Predictions, mine: Predictions, end: int, *, is_whole: bool) -> list[Example]:
        """Fold the examples log once; the records that it holds."""
        report, shape = self._report, feature_shape(self._plan)
        models = self._models(int(mine.n.min()) if len(mine) else 0)
        scores = ScoreAudit(models, mine, report, threshold=self._spec.costs.threshold, stored=self._stored_snapshots())
        copies = CopyAudit(predictions, report)
        lots = read_examples(self._read_log(models.n, end), shape)
        examples: list[Example] = []
        for lot in scores.run(lots, end):
            examples += copies.examples(lot)
        used = {version for name in ("model_version", "other_version") for version in mine.texts(name)}
        report.models = tuple(sorted(used - {""}))
        return examples

    def _read_log(self, start: int, end: int) -> Iterator[Sequence[KafkaMessage]]:
        for messages in self._logs.read(self._examples, start, end):
            self._say(f"examples log: {messages[-1].offset() + 1:,} of {end:,}")
            yield messages

    def _models(self, least_n: int) -> Serving:
        """At N = 0, or at the newest snapshot before `least_n` when the log no longer begins there."""
        first, _ = self._logs.bounds(self._examples)
        snapshot: ModelSnapshot | None = None
        if first > 0:
            snapshot = self._snapshots.newest(
                self._spec.name, least_n, self._plan.digest, on_refused=self._report.checks["models"].add
            )
            if snapshot is None or snapshot.n < first:
                raise StateLostError(
                    "TM-4130",
                    f"{self._examples.topic} begins at {first}, and no snapshot from there to N = {least_n} stands in "
                    "for what is gone: scores before it cannot be recomputed; restore the log or a snapshot, or give "
                    "--from a later commit",
                )
        return Serving(
            self._spec,
            self._plan.numeric_names,
            self._plan.category_names,
            feature_digest=self._plan.digest,
            load=booster_loader(self._settings, self._plan),
            history=AuditHistory(self._logs, self._examples, feature_shape(self._plan)),
            snapshot=snapshot,
        )

    def _stored_snapshots(self) -> dict[int, str]:
        """The digest of every snapshot that workers left, by N; broken ones are findings."""
        refused: set[str] = set()
        stored: dict[int, str] = {}
        at_most: int | None = None
        while found := self._snapshots.newest(self._spec.name, at_most, self._plan.digest, on_refused=refused.add):
            stored[found.n] = found.digest
            at_most = found.n - 1
        for reason in sorted(refused):
            self._report.checks["models"].add(reason)
        return stored

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._report.seconds[name] = round(time.monotonic() - started, 2)
        self._say(f"{name}: {self._report.seconds[name]:.1f} s")
