"""The models at a known N as one value: what `models/serving.py` freezes and `io/model_snapshots.py` keeps.

In: model bytes, roles, weights, counters. Out: a frozen snapshot and its digest. Invariant: the digest is a function of
what was folded alone, so that two workers compare it; N, arguments and file format stay outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """The replicated state before offset `n` of the examples log is folded.

    learned, positives: examples learned, and how many of them were positive.
    champion, challenger: versions; "" = there is no challenger. parent: the champion before, "" = none.
    is_frozen: whether the champion's learner is frozen. is_canary: whether the challenger serves a share.
    excised: the ranges of offsets that taught nothing, as `Roles.excised_text`.
    blend: weights of the experts, as `core.blend` packs them.
    engine: the library that wrote `learners`, with its version; only the same one reads them.
    arguments: the engine's arguments as declared; it must be given the same again.
    feature_digest: the declaration of the features that the weights belong to.
    learners: the champion's, then the challenger's where there is one.
    digest: `state_digest` of the above.
    """

    n: int
    learned: int
    positives: int
    champion: str
    challenger: str
    parent: str
    is_frozen: bool
    is_canary: bool
    excised: str
    blend: str
    engine: str
    arguments: str
    feature_digest: str
    learners: tuple[bytes, ...]
    digest: str


def state_digest(
    *, learned: int, positives: int, roles: tuple[str, ...], blend: str, learners: tuple[bytes, ...]
) -> str:
    """BLAKE2b-128 in hex of counters, roles, weights of the blend and of the learners."""
    state = blake2b(digest_size=16)
    parts = (*(role.encode() for role in roles), blend.encode(), *learners)
    for part in (learned.to_bytes(8, "big"), positives.to_bytes(8, "big"), *parts):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()


def digest_of(snapshot: ModelSnapshot) -> str:
    """What the snapshot's digest must be."""
    return state_digest(
        learned=snapshot.learned,
        positives=snapshot.positives,
        roles=(
            snapshot.champion,
            snapshot.challenger,
            snapshot.parent,
            str(snapshot.is_frozen),
            str(snapshot.is_canary),
            snapshot.excised,
        ),
        blend=snapshot.blend,
        learners=snapshot.learners,
    )
