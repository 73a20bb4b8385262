"""Every metric name of Tidemill, in one place; the stages report facts, this module turns them into series.

In: reports of cycles. Out: the Prometheus text format. Invariant: labels are bounded (topics, partitions, outcomes,
stages of the app), never ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

from tidemill.core.records import Outcome, Partition

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


class Telemetry:
    """The metrics of one worker process; its own registry, so that a process may hold several."""

    def __init__(self) -> None:
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

    def set_out_of_order(self, count: int) -> None:
        self._out_of_order.set(count)

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

    def set_loss(self, *, model: str, window: str, log_loss: float) -> None:
        self._loss.labels(model, window).set(log_loss)

    def set_label_delay(self, *, window: str, quantile: str, seconds: float) -> None:
        self._delay.labels(quantile, window).set(seconds)

    def serve(self, port: int) -> Callable[[], None]:
        """Answer scrapes on 127.0.0.1 from a thread of its own; what ends that."""
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end
