"""Where a version comes from, and what its card says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from tidemill.core.lineage import lineage_of, model_card
from tidemill.core.manifest import Manifest
from tidemill.core.story import StoryEvent

HOUR_MS = 3_600_000
FIRST_MS = 1_364_774_400_000  # 2013-04-01
CAUSE = "trigger/concept@1364774400000"


def told(kind: str, version: str, hour: int, **facts: object) -> StoryEvent:
    """Of a version whose parent is `initial` and whose cause is CAUSE, where `facts` say nothing else."""
    every = {"parent": "initial", "cause": CAUSE, "offset_start": 0, "offset_next": 9_000, **facts}
    return StoryEvent(id=f"{kind}/{version}", kind=kind, version=version, time=FIRST_MS + hour * HOUR_MS, **every)


STORY = (
    told("triggered", "", 0),
    told("trained", "m1", 0, due=FIRST_MS + 24 * HOUR_MS),
    told("shadow", "m1", 24, verdict="the gate is passed", command_offset=9_100),
    told("declined", "", 30, cause="trigger/schedule@5", verdict="m1 is in shadow"),
    told("promoted", "m1", 48, verdict="m1 is better: +0.010", offset_start=9_100, offset_next=11_000),
    told("kept", "m1", 96, verdict="initial is undecided", offset_start=11_001, offset_next=21_000),
    told("trained", "m2", 200, parent="m1", cause="trigger/schedule@7", offset_next=30_000),
    told("aborted", "m2", 300, parent="m1", cause="trigger/schedule@7", verdict="m2 is worse"),
    told("trained", "m3", 400, parent="m1", cause="someone | else\n# wants <it>", offset_start=5, offset_next=40_000),
)

MANIFEST = Manifest(
    app="shop", parent="m1", feature_digest="f", features=("amount", "place"), category_features=("place",),
    vocabularies=(("north",),), leaf_trees=5, trees=40, parameters={"max_depth": 6}, engine="xgboost 3.2",
    platform="any", code_version="1.0", offset_start=5, offset_next=40_000, examples=38_000, examples_digest="ed",
    time_first=FIRST_MS, time_last=FIRST_MS + HOUR_MS, metrics={"n": 3_800.0, "log_loss": 0.45}, cause="by hand: why",
    created=FIRST_MS + 2 * HOUR_MS, model_digest="md",
)  # fmt: skip


def test_chain_leads_back_to_the_initial_champion():
    chain = lineage_of(STORY, "m3")
    assert [(step.version, step.parent, step.status) for step in chain] == [
        ("m3", "m1", "registered"),
        ("m1", "initial", "serves"),
    ]
    first = chain[-1]
    assert (first.cause, first.time, first.offset_start, first.offset_next) == (CAUSE, FIRST_MS, 0, 9_000)
    assert [event.kind for event in first.events] == ["trained", "shadow", "promoted", "kept"]


@pytest.mark.parametrize(("version", "status"), [("m1", "serves"), ("m2", "dropped")])
def test_status_is_the_last_step(version: str, status: str):
    assert lineage_of(STORY, version)[0].status == status


def test_learner_guard_changes_no_status():
    story = (*STORY, told("frozen", "m1", 500, cause="learner guard"), told("thawed", "m1", 500, cause="learner guard"))
    assert lineage_of(story, "m1")[0].status == "serves"


def test_version_that_nobody_knows_has_no_chain():
    assert lineage_of(STORY, "m9") == ()
    assert lineage_of(STORY, "initial") == ()
    assert lineage_of(STORY, "") == ()


def test_manifest_tells_of_versions_that_were_trained_by_hand():
    by_hand = MANIFEST.version
    (step, *parents) = lineage_of(STORY, by_hand, manifests={by_hand: MANIFEST})
    assert (step.parent, step.cause, step.time, step.offset_next) == ("m1", "by hand: why", MANIFEST.created, 40_000)
    assert [parent.version for parent in parents] == ["m1"]


def test_promotion_without_a_training_still_names_its_parent():
    (step, *_) = lineage_of((told("promoted", "m8", 1, parent="m1", cause="someone"), *STORY), "m8")
    assert (step.parent, step.cause, step.time, step.status) == ("m1", "someone", -1, "serves, on probation")


def test_circle_of_parents_ends():
    story = (told("trained", "a", 0, parent="b"), told("trained", "b", 1, parent="a"))
    assert [step.version for step in lineage_of(story, "a")] == ["a", "b"]


CARD = """---
version: "VERSION"
parent: "m1"
app: "shop"
status: "in shadow"
cause: "someone | else\\n# wants <it>"
created: "2013-04-01T02:00:00Z"
trained: {"offset_start": 5, "offset_next": 40000, "examples": 38000, "time_first": "2013-04-01T00:00:00Z", \
"time_last": "2013-04-01T01:00:00Z", "examples_digest": "ed"}
metrics: {"log_loss": 0.45, "n": 3800.0}
engine: "xgboost 3.2"
code_version: "1.0"
model_digest: "md"
features: ["amount", "place"]
---

# shop: VERSION

A booster of 40 trees over 2 features, the child of `m1`.
Status: in shadow. Why it was trained: someone \\| else # wants &lt;it>.

## Trained on

38,000 examples at offsets [5, 40,000) of the examples log, with labels from \
2013-04-01T00:00:00Z to 2013-04-01T01:00:00Z.

## Measured on the newest of them, by trees that did not see them

| metric | value |
| --- | --- |
| log_loss | 0.45 |
| n | 3800 |

## Story

| time | step | cause | verdict | examples log |
| --- | --- | --- | --- | --- |
| 2013-04-17T16:00:00Z | trained | someone \\| else # wants &lt;it> |  | [5, 40,000) |
| 2013-04-17T18:00:00Z | shadow | someone \\| else # wants &lt;it> | the gate is passed | [0, 9,000) |

## Limits

It knows what the examples of that time could teach. A value of a category that they did not hold counts as missing; \
the learner beside it follows what has changed since.
"""


def story_of_card() -> tuple[StoryEvent, ...]:
    version = MANIFEST.version
    shadow = told("shadow", version, 402, cause=STORY[-1].cause, verdict="the gate is passed")
    return (*STORY[:-1], replace(STORY[-1], version=version), shadow)


def test_card_is_what_a_person_reads():
    assert model_card(MANIFEST, story_of_card()) == CARD.replace("VERSION", MANIFEST.version)


def test_head_of_the_card_is_yaml():
    manifest = replace(MANIFEST, features=("it's: #1", 'ä\t"q"', "place"))
    head = yaml.safe_load(model_card(manifest, ()).split("---\n")[1])
    assert head["features"] == list(manifest.features)
    assert head["cause"] == manifest.cause
    assert head["trained"]["offset_next"] == manifest.offset_next
    assert head["metrics"] == dict(manifest.metrics)


def test_card_of_a_version_without_a_story():
    card = model_card(MANIFEST, ())
    assert "## Story\n\nNothing is known." in card
    assert 'status: "registered"' in card
