"""Each guard is needed: the same accident leaves no trace with it, and turns a check red without it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from pathlib import Path

import fastavro
import pytest
from shop import Shop, a_shop

from tests.campaign.judging import Replay, fresh_models, read_examples, read_predictions, replay, verify_stream
from tests.campaign.processes import WorkerProcess, ended_at_exit
from tests.campaign.stream import Stream, owned_by
from tests.verify import Report, verify
from tidemill.config import config_digest
from tidemill.core.records import Partition
from tidemill.io.embedded import Servers
from tidemill.io.framing import header_of
from tidemill.io.redis_store import RedisStore

pytestmark = pytest.mark.servers

UNTIL = date(2013, 1, 2)
BATCH_RECORDS = 250  # a dozen batches
DEADLINE_S = 90.0


def mutant(mutation: str, accident: str = "none") -> tuple[str, ...]:
    return ("-m", "tests.campaign.mutant_worker", mutation, accident)


def wait_for(what: str, is_so: Callable[[], bool], *workers: WorkerProcess) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        for worker in workers:
            worker.check_alive()
        assert time.monotonic() < deadline, f"no {what}:\n" + "\n".join(worker.log()[-3000:] for worker in workers)
        time.sleep(0.02)


def a_stream(servers: Servers, name: str, folder: Path) -> Stream:
    return Stream(servers, name, folder, until=UNTIL, batch_records=BATCH_RECORDS)


def finish(stream: Stream, worker: WorkerProcess) -> None:
    wait_for("end", stream.is_drained, worker)
    stream.wait_until_settled()
    assert worker.stop() == 0


@pytest.fixture(scope="module")
def undisturbed_digest(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the features after these flights, without an accident."""
    stream = a_stream(servers, "undisturbed", tmp_path_factory.mktemp("undisturbed") / "run")
    with ended_at_exit() as workers:
        workers.append(WorkerProcess(stream, 0))
        finish(stream, workers[0])
    assert verify_stream(stream).is_ok
    return stream.store.feature_digest()


# --- claims: a worker that slept while its partitions were processed by another


@pytest.mark.parametrize("mutation", ["none", "claims"])
def test_claims_keep_out_a_worker_that_slept(
    servers: Servers, app_name: str, tmp_path: Path, undisturbed_digest: str, mutation: str
):
    # Kafka may tell the one that wakes that it is replaced before it gets as far as its commit: then once more.
    times = 1 if mutation == "none" else 3
    digests = (
        digest_after_a_sleep(servers, f"{app_name}-{number}", tmp_path / str(number), mutation)
        for number in range(times)
    )
    assert all(digest == undisturbed_digest for digest in digests) == (mutation == "none")


def digest_after_a_sleep(servers: Servers, name: str, folder: Path, mutation: str) -> str:
    stream = a_stream(servers, name, folder / "run")
    with ended_at_exit() as workers:
        zombie = WorkerProcess(stream, 0, program=mutant(mutation, "C:stop"))
        workers.append(zombie)
        wait_for("sleeping worker", lambda: is_stopped(zombie))
        # The same slot on another machine, as it were: the group hands everything over at once.
        heir = WorkerProcess(stream, 0, data_folder=folder / "other")
        workers.append(heir)
        finish(stream, heir)
        zombie.process.send_signal(signal.SIGCONT)
        wait_for("word of the zombie", lambda: has_spoken(zombie))
        zombie.close()
    return stream.store.feature_digest()


def has_spoken(zombie: WorkerProcess) -> bool:
    """It was refused, or ended, or, where the heir's membership has run out meanwhile, owns everything anew."""
    return "discarded" in zombie.log() or zombie.log().count("owns ") > 1 or zombie.process.poll() is not None


def is_stopped(worker: WorkerProcess) -> bool:
    worker.check_alive()
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# --- outbox: a crash after the script, before the transaction


@pytest.mark.parametrize("mutation", ["none", "outbox"])
def test_outbox_keeps_what_was_applied_and_not_published(
    servers: Servers, app_name: str, tmp_path: Path, undisturbed_digest: str, mutation: str
):
    report, stream = crash_and_go_on(
        servers, app_name, tmp_path, environment={"TIDEMILL_FAILPOINT": "F4:kill@4"}, then=mutant(mutation)
    )
    assert stream.store.feature_digest() == undisturbed_digest
    if mutation == "none":
        assert report.is_ok, str(report)
    else:
        assert report.failed["predictions missing"].count > 0, report


def crash_and_go_on(
    servers: Servers,
    name: str,
    folder: Path,
    *,
    program: tuple[str, ...] = ("-m", "tidemill"),
    environment: dict[str, str] | None = None,
    then: tuple[str, ...],
) -> tuple[Report, Stream]:
    """A worker that dies by its accident, and the one that goes on in its slot."""
    stream = a_stream(servers, name, folder / "run")
    with ended_at_exit() as workers:
        worker = WorkerProcess(stream, 0, program=program, environment=environment)
        workers.append(worker)
        wait_for("crash", lambda: worker.process.poll() is not None)
        assert worker.process.returncode == -signal.SIGKILL, worker.log()
        worker.restart(then)
        finish(stream, worker)
    return verify_stream(stream), stream


# --- read_committed: a crash within the transaction, whose records stay in the log


@pytest.mark.parametrize("mutation", ["none", "uncommitted"])
def test_fold_learns_committed_examples_only(servers: Servers, app_name: str, tmp_path: Path, mutation: str):
    report, stream = crash_and_go_on(
        servers, app_name, tmp_path, program=mutant("none", "T:kill@6"), then=mutant(mutation)
    )
    found = replayed(stream)
    assert found.scores_compared > 600
    if mutation == "none":
        assert report.is_ok, str(report)
        assert found.scores_wrong == 0, found.scores
        # A reader that does not ask for committed records takes the aborted transaction for a second one.
        seen = verify_stream(stream, settings={"isolation.level": "read_uncommitted"})
        assert seen.failed["predictions duplicate"].count > 0, seen
    else:
        assert found.scores_wrong > 0


def replayed(stream: Stream) -> Replay:
    return replay(fresh_models(stream), read_examples(stream), read_predictions(stream))


# --- read set, and the order of the two commits: an event and its label on two workers at once


@pytest.mark.parametrize(
    ("mutation", "red"), [("none", None), ("read-set", "examples missing"), ("kafka-first", "I1 overlaps")]
)
def test_event_and_label_that_race_on_two_workers_join_once(
    servers: Servers, app_name: str, tmp_path: Path, mutation: str, red: str | None
):
    """The label's worker has read that there is no such event and is held there; the event is predicted meanwhile."""
    with a_shop(servers, app_name, tmp_path) as shop, ended_at_exit() as workers:
        site = Site(servers, shop.config, shop.folder)
        for slot in (0, 1):
            folder = shop.folder / str(slot)
            program = mutant(mutation, "F2:gate")
            workers.append(WorkerProcess(site, slot, is_bounded=False, data_folder=folder, program=program))
        store = RedisStore(
            servers.redis_url, app_name, owner_slot="test", config_digest=config_digest(shop.settings.app)
        )
        wait_for("two owners", lambda: all(owned_by(store.marks(), slot) for slot in (0, 1)), *workers)
        labels = Partition(shop.names["label"], 0)
        holder = next(slot for slot in (0, 1) if labels in owned_by(store.marks(), slot))
        other = owned_by(store.marks(), 1 - holder)
        orders = next(partition for partition in sorted(other) if partition.topic == shop.names["event"])

        gate = shop.folder / str(holder)
        (gate / "gate.armed").touch()
        send(shop, "label", labels, -4, order=7, returned=True)
        wait_for("label at the gate", (gate / "gate.reached").exists, *workers)
        send(shop, "event", orders, -5, order=7, product="tea", amount=7.0)
        wait_for("prediction", lambda: store.marks()[orders].committed == 1, *workers)
        (gate / "gate.open").touch()
        wait_for("label", lambda: store.marks()[labels].committed == 1, *workers)
        assert [worker.stop() for worker in workers] == [0, 0]
        report = verify(servers.bootstrap_servers, app_name, shop.config, is_flights=False)
    if red is None:
        assert report.is_ok, str(report)
        assert report.counts["examples"] == 1
    else:
        assert report.failed[red].count > 0, report


@dataclass(frozen=True)
class Site:
    """Where the shop's workers run."""

    servers: Servers
    config: Path
    folder: Path


def send(shop: Shop, role: str, partition: Partition, seconds: float, **fields: object) -> None:
    """One record into exactly this partition; `seconds`: event time, from now."""
    body = BytesIO()
    schema = shop.schemas[role]
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), fields)
    value, time_ms = header_of(schema) + body.getvalue(), int((time.time() + seconds) * 1000)
    shop.producer.produce(partition.topic, value, str(fields["order"]), partition=partition.number, timestamp=time_ms)
    shop.producer.flush()
