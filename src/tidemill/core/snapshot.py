"""The learner at a known N as one value: what `models/learner.py` freezes and `io/snapshots.py` keeps.

In: model bytes and counters. Out: a frozen snapshot and its digest. Invariant: the digest is a function of what was
learned alone, so that two workers compare it; N, time, arguments and file format stay outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSnapshot:
    """The learner before it folds offset `n` of the examples log.

    learned, positives: examples learned, and how many of them were positive.
    engine: the library that wrote `model`, with its version; only the same one reads it.
    arguments: the engine's arguments as declared; it must be given the same again.
    feature_digest: the declaration of the features that the weights belong to.
    digest: `state_digest(model, learned, positives)`.
    """

    n: int
    learned: int
    positives: int
    engine: str
    arguments: str
    feature_digest: str
    model: bytes
    digest: str


def state_digest(model: bytes, learned: int, positives: int) -> str:
    """BLAKE2b-128 in hex of the weights and the counters."""
    counters = learned.to_bytes(8, "big") + positives.to_bytes(8, "big")
    return blake2b(counters + model, digest_size=16).hexdigest()
