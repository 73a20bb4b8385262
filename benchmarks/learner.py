"""What the learner costs: the same rows through four ways of handing a row to Vowpal Wabbit, in one run.

In: made-up rows with the shape of the flights (28 numbers, 5 categories), a margin, and leaves. Out: us per row to
predict and to learn, encoding included, and how far the probabilities are from the product's. Invariant: every way gets
the same rows in the same order.

The ways are the product's, the product's before it was made cheap, Vowpal Wabbit's text as people write it, and
dictionaries of names. The last two hash names by themselves, so that a few of their 2^22 places collide differently.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import pylibvw

from tidemill.core.records import FeatureBatch, Float32s, Float64s
from tidemill.models.booster import BoosterOutputs
from tidemill.models.example_encoder import NUMERIC_MAX, feature_hash
from tidemill.models.learner import Learner, checked_arguments

NUMBERS, CATEGORIES, BATCH = 28, 5, 600
NUMERIC_NAMES = tuple(f"number_{at}" for at in range(NUMBERS))
CATEGORY_NAMES = tuple(f"category_{at}" for at in range(CATEGORIES))
ARGUMENTS = "--loss_function logistic --link logistic -b 22 -l 0.1"
VERSION = "m1"
LEAVES_PER_TREE = 64
WORDS = [*checked_arguments(ARGUMENTS), "--quiet"]
MISSING = re.compile(r"(number_\d+):nan")

Pairs = tuple[list[tuple[int, float]], ...]
Named = dict[str, list[tuple[str, float] | str]]


class Lot(NamedTuple):
    features: FeatureBatch
    label: Float32s
    outputs: BoosterOutputs


class Way(Protocol):
    """One way of handing rows to the engine."""

    def score(self, lot: Lot) -> Float64s: ...

    def learn(self, lot: Lot) -> None: ...


def made_lots(rows: int, trees: int) -> list[Lot]:
    """3 % of the numbers are missing, as in the flights, so that three rows of four lack one."""
    chance = np.random.default_rng(1)
    numeric = (chance.normal(size=(rows, NUMBERS)) * np.logspace(-1, 2, NUMBERS)).astype(np.float32)
    margin = (numeric[:, 0] * 8 - 1 + chance.normal(size=rows) * 0.5).astype(np.float32)
    numeric[chance.random(numeric.shape) < 0.03] = np.nan
    values = [chance.integers(0, many, rows) for many in (16, 3, 105, 24, 7)]
    leaves = (chance.normal(size=(rows, trees)) * 12 + margin[:, None] * 4).astype(np.int32) % LEAVES_PER_TREE
    label = (chance.random(rows) < 1 / (1 + np.exp(-margin))).astype(np.float32)
    lots = []
    for start in range(0, rows, BATCH):
        part = slice(start, min(start + BATCH, rows))
        categories = tuple(tuple(f"v{value}" for value in column[part].tolist()) for column in values)
        outputs = BoosterOutputs(margin[part], 1 / (1 + np.exp(-margin[part].astype(np.float64))), leaves[part])
        lots.append(Lot(FeatureBatch(numeric[part], categories), label[part], outputs))
    return lots


class Product:
    """`models/learner.py`."""

    def __init__(self) -> None:
        self._learner = Learner(ARGUMENTS, NUMERIC_NAMES, CATEGORY_NAMES)

    def score(self, lot: Lot) -> Float64s:
        return self._learner.score(lot.features, lot.outputs, VERSION)

    def learn(self, lot: Lot) -> None:
        self._learner.learn(lot.features, lot.label, np.arange(len(lot.label)), lot.outputs, VERSION)


class Before:
    """The learner as it was: pairs for every token, a comparison for every number."""

    def __init__(self) -> None:
        self._engine = pylibvw.vw(WORDS)
        self._hashes = [feature_hash("numeric", name) for name in NUMERIC_NAMES]
        self._missing = [(feature_hash("missing", name), 1.0) for name in NUMERIC_NAMES]
        self._margin = feature_hash("margin", "")
        self._values: list[dict[str, tuple[int, float]]] = [{} for _ in CATEGORY_NAMES]
        self._tables: list[list[tuple[int, float]]] = []
        self._unlabelled, self._negative, self._positive = (pylibvw.example(self._engine, 1) for _ in range(3))
        self._negative.set_label_string(self._engine, "-1", 1)
        self._positive.set_label_string(self._engine, "1", 1)

    def score(self, lot: Lot) -> Float64s:
        example = self._unlabelled
        found = []
        for row in self._encoded(lot):
            self._fill(example, row)
            self._engine.predict(example)
            found.append(example.get_simplelabel_prediction())
            self._empty(example, row)
        return np.array(found)

    def learn(self, lot: Lot) -> None:
        for row, label in zip(self._encoded(lot), lot.label.tolist(), strict=True):
            example = self._positive if label else self._negative
            self._fill(example, row)
            self._engine.learn(example)
            self._empty(example, row)

    def _fill(self, example: pylibvw.example, row: Pairs) -> None:
        for namespace, features in zip(b"ncmt", row, strict=True):
            example.push_namespace(namespace)
            example.push_feature_list(self._engine, namespace, 0, features)
        self._engine.setup_example(example)

    def _empty(self, example: pylibvw.example, row: Pairs) -> None:
        self._engine.unsetup_example(example)
        for _ in row:
            example.pop_namespace()

    def _encoded(self, lot: Lot) -> Iterator[Pairs]:
        tables = self._tables
        for tree in range(len(tables), lot.outputs.leaves.shape[1]):
            hashes = (feature_hash("leaf", f"{VERSION}:{tree}", str(leaf)) for leaf in range(LEAVES_PER_TREE))
            tables.append([(leaf, 1.0) for leaf in hashes])
        clipped = np.clip(lot.features.numeric, -NUMERIC_MAX, NUMERIC_MAX).tolist()
        columns = [[self._category(at, value) for value in column] for at, column in enumerate(lot.features.categories)]
        margins, leaves = lot.outputs.margin.tolist(), lot.outputs.leaves.tolist()
        for numbers, tokens, margin, row in zip(clipped, zip(*columns, strict=True), margins, leaves, strict=True):
            named = zip(self._hashes, self._missing, numbers, strict=True)
            present = [(name, number) if number == number else missing for name, missing, number in named]
            of_leaves = [table[leaf] for table, leaf in zip(tables, row, strict=True)]
            yield present, list(tokens), [(self._margin, margin)], of_leaves

    def _category(self, column: int, value: str) -> tuple[int, float]:
        known = self._values[column]
        if value not in known:
            known[value] = (feature_hash("category", CATEGORY_NAMES[column], value), 1.0)
        return known[value]


class Text:
    """One %-template per example; the parser sets the example up, and it is finished afterwards."""

    def __init__(self) -> None:
        self._engine = pylibvw.vw(WORDS)
        numbers = " ".join(f"{name}:%.7g" for name in NUMERIC_NAMES)
        categories = " ".join(f"{name}=%s" for name in CATEGORY_NAMES)
        self._whole = f"%s|n {numbers} |c {categories} |m margin:%.7g |t %s"

    def score(self, lot: Lot) -> Float64s:
        return np.array([self._run(line, self._engine.predict) for line in self._lines(lot, [""] * len(lot.label))])

    def learn(self, lot: Lot) -> None:
        for line in self._lines(lot, ["1 " if label else "-1 " for label in lot.label.tolist()]):
            self._run(line, self._engine.learn)

    def _run(self, line: str, act: Callable[[pylibvw.example], None]) -> float:
        (example,) = self._engine._parse(line)
        act(example)
        probability: float = example.get_simplelabel_prediction()
        self._engine._finish_example(example)
        return probability

    def _lines(self, lot: Lot, labels: list[str]) -> Iterator[str]:
        numbers, leaves = lot.features.numeric.tolist(), lot.outputs.leaves.tolist()
        categories = zip(*lot.features.categories, strict=True)
        margins = lot.outputs.margin.tolist()
        for label, row, words, margin, tokens in zip(labels, numbers, categories, margins, leaves, strict=True):
            of_leaves = " ".join([f"{tree}_{leaf}" for tree, leaf in enumerate(tokens)])
            line = self._whole % (label, *row, *words, margin, of_leaves)
            if "nan" in line:  # a missing number is a token of its own, as in the product
                line = MISSING.sub(r"no_\1", line)
            yield line


class Dictionary:
    """A dictionary of names per example, hashed by the binding; the missing number is a token as well."""

    def __init__(self) -> None:
        self._engine = pylibvw.vw(WORDS)

    def score(self, lot: Lot) -> Float64s:
        return np.array([self._run(row, None) for row in self._dictionaries(lot)])

    def learn(self, lot: Lot) -> None:
        for row, label in zip(self._dictionaries(lot), lot.label.tolist(), strict=True):
            self._run(row, "1" if label else "-1")

    def _run(self, row: Named, label: str | None) -> float:
        example = pylibvw.example(self._engine, 1)
        example.push_feature_dict(self._engine, row)
        if label is not None:
            example.set_label_string(self._engine, label, 1)
        self._engine.setup_example(example)
        if label is None:
            self._engine.predict(example)
        else:
            self._engine.learn(example)
        probability: float = example.get_simplelabel_prediction()
        return probability

    def _dictionaries(self, lot: Lot) -> Iterator[Named]:
        numbers, leaves = lot.features.numeric.tolist(), lot.outputs.leaves.tolist()
        categories = zip(*lot.features.categories, strict=True)
        for row, words, margin, tokens in zip(numbers, categories, lot.outputs.margin.tolist(), leaves, strict=True):
            named = zip(NUMERIC_NAMES, row, strict=True)
            yield {
                "n": [(name, value) if value == value else f"no_{name}" for name, value in named],
                "c": [f"{name}={value}" for name, value in zip(CATEGORY_NAMES, words, strict=True)],
                "m": [("margin", margin)],
                "t": [f"{tree}_{leaf}" for tree, leaf in enumerate(tokens)],
            }


def measured(lots: list[Lot]) -> dict[str, dict[str, float]]:
    """Each lot is scored, then learned, by every way in turn, so that a slow moment of the machine hits all alike."""
    ways: dict[str, Way] = {"product": Product(), "before": Before(), "text": Text(), "dictionary": Dictionary()}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    scores = {name: list[Float64s]() for name in ways}
    gc.collect()
    gc.freeze()
    for lot in lots:
        for name, way in ways.items():
            start = time.process_time()
            scores[name].append(way.score(lot))
            between = time.process_time()
            way.learn(lot)
            seconds[name][0].append((between - start) / len(lot.label))
            seconds[name][1].append((time.process_time() - between) / len(lot.label))
    ours = np.concatenate(scores["product"])
    return {
        name: {
            "predict_us": round(float(np.median(seconds[name][0])) * 1e6, 2),
            "learn_us": round(float(np.median(seconds[name][1])) * 1e6, 2),
            "largest_difference": float(np.abs(np.concatenate(scores[name]) - ours).max()),
        }
        for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the learner costs, in us of processor time per row (medians).")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--trees", type=int, nargs="+", default=[0, 30, 60])
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    found = {}
    for trees in arguments.trees:
        found[f"{trees} leaves"] = figures = measured(made_lots(arguments.rows, trees))
        for name, figure in figures.items():
            print(
                f"{trees:3} leaves  {name:10}  predict {figure['predict_us']:6.2f} us  "
                f"learn {figure['learn_us']:6.2f} us  probabilities within {figure['largest_difference']:.1e}"
            )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
