"""The online learner: Vowpal Wabbit as a replicated state machine.

In: features to score, examples in the order of the log. Out: probabilities, snapshots. Invariant: weights, counters and
digest are a function of the examples folded (and the platform): not of what was scored, of batch sizes, of time, of
the number of saves, nor of the snapshots in between.

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
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pylibvw

from tidemill.core.records import ExampleColumns, FeatureBatch, Float64s, Scores
from tidemill.core.snapshot import LearnerSnapshot, state_digest
from tidemill.core.spec import LearnerSpec
from tidemill.errors import ConfigError, InvariantError, ModelRefusedError
from tidemill.models.example_encoder import ExampleEncoder, Features

MODEL_VERSION = "learner"  # one learner per app until there are boosters
ENGINE = f"vowpalwabbit {pylibvw.__version__}"
PRIOR_WEIGHT = 1.0  # the base rate starts at the declared default, which weighs as much as one example

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
NUMERIC, CATEGORIES = ord("n"), ord("c")  # namespaces, to be named in -q and --interactions


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
    """Scores rows and folds examples; one thread owns it."""

    def __init__(
        self,
        spec: LearnerSpec,
        feature_names: tuple[str, ...],
        category_names: tuple[str, ...],
        *,
        feature_digest: str,
        default_probability: float,
        snapshot: LearnerSnapshot | None = None,
    ) -> None:
        """A new learner at N = 0, or the one of `snapshot` at its N.

        Raises:
            ConfigError: arguments that are not allowed.
            ModelRefusedError: the snapshot is broken, or was made by another engine, of other features or arguments.
        """
        self._spec = spec
        self._feature_digest = feature_digest
        self._default = default_probability
        self._encoder = ExampleEncoder(feature_names, category_names)
        words = [*checked_arguments(spec.arguments), "--quiet"]
        if snapshot is None:
            self._n = self._learned = self._positives = 0
            self._engine = pylibvw.vw(words)
        else:
            self._refuse_unfit(snapshot)
            self._n, self._learned, self._positives = snapshot.n, snapshot.learned, snapshot.positives
            self._engine = _resumed(words, snapshot.model)
        self._next_multiple = self._multiple_after(self._n)
        self._unlabelled = pylibvw.example(self._engine, SIMPLE_LABEL)
        self._by_label = (self._labelled("-1"), self._labelled("1"))

    @property
    def n(self) -> int:
        return self._n

    @property
    def learned(self) -> int:
        """Examples learned so far; amendments and flagged ones are passed over."""
        return self._learned

    def score(self, features: FeatureBatch) -> Scores:
        """The probability of each row by itself.

        Until the first example is learned the declared default answers, `is_degraded`. The base rate is the share of
        positives learned, (positives + default * PRIOR_WEIGHT) / (learned + PRIOR_WEIGHT).
        """
        is_new = self._learned == 0
        learner = np.full(len(features), self._default) if is_new else self._probabilities(features)
        rate = (self._positives + self._default * PRIOR_WEIGHT) / (self._learned + PRIOR_WEIGHT)
        return Scores(
            learner=learner,
            base_rate=np.full(len(features), rate),
            booster=None,
            blend=learner,
            n=self._n,
            model_version=MODEL_VERSION,
            is_degraded=is_new,
        )

    def fold(self, examples: ExampleColumns, offset_next: int) -> tuple[LearnerSnapshot, ...]:
        """Learn examples in log order and move N to `offset_next`; offsets without an example are holes.

        Returns:
            The snapshots that fell due: before the first example at or past a multiple of `snapshot_every`, the
            state under that multiple (the last one, when holes span several). It is the same whatever the batches.
        Raises:
            InvariantError: offsets before N, out of order or past `offset_next`; a label that is neither 0 nor 1.
        """
        self._refuse_bad_fold(examples, offset_next)
        snapshots = []
        start = 0
        while (cut := int(np.searchsorted(examples.offset, self._next_multiple))) < len(examples):
            self._learn(examples, start, cut)
            offset = int(examples.offset[cut])
            self._n = offset - offset % self._spec.snapshot_every
            snapshots.append(self.snapshot())
            self._next_multiple = self._multiple_after(offset)
            start = cut
        self._learn(examples, start, len(examples))
        self._n = offset_next
        return tuple(snapshots)

    def snapshot(self) -> LearnerSnapshot:
        """The state at N, frozen."""
        model = _saved(self._engine)
        return LearnerSnapshot(
            n=self._n,
            learned=self._learned,
            positives=self._positives,
            engine=ENGINE,
            arguments=self._spec.arguments,
            feature_digest=self._feature_digest,
            model=model,
            digest=state_digest(model, self._learned, self._positives),
        )

    def digest(self) -> str:
        """BLAKE2b-128 in hex of weights and counters."""
        return state_digest(_saved(self._engine), self._learned, self._positives)

    def _multiple_after(self, offset: int) -> int:
        return (offset // self._spec.snapshot_every + 1) * self._spec.snapshot_every

    def _labelled(self, label: str) -> pylibvw.example:
        example = pylibvw.example(self._engine, SIMPLE_LABEL)
        example.set_label_string(self._engine, label, SIMPLE_LABEL)
        return example

    def _probabilities(self, features: FeatureBatch) -> Float64s:
        example, predict = self._unlabelled, self._engine.predict
        probability = np.empty(len(features))
        for row, (numeric, categories) in enumerate(self._encoder.encode(features)):
            self._fill(example, numeric, categories)
            predict(example)
            probability[row] = example.get_simplelabel_prediction()
            self._empty(example)
        return probability

    def _learn(self, examples: ExampleColumns, start: int, stop: int) -> None:
        """Learn the positions [start, stop) that teach."""
        rows = start + np.flatnonzero(examples.is_learned[start:stop])
        if not len(rows):
            return
        learn = self._engine.learn
        labels: Iterable[int] = examples.label[rows].astype(np.int64).tolist()
        for (numeric, categories), label in zip(self._encoder.encode(examples.features, rows), labels, strict=True):
            example = self._by_label[label]
            self._fill(example, numeric, categories)
            learn(example)
            self._empty(example)
            self._positives += label
        self._learned += len(rows)

    def _fill(self, example: pylibvw.example, numeric: Features, categories: Features) -> None:
        example.push_namespace(NUMERIC)
        example.push_feature_list(self._engine, NUMERIC, 0, numeric)
        example.push_namespace(CATEGORIES)
        example.push_feature_list(self._engine, CATEGORIES, 0, categories)
        self._engine.setup_example(example)

    def _empty(self, example: pylibvw.example) -> None:
        self._engine.unsetup_example(example)
        example.pop_namespace()  # takes its features along
        example.pop_namespace()

    def _refuse_bad_fold(self, examples: ExampleColumns, offset_next: int) -> None:
        offsets = [self._n - 1, *examples.offset.tolist(), offset_next]
        in_order = all(before < after for before, after in pairwise(offsets))
        if not in_order:
            raise InvariantError(
                "TM-9502",
                f"examples log: cannot fold offsets {_ends(examples.offset.tolist())} up to {offset_next} "
                f"into a learner at {self._n}: each once and in order; this is a bug, please report it",
            )
        labels = examples.label[examples.is_learned]
        if not np.isin(labels, (0, 1)).all():
            raise InvariantError(
                "TM-9503",
                f"examples log: a label among offsets {_ends(examples.offset.tolist())} is neither 0 nor 1; "
                "this is a bug, please report it",
            )

    def _refuse_unfit(self, snapshot: LearnerSnapshot) -> None:
        """The engine itself refuses nothing: a cut file gives a model, other arguments another one."""
        name = f"learner snapshot at N={snapshot.n}"
        found = state_digest(snapshot.model, snapshot.learned, snapshot.positives)
        if found != snapshot.digest:
            raise ModelRefusedError(
                "TM-5001",
                f"{name}: its bytes have digest {found}, promised was {snapshot.digest}; "
                "delete it, the examples log is then folded from an older one",
            )
        for what, theirs, ours in (
            ("engine", snapshot.engine, ENGINE),
            ("arguments", snapshot.arguments, self._spec.arguments),
            ("feature digest", snapshot.feature_digest, self._feature_digest),
        ):
            if theirs != ours:
                raise ModelRefusedError(
                    "TM-5002",
                    f"{name}: made with {what} {theirs!r}, this worker has {ours!r}; "
                    "delete it to fold the examples log from its start, or put the former back",
                )


def _ends(offsets: list[int]) -> str:
    return f"{offsets[0]}..{offsets[-1]}" if offsets else "(none)"


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
