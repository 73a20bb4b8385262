"""A shop whose examples log is full, without workers or a monitor: a harness for tests of the trainer.

In: the session's servers. Out: an examples log, ticks as a monitor would tell them, trainer processes. Invariant: a
trainer runs only when the test starts it; who starts one ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shop import Shop, a_shop
from shop_log import DAY_MS, MINUTE_MS, a_tick, a_trigger, example_records, shop_examples

from tidemill.apps.models import registry_of, trusted_keys
from tidemill.apps.story import read_story
from tidemill.apps.topics import ensure_loop_topics
from tidemill.apps.trainer import trainer_id
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Output, Partition
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import Tick
from tidemill.core.topic_names import alerts_topic, drift_topic
from tidemill.io import kafka
from tidemill.io.embedded import Servers
from tidemill.io.kafka_reader import read_topic
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.loop_records import encode_alerts, encode_ticks
from tidemill.io.wire import decode_commands

COUNT = 1_000
FIRST = COUNT * MINUTE_MS + DAY_MS  # end of the first tick: every label has come
POLICY = """
booster: {rounds: 8, max_depth: 3, learning_rate: 0.3, min_child_weight: 2, leaf_trees: 5}
retrain: {examples_min: 500, cooldown: 7d, latency: 1d, holdout: 0.1, timeout: 60s, needs_approval: APPROVAL}
"""


class Loop(Shop):
    """A shop whose examples log is full, without any worker; the test plays the monitor."""

    def begin(self) -> None:
        ensure_loop_topics(self.settings)
        self.plan = FeaturePlan(self.settings.app)
        self._monitor = TransactionalWriter(self.clients, f"test.{self.settings.app.name}")
        self._monitor.open()
        examples = shop_examples(self.plan, COUNT)
        topic = f"{self.settings.app.name}.examples.v1"
        self._monitor.publish([Output(topic, None, value) for value in example_records(self.plan, examples)], {}, None)
        # The commit is answered before its markers stand in the log, and readers see nothing until then.
        until(lambda: self.end() > COUNT, self)

    def tell(self, *ticks: Tick) -> None:
        """As the monitor does: the records of the ticks, then the ticks, in one transaction."""
        app = self.settings.app
        alerts = [alert for tick in ticks for alert in tick.alerts]
        records = [
            Output(alerts_topic(app.name), alert.key.encode(), value)
            for alert, value in zip(alerts, encode_alerts(alerts), strict=True)
        ]
        records += [
            Output(drift_topic(app.name), str(tick.time).encode(), value)
            for tick, value in zip(ticks, encode_ticks(ticks), strict=True)
        ]
        self._monitor.publish(records, {}, None)

    def trainer(self, *options: str, failpoint: str = "") -> subprocess.Popen[bytes]:
        with (self.folder / "trainer.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tidemill", "trainer", str(self.config), "--bounded", *options],
                env={
                    **os.environ,
                    "TIDEMILL_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers or "",
                    "TIDEMILL_DATA": str(self.folder),
                    "TIDEMILL_FAILPOINT": failpoint,
                },
                stderr=log,
            )

    def train(self, *, failpoint: str = "") -> int:
        """Answer the ticks that are there; the exit code."""
        return self.trainer("--until-end", failpoint=failpoint).wait(60)

    def story(self) -> list[StoryEvent]:
        return read_story(self.settings)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.story()]

    def position(self) -> int | None:
        at = Partition(drift_topic(self.settings.app.name), 0)
        return kafka.committed_offsets(self.clients, trainer_id(self.settings.app), [at])[at][0]

    def commands(self) -> list[str]:
        return [
            f"{command.kind} {command.expects}"
            for messages in read_topic(self.clients, f"{self.settings.app.name}.examples.v1")
            for command in decode_commands([m.value() for m in messages], [m.offset() for m in messages])
        ]

    def versions(self) -> list[str]:
        """Those of the registry; each is whole."""
        registry = registry_of(self.settings)
        for version in registry.versions(self.settings.app.name):
            registry.load(self.settings.app.name, version, trusted_keys(self.settings))
        return registry.versions(self.settings.app.name)

    def end(self) -> int:
        """Of the examples log."""
        at = Partition(f"{self.settings.app.name}.examples.v1", 0)
        return kafka.log_bounds(self.clients, [at])[at][1]

    def log(self) -> str:
        path = self.folder / "trainer.log"
        return path.read_text() if path.exists() else "no trainer has run"


@contextmanager
def a_loop(servers: Servers, app_name: str, folder: Path, *, needs_approval: bool = False) -> Iterator[Loop]:
    policy = POLICY.replace("APPROVAL", str(needs_approval).lower())
    with a_shop(servers, app_name, folder, more=policy) as made:
        loop = Loop(made.settings, made.config, made.folder)
        loop.begin()
        yield loop


def ticks(count: int, *, first: int = 0, triggers: Sequence[int] = (0,), **more: object) -> list[Tick]:
    """One a day."""
    times = [FIRST + number * DAY_MS for number in range(first, first + count)]
    return [
        a_tick(at, examples_total=COUNT, alerts=(a_trigger(at),) if number in triggers else (), **more)
        for number, at in enumerate(times, start=first)
    ]


def until(is_so: Callable[[], bool], loop: Loop) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < deadline, loop.log()
        time.sleep(0.1)
