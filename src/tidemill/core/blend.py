"""One probability of several experts: weights that follow the examples log (Fixed Share with sleeping experts).

In: weights, the experts' probabilities, labels in log order. Out: the weighted mean, new weights. Invariant: weights
are positive and add up to 1; they are a function of the rows in order, whatever the pieces, and use only operations
that IEEE 754 rounds exactly (no exp, log or pow), so their bits are the same on every machine.

Herbster and Warmuth, Tracking the best expert (1998), with log loss: w * p^rate for what came, then a share of all
weight is given out evenly. Sleeping experts as Freund, Schapire, Singer and Warmuth (1997): who says nothing about a
row keeps its weight, the awake ones keep their total.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.core.metrics import log_loss
from tidemill.core.records import Float32s, Float64s
from tidemill.core.spec import BlendSpec

PROBABILITY_MIN = 1e-3  # one wrong certainty costs 6.9, not infinity: no expert is ruined by a single example
WEIGHT_MIN = 1e-100  # given out with each share: without one, a weight would underflow to 0 and never come back
RATE_BITS = 24  # the rate is read to 1 / 2^24


@dataclass(frozen=True, slots=True)
class BlendWeights:
    """Weights by expert, all positive; they add up to 1 but for rounding."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def even(cls, names: tuple[str, ...]) -> BlendWeights:
        return cls(names, (1 / len(names),) * len(names))

    def to_text(self) -> str:
        """Exact, for snapshots and digests."""
        return ",".join(f"{name}={weight.hex()}" for name, weight in zip(self.names, self.weights, strict=True))

    @classmethod
    def from_text(cls, text: str) -> BlendWeights:
        """The inverse of `to_text`."""
        pairs = [part.rpartition("=") for part in text.split(",")]
        return cls(tuple(name for name, _, _ in pairs), tuple(float.fromhex(weight) for _, _, weight in pairs))


def blend(weights: BlendWeights, scores: Mapping[str, Float64s | None]) -> Float64s:
    """The weighted mean of the experts that say something, shape (rows,): between the least and the largest of them.

    None or NaN = that expert sleeps. At least one is awake for every row; where none is, the blend is NaN.
    """
    columns = [scores[name] for name in weights.names]
    awake = [(weight, column) for weight, column in zip(weights.weights, columns, strict=True) if column is not None]
    stacked = np.stack([column for _, column in awake])  # (awake, rows)
    is_awake = ~np.isnan(stacked)
    total, mean = np.zeros(stacked.shape[1]), np.zeros(stacked.shape[1])
    for (weight, column), says in zip(awake, is_awake, strict=True):  # one after the other: sums in a fixed order
        total += np.where(says, weight, 0.0)
        mean += np.where(says, weight * column, 0.0)
    with np.errstate(invalid="ignore"):
        mixed = mean / total
    # Rounding must not leave the experts' range.
    return np.asarray(np.clip(mixed, np.fmin.reduce(stacked), np.fmax.reduce(stacked)), dtype=np.float64)


def updated(weights: BlendWeights, spec: BlendSpec, scores: Mapping[str, Float64s], label: Float32s) -> BlendWeights:
    """The weights after the rows in their order; NaN = that expert slept. Labels are 0 or 1, shape (rows,)."""
    came = [_powers(_probability_of(scores[name], label), spec.rate).tolist() for name in weights.names]
    current = list(weights.weights)
    kept, count = 1 - spec.share, len(current)
    given_to_all = spec.share / count + WEIGHT_MIN
    for row in zip(*came, strict=True):
        grown = [weight * factor for weight, factor in zip(current, row, strict=True)]
        total = _sum(grown)
        if total == total:  # nobody sleeps
            scale = kept / total
            current = [weight * scale + given_to_all for weight in grown]
            continue
        awake = [at for at, weight in enumerate(grown) if weight == weight]
        if not awake:
            continue
        before = _sum([current[at] for at in awake])
        scale = kept * before / _sum([grown[at] for at in awake])
        given = spec.share * before / len(awake) + WEIGHT_MIN
        for at in awake:
            current[at] = grown[at] * scale + given
    return BlendWeights(weights.names, tuple(current))


def excess_over_best(blended: Float64s, scores: Mapping[str, Float64s], label: Float32s) -> float:
    """Mean log loss of the blend minus that of the best single expert, over given rows; negative = better than each.

    An expert that slept is compared on the rows where it was awake, so that it is the largest of these differences.
    """
    differences = [
        log_loss(blended[awake], label[awake]) - log_loss(column[awake], label[awake])
        for column, awake in _awake_of(scores)
    ]
    return max(differences)


def _awake_of(scores: Mapping[str, Float64s]) -> Iterator[tuple[Float64s, npt.NDArray[np.bool_]]]:
    for column in scores.values():
        awake = ~np.isnan(column)
        if awake.any():
            yield column, awake


def _sum(values: list[float]) -> float:
    """One after the other; the built-in `sum` adds floats in another way since Python 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total


def _probability_of(column: Float64s, label: Float32s) -> Float64s:
    """What the expert gave to what came; NaN stays NaN."""
    clipped = np.clip(column, PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    return np.where(label == 1, clipped, 1 - clipped)


def _powers(values: Float64s, rate: float) -> Float64s:
    """values ** rate: the product of the square roots that the binary digits of the rate name.

    A power from the C library or numpy has other last bits on processors with other instructions; a root has not.
    """
    digits = round(rate * 2**RATE_BITS)
    if digits == 2**RATE_BITS:
        return values
    product, root = np.ones_like(values), values
    for bit in range(RATE_BITS - 1, -1, -1):
        if not digits & ((2 << bit) - 1):
            break
        root = np.sqrt(root)
        if digits >> bit & 1:
            product = product * root
    return product
