"""The store on a Valkey that is full, evicts, forgets or is silent, and proof that the scripts' guards are needed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import redis
from contract_stores import A, Workers, a_row, a_span, redis_workers, valkey

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, Mark, PaneDelta, Reads
from tidemill.errors import ConfigError, FencedError, StateLostError, UnavailableError
from tidemill.io import redis_connection, redis_store
from tidemill.io.embedded import Servers
from tidemill.io.redis_store import RedisStore

__all__ = ["valkey"]


# --- the server


def test_full_server_refuses_a_commit_as_a_whole_and_lets_the_outbox_be_freed(valkey: Servers) -> None:
    workers = redis_workers(valkey.redis_url)
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(1)}, due_add=(Due(A, "x", 5),), slices={A: b"sent"}))
    late = Commit(
        {A: a_span(1, 2)},
        read_set={"x": 1},
        rows={"x": None},  # a deletion alone would be let through by a full server
        due_remove=(Due(A, "x", 5),),
        pane_deltas=(PaneDelta("g", 0, 1, (1,)),),
        slices={A: b"s" * 100_000},
    )
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.config_set("maxmemory", "1")
            before = (store.marks(), store.feature_digest(), store.row_counts())
            with pytest.raises(UnavailableError, match=r"TM-3102.*maxmemory"):
                store.commit(late)
            assert (store.marks(), store.feature_digest(), store.row_counts()) == before
            assert len(store.read(Reads((), ("x",), (A,), 10)).due) == 1
            view = store.claim([A], may_create=False)
            assert view.partitions[A].slices == ((0, 1, b"sent"),)
            assert store.mark_published({A: 1})[A].committed == 1
            # A script that begins below the limit is let through though its own writes cross it: a far word pads 8 MB.
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 4_000_000)
            far = PaneDelta("far", 1_000_000, 1, (1,))
            crossing = Commit({A: a_span(1, 2)}, {"x": 1}, {"x": None}, pane_deltas=(far,), slices={A: b"after"})
            assert isinstance(store.commit(crossing), Applied)
            assert client.info("memory")["used_memory"] > int(client.config_get("maxmemory")["maxmemory"])
            assert store.marks()[A].applied == 2 and store.row_counts() == {}
            with pytest.raises(UnavailableError, match="TM-3102"):
                store.commit(Commit({A: a_span(2, 3)}))
        finally:
            client.config_set("maxmemory", "0")
    assert isinstance(store.commit(Commit({A: a_span(2, 3)})), Applied)


def test_server_that_evicts_is_refused(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).open()
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigError, match=r"TM-4106.*allkeys-lru"):
                store.check_server()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    store.check_server()


def test_server_that_evicted_keys_between_two_checks_is_refused(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).open()
    store.check_server()
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.set("a key of somebody", b"0" * 4_000_000)
            client.config_set("maxmemory-policy", "volatile-lru")
            client.expire("a key of somebody", 1_000)
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 1_000_000)
            client.set("a key of somebody else", b"0")
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")
            client.delete("a key of somebody", "a key of somebody else")
    with pytest.raises(StateLostError, match=r"TM-4140.*evicted 1 keys"):
        store.check_server()
    store.check_server()  # the next start is judged by what it meets itself


def test_server_that_forgot_the_scripts_gets_them_again(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).claimed(A)
    with redis.Redis.from_url(valkey.redis_url) as client:
        client.script_flush()
    result = store.commit(Commit({A: a_span(0, 1)}))
    assert isinstance(result, Applied) and result.marks[A].applied == 1


def test_answer_that_does_not_come_is_unavailable_and_a_claim_finds_the_result(
    valkey: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "ANSWER_DEADLINE_S", 0.1)
    workers = redis_workers(valkey.redis_url)
    store = workers.claimed(A)
    with redis.Redis.from_url(valkey.redis_url) as client:
        client.execute_command("CLIENT PAUSE", 250, "ALL")
        with pytest.raises(UnavailableError, match="TM-3101"):
            store.commit(Commit({A: a_span(0, 1)}))
    monkeypatch.setattr(redis_connection, "ANSWER_DEADLINE_S", 5.0)
    later = workers.open()
    applied = later.claim([A], may_create=False).partitions[A].applied
    assert applied in (None, 1)  # sent before the claim: it took effect, or its token is void
    with pytest.raises(FencedError, match="TM-410"):
        store.commit(Commit({A: a_span(0, 1)}))


def test_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"TM-3101.*127\.0\.0\.1:1"):
        RedisStore("redis://user:secret@127.0.0.1:1/0", "app", owner_slot="0", config_digest="d").marks()


# --- the guards: each violation is refused by the script, and gets through when its guard is cut out


def cut_guard(monkeypatch: pytest.MonkeyPatch, script: str, guard: str) -> None:
    """Stores opened from now on run `script` without the block between `-- guard: <guard>` and `-- end guard`."""
    intact = redis_store.load_script

    def load_script(name: str) -> str:
        source = intact(name)
        if name != script:
            return source
        cut, cuts = re.subn(rf"-- guard: {guard}\n.*?-- end guard\n", "", source, flags=re.DOTALL)
        assert cuts == 1
        return cut

    monkeypatch.setattr(redis_store, "load_script", load_script)


def violate_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.commit(Commit({A: a_span(0, 1)})))


def violate_position(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}))
    return _gets_through(lambda: store.commit(Commit({A: a_span(0, 5)}, pane_deltas=(PaneDelta("g", 0, 1, (1,)),))))


def violate_incarnation(workers: Workers) -> bool:
    store = workers.claimed(A)
    store._connection._client.set(f"tm:{{{store._app}}}:incarnation", "another")  # type: ignore[union-attr]
    return _gets_through(lambda: store.commit(Commit({A: a_span(0, 1)})))


def violate_read_set(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(3)}))
    return _gets_through(lambda: store.commit(Commit({A: a_span(1, 2)}, {"x": 2}, {"x": a_row(3)})))


def violate_published_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    old.commit(Commit({A: a_span(0, 5)}, slices={A: b"unsent"}))
    workers.claimed(A, slot="1")
    old.mark_published({A: 5})
    return old.marks()[A].committed == 5


def violate_configuration(workers: Workers) -> bool:
    workers.claimed(A)
    return _gets_through(lambda: workers.open("1", "different").claim([A], may_create=False))


def violate_start_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.set_start(A, 7))


def violate_start_position(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}))
    return _gets_through(lambda: store.set_start(A, 0))


def violate_touch_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.touch({A: Mark("", -1, -1, 9, True)}))


def _gets_through(action: Callable[[], object]) -> bool:
    try:
        return not isinstance(action(), Conflict)
    except (FencedError, ConfigError):
        return False


GUARDS = [
    ("commit", "owner", violate_owner),
    ("commit", "position", violate_position),
    ("commit", "incarnation", violate_incarnation),
    ("commit", "read set", violate_read_set),
    ("published", "owner", violate_published_owner),
    ("claim", "configuration", violate_configuration),
    ("start", "owner", violate_start_owner),
    ("start", "position", violate_start_position),
    ("touch", "owner", violate_touch_owner),
]


@pytest.mark.parametrize(
    ("script", "guard", "violate"), GUARDS, ids=[f"{script}-{guard}" for script, guard, _ in GUARDS]
)
def test_every_guard_is_needed(
    valkey: Servers,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    guard: str,
    violate: Callable[[Workers], bool],
) -> None:
    assert not violate(redis_workers(valkey.redis_url))
    cut_guard(monkeypatch, script, guard)
    assert violate(redis_workers(valkey.redis_url))
