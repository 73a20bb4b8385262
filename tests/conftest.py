"""Fixtures of all tests: one Kafka and one Valkey for the whole session, and names that keep tests apart on them."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tidemill.io.embedded import Servers, start_servers

pytest.register_assert_rewrite("tests.streams_in_memory")  # balances that do not close show both sides

_app_numbers = itertools.count()

# A run draws the same examples twice, so that a red test is about the change; with `new` it looks for others.
settings.register_profile("same", derandomize=True)
settings.register_profile("new")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first; what is quick fills the gaps at the end of a run in parallel."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("servers", "long")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Three processes, as `scripts/test` has them, are two lanes for tests with servers and one for the others."""
    if config.getoption("numprocesses") != 3 or config.getoption("dist") != "loadfile":
        return None
    from tests.lanes import Lanes

    return Lanes(config, log)


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.lanes import be_polite

        be_polite()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Embedded Kafka and Valkey, shared: use topics and keys that begin with `app_name`, and do not stop them."""
    with start_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture
def app_name() -> str:
    """A name that no other test of this run has, fit for topics, groups and keys."""
    return f"app{os.getpid()}x{next(_app_numbers)}"


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
