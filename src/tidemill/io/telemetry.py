"""Every metric name of Tidemill, in one place; the stages report facts, this module turns them into series.

In: reports of cycles. Out: the Prometheus text format. Invariant: labels are bounded (topics, partitions, outcomes,
stages of the app), never ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

from tidemill.core.records import Outcome, Partition
from tidemill.core.story import StoryEvent, StoryKind
from tidemill.core.ticks import Tick
from tidemill.io.start_checks import check_port

_ROLE_OF_OUTCOME = {
    Outcome.EXAMPLE: "joined",
    Outcome.AMENDMENT: "amendment",
    Outcome.LABEL_DUPLICATE: "duplicate",
    Outcome.ORPHAN: "orphan",
    Outcome.LABEL_DEAD_LETTER: "dead_letter",
    Outcome.WAITING: "waiting",
    Outcome.WAITING_JOINED: "waiting_joined",
    Outcome.WAITING_ORPHANED: "waiting_orphaned",
}
_RETRAIN_OUTCOMES: tuple[StoryKind, ...] = ("trained", "gated", "failed", "declined")
_GATES: Mapping[StoryKind, tuple[str, str]] = {
    "gated": ("gate", "refused"),
    "shadow": ("gate", "passed"),
    "canary": ("shadow", "better"),
    "promoted": ("rollout", "promoted"),
    "aborted": ("rollout", "aborted"),
    "kept": ("probation", "kept"),
    "rolled_back": ("probation", "rolled_back"),
}


class Telemetry:
    """The metrics of one worker process; its own registry, so that a process may hold several.

    Args:
        topics: the app's inputs. Counts by topic and outcome are there from the start, at zero: a rate of what has no
            series is nothing and not zero, and an alert on silence would be silent.
    """

    def __init__(self, topics: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self._events = Counter(
            "tidemill_events_total", "Input records by outcome.", ["topic", "outcome"], registry=self.registry
        )
        self._labels = Counter("tidemill_labels_total", "Labels by outcome.", ["outcome"], registry=self.registry)
        self._dead = Counter(
            "tidemill_dead_letters_total", "Records sent to a dead letter topic.", ["code"], registry=self.registry
        )
        self._stage = Counter(
            "tidemill_stage_seconds_total", "Wall clock by stage of the cycle.", ["stage"], registry=self.registry
        )
        self._batch = Histogram(
            "tidemill_batch_records",
            "Records in a batch.",
            buckets=(1, 10, 100, 500, 1000, 2000, 5000),
            registry=self.registry,
        )
        self._watermark = Gauge(
            "tidemill_watermark_seconds", "Largest event time seen.", ["topic", "partition"], registry=self.registry
        )
        self._out_of_order = Gauge(
            "tidemill_merge_out_of_order_total", "Records merged after a later one.", registry=self.registry
        )
        self._n = Gauge("tidemill_examples_folded", "N: the next offset of the examples log.", registry=self.registry)
        self._stalled = Gauge("tidemill_stalled", "1 when committed progress has stopped.", registry=self.registry)
        self._registry_age = Gauge(
            "tidemill_schema_registry_age_seconds",
            "Since the schema registry last answered; 0 without one.",
            registry=self.registry,
        )
        self._snapshots_failed = Gauge(
            "tidemill_snapshots_failed", "Snapshots that could not be written since the start.", registry=self.registry
        )
        for topic in topics:
            for outcome in Outcome:
                self._events.labels(topic, outcome.name.lower())
        for role in _ROLE_OF_OUTCOME.values():
            self._labels.labels(role)

    def observe_cycle(
        self,
        *,
        records: int,
        outcomes: Mapping[Partition, Mapping[Outcome, int]],
        dead_letter_codes: list[str],
        seconds_by_stage: Mapping[str, float],
        watermarks: Mapping[Partition, int],
        n: int,
    ) -> None:
        self._batch.observe(records)
        for partition, counts in outcomes.items():
            for outcome, count in counts.items():
                self._events.labels(partition.topic, outcome.name.lower()).inc(count)
                if outcome in _ROLE_OF_OUTCOME:
                    self._labels.labels(_ROLE_OF_OUTCOME[outcome]).inc(count)
        for code in dead_letter_codes:
            self._dead.labels(code).inc()
        for stage, seconds in seconds_by_stage.items():
            self._stage.labels(stage).inc(seconds)
        for partition, watermark in watermarks.items():
            self._watermark.labels(partition.topic, partition.number).set(watermark / 1000)
        self._n.set(n)

    def watch_schema_registry(self, age_s: Callable[[], float]) -> None:
        """Show the age of what is known of the schema registry at every scrape."""
        self._registry_age.set_function(age_s)

    def set_out_of_order(self, count: int) -> None:
        self._out_of_order.set(count)

    def set_snapshots_failed(self, count: int) -> None:
        self._snapshots_failed.set(count)

    def set_stalled(self, is_stalled: bool) -> None:
        self._stalled.set(int(is_stalled))

    def text(self) -> bytes:
        """What a Prometheus scrape gets."""
        return generate_latest(self.registry)


class MonitorTelemetry:
    """What the monitor shows of the newest window of each kind; its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._loss = Gauge(
            "tidemill_progressive_loss",
            "Log loss of what was served before its label was known.",
            ["model", "window"],
            registry=self.registry,
        )
        self._delay = Gauge(
            "tidemill_label_delay_seconds",
            "From event to label, over the newest window of a kind.",
            ["quantile", "window"],
            registry=self.registry,
        )
        self._drift = Gauge(
            "tidemill_drift_score",
            "Effect of the window's shift against the training reference: PSI, of the label the difference of shares.",
            ["feature", "test"],
            registry=self.registry,
        )
        self._e_value = Gauge(
            "tidemill_concept_e_value",
            "Evidence of concept drift since the last change of model.",
            registry=self.registry,
        )
        self._e_threshold = Gauge(
            "tidemill_concept_e_threshold", "Where the concept detector fires.", registry=self.registry
        )
        self._alerts = Counter(
            "tidemill_alerts_total",
            "Incidents that were opened or repeated, since this monitor began to publish.",
            ["kind", "severity"],
            registry=self.registry,
        )
        self._ticks = Counter("tidemill_ticks_total", "Ticks that this monitor has published.", registry=self.registry)
        self._tick_time = Gauge(
            "tidemill_tick_time_seconds", "Event time at which the newest tick ends.", registry=self.registry
        )
        self._tick_seconds = Histogram(
            "tidemill_tick_seconds",
            "From the commit that completes a tick to the tick as published.",
            buckets=(0.01, 0.02, 0.05, 0.08, 0.15, 0.3, 1, 3, 10),
            registry=self.registry,
        )

    def show_tick(self, tick: Tick, *, seconds: float, is_new: bool) -> None:
        """seconds: of wall clock, see tidemill_tick_seconds; is_new: published now, not by a predecessor."""
        self._drift.clear()  # a new champion has a reference of its own
        for shift in tick.shifts:
            self._drift.labels(shift.subject, shift.test).set(shift.effect)
        self._e_value.set(tick.e_value)
        self._e_threshold.set(tick.threshold)
        self._tick_time.set(tick.time / 1_000)
        if is_new:
            self._ticks.inc()
            self._tick_seconds.observe(seconds)
            for alert in tick.alerts:
                if alert.event != "resolved":
                    self._alerts.labels(alert.kind, alert.severity).inc()

    def set_loss(self, *, model: str, window: str, log_loss: float) -> None:
        self._loss.labels(model, window).set(log_loss)

    def set_label_delay(self, *, window: str, quantile: str, seconds: float) -> None:
        self._delay.labels(quantile, window).set(seconds)

    def serve(self, port: int) -> Callable[[], None]:
        """Answer scrapes on 127.0.0.1 from a thread of its own; what ends that."""
        return _served(self.registry, port)


class SinkTelemetry:
    """What `tidemill alerts forward` shows; its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._posts = Counter(
            "tidemill_sink_alerts_total",
            "Alert records by what became of them at a sink: taken, refused, failed (and tried again), passed_over.",
            ["sink", "kind", "outcome"],
            registry=self.registry,
        )

    def count(self, *, sink: str, kind: str, outcome: str) -> None:
        self._posts.labels(sink, kind, outcome).inc()

    def serve(self, port: int) -> Callable[[], None]:
        """As `MonitorTelemetry.serve`."""
        return _served(self.registry, port)


class TrainerTelemetry:
    """What the trainer has decided since its start, and who serves; its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._retrains = Counter(
            "tidemill_retrains_total",
            "Answers to triggers: trained, gated (trained, and refused by the gate), failed, declined.",
            ["trigger", "outcome"],
            registry=self.registry,
        )
        self._gates = Counter(
            "tidemill_gate_decisions_total",
            "What a version on trial came to.",
            ["gate", "verdict"],
            registry=self.registry,
        )
        self._models = Gauge(
            "tidemill_model_info",
            "1 for the version of each role at the newest tick.",
            ["role", "version"],
            registry=self.registry,
        )

    def count_story(self, events: Iterable[StoryEvent]) -> None:
        """Story events that were just told."""
        for event in events:
            if event.kind in _RETRAIN_OUTCOMES:
                # "trigger/<subject>@<time>": subjects are those of the declaration, and people's
                trigger = event.cause.rpartition("@")[0].removeprefix("trigger/")
                self._retrains.labels(trigger, event.kind).inc()
            if event.kind in _GATES:
                self._gates.labels(*_GATES[event.kind]).inc()

    def set_models(self, *, champion: str, challenger: str) -> None:
        self._models.clear()
        for role, version in (("champion", champion), ("challenger", challenger)):
            if version:
                self._models.labels(role, version).set(1)

    def serve(self, port: int) -> Callable[[], None]:
        """As `MonitorTelemetry.serve`."""
        return _served(self.registry, port)


class WebTelemetry:
    """What the web page tells Prometheus; its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lag = Gauge(
            "tidemill_lag_records", "Input records that are not processed yet.", ["topic"], registry=self.registry
        )
        self._open_alerts = Gauge(
            "tidemill_open_alerts",
            "Incidents of the alarm topic without a resolution.",
            ["severity"],
            registry=self.registry,
        )
        self._reachable = Gauge(
            "tidemill_web_following", "1 while the page can read the app's topics.", registry=self.registry
        )
        self._viewers = Gauge("tidemill_web_viewers", "Browsers that follow the page.", registry=self.registry)

    def set_lag(self, lag: Mapping[str, int]) -> None:
        for topic, records in lag.items():
            self._lag.labels(topic).set(records)

    def set_open_alerts(self, counts: Mapping[str, int]) -> None:
        for severity in ("page", "ticket", "info"):
            self._open_alerts.labels(severity).set(counts.get(severity, 0))

    def set_following(self, is_following: bool) -> None:
        self._reachable.set(int(is_following))

    def add_viewers(self, count: int) -> None:
        self._viewers.inc(count)

    def text(self) -> bytes:
        """What a Prometheus scrape gets."""
        return generate_latest(self.registry)


def _served(registry: CollectorRegistry, port: int) -> Callable[[], None]:
    check_port(port, "--metrics-port")
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
