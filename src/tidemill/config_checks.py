"""Does an app make sense as a whole: topics, fields and types that are named in one place and declared in another.

In: an `AppSpec` whose parts are valid one by one. Out: problems, each with its place in the YAML document.
Invariant: an app without problems reads only fields that exist, with types that the features can use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.feature_plan import topics_of
from tidemill.core.rules import whole_text
from tidemill.core.spec import RESERVED_SERIES, AppSpec, Condition, FeatureSpec, GroupSpec, RuleSpec, TopicSpec
from tidemill.core.topic_names import dead_letter_topic, written_topics

Location = tuple[Hashable, ...]  # keys and indexes from the root of the YAML document
Problem = tuple[Location, str]

ID_TYPES = frozenset({"string", "int", "long"})  # what has one text, whoever writes it
NUMBERS = frozenset({"int", "long", "float", "double"})
TEXTS = frozenset({"string", "enum"})
WHOLE = frozenset({"int", "long"})
NAMES = TEXTS | WHOLE  # what can be part of an entity's key


SERVED_EXPERTS = ("booster", "learner", "base_rate")


def check_app(spec: AppSpec) -> Iterator[Problem]:
    """Every problem of the app, in the order of YAML within each kind of check."""
    yield from _check_topics(spec)
    schemas = {topic.name: Fields.of(topic) for topic in spec.topics}
    events = [topic.name for topic in spec.topics if topic.role == "event"]
    labels = [topic.name for topic in spec.topics if topic.role == "label"]
    for role, found in (("event", events), ("label", labels)):
        if len(found) != 1:
            have = ", ".join(found) or "none"
            yield ("topics",), f"an app has exactly one topic of role {role}, found {have}; add it, or make two apps"
    if len(events) != 1 or len(labels) != 1:
        return  # what follows would only repeat it
    for index, condition in enumerate(spec.label.positive_if_any):
        yield from _check_condition(("label", "positive_if_any", index), condition, schemas[labels[0]])
    counts = Counter(feature.name for group in spec.groups for feature in group.features)
    for group in spec.groups:
        for feature in group.features:
            place = ("groups", group.name, "features", feature.name)
            if counts[feature.name] > 1:
                yield place, f"feature {feature.name} stands in more than one group; names are unique in an app"
            yield from _check_feature(place, feature, schemas, event=events[0])
        yield from _check_entity(group, spec, schemas, event=events[0])
    for comparator in spec.comparators:
        if comparator.name in RESERVED_SERIES:
            yield ("comparators", comparator.name), f"{comparator.name} is a series of every app; take another name"
        for name in comparator.features or ():
            if name not in counts:
                yield ("comparators", comparator.name), f"no feature {name!r}{nearest(name, counts)}"
    yield from _check_loop(spec)


def _check_loop(spec: AppSpec) -> Iterator[Problem]:
    """Windows of the loop are whole ticks; what it compares with is served."""
    every = spec.monitor.every_ms
    if spec.monitor.window_ms % every:
        yield ("monitor", "window"), "the window must be a multiple of `every`: it is made of ticks"
    retrain = spec.retrain
    if retrain is None:
        return
    if retrain.latency_ms % every:
        yield ("retrain", "latency"), "the latency must be a multiple of the monitor's `every`"
    for part in ("any_of", "all_of"):
        for index, trigger in enumerate(getattr(retrain, part)):
            if trigger.kind == "performance" and trigger.comparator not in SERVED_EXPERTS:
                message = f"{trigger.comparator!r} is not served beside the blend"
                yield ("retrain", part, index), message + nearest(trigger.comparator, SERVED_EXPERTS)


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name ends."""
    names = sorted(known)
    matches = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(names) or 'none'}"


class Field(NamedTuple):
    type: str  # Avro's primitive or complex type, without null
    is_nullable: bool
    symbols: tuple[str, ...] = ()  # of an enum


class Fields(NamedTuple):
    """The fields of one topic, by name."""

    topic: str
    role: str
    by_name: Mapping[str, Field]

    @staticmethod
    def of(topic: TopicSpec) -> Fields:
        named: dict[str, Field] = {}
        fields = {one["name"]: _read_type(one["type"], named) for one in topic.schema["fields"]}
        return Fields(topic.name, topic.role, fields)

    def check(self, place: Location, name: str, types: frozenset[str], use: str) -> Iterator[Problem]:
        """The field must exist and have one of `types` to be used as `use`."""
        found = self.by_name.get(name)
        if found is None:
            yield place, f"{self.topic} has no field {name!r}{nearest(name, self.by_name)}"
        elif found.type not in types:
            yield place, f"{use} must be {' or '.join(sorted(types))}, but {self.topic}.{name} is {found.type}"


def _read_type(declared: Any, named: dict[str, Field]) -> Field:
    """Type, nullability and symbols of a field; `named` remembers enums that later fields may refer to by name."""
    if isinstance(declared, list):
        rest = [one for one in declared if one != "null"]
        inner = _read_type(rest[0], named) if len(rest) == 1 else Field("union", False)
        return inner._replace(is_nullable=len(rest) < len(declared))
    if isinstance(declared, dict):
        if declared["type"] == "enum":
            named[declared["name"]] = Field("enum", False, tuple(declared["symbols"]))
            return named[declared["name"]]
        return _read_type(declared["type"], named)
    return named.get(declared, Field(declared, False))


def _check_topics(spec: AppSpec) -> Iterator[Problem]:
    names = {topic.name for topic in spec.topics}
    written = written_topics(spec.name) | {dead_letter_topic(name) for name in names}
    for topic in spec.topics:
        place = ("topics", topic.name)
        fields = Fields.of(topic)
        if topic.name in written:
            yield place, f"{topic.name} is a topic that Tidemill writes; rename the app or read another topic"
        if topic.id_field is not None:
            yield from fields.check((*place, "id"), topic.id_field, ID_TYPES, "an id")
            if topic.id_field in fields.by_name and fields.by_name[topic.id_field].is_nullable:
                yield (*place, "id"), f"an id is never null, but {topic.name}.{topic.id_field} may be"
        elif topic.role != "context":
            yield place, f"{topic.name} has role {topic.role} and needs `id`: the field that names the event"
        if topic.time_field is not None:
            yield from fields.check((*place, "time"), topic.time_field, frozenset({"long"}), "an event time")
        for index, rule in enumerate(topic.rules):
            yield from _check_rule((*place, "rules", index), rule, fields)


def _check_rule(place: Location, rule: RuleSpec, topic: Fields) -> Iterator[Problem]:
    if rule.otherwise == "flag" and topic.role == "context":
        yield (
            place,
            f"{topic.topic} is a context topic: its records make no example that a flag could hold back; a bad one "
            "must not feed features either, so the choice is `otherwise: dead_letter`",
        )
    if rule.is_missing is not None:
        yield from topic.check(place, rule.field, NUMBERS | TEXTS | {"boolean"}, "a field of is_missing")
    elif rule.burst_above is not None:
        yield from topic.check(place, rule.field, WHOLE | TEXTS, "a field of burst_above")
    elif rule.matches is not None:
        yield from topic.check(place, rule.field, TEXTS, "a field of matches")
        yield from _check_pattern(place, rule.matches)
    elif rule.one_of is not None:
        is_text = isinstance(rule.one_of[0], str)
        yield from topic.check(place, rule.field, TEXTS if is_text else WHOLE, "a field of this one_of")
        yield from _check_members(place, rule.one_of, rule.field, topic)
    elif (other := rule.not_after or rule.not_before or rule.differs_from) is not None:
        of_field = topic.by_name.get(rule.field)
        types = NUMBERS if rule.differs_from is None else NUMBERS | TEXTS
        yield from topic.check(place, rule.field, types, "a field that is compared")
        if of_field is not None:
            same = next((kind for kind in (NUMBERS, TEXTS) if of_field.type in kind), types)
            yield from topic.check(place, other, same, f"what {rule.field} ({of_field.type}) is compared with")
    else:
        yield from topic.check(place, rule.field, NUMBERS, "a field with bounds")
        low = max((bound for bound in (rule.above, rule.at_least) if bound is not None), default=None)
        high = min((bound for bound in (rule.below, rule.at_most) if bound is not None), default=None)
        if low is not None and high is not None and low > high:
            yield place, f"no number is above {low:g} and below {high:g}: every record would break this rule"


def _check_pattern(place: Location, pattern: str) -> Iterator[Problem]:
    for text in (pattern, whole_text(pattern)):
        try:
            pc.match_substring_regex(pa.array([""]), text)
        except pa.ArrowInvalid as error:
            yield place, f"{pattern!r} is no regular expression of RE2: {error}"
            return


def _check_members(
    place: Location, members: tuple[str, ...] | tuple[int, ...], name: str, topic: Fields
) -> Iterator[Problem]:
    symbols = topic.by_name[name].symbols if name in topic.by_name else ()
    for member in members:
        if symbols and member not in symbols:
            yield place, f"{topic.topic}.{name} is never {member!r}{nearest(str(member), symbols)}"
        if isinstance(member, int) and not -(2**63) <= member < 2**63:
            yield place, f"{member} is outside of an Avro long"


def _check_condition(place: Location, condition: Condition, label: Fields) -> Iterator[Problem]:
    use = "a field of a label condition"
    if condition.one_of is not None or isinstance(condition.equals, str):
        texts = condition.one_of if condition.one_of is not None else (str(condition.equals),)
        yield from label.check(place, condition.field, TEXTS, use)
        symbols = label.by_name[condition.field].symbols if condition.field in label.by_name else ()
        for text in texts:
            if symbols and text not in symbols:
                yield place, f"{label.topic}.{condition.field} is never {text!r}{nearest(text, symbols)}"
    else:
        types = frozenset({"boolean"}) if isinstance(condition.equals, bool) else NUMBERS
        yield from label.check(place, condition.field, types, use)


def _check_feature(
    place: Location, feature: FeatureSpec, schemas: Mapping[str, Fields], *, event: str
) -> Iterator[Problem]:
    source = schemas.get(feature.of or event)
    if source is None:
        yield (*place, "of"), f"no topic {feature.of!r}{nearest(str(feature.of), schemas)}"
    elif feature.kind == "field":
        yield from source.check(place, str(feature.field), NUMBERS | {"boolean"}, "a field feature")
    elif feature.part is not None:
        return  # of the event's time, which every event has
    elif feature.kind == "category":
        yield from source.check(place, str(feature.field), NAMES | {"boolean"}, "a category")
    elif feature.kind == "latest":
        yield from source.check(place, str(feature.field), NUMBERS | {"boolean"}, "a latest value")
    elif feature.kind == "distinct":
        yield from source.check(place, str(feature.field), NAMES | {"boolean"}, "a distinct value")
    elif feature.kind == "open":
        yield from _check_open(place, feature, source, schemas)
    elif feature.value == "label":
        if source.role != "label":
            use = f"a {feature.kind.replace('_', ' ')} of the label"
            yield place, f"{use} is made of the label topic, but {source.topic} has role {source.role}"
    elif feature.value is not None:
        yield from source.check(place, feature.value, NUMBERS, f"the value of a {feature.kind.replace('_', ' ')}")


def _check_open(
    place: Location, feature: FeatureSpec, opening: Fields, schemas: Mapping[str, Fields]
) -> Iterator[Problem]:
    closing = schemas.get(str(feature.closed_by))
    if closing is None:
        yield (*place, "closed_by"), f"no topic {feature.closed_by!r}{nearest(str(feature.closed_by), schemas)}"
    elif closing.topic == opening.topic:
        yield (*place, "closed_by"), f"{closing.topic} cannot close what it opens; name another topic"
    elif feature.closed_due is not None:
        yield from closing.check((*place, "closed_due"), feature.closed_due, frozenset({"long"}), "a due time")
    if feature.due is not None:
        yield from opening.check((*place, "due"), feature.due, frozenset({"long"}), "a due time")


def _check_entity(group: GroupSpec, spec: AppSpec, schemas: Mapping[str, Fields], *, event: str) -> Iterator[Problem]:
    """The entity's fields must be in the event (that asks) and in each topic that feeds; a label has its event's."""
    feeds = {topic for feature in group.features for topic in topics_of(feature) if topic in schemas}
    asked = [event, *(topic.name for topic in spec.topics if topic.name in feeds and topic.role == "context")]
    for index, name in enumerate(group.entity):
        for topic in asked:
            yield from schemas[topic].check(("groups", group.name, "entity", index), name, NAMES, "an entity field")
    for name in sorted(name for name, count in Counter(group.entity).items() if count > 1):
        yield ("groups", group.name, "entity"), f"entity field {name} stands twice"
