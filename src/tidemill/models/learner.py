"""The online learner: one Vowpal Wabbit workspace.

In: features and what the booster says of them; labels in the order of the log. Out: probabilities, the model's bytes.
Invariant: the weights are a function of the rows learned (and the platform): not of what was scored, of batch sizes, of
time, of the number of saves.

What makes it hold, in Vowpal Wabbit 9.11.9 (each has a test):
- Resuming is bit-exact when the whole argument string is given again beside `-i`: the file keeps the adaptive and
  normalised state (save_resume is the default) but not the loss, without which the rest of the log teaches otherwise.
- We hold three examples for good (to predict, positive, negative), fill and empty them, and never "finish" one:
  finishing advances counters which are written to the model file, and with `--sgd` or `--power_t` the learning
  rate, by predictions too. Hence the closed list of options: those for which resume and predict were shown exact.
- `_parse`, which we do not use, sets an example up by itself; `setup_example` after it scales every index again (a
  quarter of the weights remain) and adds a second constant.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pylibvw

from tidemill.core.records import FeatureBatch, Float32s, Float64s
from tidemill.errors import ConfigError, InvariantError
from tidemill.models.example_encoder import ExampleEncoder, Features, LeafTokens, Tokens, margin_features

if TYPE_CHECKING:
    from tidemill.models.booster import BoosterOutputs

ENGINE = f"vowpalwabbit {pylibvw.__version__}"

OPTIONS = {  # option -> does it take a value
    "--loss_function": True,
    "--link": True,
    "-b": True,
    "--bit_precision": True,
    "-l": True,
    "--learning_rate": True,
    "-q": True,
    "--quadratic": True,
    "--interactions": True,
    "--l1": True,
    "--l2": True,
    "--ftrl": False,
    "--ftrl_alpha": True,
    "--ftrl_beta": True,
    "--coin": False,
    "--noconstant": False,
}
SIMPLE_LABEL = 1  # pylibvw.vw.lBinary: a label of -1 or 1
# Namespaces, to be named in -q and --interactions.
NAMESPACES = NUMERIC, CATEGORIES, MARGIN, LEAVES = ord("n"), ord("c"), ord("m"), ord("t")

Row = tuple[Features | Tokens, ...]  # one list a namespace; without a booster the first two


def checked_arguments(arguments: str) -> list[str]:
    """The arguments one by one.

    Raises:
        ConfigError: an option with which the state is not a function of the examples, or the loss is not logistic.
    """
    words = shlex.split(arguments)
    given: dict[str, str] = {}
    position = 0
    while position < len(words):
        option, _, value = words[position].partition("=")
        if option not in OPTIONS:
            raise ConfigError(
                "TM-1501",
                f"learner.arguments: {option} is not among those that resume bit by bit; use {', '.join(OPTIONS)}",
            )
        position += 1
        if OPTIONS[option] and not value:
            if position == len(words):
                raise ConfigError("TM-1501", f"learner.arguments: {option} lacks its value; add it")
            value = words[position]
            position += 1
        given[option] = value
    if given.get("--loss_function") != "logistic" or given.get("--link") != "logistic":
        raise ConfigError(
            "TM-1502",
            "learner.arguments: scores must be probabilities of a binary label; "
            "add --loss_function logistic --link logistic",
        )
    return words


class Learner:
    """Scores and learns rows; one thread owns it."""

    def __init__(
        self,
        arguments: str,
        feature_names: tuple[str, ...],
        category_names: tuple[str, ...],
        *,
        model: bytes | None = None,
    ) -> None:
        """A new workspace, or that of `save()`, bit by bit; the arguments are the same then.

        Raises:
            ConfigError: arguments that are not allowed.
        """
        self._encoder = ExampleEncoder(feature_names, category_names)
        self._leaves = LeafTokens("")
        words = [*checked_arguments(arguments), "--quiet"]
        self._engine = pylibvw.vw(words) if model is None else _resumed(words, model)
        self._unlabelled = pylibvw.example(self._engine, SIMPLE_LABEL)
        self._by_label = (self._labelled("-1"), self._labelled("1"))

    def score(self, features: FeatureBatch, outputs: BoosterOutputs | None, booster: str) -> Float64s:
        """The probability of each row by itself, shape (rows,).

        outputs: what the booster of version `booster` says of the same rows; None = there is no booster.

        Raises:
            InvariantError: shapes that do not fit.
        """
        example, predict = self._unlabelled, self._engine.predict
        probability = np.empty(len(features))
        for at, row in enumerate(self._rows(features, None, outputs, booster)):
            self._fill(example, row)
            predict(example)
            probability[at] = example.get_simplelabel_prediction()
            self._empty(example, row)
        return probability

    def learn(
        self,
        features: FeatureBatch,
        label: Float32s,
        rows: npt.NDArray[np.intp],
        outputs: BoosterOutputs | None,
        booster: str,
    ) -> None:
        """Learn the given rows (positions) in their order. `label` and `outputs` are of all rows; labels are 0 or 1.

        Raises:
            InvariantError: shapes that do not fit; nothing was learned.
        """
        if label.shape != (len(features),):
            raise _shapes(f"labels have shape {label.shape}, there are {len(features)} rows")
        learn = self._engine.learn
        encoded = self._rows(features, rows, outputs, booster)
        for row, one in zip(encoded, label[rows].astype(np.int64).tolist(), strict=True):
            example = self._by_label[one]
            self._fill(example, row)
            learn(example)
            self._empty(example, row)

    def save(self) -> bytes:
        """The model's bytes; the workspace goes on unchanged."""
        return _saved(self._engine)

    def _rows(
        self,
        features: FeatureBatch,
        rows: npt.NDArray[np.intp] | None,
        outputs: BoosterOutputs | None,
        booster: str,
    ) -> Iterator[Row]:
        numbers, categories = self._encoder.encode(features, rows)
        if outputs is None:
            return zip(numbers, categories, strict=True)
        margin, leaves = outputs.margin, outputs.leaves
        if margin.shape != (len(features),) or leaves.ndim != 2 or len(leaves) != len(features):
            raise _shapes(f"margin and leaves have shapes {margin.shape}, {leaves.shape}, for {len(features)} rows")
        if rows is not None:
            margin, leaves = margin[rows], leaves[rows]
        if self._leaves.version != booster:
            self._leaves = LeafTokens(booster)
        return zip(numbers, categories, margin_features(margin), self._leaves.encode(leaves), strict=True)

    def _labelled(self, label: str) -> pylibvw.example:
        example = pylibvw.example(self._engine, SIMPLE_LABEL)
        example.set_label_string(self._engine, label, SIMPLE_LABEL)
        return example

    def _fill(self, example: pylibvw.example, row: Row) -> None:
        engine = self._engine
        for namespace, features in zip(NAMESPACES, row, strict=False):
            example.push_namespace(namespace)
            example.push_feature_list(engine, namespace, 0, features)
        engine.setup_example(example)

    def _empty(self, example: pylibvw.example, row: Row) -> None:
        self._engine.unsetup_example(example)
        for _ in row:
            example.pop_namespace()  # takes its features along


def _shapes(problem: str) -> InvariantError:
    return InvariantError("TM-9501", f"learner: {problem}; this is a bug, please report it")


def _saved(engine: pylibvw.vw) -> bytes:
    """The model file's bytes; Vowpal Wabbit writes to a name only."""
    with tempfile.TemporaryDirectory(prefix="tidemill-learner-") as folder:
        path = Path(folder, "model.vw")
        engine.save(str(path))
        return path.read_bytes()


def _resumed(words: list[str], model: bytes) -> pylibvw.vw:
    with tempfile.TemporaryDirectory(prefix="tidemill-learner-") as folder:
        path = Path(folder, "model.vw")
        path.write_bytes(model)
        return pylibvw.vw([*words, "-i", str(path)])
