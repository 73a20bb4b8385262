"""Where a row plays: servers, workers, a stream of flights, a judge; everything is gone when it is over.

In: a row and a seed. Out: what the row asks for. Invariant: an app has a name that no other row or seed has; no process
or thread of a row outlives it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from tests.campaign import processes as campaign
from tests.campaign.campaign import snapshot_digests
from tests.campaign.judging import examples_end, fresh_models, read_examples, read_predictions, replay, verify_stream
from tests.campaign.processes import WorkerProcess
from tests.campaign.stream import Stream, applied, committed, owned_by
from tests.faults.proxy import Proxy
from tests.faults.row import OK, RowResult
from tests.verify import Report
from tidemill.core.records import Partition
from tidemill.io.embedded import Servers, start_servers
from tidemill.io.redis_store import RedisStore
from tidemill.io.start_checks import is_free

TWO_DAYS = date(2013, 1, 2)  # some 3,000 records
FOUR_DAYS = date(2013, 1, 4)  # some 6,000
TWO_WEEKS = date(2013, 1, 15)  # some 30,000
DEADLINE_S = 90.0  # without any progress
LOOK_S = 0.01
OWNS = re.compile(r"^owns (\d+) partitions", re.MULTILINE)
PROXIED_PORTS = range(30000, 32000)  # as the embedded servers' own: below every ephemeral range


@dataclass(frozen=True)
class Site:
    """Where workers run: `tests.campaign.processes.Site`, with addresses of one's own choice."""

    servers: Servers | Addresses
    config: Path
    folder: Path


@dataclass(frozen=True)
class Addresses:
    """What a worker is told instead of the servers' own addresses."""

    bootstrap_servers: str
    redis_url: str


@dataclass
class House:
    """Servers for many rows, and what undisturbed runs have left on them."""

    folder: Path
    patience: float = 1.0  # times allowed are multiplied by it: for machines that do other work
    _stack: ExitStack = field(default_factory=ExitStack)
    _shared: tuple[Servers, int, int] | None = None
    _calm: dict[date, str] = field(default_factory=dict)  # feature digest by day
    _count: int = 0

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def stage(self, number: int, seed: int, *, has_own_servers: bool) -> Iterator[Stage]:
        """A stage for one seed of one row."""
        self._count += 1
        name = f"row{number}s{seed}n{self._count}"
        with ExitStack() as stack:
            if has_own_servers:
                opened = stack.enter_context(_servers(self.folder / name / "servers"))
            else:
                opened = self._open_shared()
            stage = Stage(self, *opened, name, self.folder / name, seed)
            stack.callback(stage.close)
            yield stage

    def undisturbed_digest(self, until: date) -> str:
        """Of the features after these flights, run by one worker without an accident."""
        if until not in self._calm:
            with self.stage(0, len(self._calm), has_own_servers=False) as stage:
                stream = stage.stream(until=until, batch_records=None)
                stage.finish(stream, stage.worker(stream, 0))
                report = verify_stream(stream)
                assert report.is_ok, f"the undisturbed run is wrong: {report}"
                self._calm[until] = stream.store.feature_digest()
        return self._calm[until]

    def _open_shared(self) -> tuple[Servers, int, int]:
        if self._shared is None:
            self._shared = self._stack.enter_context(_servers(self.folder / "shared"))
        return self._shared


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Servers, int, int]]:
    """Servers whose Kafka has a second listener, for clients behind a proxy: its port, and the port it advertises."""
    listener, advertised = _free_ports(2)
    with start_servers(folder) as servers:
        servers.kill("kafka")
        settings = folder / "kafka" / "server.properties"
        read = dict(line.split("=", 1) for line in settings.read_text().splitlines())
        both = {
            "listeners": f"{read['listeners']},PROXIED://127.0.0.1:{listener}",
            "advertised.listeners": f"{read['advertised.listeners']},PROXIED://127.0.0.1:{advertised}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        }
        settings.write_text("".join(f"{name}={value}\n" for name, value in {**read, **both}.items()))
        servers.restart("kafka")
        yield servers, listener, advertised


def _free_ports(count: int) -> list[int]:
    start = random.SystemRandom().randrange(len(PROXIED_PORTS))
    candidates = (PROXIED_PORTS[(start + step) % len(PROXIED_PORTS)] for step in range(len(PROXIED_PORTS)))
    return [port for port, _ in zip(filter(is_free, candidates), range(count), strict=False)]


@dataclass(frozen=True)
class Judgement:
    """What the verifier and the digests say of a finished run."""

    missing: int
    duplicated: int
    wrong: tuple[str, ...]
    report: Report

    def result(self, *, injected: int, recovered_s: float | None = None, note: str = "", wrong: str = "") -> RowResult:
        """`wrong`: what the row itself has found, in words."""
        verdict = "; ".join([*filter(None, [wrong]), *self.wrong]) or OK
        recovered = None if recovered_s is None else round(recovered_s, 1)
        return RowResult(injected, recovered, self.missing, self.duplicated, verdict, note)


def judgement_of(report: Report) -> Judgement:
    """What the verifier alone says."""
    counts = {name: finding.count for name, finding in report.failed.items()}
    return Judgement(
        missing=sum(count for name, count in counts.items() if "missing" in name or name in ("I1 gaps", "I1 ends")),
        duplicated=sum(count for name, count in counts.items() if "duplicate" in name or "overlap" in name),
        wrong=tuple(f"{name} {finding.count}: {finding.texts[0]}" for name, finding in report.failed.items()),
        report=report,
    )


class Stage:
    """One seed of one row.

    Attributes:
        servers: shared with other rows, or of this stage alone.
        name: of the app; topics, keys and group begin with it.
        folder: for files of the row.
        chance: all that is random in a row comes from it.
    """

    def __init__(
        self, house: House, servers: Servers, listener: int, advertised: int, name: str, folder: Path, seed: int
    ) -> None:
        self.servers, self.name, self.folder, self.seed = servers, name, folder, seed
        self.chance = random.Random(f"{name}/{seed}".partition("n")[0] + f"/{seed}")
        self._house = house
        self._listener, self._advertised = listener, advertised
        self._workers: list[WorkerProcess] = []
        self._stack = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)

    # The stream and the workers --------------------------------------------------------------------------------

    def stream(self, *, until: date = TWO_DAYS, batch_records: int | None = 100, snapshot_every: int = 200) -> Stream:
        """Flights until a day under the stage's name, with 200 poisonous records; small batches make a long run."""
        return Stream(
            self.servers,
            self.name,
            self.folder / "run",
            until=until,
            snapshot_every=snapshot_every,
            batch_records=batch_records,
        )

    def worker(
        self,
        site: campaign.Site,
        slot: int,
        *,
        failpoint: str = "",
        data_folder: Path | None = None,
        is_bounded: bool = True,
        program: Sequence[str] = ("-m", "tidemill"),
        environment: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start one; `failpoint`, `program` and `environment` hold for its first start only."""
        worker = WorkerProcess(
            site,
            slot,
            is_bounded=is_bounded,
            data_folder=data_folder,
            program=program,
            environment={**(environment or {}), **({"TIDEMILL_FAILPOINT": failpoint} if failpoint else {})},
        )
        self._workers.append(worker)
        return worker

    def wait_for(
        self, what: str, is_so: Callable[[], bool], *alive: WorkerProcess, deadline_s: float = DEADLINE_S
    ) -> float:
        """Until `is_so`, while these workers live; the seconds that it took."""
        started = time.monotonic()
        while not is_so():
            for worker in alive:
                worker.check_alive()
            if time.monotonic() - started > deadline_s:
                logs = "\n".join(worker.log()[-2000:] for worker in alive or self._workers)
                raise AssertionError(f"no {what} within {deadline_s:.0f} s:\n{logs}")
            time.sleep(LOOK_S)
        return time.monotonic() - started

    def wait_for_record(self, stream: Stream, share: float, *alive: WorkerProcess) -> None:
        """Until this share of the records is committed."""
        wanted = int(stream.total * share)
        self.wait_for(f"record {wanted}", lambda: committed(stream.marks()) >= wanted, *alive)

    def wait_for_progress(
        self,
        stream: Stream,
        *alive: WorkerProcess,
        partitions: frozenset[Partition] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> float:
        """Until more is committed, on these partitions, than the store has applied now; the seconds that it took."""
        behind = applied(stream.marks(), partitions)

        def has_moved() -> bool:
            return committed(stream.marks(), partitions) > behind or stream.is_drained()

        return self.wait_for("progress", has_moved, *alive, deadline_s=deadline_s)

    def wait_for_owners(self, store: RedisStore, count: int, *workers: WorkerProcess) -> None:
        """Until these workers own all `count` partitions between them, each as many as it has said last: in the middle
        of a rebalance the store names owners who are about to change."""

        def is_settled() -> bool:
            marks = store.marks()
            found = [(len(owned_by(marks, worker.slot)), OWNS.findall(worker.log())) for worker in workers]
            return sum(owned for owned, _ in found) == count and all(
                said and owned == int(said[-1]) > 0 for owned, said in found
            )

        self.wait_for(f"{len(workers)} owners", is_settled, *workers)

    def finish(self, stream: Stream, *workers: WorkerProcess, deadline_s: float = 300.0) -> None:
        """To the end of the stream, with nothing waiting, then stop these workers; each must end with 0.

        `deadline_s` is for the whole rest; without any progress it ends after DEADLINE_S.
        """
        end = time.monotonic() + deadline_s
        while not stream.is_drained():
            self.wait_for_progress(stream, *workers)
            assert time.monotonic() < end, f"not at the end after {deadline_s:.0f} s"
        for worker in workers:
            self.wait_for("end of its start", lambda worker=worker: "owns " in worker.log(), worker)
        stream.wait_until_settled()
        codes = {worker.slot: worker.stop() for worker in workers}
        assert not any(codes.values()), f"exit codes by slot {codes}"

    def late(self, what: str, took_s: float, budget_s: float) -> str:
        """The verdict on a time, empty when it is within the budget."""
        allowed_s = budget_s * self._house.patience
        return f"{what} took {took_s:.1f} s, allowed are {allowed_s:.0f} s" if took_s > allowed_s else ""

    # Servers ---------------------------------------------------------------------------------------------------

    def proxy(self, target: str) -> Proxy:
        """A proxy in front of "kafka" or "valkey", one of each at most; it ends with the stage."""
        if target == "kafka":
            return self._stack.enter_context(Proxy(self._listener, port=self._advertised, is_kafka=True))
        return self._stack.enter_context(Proxy(int(self.servers.redis_url.rpartition(":")[2].partition("/")[0])))

    def site_of(self, config: Path, *, kafka: Proxy | None = None, valkey: Proxy | None = None) -> Site:
        """Where workers run with a YAML of the row's choice, or see servers through proxies."""
        return Site(
            Addresses(
                f"127.0.0.1:{kafka.port}" if kafka else self.servers.bootstrap_servers,
                f"redis://127.0.0.1:{valkey.port}/0" if valkey else self.servers.redis_url,
            ),
            config,
            config.parent,
        )

    # The judge -------------------------------------------------------------------------------------------------

    def judge(self, stream: Stream, *, has_undisturbed: bool = True, sample: int = 1_000) -> Judgement:
        """Of a run whose workers have stopped: every record has one outcome (I1), features are those of an undisturbed
        run (D1), learners and scores those of a fresh fold of the log (D2, D3).

        `has_undisturbed` False: the row's inputs are its own, nothing can be compared with.
        """
        # A worker that was alone, then had a part of the partitions, then all, has run ahead of the others meanwhile.
        order = "total" if len({worker.slot for worker in self._workers}) == 1 else "partial"
        found = judgement_of(verify_stream(stream, sample=sample, order=order))
        wrong = list(found.wrong)
        if has_undisturbed:
            expected = self._house.undisturbed_digest(stream.until or TWO_DAYS)
            if (digest := stream.store.feature_digest()) != expected:
                wrong.append(f"D1 features {digest}, undisturbed {expected}")
        return replace(found, wrong=(*wrong, *self._judge_models(stream)))

    def _judge_models(self, stream: Stream) -> list[str]:
        predictions = read_predictions(stream)
        told = [found for worker in self._workers if (found := worker.said_at_stop())]
        digests = [*snapshot_digests(stream).items(), *told]
        again = replay(
            fresh_models(stream),
            read_examples(stream),
            predictions,
            digests_at={*(n for n, _ in digests), examples_end(stream)},
        )
        wrong = [f"D2 at N = {n}: {digest}, a fresh fold has {again.digests[n]}" for n, digest in digests
                 if digest != again.digests[n]]  # fmt: skip
        if again.scores_wrong or again.scores_compared != len(predictions):
            wrong.append(
                f"D3: {again.scores_wrong} scores differ of {again.scores_compared} compared, {len(predictions)} "
                f"published: {'; '.join(again.scores)}"
            )
        return wrong

    def close(self) -> None:
        """Whatever the row started is gone."""
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.close()
        self._stack.close()
