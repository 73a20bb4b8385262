"""May a trained version go into the shadow? Challenger against champion and constant, on the same rows.

In: probabilities and labels of recent rows and of the holdout, as columns. Out: passed or not, every reason in words,
the numbers. Invariant: all models are measured on the same rows; the holdout is the same for every version of an app.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidemill.core.loop_spec import RetrainSpec
from tidemill.core.metrics import auc, log_loss
from tidemill.core.records import Float64s, Int64s
from tidemill.core.spec import CostSpec
from tidemill.errors import InvariantError

COST_SHARE = 0.1  # a cost may rise by this share of the champion's: it moves by more between two samples of 2,000 rows
COST_SLACK = (
    0.002  # and by this share of the dearer error a row: where costs are almost nothing, a share of them is less
)

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateRows:
    """Rows that neither model was trained on. All columns have the same length.

    champion: None where there is no champion with a booster. codes: of each category column the position in its
    `values`, below 0 = none.
    """

    label: npt.ArrayLike
    challenger: Float64s
    champion: Float64s | None
    codes: Mapping[str, Codes] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """reasons: why it is refused, all of them; when it is passed, what it was measured to be.

    evidence: "<set>/<model>/log_loss", "<set>/<model>/auc", "<set>/<model>/cost", "<set>/rows" with set `recent` or
    `holdout`, and "<set>/slice/<column>=<value>" = the challenger's loss minus the champion's, of the worst slice only.
    What cannot be computed (the AUC of one class) is absent.
    """

    is_passed: bool
    reasons: tuple[str, ...]
    evidence: Mapping[str, float]


def judge(recent: GateRows, holdout: GateRows, *, base_rate: float, costs: CostSpec, spec: RetrainSpec) -> GateVerdict:
    """Passed when the challenger is, on the recent rows, no worse than the constant, and on both sets no worse than the
    champion: by log loss, cost at the decision and slices, each within its margin of `spec`.

    base_rate: the constant's probability, of the examples that the challenger was trained on. A set without rows proves
    nothing: without recent rows it is refused, a holdout without rows is left out.
    """
    evidence: dict[str, float] = {}
    reasons: list[str] = []
    if not len(recent.challenger):
        return GateVerdict(is_passed=False, reasons=("there are no recent rows to compare on",), evidence=evidence)
    for name, rows in (("recent", recent), ("holdout", holdout)):
        if len(rows.challenger):
            evidence.update(_measured(name, rows, base_rate, costs))
            reasons.extend(_worse_than_champion(name, evidence, costs, spec))
            reasons.extend(_worse_slices(name, rows, spec, evidence))
    challenger, constant = evidence["recent/challenger/log_loss"], evidence["recent/constant/log_loss"]
    if not challenger <= constant:
        reasons.append(f"recent: log loss {challenger:.5f}, the constant's is {constant:.5f}")
    return GateVerdict(is_passed=not reasons, reasons=tuple(reasons) or (_praise(evidence),), evidence=evidence)


def is_holdout(offset: Int64s, share: float) -> npt.NDArray[np.bool_]:
    """Whether each example of the log belongs to the holdout: a fixed hash of its offset, the same on every machine.

    The hash is splitmix64 (Steele, Lea, Flood 2014): neighbours are independent, and with a larger share the same
    offsets stay in.
    """
    if not 0 <= share < 1:
        raise InvariantError("TM-9711", f"gate: a holdout of {share} is no share of the examples; this is a bug")
    mixed = offset.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed < np.uint64(int(share * 2**64)), dtype=np.bool_)


def cost_of(probability: Float64s, label: npt.ArrayLike, costs: CostSpec) -> float:
    """The mean cost of deciding positive at or above the threshold."""
    is_alarm = probability >= costs.threshold
    is_positive = np.asarray(label) == 1
    false_alarms, misses = int((is_alarm & ~is_positive).sum()), int((~is_alarm & is_positive).sum())
    return (false_alarms * costs.false_alarm + misses * costs.miss) / len(probability)


def _models_of(rows: GateRows, base_rate: float) -> Iterator[tuple[str, Float64s]]:
    yield "challenger", rows.challenger
    if rows.champion is not None:
        yield "champion", rows.champion
    yield "constant", np.full(len(rows.challenger), base_rate)


def _measured(name: str, rows: GateRows, base_rate: float, costs: CostSpec) -> dict[str, float]:
    figures = {f"{name}/rows": float(len(rows.challenger))}
    for model, probability in _models_of(rows, base_rate):
        figures[f"{name}/{model}/log_loss"] = log_loss(probability, rows.label)
        figures[f"{name}/{model}/auc"] = auc(probability, rows.label)
        figures[f"{name}/{model}/cost"] = cost_of(probability, rows.label, costs)
    return {key: figure for key, figure in figures.items() if not math.isnan(figure)}


def _worse_than_champion(name: str, figures: Mapping[str, float], costs: CostSpec, spec: RetrainSpec) -> Iterator[str]:
    if f"{name}/champion/log_loss" not in figures:
        return
    challenger, champion = figures[f"{name}/challenger/log_loss"], figures[f"{name}/champion/log_loss"]
    if not challenger <= champion + spec.gate_margin:
        yield f"{name}: log loss {challenger:.5f}, the champion's is {champion:.5f}, the margin {spec.gate_margin:g}"
    challenger, champion = figures[f"{name}/challenger/cost"], figures[f"{name}/champion/cost"]
    cost_max = champion * (1 + COST_SHARE) + COST_SLACK * max(costs.false_alarm, costs.miss)
    if challenger > cost_max:
        yield f"{name}: cost {challenger:.4f} a decision, the champion's is {champion:.4f}, {cost_max:.4f} at most"


def _worse_slices(name: str, rows: GateRows, spec: RetrainSpec, evidence: dict[str, float]) -> Iterator[str]:
    """By value of each category; the worst one goes into the evidence."""
    if rows.champion is None:
        return
    label = np.asarray(rows.label)
    worst = ("", -math.inf)
    for column, codes in rows.codes.items():
        known = codes >= 0
        for code in np.flatnonzero(np.bincount(codes[known]) >= max(spec.slice_examples, 1)).tolist():
            chosen = codes == code
            challenger = log_loss(rows.challenger[chosen], label[chosen])
            champion = log_loss(rows.champion[chosen], label[chosen])
            value = f"{column}={rows.values[column][code]}"
            worst = max(worst, (value, challenger - champion), key=lambda found: found[1])
            if challenger - champion > spec.slice_margin:
                yield (
                    f"{name}, {value}: log loss {challenger:.5f} over {int(chosen.sum()):,} rows, the champion's is"
                    f" {champion:.5f}, the margin {spec.slice_margin:g}"
                )
    if worst[0]:
        evidence[f"{name}/slice/{worst[0]}"] = worst[1]


def _praise(figures: Mapping[str, float]) -> str:
    challenger = figures["recent/challenger/log_loss"]
    against = "champion" if "recent/champion/log_loss" in figures else "constant"
    return f"recent: log loss {challenger:.5f}, the {against}'s is {figures[f'recent/{against}/log_loss']:.5f}"
