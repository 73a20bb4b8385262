"""A worker that lives and does not move ends with 4 and names what holds it: on a real broker and a real store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from shop import Shop, a_shop

from tidemill.apps.stalls import Causes, InHand, Waiting, where
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.embedded import Servers, start_servers

pytestmark = pytest.mark.servers

STALL_AFTER_S = 5  # a transaction on a busy machine takes up to 3
NAMED_WITHIN_S = 60.0  # 5 s of patience, 3 s for the servers' answers, and what a busy machine takes
ENDED_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that a test may stop; the broker last, as it takes a while to come to itself."""
    with start_servers(tmp_path_factory.mktemp("own")) as running:
        yield running


@contextmanager
def stopped(servers: Servers, name: str) -> Iterator[None]:
    """The server keeps its connections and answers nobody."""
    pid = servers.pids[name]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def a_worker(servers: Servers, app_name: str, folder: Path) -> Iterator[Shop]:
    """It has processed ten orders."""
    with a_shop(servers, app_name, folder) as shop:
        make_impatient(shop)
        send(shop, range(10))
        shop.start()
        wait_for_predictions(shop, 10)
        yield shop


def make_impatient(shop: Shop) -> None:
    text = shop.config.read_text()
    shop.config.write_text(text.replace("stall_after: 20s", f"stall_after: {STALL_AFTER_S}s"))


def wait_for_predictions(shop: Shop, count: int) -> None:
    deadline = time.monotonic() + 90
    while True:
        with suppress(UnavailableError):  # the topic is made when the worker starts
            if len(shop.read("predictions")) >= count:
                return
        assert time.monotonic() < deadline, shop.log_text()
        time.sleep(0.2)


def send(shop: Shop, orders: range) -> None:
    for order in orders:
        shop.send("event", str(order), -10 + order / 1_000, order=order, product="tea", amount=1.0)
    shop.producer.flush()


def named_cause(shop: Shop) -> str:
    """What the worker says of its stall; it has ended with 4 then."""
    assert shop.worker is not None
    deadline = time.monotonic() + NAMED_WITHIN_S
    while "TM-4030" not in shop.log_text():
        assert time.monotonic() < deadline, shop.log_text()
        time.sleep(0.1)
    assert shop.worker.wait(ENDED_WITHIN_S) == 4, shop.log_text()
    line = next(line for line in shop.log_text().splitlines() if "TM-4030" in line)
    assert "no progress: " in line and (f"{shop.names['event']}[" in line or "no partition for" in line)
    return line.partition("likely cause: ")[2]


@contextmanager
def a_stopped_worker(
    servers: Servers, app_name: str, folder: Path, place: str, patch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """It froze at a place of its first batch: whatever happens to its servers now happens while it has work in hand."""
    with a_shop(servers, app_name, folder) as shop:
        make_impatient(shop)
        patch.setenv("TIDEMILL_FAILPOINT", f"{place}:stop")
        send(shop, range(10))
        shop.start()
        assert shop.worker is not None
        deadline = time.monotonic() + 90
        while not os.WIFSTOPPED(os.waitpid(shop.worker.pid, os.WUNTRACED | os.WNOHANG)[1]):
            assert time.monotonic() < deadline, shop.log_text()
            time.sleep(0.05)
        yield shop


def test_store_that_is_stopped_is_named(own: Servers, app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with a_stopped_worker(own, app_name, tmp_path, "F2", monkeypatch) as shop, stopped(own, "valkey"):
        assert shop.worker is not None
        shop.worker.send_signal(signal.SIGCONT)
        cause = named_cause(shop)
    assert cause.startswith("the store at ") and cause.endswith(" does not answer")


def test_broker_that_is_stopped_is_named(own: Servers, app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with a_stopped_worker(own, app_name, tmp_path, "F4", monkeypatch) as shop, stopped(own, "kafka"):
        assert shop.worker is not None
        shop.worker.send_signal(signal.SIGCONT)
        cause = named_cause(shop)
    assert cause == f"the broker at {own.bootstrap_servers} does not answer"


def test_broker_that_is_stopped_for_so_long_that_the_partitions_are_lost_is_named_too(
    own: Servers, app_name: str, tmp_path: Path
):
    """A client gives its partitions up by itself when the group's coordinator is silent, and then has no lag."""
    with a_worker(own, app_name, tmp_path) as shop, stopped(own, "kafka"):
        cause = named_cause(shop)
        assert "the group has given this worker no partition" in shop.log_text()
    assert cause == f"the broker at {own.bootstrap_servers} does not answer"


def test_topics_are_created_though_the_broker_stood_still_when_it_was_asked(
    own: Servers, app_name: str, monkeypatch: pytest.MonkeyPatch
):
    asked: list[object] = []

    class Admin(AdminClient):
        def create_topics(self, *args: object, **kwargs: object) -> object:
            if not asked:
                os.kill(own.pids["kafka"], signal.SIGSTOP)
                threading.Timer(3.0, os.kill, (own.pids["kafka"], signal.SIGCONT)).start()
            asked.append(args)
            return super().create_topics(*args, **kwargs)

    monkeypatch.setattr(kafka, "CREATE_ATTEMPT_S", 1.0)
    monkeypatch.setattr(kafka, "AdminClient", Admin)
    kafka.ensure_topics(kafka.client_settings(own.bootstrap_servers), {app_name: 1}, {})
    assert asked and kafka.partition_counts(kafka.client_settings(own.bootstrap_servers), [app_name])


def test_hanging_transaction_of_a_foreign_producer_is_named_with_its_place(
    servers: Servers, app_name: str, tmp_path: Path
):
    with a_worker(servers, app_name, tmp_path) as shop:
        foreign = Producer({**shop.clients, "transactional.id": f"{app_name}.foreign"})
        foreign.init_transactions(30)
        foreign.begin_transaction()
        foreign.produce(shop.names["event"], b"never committed", b"k", partition=0)
        foreign.flush()
        send(shop, range(10, 40))  # of the same partition are some behind it
        cause = named_cause(shop)
        foreign.abort_transaction(30)
    assert cause.startswith(f"a transaction that is still open hides {shop.names['event']}[0] from offset ")


def test_compute_thread_that_is_blocked_is_named_with_its_function(
    servers: Servers, app_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with a_shop(servers, app_name, tmp_path) as shop:
        make_impatient(shop)
        monkeypatch.setenv("TIDEMILL_FAILPOINT", "F2:hang")
        send(shop, range(10))
        shop.start()
        cause = named_cause(shop)
    assert cause.startswith("broker and store answer, and the compute thread is blocked in failpoint (failpoints.py:")


def test_idle_worker_is_no_stall_however_long(servers: Servers, app_name: str, tmp_path: Path):
    """A transaction that was aborted leaves a marker and no lag."""
    with a_worker(servers, app_name, tmp_path) as shop:
        foreign = Producer({**shop.clients, "transactional.id": f"{app_name}.foreign"})
        foreign.init_transactions(30)
        foreign.begin_transaction()
        foreign.produce(shop.names["event"], b"never committed", b"k", partition=0)
        foreign.flush()
        foreign.abort_transaction(30)
        time.sleep(1.8 * STALL_AFTER_S)
        assert shop.worker is not None and shop.worker.poll() is None, shop.log_text()
        assert shop.stop() == 0
    assert "TM-4030" not in shop.log_text()


# Without a worker -------------------------------------------------------------------------------------------------


def test_only_a_call_that_lasts_keeps_the_compute_thread():
    now = 0.0
    in_hand = InHand(lambda: now)
    with in_hand.call():
        now = 9.0
        assert not in_hand.lasts(10.0)
        with in_hand.call():  # queued behind it
            now = 10.0
            assert not in_hand.lasts(10.0) and in_hand.lasts(1.0)
    assert not in_hand.lasts(0.0)


def test_place_of_a_thread_is_our_function_and_what_it_calls():
    reached, done = threading.Event(), threading.Event()

    def blocked() -> None:
        reached.set()
        done.wait()

    thread = threading.Thread(target=blocked)
    thread.start()
    reached.wait()
    assert thread.ident is not None
    found = where(thread.ident)
    done.set()
    thread.join()
    assert found.startswith("wait (threading.py:")
    assert where(-1) == "a thread that has ended"


def test_servers_that_answer_leave_what_the_worker_knows_itself(servers: Servers, app_name: str):
    causes = Causes(kafka.client_settings(servers.bootstrap_servers), servers.redis_url)
    waiting = Waiting(is_busy=False, thread=threading.get_ident(), group_limit=7)
    assert causes.find(waiting, []) == "a slower worker holds back the group (limit 7)"
    waiting = Waiting(is_busy=False, thread=0, blocked_by=Partition("orders", 1))
    assert "waits for a record or a punctuation in orders[1]" in causes.find(waiting, [])
    assert (
        causes.find(Waiting(is_busy=False, thread=0), [])
        == "broker and store answer, but the broker delivers no records"
    )


def test_an_answer_of_a_moment_ago_is_not_taken_for_the_cause(servers: Servers, app_name: str):
    clients = kafka.client_settings(servers.bootstrap_servers)
    kafka.ensure_topics(clients, {app_name: 1}, {})
    causes = Causes(clients, servers.redis_url)
    assert causes.hidden([Partition(app_name, 0)]) == {}
    foreign = Producer({**clients, "transactional.id": app_name})
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(app_name, b"not committed")
    foreign.flush()
    cause = causes.find(Waiting(is_busy=False, thread=0), [Partition(app_name, 0)])
    foreign.abort_transaction(30)
    assert cause.startswith(f"a transaction that is still open hides {app_name}[0] from offset 0 to 1")


def test_both_servers_may_be_silent(unused_port: int):
    causes = Causes(kafka.client_settings(f"127.0.0.1:{unused_port}"), f"redis://127.0.0.1:{unused_port}/0")
    said = causes.find(Waiting(is_busy=True, thread=0), [])
    place = f"127.0.0.1:{unused_port} does not answer"
    assert said == f"the broker at {place} and the store at {place}"
