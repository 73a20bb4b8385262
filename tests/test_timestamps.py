"""A record that is stamped far ahead is refused where it is made: in the log it would be believed, for good."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from shop import SHOP, Shop, a_shop

from tidemill.apps import doctor, produce
from tidemill.apps.doctor import check_app
from tidemill.apps.produce import publish_files
from tidemill.apps.topics import INPUT_CONFIG, STAMP_AHEAD_MS_MAX
from tidemill.core.topic_names import dead_letter_topic
from tidemill.errors import RecordError
from tidemill.io import kafka
from tidemill.io.embedded import KAFKA_SETTINGS, Servers

AFTER_MAX = "message.timestamp.after.max.ms"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
PERMITTED = {"message.timestamp.type": "CreateTime", AFTER_MAX: str(HOUR_MS)}


@pytest.fixture
def shop(servers: Servers, app_name: str, tmp_path: Path) -> Iterator[Shop]:
    """Its labels are waited for two days, so its streams end two days ahead."""
    with a_shop(servers, app_name, tmp_path, text=SHOP.read_text().replace("wait: 20s", "wait: 2d")) as made:
        yield made


def publish_orders(shop: Shop, *times: int) -> Any:
    """Orders at these times, in ms, and the end of the stream."""
    path = shop.folder / "orders.csv"
    rows = "".join(f"{at},{number},tea,1.0\n" for number, at in enumerate(times))
    path.write_text(f"_time,order,product,amount\n{rows}")
    return publish_files(
        shop.settings.bootstrap_servers or "", app=shop.settings.app, files={shop.names["event"]: [path]}, ends=True
    )


@pytest.mark.servers
def test_a_topic_that_we_make_refuses_stamps_far_ahead_and_the_producer_is_told_where(shop: Shop) -> None:
    now = round(time.time() * 1_000)
    assert publish_orders(shop, now - 2, now - 1).records == {shop.names["event"]: 2}

    with pytest.raises(RecordError, match="nothing was sent") as refused:
        publish_orders(shop, now, now + DAY_MS)

    assert refused.value.code == "TM-2053"
    for words in (f"topic {shop.names['event']}", str(now + DAY_MS), AFTER_MAX):
        assert words in refused.value.message


@pytest.mark.servers
@pytest.mark.parametrize("wrong", [1, 3])
def test_who_may_not_see_the_limit_is_told_of_it_by_the_refusal(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    monkeypatch.setattr(produce, "topic_settings", lambda _, topics: dict.fromkeys(topics))
    now = round(time.time() * 1_000)
    times = [now, *(now + DAY_MS + number for number in range(wrong))]

    with pytest.raises(
        RecordError, match=rf"TM-2053 .*topic {shop.names['event']} .*{times[-1]} .*a part of the stream"
    ):
        publish_orders(shop, *times)


@pytest.mark.servers
def test_inputs_take_an_hour_ahead_and_dead_letters_whatever_an_input_took(shop: Shop) -> None:
    inputs = list(shop.names.values())
    letters = [dead_letter_topic(name) for name in inputs]

    found = kafka.topic_settings(shop.clients, [*inputs, *letters])

    limits = {name: int(settings[AFTER_MAX]) for name, settings in found.items() if settings is not None}
    assert limits == dict.fromkeys(inputs, HOUR_MS) | dict.fromkeys(letters, 2**63 - 1)
    assert int(str(KAFKA_SETTINGS[f"log.{AFTER_MAX}"])) == STAMP_AHEAD_MS_MAX  # topics that others make there


@pytest.mark.servers
def test_doctor_tells_of_an_input_that_takes_stamps_far_ahead_and_how_to_mend_it(shop: Shop) -> None:
    assert not notes_about_stamps(shop)

    wide = shop.names["label"]
    entry = ConfigEntry(AFTER_MAX, str(DAY_MS + 1), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, wide, incremental_configs=[entry])
    admin = AdminClient(shop.clients)
    admin.incremental_alter_configs([resource])[resource].result(10)

    (found,) = notes_about_stamps(shop)
    assert (found.verdict, found.what) == ("note", f"topic {wide}: {AFTER_MAX}")
    assert f"--alter --entity-type topics --entity-name {wide} --add-config {AFTER_MAX}={HOUR_MS}" in found.advice


def notes_about_stamps(shop: Shop) -> list[doctor.Finding]:
    return [one for one in check_app(shop.settings) if AFTER_MAX in one.what and one.verdict != "ok"]


@pytest.mark.parametrize(
    ("settings", "verdict", "words"),
    [
        (PERMITTED, "ok", str(HOUR_MS)),
        (PERMITTED | {AFTER_MAX: str(DAY_MS)}, "ok", str(DAY_MS)),
        (PERMITTED | {AFTER_MAX: str(2**63 - 1)}, "note", "more than a day"),
        (PERMITTED | {AFTER_MAX: str(2**63 - 1), "message.timestamp.type": "LogAppendTime"}, "ok", "the broker stamps"),
        ({"message.timestamp.type": "CreateTime"}, "note", "no limit"),  # Kafka before 3.6
        (None, "note", "DescribeConfigs"),
    ],
)
def test_doctor_judges_what_the_broker_tells_or_keeps_to_itself(
    settings: dict[str, str] | None, verdict: str, words: str
) -> None:
    found = doctor._of_stamps("orders", settings, "broker:9092")
    assert found.verdict == verdict and words in found.found + found.advice


class _Answer:
    """Of a broker: a future that is over."""

    def __init__(self, error: int | None = None) -> None:
        self._error = None if error is None else KafkaException(KafkaError(error))

    def exception(self) -> KafkaException | None:
        return self._error

    def result(self) -> None:
        if self._error is not None:
            raise self._error


class _OldAdmin:
    """A broker before 3.6: it knows no AFTER_MAX. Settings are not for everybody's eyes."""

    topics: ClassVar[dict[str, dict[str, str]]] = {}

    def __init__(self, settings: dict[str, Any]) -> None:
        pass

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics=dict(self.topics))

    def create_topics(self, wanted: list[Any], request_timeout: float) -> dict[str, _Answer]:
        answers = {}
        for topic in wanted:
            answers[topic.topic] = _Answer(KafkaError.INVALID_CONFIG if AFTER_MAX in topic.config else None)
            if AFTER_MAX not in topic.config:
                self.topics[topic.topic] = dict(topic.config)
        return answers

    def describe_configs(self, asked: list[ConfigResource], request_timeout: float) -> dict[ConfigResource, _Answer]:
        return {one: _Answer(KafkaError.TOPIC_AUTHORIZATION_FAILED) for one in asked}


def test_an_old_broker_makes_the_topic_without_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_OldAdmin, "topics", {})
    monkeypatch.setattr(kafka, "AdminClient", _OldAdmin)

    assert kafka.ensure_topics({"bootstrap.servers": "old:9092"}, {"orders": 2}, INPUT_CONFIG) == ["orders"]

    assert _OldAdmin.topics == {"orders": {name: value for name, value in INPUT_CONFIG.items() if name != AFTER_MAX}}


def test_settings_that_may_not_be_seen_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "AdminClient", _OldAdmin)
    assert kafka.topic_settings({"bootstrap.servers": "x:1"}, ["orders"]) == {"orders": None}
