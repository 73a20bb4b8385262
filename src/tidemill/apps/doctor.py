"""What stands between an app and a sound start: servers, topics, settings, rights.

In: settings with servers. Out: findings, each with what to do. Invariant: nothing is changed, and no finding holds a
password; a finding is `missing` where a role cannot work, `note` where it works and something could be better.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidemill.apps.clients import clients_of
from tidemill.apps.rights import KAFKA_RIGHTS, STORE_NEEDS, Need, needs_of
from tidemill.apps.topics import STAMP_AHEAD_MS_MAX, app_topics
from tidemill.config import Settings, config_digest
from tidemill.errors import TidemillError
from tidemill.io import kafka
from tidemill.io.kafka_rights import RightsProbe
from tidemill.io.redis_store import RedisStore
from tidemill.io.store_rights import StoreProbe

Verdict = Literal["ok", "note", "missing"]
_STAMP_AHEAD_MS_NOTED = 86_400_000  # a day: slow clocks and time zones; what lies further ahead is an error
_NOT_NEEDED = frozenset({"Delete", "Alter", "AlterConfigs"})  # on topics: no command of Tidemill does so


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. role: "" = concerns all of them."""

    verdict: Verdict
    role: str
    what: str
    found: str
    advice: str = ""


def check_app(settings: Settings) -> list[Finding]:
    """Servers, transport, topics and the store's settings, without rights."""
    found = [*_transport(settings), *_topics(settings)]
    if settings.redis_url is not None:
        found.extend(_store(settings))
    found.extend(_files(settings.data_folder))
    return found


def check_rights(settings: Settings, roles: Sequence[str]) -> list[Finding]:
    """What each role needs and what the user of the `kafka:` block and of `redis_url` has.

    Raises:
        UnavailableError: a server does not answer, or refuses the password.
    """
    assert settings.bootstrap_servers is not None
    probe = RightsProbe(clients_of(settings))
    try:
        found = list(_kafka_rights(settings, roles, probe))
    finally:
        probe.close()
    if settings.redis_url is not None:
        found.extend(_store_rights(settings, roles))
    return found


def _kafka_rights(settings: Settings, roles: Sequence[str], probe: RightsProbe) -> Iterator[Finding]:
    needs = [need for role in roles for need in needs_of(settings.app, role)]
    topics = probe.topics(list(dict.fromkeys(need.name for need in needs if need.kind == "topic")))
    groups = {name: probe.group(name) for name in dict.fromkeys(n.name for n in needs if n.kind == "group")}
    ids = {name: probe.may_write_transactions(name) for name in {n.name for n in needs if n.kind == "transactional-id"}}
    may_create = {name: probe.may_create(name) for name, granted in topics.items() if granted is None}
    for need in needs:
        if need.kind == "topic":
            yield _of_topic(need, topics[need.name], may_create=may_create.get(need.name))
        elif need.kind == "group":
            yield _judged(need, groups[need.name])
        else:
            granted = frozenset(("Describe", "Write")) if ids[need.name] else frozenset[str]()
            yield _judged(need, granted)
    beyond = {name: sorted(granted & _NOT_NEEDED) for name, granted in topics.items() if granted}
    for name, operations in beyond.items():
        if operations:
            yield Finding("note", "", f"topic {name}", ", ".join(operations), "more than any role needs")


def _of_topic(need: Need, granted: frozenset[str] | None, *, may_create: bool | None) -> Finding:
    """Create is needed only where the topic is missing; what one may do with it shows once it is there."""
    if granted is not None:
        needed = tuple(one for one in need.operations if one != "Create")
        return _judged(Need(need.role, need.kind, need.name, needed), granted)
    what = f"topic {need.name}"
    if "Create" in need.operations and may_create:
        return Finding("note", need.role, what, "does not exist yet", "may be created; ask again afterwards")
    if "Create" in need.operations:
        return Finding("missing", need.role, what, "does not exist", "grant Create, or create it; then ask again")
    return Finding("note", need.role, what, "does not exist yet", "the worker or an administrator creates it")


def _judged(need: Need, granted: frozenset[str]) -> Finding:
    what = f"{need.kind} {need.name}: {', '.join(need.operations)}"
    lacking = [one for one in need.operations if one not in granted]
    if not lacking:
        return Finding("ok", need.role, what, "granted")
    return Finding("missing", need.role, what, f"lacks {', '.join(lacking)}", f"grant {', '.join(lacking)}")


def _store_rights(settings: Settings, roles: Sequence[str]) -> Iterator[Finding]:
    assert settings.redis_url is not None
    probe = StoreProbe(settings.redis_url, settings.app.name)
    try:
        for role in roles:
            needs = STORE_NEEDS.get(role, ())
            lacking = [need for need in needs if not probe.may(need)]
            what = f"store {probe.address}: {', '.join(needs)}"
            if lacking:
                yield Finding("missing", role, what, f"lacks {', '.join(lacking)}", "docs/own-servers.md has its ACL")
            elif needs:
                yield Finding("ok", role, what, "granted")
        if any(role in STORE_NEEDS for role in roles):
            for beyond in probe.granted_beyond():
                yield Finding("note", "", f"store {probe.address}", f"may use {beyond}", "more than any role needs")
    finally:
        probe.close()


def _transport(settings: Settings) -> Iterator[Finding]:
    servers = str(settings.bootstrap_servers)
    protocol = settings.kafka.get("security.protocol", "PLAINTEXT").upper()
    is_near = all(_is_loopback(one.rpartition(":")[0]) for one in servers.split(","))
    if protocol in ("PLAINTEXT", "SASL_PLAINTEXT") and not is_near:
        yield Finding("note", "", f"kafka {servers}", protocol, "readable on the way; use SASL_SSL")
    else:
        yield Finding("ok", "", f"kafka {servers}", protocol)
    if settings.kafka.get("enable.ssl.certificate.verification", "true").lower() == "false":
        yield Finding("note", "", f"kafka {servers}", "the certificate is not verified", "anybody may answer")


def _topics(settings: Settings) -> Iterator[Finding]:
    clients = clients_of(settings)
    inputs = {topic.name for topic in settings.app.topics}
    inputs_found: list[str] = []
    for name, expected in app_topics(settings.app).items():
        try:
            count = kafka.partition_counts(clients, [name])[name]
        except TidemillError as error:
            if error.code != "TM-3011":
                raise
            yield _absent(name, is_input=name in inputs)
            continue
        if name in inputs:
            inputs_found.append(name)
        if name not in inputs and count != expected:
            advice = f"it was made by hand; {expected} is what the worker makes, one log has one partition"
            yield Finding("missing" if expected == 1 else "note", "", f"topic {name}", f"{count} partitions", advice)
        else:
            yield Finding("ok", "", f"topic {name}", f"{count} partitions")
    for name, found in kafka.topic_settings(clients, inputs_found).items():
        yield _of_stamps(name, found, str(settings.bootstrap_servers))


def _of_stamps(name: str, found: Mapping[str, str] | None, servers: str) -> Finding:
    """Whether a record that is stamped far ahead could enter an input topic; its watermark would stay there."""
    what = f"topic {name}: {kafka.TIMESTAMP_AFTER_MAX}"
    if found is None:
        return Finding("note", "", what, "may not be seen", f"grant DescribeConfigs; it should be {STAMP_AHEAD_MS_MAX}")
    if found.get("message.timestamp.type") == "LogAppendTime":
        return Finding("ok", "", what, "the broker stamps")
    danger = "one record stamped far ahead makes all later ones late, for good"
    if kafka.TIMESTAMP_AFTER_MAX not in found:
        return Finding("note", "", what, "unknown to this broker: no limit", f"{danger}; Kafka 3.6 has a limit")
    limit_ms = int(found[kafka.TIMESTAMP_AFTER_MAX])
    if limit_ms <= _STAMP_AHEAD_MS_NOTED:
        return Finding("ok", "", what, str(limit_ms))
    command = (
        f"kafka-configs --bootstrap-server {servers} --alter --entity-type topics --entity-name {name} "
        f"--add-config {kafka.TIMESTAMP_AFTER_MAX}={STAMP_AHEAD_MS_MAX}"
    )
    return Finding("note", "", what, f"{limit_ms}, more than a day", f"{danger}: {command}")


def _absent(name: str, *, is_input: bool) -> Finding:
    if is_input:
        return Finding("missing", "", f"topic {name}", "does not exist", "its producer or an administrator creates it")
    return Finding("note", "", f"topic {name}", "does not exist yet", "the worker creates it at its first start")


def _store(settings: Settings) -> Iterator[Finding]:
    assert settings.redis_url is not None
    probe = StoreProbe(settings.redis_url, settings.app.name)
    probe.close()
    host = probe.address.rpartition(":")[0]
    if probe.has_tls or _is_loopback(host) or probe.address.startswith("/"):
        yield Finding("ok", "", f"store {probe.address}", "TLS" if probe.has_tls else "on this machine")
    else:
        yield Finding("note", "", f"store {probe.address}", "no TLS", "readable on the way; use rediss://")
    if not probe.has_user:
        yield Finding("note", "", f"store {probe.address}", "no user", "whoever reaches it may change state")
    store = RedisStore(
        settings.redis_url, settings.app.name, owner_slot="doctor", config_digest=config_digest(settings.app)
    )
    try:
        store.check_server()
        yield Finding("ok", "", f"store {probe.address}", "version and maxmemory-policy")
    except TidemillError as error:
        yield Finding("missing", "", f"store {probe.address}", f"{error.code} {error.message}", "see above")
    finally:
        store.close()


def _files(folder: Path) -> Iterator[Finding]:
    """The data folder holds the signing key, and state of the app as it was served."""
    if folder.exists() and folder.stat().st_mode & 0o022:
        yield Finding("note", "", f"data folder {folder}", "others may write", f"chmod go-w {folder}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


ROLES = tuple(KAFKA_RIGHTS)
