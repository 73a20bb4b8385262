"""YAML becomes a complete and consistent app, or an error that names file and line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.config import config_digest, load_app, load_settings
from tidemill.config_models import MILLISECONDS, parse_duration
from tidemill.core.loop_spec import RetrainSpec, RolloutSpec
from tidemill.core.spec import Condition, LearnerSpec
from tidemill.errors import ConfigError

FLIGHTS = Path(__file__).parents[1] / "config" / "flights.yaml"

SALE = {
    "type": "record",
    "name": "Sale",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "shop", "type": "string"},
        {"name": "price", "type": "double"},
        {"name": "sold_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "nick", "type": ["null", "string"], "default": None},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
RETURNED = {
    "type": "record",
    "name": "Returned",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "why", "type": {"type": "enum", "name": "Why", "symbols": ["kept", "broken", "late"]}},
        {"name": "refund", "type": ["null", "double"], "default": None},
    ],
}
APP = """\
name: shop
topics:
  sales.v1: {role: event, schema: sale.avsc, id: id, time: sold_at, partitions: 2}
  returns.v1: {role: label, schema: returned.avsc, id: id}
label:
  positive_if_any:
    - {field: refund, above: 0}
    - {field: why, one_of: [broken, late]}
  wait: 24h
groups:
  plain:
    entity: []
    features:
      price: {kind: field, field: price}
  by_shop:
    entity: [shop]
    features:
      shop_sales: {kind: count, of: sales.v1, window: 1h30m}
      shop_returned: {kind: mean, of: returns.v1, value: label, window: 7d, prior: 0.1, prior_weight: 2}
"""


def write_app(folder: Path, text: str = APP) -> Path:
    (folder / "sale.avsc").write_text(json.dumps(SALE))
    (folder / "returned.avsc").write_text(json.dumps(RETURNED))
    path = folder / "app.yaml"
    path.write_text(text)
    return path


def error_of(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_app(write_app(folder, text))
    return caught.value


def test_a_file_becomes_the_spec_it_declares(tmp_path):
    app = load_app(write_app(tmp_path))

    assert [(topic.name, topic.role, topic.id_field, topic.time_field, topic.partitions) for topic in app.topics] == [
        ("sales.v1", "event", "id", "sold_at", 2),
        ("returns.v1", "label", "id", None, 4),
    ]
    assert app.topics[0].schema == SALE
    assert app.label.positive_if_any == (
        Condition(field="refund", above=0.0),
        Condition(field="why", one_of=("broken", "late")),
    )
    assert (app.label.wait_ms, app.label.allowed_lateness_ms) == (86_400_000, 600_000)
    assert app.learner == LearnerSpec()
    counted, mean = app.groups[1].features
    assert (app.groups[1].entity, counted.window_ms, mean.window_ms) == (("shop",), 5_400_000, 604_800_000)
    assert (mean.value, mean.prior, mean.prior_weight) == ("label", 0.1, 2.0)


def test_the_shipped_app_of_the_flights_is_valid():
    app = load_app(FLIGHTS)

    features = [feature for group in app.groups for feature in group.features]
    assert sum(feature.kind == "category" for feature in features) == 5
    assert 20 <= sum(feature.kind != "category" for feature in features) <= 30
    assert (app.costs.threshold, app.max_skew_ms) == (0.9, 3_600_000)


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "says"),
    [
        ("wait: 24h", "wiat: 24h", "TM-1002", 9, "label.wiat; did you mean 'wait'"),
        ("kind: count", "kind: count, windw: 3h", "TM-1002", 18, "did you mean 'window'"),
        ("partitions: 2", "partition: 2", "TM-1002", 3, "did you mean 'partitions'"),
        ("name: shop", "nam: shop", "TM-1002", 1, "did you mean 'name'"),
        ("above: 0", "abov: 0", "TM-1002", 7, "did you mean 'above'"),
        ("name: shop\n", "", "TM-1003", 1, "name is missing"),
        ("wait: 24h", "wait: 24", "TM-1003", 9, "24 is not a duration"),
        ("wait: 24h", "wait: 1 day", "TM-1003", 9, "'1 day' is not a duration"),
        ("wait: 24h", "wait: 0s", "TM-1003", 9, "label.wait"),
        ("role: event", "role: events", "TM-1003", 3, "topics.sales.v1.role"),
        ("window: 1h30m", "value: price, window: 3h", "TM-1003", 18, "a count has no `value`"),
        (", window: 1h30m", "", "TM-1003", 18, "a count needs `window`"),
        ("window: 1h30m", "window: 5ms", "TM-1003", 18, "12 panes"),
        ("above: 0", "above: 0, below: 9", "TM-1003", 7, "exactly one of"),
        ("schema: sale.avsc", "schema: nothing.avsc", "TM-1004", 3, "nothing.avsc"),
        ("schema: sale.avsc", "schema: app.yaml", "TM-1004", 3, "no Avro schema"),
        ("of: sales.v1", "of: sale.v1", "TM-1005", 18, "no topic 'sale.v1'; did you mean 'sales.v1'"),
        ("field: price", "field: prise", "TM-1005", 14, "sales.v1 has no field 'prise'; did you mean 'price'"),
        ("field: price", "field: shop", "TM-1005", 14, "sales.v1.shop is string"),
        ("field: price", "field: tags", "TM-1005", 14, "sales.v1.tags is array"),
        ("field: refund", "field: why", "TM-1005", 7, "returns.v1.why is enum"),
        ("[broken, late]", "[broke, late]", "TM-1005", 8, "never 'broke'; did you mean 'broken'"),
        ("of: returns.v1", "of: sales.v1", "TM-1005", 19, "a mean of the label is made of the label topic"),
        ("value: label", "value: why", "TM-1005", 19, "returns.v1.why is enum"),
        ("entity: [shop]", "entity: [shpo]", "TM-1005", 16, "did you mean 'shop'"),
        ("entity: [shop]", "entity: [price]", "TM-1005", 16, "sales.v1.price is double"),
        ("entity: [shop]", "entity: [shop, shop]", "TM-1005", 16, "twice"),
        ("id: id, time", "time", "TM-1005", 3, "needs `id`"),
        ("id: id, time", "id: nick, time", "TM-1005", 3, "never null"),
        ("time: sold_at", "time: shop", "TM-1005", 3, "an event time must be long"),
        ("role: label", "role: event", "TM-1005", 2, "exactly one topic of role event, found sales.v1, returns.v1"),
        ("shop_sales:", "price:", "TM-1005", 14, "more than one group"),
        ("  returns.v1:", "  shop.alerts.v1:", "TM-1005", 4, "a topic that Tidemill writes"),
        ("  returns.v1:", "  shop.drift.v1:", "TM-1005", 4, "a topic that Tidemill writes"),
        ("shop_returned:", "shop_sales:", "TM-1006", 19, "'shop_sales' stands twice, first at line 18"),
        ("wait: 24h", "wait: [24h", "TM-1001", 10, "not YAML"),
    ],
)
def test_a_mistake_is_an_error_with_code_line_and_remedy(tmp_path, old, new, code, line, says):
    assert old in APP

    error = error_of(tmp_path, APP.replace(old, new, 1))

    assert error.code == code
    assert f"app.yaml:{line}: " in error.message, error.message
    assert says in error.message, error.message


def test_every_mistake_of_a_file_is_told_at_once(tmp_path):
    error = error_of(tmp_path, APP.replace("field: price", "field: prise").replace("entity: [shop]", "entity: [sop]"))

    first, second = error.message.splitlines()
    assert "app.yaml:14: " in first and "app.yaml:16: " in second


def test_an_entity_field_must_be_in_the_context_that_feeds_it(tmp_path):
    (tmp_path / "rain.avsc").write_text(
        json.dumps({"type": "record", "name": "Rain", "fields": [{"name": "mm", "type": "float"}]})
    )
    text = APP.replace("label:\n", "  rain.v1: {role: context, schema: rain.avsc}\nlabel:\n", 1)
    text += "      rain: {kind: latest, of: rain.v1, field: mm}\n"

    assert "rain.v1 has no field 'shop'" in error_of(tmp_path, text).message


def test_a_missing_file_is_an_error_of_the_user(tmp_path):
    with pytest.raises(ConfigError, match="TM-1001"):
        load_app(tmp_path / "nothing.yaml")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(MILLISECONDS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts):
    text = "".join(f"{number}{unit}" for number, unit in parts)

    assert parse_duration(text) == sum(number * MILLISECONDS[unit] for number, unit in parts)


@given(
    st.one_of(st.none(), st.integers(), st.floats(), st.integers(0).map(str), st.text(alphabet="hmsd .-"), st.just(""))
)
def test_what_has_no_number_or_no_unit_is_no_duration(value):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


def test_the_digest_is_that_of_the_meaning_and_not_of_the_text(tmp_path):
    app = load_app(write_app(tmp_path))
    same = load_app(write_app(tmp_path, "# a comment\n" + APP.replace("24h", "1d")))
    other = load_app(write_app(tmp_path, APP.replace("24h", "25h")))

    assert len(config_digest(app)) == 32
    assert config_digest(app) == config_digest(same) != config_digest(other)
    reordered = dataclasses.replace(app, topics=app.topics[::-1])
    assert config_digest(reordered) != config_digest(app)  # the order of topics breaks ties of time


def test_the_digest_holds_of_the_loop_what_workers_serve_by_and_nothing_else(tmp_path):
    app = load_app(write_app(tmp_path))
    shares = (0.0, 0.1, 0.2)
    rollouts = {share: RetrainSpec(rollout=RolloutSpec(canary_share=share)) for share in shares}
    digests = [config_digest(dataclasses.replace(app, retrain=rollouts[share])) for share in shares]
    elsewhere = dataclasses.replace(rollouts[0.1], examples_min=7, rollout=RolloutSpec(canary_share=0.1, alpha=0.01))

    assert len(set(digests)) == 3
    assert digests[0] == "688503805a8fcd70aac8c52c8565e8dd"  # what stores of before there was a share know
    assert digests[0] == config_digest(app) == config_digest(dataclasses.replace(app, retrain=None))
    assert config_digest(dataclasses.replace(app, retrain=elsewhere)) == digests[1]


def test_an_override_wins_over_environment_over_yaml_over_default(tmp_path, monkeypatch):
    for name in ("TIDEMILL_BOOTSTRAP_SERVERS", "TIDEMILL_REDIS_URL", "TIDEMILL_DATA"):
        monkeypatch.delenv(name, raising=False)
    bare = load_settings(write_app(tmp_path))
    assert (bare.bootstrap_servers, bare.redis_url, bare.kafka) == (None, None, {})
    assert (bare.worker.is_bounded, bare.worker.stall_after_s) == (False, 60.0)

    path = write_app(
        tmp_path,
        APP
        + "kafka: {bootstrap.servers: 'yaml:1', fetch.wait.max.ms: 5, enable.ssl.certificate.verification: true}\n"
        + "redis_url: redis://yaml\nworker: {bounded: true, stall_after: 90s, metrics_port: 9100}\n",
    )
    from_yaml = load_settings(path)
    assert (from_yaml.bootstrap_servers, from_yaml.redis_url) == ("yaml:1", "redis://yaml")
    assert from_yaml.kafka == {"fetch.wait.max.ms": "5", "enable.ssl.certificate.verification": "true"}
    worker = from_yaml.worker
    assert (worker.is_bounded, worker.stall_after_s, worker.metrics_port) == (True, 90.0, 9100)

    monkeypatch.setenv("TIDEMILL_BOOTSTRAP_SERVERS", "environment:1")
    monkeypatch.setenv("TIDEMILL_DATA", str(tmp_path / "data"))
    from_environment = load_settings(path, redis_url=None)
    assert (from_environment.bootstrap_servers, from_environment.redis_url) == ("environment:1", "redis://yaml")
    assert from_environment.data_folder == tmp_path / "data"

    overridden = load_settings(path, bootstrap_servers="argument:1", is_bounded=False)
    assert (overridden.bootstrap_servers, overridden.worker.is_bounded) == ("argument:1", False)


def test_secrets_come_from_the_environment_and_are_not_shown(tmp_path, monkeypatch):
    path = write_app(tmp_path, APP + "kafka: {sasl.password: '${SHOP_PASSWORD}'}\n")
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"TM-1007.*app.yaml:20.*SHOP_PASSWORD"):
        load_settings(path)

    monkeypatch.setenv("SHOP_PASSWORD", "hush")
    settings = load_settings(path)
    assert settings.kafka == {"sasl.password": "hush"}
    assert "hush" not in repr(settings)


def test_an_unknown_override_names_the_nearest_setting(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'stall_after_s'"):
        load_settings(write_app(tmp_path), stal_after_s=5)
