"""What the features of the payments must be, by pandas and brute force from the CSV files.

In: the files of `streams/payments`. Out: a row per payment, the features by name. Invariant: shares no code with the
product; every value is computed from all records that came before the payment, as `docs/features.md` defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parent / "streams" / "payments"
CONFIG = FOLDER / "payments.yaml"
FILES = {
    "payments.cards": FOLDER / "card_statuses.csv",
    "payments.settlements": FOLDER / "settlements.csv",
    "payments.presented": FOLDER / "payments.csv",
}
PANES = 12
SECOND, MINUTE = 1_000, 60_000


def payments() -> pd.DataFrame:
    """One row per payment, in the order of time, with `_time` in ms."""
    table = pd.read_csv(FILES["payments.presented"], dtype={"payment_no": "int64"}, keep_default_na=False)
    table["card_token"] = table["card_token"].replace("", None)
    return table


def settlements() -> pd.DataFrame:
    """One row per settlement, with the fields of its payment, and `label`."""
    table = pd.read_csv(FILES["payments.settlements"], dtype={"payment_no": "int64"})
    moments = pd.to_datetime(table["_time"], format="ISO8601", utc=True)
    table["_time"] = (moments - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)
    table["label"] = (table["decided_as"] == "chargeback").astype(int)
    of_payment = payments().drop(columns=["_time"])
    return table.merge(of_payment, on="payment_no", how="left", validate="one_to_one")


def cards() -> pd.DataFrame:
    return pd.read_csv(FILES["payments.cards"])


@cache
def expected_features() -> pd.DataFrame:
    """The features of `payments.yaml`, a column each, one row per payment; categories are text."""
    asked, settled, known = payments(), settlements(), cards()
    shop, card = ["merchant", "iso_country"], ["card_token"]
    label, cents = settled["label"], (asked["amount_eur"] / 0.01).round()
    return pd.DataFrame(
        {
            "payment_no": asked["payment_no"],
            "amount_eur": asked["amount_eur"],
            "installments": asked["installments"],
            "is_repeat": asked["is_repeat"].astype(str).str.lower().eq("true").astype(int),
            "entry_mode": asked["entry_mode"],
            "merchant": asked["merchant"],
            "iso_country": asked["iso_country"],
            "minute": _local_minutes(asked, "Asia/Tokyo"),
            "shop_count_60s": _windowed(asked, asked, shop, 60 * SECOND, None)[0],
            "shop_mean_amount_5m": _mean(asked, asked, shop, 5 * MINUTE, asked["amount_eur"], 0.01, 0.0, 0.0),
            "shop_chargebacks_10m": _mean(asked, settled, shop, 10 * MINUTE, label, 1.0, 0.25, 4.0),
            "shop_chargebacks_1m": _mean(asked, settled, shop, 1 * MINUTE, label, 1.0, 0.25, 2.0),
            "shop_chargebacks_lately": _decayed(asked, settled, shop, 2 * MINUTE, label, 0.25, 4.0),
            "shop_count_lately": _decayed(asked, asked, shop, 30 * SECOND, None, 0.0, 0.0),
            "shop_per_hour": _windowed(asked, asked, shop, 2 * MINUTE, None)[0] * 30,
            "shop_spent_2m": _windowed(asked, asked, shop, 2 * MINUTE, cents)[1] * 0.01,
            "shop_smallest_5m": _extreme(asked, asked, shop, 5 * MINUTE, cents, np.min) * 0.01,
            "shop_largest_5m": _extreme(asked, asked, shop, 5 * MINUTE, cents, np.max) * 0.01,
            "shop_cards_3m": _distinct(asked, asked, shop, 3 * MINUTE, asked["card_token"]),
            "shop_undecided": np.maximum(
                0,
                _windowed(asked, asked, shop, 60 * SECOND, None)[0]
                - _windowed(asked, settled, shop, 60 * SECOND, None)[0],
            ),
            "shop_last_fee": _latest(asked, settled, shop, settled["fee_eur"]),
            "card_count_30s": _windowed(asked, asked, card, 30 * SECOND, None)[0],
            "card_idle": (asked["_time"] - _latest(asked, asked, card, asked["_time"])) / SECOND,
            "card_amount_before": _latest(asked, asked, card, asked["amount_eur"], back=1),
            "card_chargebacks_10m": _mean(asked, settled, card, 10 * MINUTE, label, 1.0, 0.25, 2.0),
            "card_risk": _latest(asked, known, card, known["card_risk"]),
            "card_is_blocked": _latest(asked, known, card, known["is_blocked"].astype(int)),
        }
    )


def outcomes() -> dict[str, int]:
    """How many payments are answered, how many never."""
    answered = payments()["payment_no"].isin(settlements()["payment_no"]).sum()
    return {"example": int(answered), "expired": int(len(payments()) - answered)}


def _windowed(
    asked: pd.DataFrame, fed: pd.DataFrame, entity: list[str], window_ms: int, stored: pd.Series | None
) -> tuple[np.ndarray, np.ndarray]:
    """Count and sum of what each payment sees in the panes of its window."""
    counts, sums = np.zeros(len(asked)), np.zeros(len(asked))
    for row, inside, _ in _in_panes(asked, fed, entity, window_ms // PANES):
        counts[row] = len(inside)
        sums[row] = stored.to_numpy()[inside].sum() if stored is not None else 0
    return counts, sums


def _extreme(
    asked: pd.DataFrame,
    fed: pd.DataFrame,
    entity: list[str],
    window_ms: int,
    stored: pd.Series,
    pick: Callable[[np.ndarray], float],
) -> np.ndarray:
    found = np.full(len(asked), np.nan)
    for row, inside, _ in _in_panes(asked, fed, entity, window_ms // PANES):
        if len(inside):
            found[row] = pick(stored.to_numpy()[inside])
    return found


def _decayed(
    asked: pd.DataFrame,
    fed: pd.DataFrame,
    entity: list[str],
    half_life_ms: int,
    values: pd.Series | None,
    prior: float,
    prior_weight: float,
) -> np.ndarray:
    """A decayed count, or with `values` a decayed mean."""
    weights = np.round(2 ** (-np.arange(PANES) / 2) * 2**20) / 2**20
    result = np.zeros(len(asked))
    for row, inside, ages in _in_panes(asked, fed, entity, half_life_ms // 2):
        count = weights[ages].sum()
        if values is None:
            result[row] = count
        else:
            total = (weights[ages] * values.to_numpy()[inside]).sum()
            result[row] = (total + prior * prior_weight) / (count + prior_weight)
    return result


def _distinct(
    asked: pd.DataFrame, fed: pd.DataFrame, entity: list[str], window_ms: int, texts: pd.Series
) -> np.ndarray:
    """Linear counting over 256 buckets, as the documentation gives it."""
    buckets = np.array([-1 if pd.isna(text) else blake2b(text.encode(), digest_size=1).digest()[0] for text in texts])
    result = np.zeros(len(asked))
    for row, found in _seen(asked, fed, entity):
        is_recent = fed["_time"].to_numpy()[found] > asked["_time"].iat[row] - window_ms
        hit = set(buckets[found][is_recent].tolist()) - {-1}
        result[row] = 256 * np.log(256 / max(1, 256 - len(hit)))
    return result


def _local_minutes(asked: pd.DataFrame, zone: str) -> pd.Series:
    local = pd.to_datetime(asked["_time"], unit="ms", utc=True).dt.tz_convert(zone)
    return local.dt.hour * 60 + local.dt.minute


def _mean(
    asked: pd.DataFrame,
    fed: pd.DataFrame,
    entity: list[str],
    window_ms: int,
    values: pd.Series,
    unit: float,
    prior: float,
    prior_weight: float,
) -> np.ndarray:
    count, total = _windowed(asked, fed, entity, window_ms, (values / unit).round())
    with np.errstate(invalid="ignore"):
        return (total * unit + prior * prior_weight) / (count + prior_weight)


def _latest(asked: pd.DataFrame, fed: pd.DataFrame, entity: list[str], values: pd.Series, back: int = 0) -> np.ndarray:
    newest = np.full(len(asked), np.nan)
    for row, found in _seen(asked, fed, entity):
        if len(found) > back:
            newest[row] = values.iat[found[np.argsort(fed["_time"].to_numpy()[found])[-1 - back]]]
    return newest


Rows = np.ndarray  # positions in a table


def _in_panes(
    asked: pd.DataFrame, fed: pd.DataFrame, entity: list[str], pane_ms: int
) -> Iterator[tuple[int, Rows, np.ndarray]]:
    """For each payment what it sees in its pane and the eleven before, and how many panes ago each came."""
    panes = fed["_time"].to_numpy() // pane_ms
    for row, found in _seen(asked, fed, entity):
        ages = asked["_time"].iat[row] // pane_ms - panes[found]
        is_inside = ages < PANES
        yield row, found[is_inside], ages[is_inside]


def _seen(asked: pd.DataFrame, fed: pd.DataFrame, entity: list[str]) -> Iterator[tuple[int, Rows]]:
    """For each payment the rows of `fed` that came before it and have its entity; no two records have the same time."""
    time = fed["_time"].to_numpy()
    by_entity = fed.groupby(entity, dropna=True).indices
    nothing = np.zeros(0, dtype=int)
    for row, key in enumerate(asked[entity].itertuples(index=False, name=None)):
        found = by_entity.get(key if len(entity) > 1 else key[0], nothing) if all(map(pd.notna, key)) else nothing
        yield row, found[time[found] < asked["_time"].iat[row]]
