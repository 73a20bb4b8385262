"""The verdict on a run: what the inputs demand against what was published.

In: a declaration, a log, labels from the raw data. Out: a `Report`. Invariant: nothing is believed because the system
says so, but one thing: which group watermark a batch settled old rows with; that is bounded by the times in the inputs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from tests.verify.compare import (
    check_dead_letters,
    check_examples,
    check_predictions,
    check_raw_labels,
    source_of,
)
from tests.verify.declared import Declared
from tests.verify.features import recompute
from tests.verify.inputs import BAD, GOOD, PUNCTUATION, Inputs, read_inputs
from tests.verify.log import Log
from tests.verify.outcomes import RECORD_OUTCOMES, Expected, ExpectedExample, expect
from tests.verify.outputs import Example, Outputs, Prediction, numbers, read_outputs
from tests.verify.report import Report
from tests.verify.tiles import by_partition, check_counts, check_tiles, commit_of_rows, settled_least


def judge(
    log: Log,
    declared: Declared,
    app: str,
    *,
    raw_labels: Mapping[str, int] | None = None,
    sent_ids: frozenset[str] | None = None,
    sample: int = 1_000,
    seed: int = 1,
    order: str = "auto",
) -> Report:
    """Judge a finished run.

    Args:
        raw_labels: label of each id, from outside of the topics; None = the topics' own labels are all there is.
        sent_ids: ids that must be among the events; None = whatever is there.
        sample: how many predictions have their features recomputed; 0 = all.
        order: "total": one worker in a bounded replay, whose order is a function of the inputs; "partial": several;
            "auto": total if the commits name one worker. Features are recomputed in a total order only.
    """
    report = Report()
    clock = _Clock(report)
    inputs = read_inputs(declared, log)
    clock.lap("read inputs")
    outputs = read_outputs(log, app, [topic.name for topic in declared.topics])
    clock.lap("read outputs")
    broken = report.check("published but unreadable")
    for text in outputs.broken:
        broken.add(text)

    is_total_order = order == "total" or (order == "auto" and len({one.worker for one in outputs.commits}) <= 1)
    commits = outputs.commits
    places = by_partition(declared, commits, report)
    check_tiles(declared, inputs, commits, places, report)
    commit_of = commit_of_rows(inputs, commits, places)
    watermarks = np.array([one.group_watermark for one in commits] + [-1], dtype=np.int64)
    _check_watermarks(inputs, outputs, report)
    expected = expect(
        declared,
        inputs,
        watermarks[commit_of],
        settled_least=settled_least(inputs, commits, places),
        settled_most=int(watermarks.max()),
        newest_of_all=_newest_of_all(inputs),
    )
    sums = check_counts(inputs, expected, commits, commit_of, report, is_total_order=is_total_order)
    clock.lap("outcomes")

    by_source = check_predictions(declared, inputs, expected, outputs.predictions, report)
    matched = check_examples(
        declared, inputs, expected, outputs.examples, by_source, report, is_total_order=is_total_order
    )
    check_raw_labels(inputs, declared, outputs.examples, raw_labels, sent_ids, report)
    check_dead_letters(declared, inputs, outputs, report)
    _check_progressive(declared, inputs, outputs, matched, report, is_total_order=is_total_order)
    _balance(declared, inputs, expected, outputs, sums, report)
    clock.lap("compare")

    if is_total_order:
        _check_features(declared, inputs, expected, by_source, report, sample=sample, seed=seed)
        clock.lap("features")
    else:
        report.notes.append("several workers: no total order, features are not recomputed (D4 holds for one worker)")
    return report


class _Clock:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self._report.seconds[name] = now - self._last
        self._last = now


def _newest_of_all(inputs: Inputs) -> int:
    """The time that every partition with records has reached."""
    places = inputs.topic.astype(np.int64) << 32 | inputs.partition
    return min((int(inputs.time[places == place].max()) for place in np.unique(places)), default=-1)


def _check_watermarks(inputs: Inputs, outputs: Outputs, report: Report) -> None:
    """The group is never further than the newest record of all."""
    finding = report.check("group watermark beyond the inputs")
    newest = int(inputs.time.max()) if len(inputs.time) else -1
    for commit in outputs.commits:
        if commit.group_watermark > newest:
            finding.add(f"{commit.topic}[{commit.partition}]@{commit.start}: {commit.group_watermark} > {newest}")


def _check_progressive(
    declared: Declared,
    inputs: Inputs,
    outputs: Outputs,
    matched: Sequence[tuple[Example, ExpectedExample]],
    report: Report,
    *,
    is_total_order: bool,
) -> None:
    finding = report.check("label used before its prediction")
    for example, _ in matched:
        if example.kind == "example" and example.served.n > example.offset:
            finding.add(f"{example.id}: N {example.served.n} is past its own offset {example.offset}")
    if not is_total_order or not matched:
        return
    future = report.check("label of the future was learned")
    pairs = sorted(matched, key=lambda pair: pair[0].offset)
    offsets = np.array([example.offset for example, _ in pairs])
    newest = np.maximum.accumulate(inputs.rank[np.array([wanted.cause_row for _, wanted in pairs])])
    row_of = {source_of(declared, inputs, row): row for row in np.flatnonzero(_are_events(declared, inputs)).tolist()}
    for one in outputs.predictions:
        folded = int(np.searchsorted(offsets, one.served.n))
        row = row_of.get(one.source)
        if row is not None and folded and newest[folded - 1] > inputs.rank[row]:
            future.add(f"{one.id}: N {one.served.n} holds a label that comes after it")


def _balance(
    declared: Declared, inputs: Inputs, expected: Expected, outputs: Outputs, sums: dict[str, int], report: Report
) -> None:
    roles = np.array([topic.role for topic in declared.topics])[inputs.topic]
    is_record = inputs.verdict != PUNCTUATION
    for role in ("event", "label", "context"):
        report.counts[f"{role} records"] = int(((roles == role) & is_record).sum())
    report.counts["punctuations"] = int((~is_record).sum())
    report.counts["bad records"] = int((inputs.verdict == BAD).sum())
    report.counts["predictions"] = len(outputs.predictions)
    report.counts["examples"] = len(outputs.examples)
    report.counts["commits"] = len(outputs.commits)

    labels_in = report.counts["label records"]
    parts = ("example", "amendment", "label_duplicate", "orphan", "label_dead_letter", "waiting")
    resolved = sum(sums[name] for name in parts)
    still = sums["waiting"] - sums["waiting_joined"] - sums["waiting_orphaned"]
    text = f"labels in {labels_in} = " + " + ".join(f"{name} {sums[name]}" for name in parts)
    text += f"; of those waiting: joined {sums['waiting_joined']}, orphaned {sums['waiting_orphaned']}, open {still}"
    report.balances.append(text)
    finding = report.check("balance of labels")
    if resolved != labels_in or still < 0:
        finding.add(text)

    predictions = len(outputs.predictions)
    labelled = sum(one.kind == "example" for one in outputs.examples)
    pending = predictions - labelled - sums["expired"]
    joined = sum(one.kind == "example" for one in expected.examples)
    demanded = int((expected.outcome == RECORD_OUTCOMES.index("prediction")).sum())
    least, most = demanded - joined - expected.expired[1], demanded - joined - expected.expired[0]
    text = f"predictions {predictions} = labelled {labelled} + expired {sums['expired']} + pending {pending}"
    report.balances.append(text)
    finding = report.check("balance of predictions")
    if expected.open_at_end:
        left = f"{expected.open_at_end} rows are due before the newest time of every partition"
        report.notes.append(f"{left}, but no commit's group watermark has reached them")
    if not least <= pending <= most or sums["prediction"] != predictions:
        finding.add(f"{text}; computed pending {least} to {most}, counted predictions {sums['prediction']}")


def _check_features(
    declared: Declared,
    inputs: Inputs,
    expected: Expected,
    by_source: Mapping[int, Prediction],
    report: Report,
    *,
    sample: int,
    seed: int,
) -> None:
    # What a late event sees depends on panes that were dropped before it came: only events on time are recomputed.
    rows = [row for row in sorted(by_source) if inputs.time[row] == inputs.merged_time[row]]
    if 0 < sample < len(rows):
        rows = sorted(random.Random(seed).sample(rows, sample))
    finding = report.check("features mismatched")
    numeric, categories = recompute(declared, inputs, expected, rows)
    wrong_predictions = 0
    by_feature: Counter[str] = Counter()
    for place, row in enumerate(rows):
        prediction = by_source[row]
        texts = _feature_differences(declared, numeric[place], categories[place], prediction)
        wrong_predictions += bool(texts)
        for text in texts:
            finding.add(f"{prediction.id} {text}")
            by_feature[text.split(":")[0]] += 1
    report.counts["predictions recomputed"] = len(rows)
    report.counts["features recomputed"] = len(rows) * (len(declared.numeric) + len(declared.categories))
    if wrong_predictions:
        named = ", ".join(f"{name} {count}" for name, count in by_feature.most_common())
        report.notes.append(f"{wrong_predictions} of {len(rows)} recomputed predictions differ, by feature: {named}")


def _feature_differences(
    declared: Declared, numeric: npt.NDArray[np.float32], categories: tuple[str, ...], prediction: Prediction
) -> list[str]:
    got = numbers(prediction.served)
    if len(got) != len(numeric):
        return [f"numeric: expected {len(numeric)} features, got {len(got)}"]
    differs = (numeric.view(np.int32) != got.view(np.int32)) & ~(np.isnan(numeric) & np.isnan(got))
    texts = [
        f"{declared.numeric[at].name}: expected {numeric[at]!s}, got {got[at]!s}" for at in np.flatnonzero(differs)
    ]
    if len(prediction.served.categories) != len(categories):
        return [*texts, f"categories: expected {len(categories)}, got {len(prediction.served.categories)}"]
    for feature, wanted, given in zip(declared.categories, categories, prediction.served.categories, strict=True):
        if wanted != given:
            texts.append(f"{feature.name}: expected {wanted!r}, got {given!r}")
    return texts


def _are_events(declared: Declared, inputs: Inputs) -> npt.NDArray[np.bool_]:
    events = [index for index, topic in enumerate(declared.topics) if topic.role == "event"]
    found: npt.NDArray[np.bool_] = np.isin(inputs.topic, events) & (inputs.verdict == GOOD)
    return found
