"""From the start of a demo's workers to its books: follow, show, and sum up.

In: a running producer and workers. Out: snapshots for a view, then the results. Invariant: `follow` returns only after
every record that the producer published is processed and every prediction is labelled or expired.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from tidemill.apps.children import Child, ChildFailed
from tidemill.apps.clients import clients_of
from tidemill.apps.dead_letter_listing import list_dead_letters
from tidemill.apps.demo_view import Snapshot, View
from tidemill.apps.following import CommitFollower, ExampleFollower
from tidemill.apps.loop_following import LoopFollower
from tidemill.apps.metrics_table import compared_series, read_metrics
from tidemill.apps.pacing import AnsweredTicks
from tidemill.apps.results import Quality, RunResults
from tidemill.apps.status import read_status
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka

LOOK_EVERY_S = 0.1  # how exactly the first prediction is timed
JUDGE_EVERY_S = 1.0
RATE_OVER_S = 2.0
STALL_AFTER_S = 120.0  # the worker's own watchdog speaks after 60 s and knows more


class DemoFollower:
    """Watches one run; the demo's only thread owns it."""

    def __init__(
        self,
        settings: Settings,
        producer: Child,
        workers: Sequence[Child],
        loop: Sequence[Child],
        *,
        started_at: float,
        view: View,
    ) -> None:
        assert settings.bootstrap_servers is not None
        self._settings = settings
        self._producer = producer
        self._workers = workers
        self._running = (*workers, *loop)
        self._started_at = started_at
        self._view = view
        self._clients = clients_of(settings)
        self._commits = CommitFollower(self._clients, settings.app.name)
        self._examples = ExampleFollower(self._clients, settings.app.name)
        self._loop = LoopFollower(self._clients, settings.app)
        self._answered = AnsweredTicks(settings)
        self._partitions = [
            Partition(topic.name, number) for topic in settings.app.topics for number in range(topic.partitions)
        ]
        self._ends: dict[Partition, int] = {}
        self._end_time: int | None = None  # of the last punctuation; known once the producer has ended
        self._quality: dict[str, Quality] = {}
        self._losses_by_day: list[float] = []
        self._judged_at = self._rated_at = time.monotonic()
        self._rate = 0.0
        self._rated_records = 0
        self._first_record_at: float | None = None

    def follow(self) -> None:
        """Until everything that was published is processed, labelled or expired.

        Raises:
            ChildFailed: a worker, the monitor or the trainer ended, or the producer failed.
            UnavailableError: TM-4032, nothing has moved for long.
        """
        moved_at = time.monotonic()
        while True:
            now = time.monotonic()
            if self._commits.look():
                moved_at = now
                self._first_record_at = self._first_record_at or now
            if entries := self._loop.look():
                moved_at = now
                for entry in entries:
                    self._view.say(entry.line)
            self._check_children()
            if now - self._judged_at >= JUDGE_EVERY_S:
                self._judge(now)
            self._view.show(self._snapshot(now))
            if self._is_done():
                return
            if now - moved_at > STALL_AFTER_S:
                raise self._stalled()
            time.sleep(LOOK_EVERY_S)

    def results(self, *, out_of_order: int | None, setup_s: float, workers_at: float) -> RunResults:
        """The books; the workers have stopped."""
        commits, examples = self._commits, self._examples
        assert commits.last_commit_at is not None
        while commits.look() or examples.look() or self._loop.look():
            continue
        status = read_status(self._settings, with_digest=True)
        replay_s = commits.last_commit_at - workers_at
        first_at = commits.first_prediction_at
        results = RunResults(
            app=self._settings.app.name,
            workers=len(self._workers),
            records=commits.records,
            predictions=commits.outcomes["prediction"],
            examples=examples.examples,
            label_delay_s_p50=examples.label_delay_s(0.5),
            label_delay_s_p95=examples.label_delay_s(0.95),
            quality=examples.judge_exactly(),
            compared=compared_series(read_metrics(self._settings)),
            timeline=tuple(entry.line for entry in self._loop.timeline()),
            balances=status.balances,
            dead_letters=self._dead_letters(),
            out_of_order=out_of_order,
            setup_s=setup_s,
            first_prediction_s=None if first_at is None else first_at - self._started_at,
            replay_s=replay_s,
            records_per_s=commits.records / replay_s,
            feature_digest=status.feature_digest,
        )
        for follower in (commits, examples, self._loop, self._answered):
            follower.close()
        return results

    def _check_children(self) -> None:
        for child in self._running:
            code = child.process.poll()
            if code is not None:
                raise ChildFailed(child, code)
        code = self._producer.process.poll()
        if code:
            raise ChildFailed(self._producer, code)

    def _judge(self, now: float) -> None:
        """What costs more than a look, once a second."""
        self._judged_at = now
        if self._end_time is None:
            # Ended before the ends are read, so these are final.
            if self._producer.process.poll() == 0:
                self._end_time = int(json.loads(self._producer.result.read_text())["end_time"])
            self._ends = {p: end for p, (_, end) in kafka.log_bounds(self._clients, self._partitions).items()}
        self._examples.look()
        self._quality = self._examples.judge()
        self._losses_by_day = self._examples.losses_by_day()
        if now - self._rated_at >= RATE_OVER_S:
            records = self._commits.records
            self._rate = (records - self._rated_records) / (now - self._rated_at)
            self._rated_at, self._rated_records = now, records

    @property
    def _lag(self) -> int:
        return sum(max(0, end - self._commits.positions.get(p, 0)) for p, end in self._ends.items())

    @property
    def _pending(self) -> int:
        """Predictions without a label, as the logs tell."""
        outcomes = self._commits.outcomes
        return outcomes["prediction"] - self._examples.examples - outcomes["expired"]

    def _is_done(self) -> bool:
        if self._end_time is None or self._lag or self._pending or self._commits.waiting:
            return False
        if not all(self._commits.watermarks.get(p, -1) >= self._end_time for p in self._partitions):
            return False
        every = self._settings.app.monitor.every_ms
        return self._answered.includes(self._end_time // every * every)

    def _snapshot(self, now: float) -> Snapshot:
        commits = self._commits
        return Snapshot(
            elapsed_s=now - self._started_at,
            simulated_ms=commits.group_watermark if commits.group_watermark >= 0 else None,
            records=commits.records,
            rate_now=self._rate,
            rate_mean=commits.records / max(now - (self._first_record_at or now), 1.0),
            lag=self._lag,
            predictions=commits.outcomes["prediction"],
            examples=self._examples.examples,
            dead_letters=commits.dead_letters,
            n=commits.n,
            is_producing=self._end_time is None,
            quality=self._quality,
            losses_by_day=self._losses_by_day,
        )

    def _dead_letters(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for group in list_dead_letters(self._settings):
            counts[group.code] = counts.get(group.code, 0) + group.count
        return counts

    def _stalled(self) -> UnavailableError:
        return UnavailableError(
            "TM-4032",
            f"nothing was committed for {STALL_AFTER_S:.0f} s: lag {self._lag}, {self._pending} predictions and "
            f"{self._commits.waiting} labels wait; the logs of producer and workers are in {self._producer.log.parent}",
        )
