"""A model that is cheap and forgets nothing: its state is a digest of every example in order.

In: examples in the order of their log, features. Out: probabilities that no other state and no other features give.
Invariant: one example more, less, twice or in another place changes every score after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Scores

NOTHING = b"nothing learned"


def learn(state: bytes, offset: int, label: int, numeric: bytes) -> bytes:
    """`numeric`: float32 as served, empty when the example is not learned."""
    return blake2b(b"%s %d %d %s" % (state, offset, label, numeric), digest_size=16).digest()


def probability(state: bytes, numeric: bytes, categories: Iterable[str]) -> float:
    """Strictly between 0 and 1."""
    text = "\0".join(categories).encode()
    return (1 + int.from_bytes(blake2b(state + numeric + text, digest_size=4).digest(), "big")) / (2**32 + 2)


class DigestModel:
    """Stands in for `models.serving.Serving`."""

    missing: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.n = 0
        self.state = NOTHING

    def digest(self) -> str:
        return self.state.hex()

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        blend = np.array(
            [
                probability(self.state, features.numeric[row].tobytes(), [texts[row] for texts in features.categories])
                for row in range(len(features))
            ]
        )
        return Scores(learner=blend, base_rate=blend, booster=None, blend=blend, n=self.n, model_version="digest")

    def fold(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> list[object]:
        for row in range(len(examples)):
            is_learned = bool(examples.is_learned[row])
            numeric = examples.features.numeric[row].tobytes() if is_learned else b""
            self.state = learn(self.state, int(examples.offset[row]), int(examples.label[row]), numeric)
        self.n = offset_next
        return []
