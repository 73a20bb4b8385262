"""Run workers on a stream to its end, and judge what they left: shared by the rows of store, data and positions.

In: a stream (`campaign.stream.Stream` or `orders.Orders`). Out: how long things took, and a `Verdict`. Invariant: the
verdict comes from the topics and from fresh models; nothing is believed because a worker said so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tests.campaign.judging import (
    Predictions,
    examples_end,
    fresh_models,
    predictions_of,
    read_examples,
    replay,
)
from tests.campaign.processes import WorkerProcess, ended_at_exit
from tests.campaign.stream import Stream, applied, committed
from tests.faults.orders import Orders
from tests.faults.row import RowResult
from tests.verify import Report, verify
from tidemill.core.records import Mark, Partition
from tidemill.errors import UnavailableError
from tidemill.io.embedded import Servers
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode

Site = Stream | Orders

STALL_S = 90.0
LOOK_S = 0.02
_MISSING = ("predictions missing", "examples missing", "dead letters missing", "I1 gaps", "I1 ends")
_DOUBLED = ("predictions duplicate", "examples duplicate", "dead letters duplicate", "I1 overlaps")


@dataclass(slots=True)
class Verdict:
    """What was found; `wrong` is empty when nothing is."""

    missing: int = 0
    duplicated: int = 0
    wrong: list[str] = field(default_factory=list)
    feature_digest: str = ""
    learner_digest: str = ""
    report: Report = field(default_factory=Report)

    @property
    def text(self) -> str:
        return "; ".join(self.wrong) or "ok"

    def expect(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            self.wrong.append(otherwise)


def workers_of(seed: int) -> int:
    """Odd seeds have one worker, whose features the verifier recomputes; even ones have two, which race."""
    return 1 if seed % 2 else 2


@contextmanager
def running(site: Any, count: int, *, is_bounded: bool = True) -> Iterator[list[WorkerProcess]]:
    """Workers in the slots 0 and up; gone at the end, whatever happened."""
    with ended_at_exit() as workers:
        workers += [WorkerProcess(site, slot, is_bounded=is_bounded) for slot in range(count)]
        yield workers


def marks_of(site: Site) -> Mapping[Partition, Mark]:
    """What the store knows, {} while it does not answer."""
    try:
        return site.marks()
    except UnavailableError:
        return {}


def wait(site: Site, workers: Sequence[WorkerProcess], is_so: Callable[[], bool], what: str) -> float:
    """Until `is_so`, while these workers live and something moves; the seconds it took."""
    began = moved_at = time.monotonic()
    last: tuple[int, int] = (-1, -1)
    while True:
        try:
            if is_so():
                return time.monotonic() - began
        except UnavailableError:
            pass  # the store is away: that is what is being tried
        for worker in workers:
            worker.check_alive()
        marks = marks_of(site)
        now = (applied(marks), committed(marks))
        if now != last:
            moved_at, last = time.monotonic(), now
        if time.monotonic() - moved_at > STALL_S:
            logs = "\n".join(worker.log()[-2000:] for worker in workers)
            raise AssertionError(f"no progress for {STALL_S:.0f} s at {last}, waiting for {what}:\n{logs}")
        time.sleep(LOOK_S)


def wait_for_share(site: Site, workers: Sequence[WorkerProcess], share: float) -> None:
    """Until that share of the records is published."""
    wait(site, workers, lambda: committed(site.marks()) >= share * site.total, f"{share:.0%} of the records")


def finish(site: Site, workers: Sequence[WorkerProcess]) -> list[int]:
    """To the end of the stream, then TERM; the exit codes."""
    wait(site, workers, site.is_drained, "the end")
    wait(site, workers, lambda: all("owns" in worker.log() for worker in workers), "all workers in the group")
    site.wait_until_settled()
    return [worker.stop() for worker in workers]


def judge(
    site: Site,
    workers: Sequence[WorkerProcess],
    exit_codes: Sequence[int],
    *,
    undisturbed: str | None = None,
    until: date | None = None,
    is_total_order: bool = True,
) -> Verdict:
    """Exactly once by the independent verifier, D1 against an undisturbed run's digest, D2 and D3 against fresh models.

    Args:
        undisturbed: feature digest of the same records without the fault.
        until: of flights, the day up to which they were sent.
        is_total_order: False for a run that is not bounded: its order is not a function of the log.
    """
    found = Verdict()
    found.expect(set(exit_codes) == {0}, f"exit codes {list(exit_codes)}")
    found.report = verify(
        site.servers.bootstrap_servers,
        site.name,
        site.config,
        until=until,
        is_flights=isinstance(site, Stream),
        sample=500,
        order="auto" if is_total_order else "partial",
    )
    for name, finding in found.report.failed.items():
        found.missing += finding.count if name in _MISSING else 0
        found.duplicated += finding.count if name in _DOUBLED else 0
        found.wrong.append(f"{name} {finding.count}: {finding.texts[0]}")
    found.feature_digest = site.store.feature_digest()
    if undisturbed is not None:
        found.expect(found.feature_digest == undisturbed, f"D1: {found.feature_digest}, undisturbed {undisturbed}")
    _judge_scores(site, workers, found)
    return found


def result_of(found: Verdict, injected: int, note: str, recovered_s: float | None = None) -> RowResult:
    return RowResult(injected, recovered_s, found.missing, found.duplicated, found.text, note)


def digest_of_undisturbed(site: Site) -> str:
    """The feature digest that one worker leaves without any fault."""
    with running(site, 1) as workers:
        codes = finish(site, workers)
    assert codes == [0], workers[0].log()[-2000:]
    return site.store.feature_digest()


_FLIGHTS: dict[tuple[date, int], str] = {}


def undisturbed_flights(servers: Servers, folder: Path, name: str, *, until: date, batch_records: int) -> str:
    """The feature digest of flights until a day; run once a process, as it depends on the records alone (D1)."""
    if (until, batch_records) not in _FLIGHTS:
        stream = Stream(servers, name, folder, until=until, batch_records=batch_records)
        _FLIGHTS[until, batch_records] = digest_of_undisturbed(stream)
    return _FLIGHTS[until, batch_records]


def predictions_left(site: Site) -> list[dict[str, Any]]:
    """All committed predictions, in the order of the topic's partitions."""
    return [
        row
        for messages in read_topic(site.clients, f"{site.name}.predictions.v1")
        for row in decode("prediction.v1", [m.value() for m in messages]).to_pylist()
    ]


def _judge_scores(site: Any, workers: Sequence[WorkerProcess], found: Verdict) -> None:
    predictions: Predictions = predictions_of(
        [
            decode("prediction.v1", [m.value() for m in messages])
            for messages in read_topic(site.clients, f"{site.name}.predictions.v1")
        ]
    )
    end = examples_end(site)
    stopped = [said for worker in workers if (said := worker.said_at_stop())]
    again = replay(fresh_models(site), read_examples(site), predictions, digests_at={end, *(n for n, _ in stopped)})
    found.learner_digest = again.digests[end]
    for n, digest in stopped:
        found.expect(digest == again.digests[n], f"D2 at N = {n}: {digest}, a fresh fold has {again.digests[n]}")
    found.expect(len(stopped) == len(workers), f"D2: only {len(stopped)} of {len(workers)} workers told their digest")
    found.expect(not again.scores, f"D3: {again.scores_wrong} scores differ: {'; '.join(again.scores)}")
