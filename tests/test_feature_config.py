"""What a declaration of a feature must have, may have, and is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_verified_kinds import YAML, config
from tidemill.config import load_app
from tidemill.config_models import ALLOWS, NEEDS, FeatureModel
from tidemill.core.spec import FeatureSpec
from tidemill.errors import ConfigError

__all__ = ["config"]


def test_options_of_every_kind_arrive_in_the_spec(config: Path) -> None:
    features = {one.name: one for group in load_app(config).groups for one in group.features}
    assert {one.kind for one in features.values()} == set(NEEDS)
    assert features["open"] == FeatureSpec(
        name="open",
        kind="open",
        of="events",
        closed_by="outcomes",
        due="due",
        closed_due="due",
        window_ms=10_800_000,
        ahead_ms=1_800_000,
    )
    assert features["open_all"].ahead_ms == 7_200_000
    assert features["reading_decayed"].half_life_ms == 1_200_000
    assert (features["hour"].part, features["hour"].zone) == ("hour", "Europe/Vienna")
    assert (features["minute_of_day"].zone, features["amount_before"].back) == ("UTC", 2)


def test_every_attribute_of_a_feature_belongs_to_a_kind() -> None:
    names = {field.alias or name for name, field in FeatureModel.model_fields.items()} - {"kind"}
    assert names == set().union(*ALLOWS.values())


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("half_life: 20m", "window: 24h", "TM-1003", "a decayed_mean needs `half_life`"),
        ("half_life: 10m", "half_life: 10m, window: 24h", "TM-1003", "a decayed_count has no `window`"),
        ("half_life: 20m", "half_life: 3ms", "TM-1003", "multiple of 2"),
        ("half_life: 20m", "halflife: 20m", "TM-1002", "did you mean 'half_life'"),
        ("kind: time_since_last, of: readings", "kind: time_since_last", "TM-1003", "needs `of`"),
        ("back: 1", "back: 8", "TM-1003", "less than 8"),
        ("part: hour, zone: Europe/Vienna", "part: hours", "TM-1003", "'hour', 'weekday'"),
        ("zone: Europe/Vienna", "zone: Europe/Viena", "TM-1003", "'Europe/Viena' is no time zone"),
        ("{kind: category, part", "{kind: category, field: shop, part", "TM-1003", "either `field` or `part`"),
        ("{kind: category, field: shop}", "{kind: category}", "TM-1003", "either `field` or `part`"),
        ("{kind: category, field: shop}", "{kind: category, field: shop, zone: UTC}", "TM-1003", "that of a `part`"),
        ("field: name", "field: nam", "TM-1005", "readings has no field 'nam'; did you mean 'name'"),
        ("field: name", "field: reading", "TM-1005", "a distinct value must be"),
        (
            "{kind: min, of: readings, value: reading",
            "{kind: min, of: readings, value: name",
            "TM-1005",
            "of a min must",
        ),
        (
            "{kind: max, of: readings, value: reading",
            "{kind: max, of: readings, value: label",
            "TM-1005",
            "a max of the",
        ),
        ("value: label, half", "value: reading, half", "TM-1005", "outcomes has no field 'reading'"),
        ("closed_by: outcomes, due: due, window", "closed_by: outcome, due: due, window", "TM-1005", "'outcomes'"),
        ("closed_by: outcomes, due: due, window", "closed_by: events, due: due, window", "TM-1005", "another topic"),
        ("due: due, window", "due: amount, window", "TM-1005", "a due time must be long, but events.amount is double"),
        ("closed_due: due", "closed_due: outcome", "TM-1005", "outcomes.outcome is int"),
        ("due: due, closed_due: due, ahead", "ahead", "TM-1003", "name `due` or `closed_due` too"),
    ],
)
def test_a_mistake_in_a_feature_names_its_line_and_the_remedy(
    config: Path, old: str, new: str, code: str, says: str
) -> None:
    assert YAML.count(old) == 1
    config.write_text(YAML.replace(old, new))
    line = 1 + YAML[: YAML.index(old)].count("\n")
    with pytest.raises(ConfigError) as caught:
        load_app(config)
    assert caught.value.code == code
    assert says in caught.value.message
    assert f"shop.yaml:{line}: " in caught.value.message


def test_what_closes_must_have_the_entity_too(config: Path) -> None:
    config.write_text(YAML.replace("closed_by: outcomes, window: 3h", "closed_by: readings, window: 3h"))
    with pytest.raises(ConfigError, match=r"TM-1005.*readings has no field 'user'"):
        load_app(config)
