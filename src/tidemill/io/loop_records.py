"""The loop's records as bytes: alerts, ticks, and the story of the models.

In: values of `core.alerts`, `core.ticks`, `core.story`. Out: framed Avro, and back. Invariant: equal values give equal
bytes, whatever the order of their maps; decoding gives the value that was encoded. A tick names the incidents that it
wrote about; the records themselves stand on the alarm topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from tidemill.core.alerts import Alert
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import RolloutState, Shift, Tick
from tidemill.errors import StateLostError
from tidemill.io.outputs import Encoder, decode

ALERT_SCHEMA = "alert.v1"
TICK_SCHEMA = "tick.v1"
STORY_SCHEMA = "model_event.v1"
_ALERT_FIELDS = tuple(field.name for field in fields(Alert))
_STORY_FIELDS = tuple(field.name for field in fields(StoryEvent))
_PLAIN_TICK_FIELDS = tuple(
    field.name for field in fields(Tick) if field.name not in ("losses", "quality", "shifts", "rollout", "alerts")
)
_SHIFT_COLUMNS = {
    "shift_subjects": "subject",
    "shift_tests": "test",
    "shift_effects": "effect",
    "shift_p_values": "p_value",
    "shift_drifts": "is_drift",
}


def encode_alerts(alerts: Sequence[Alert]) -> list[bytes]:
    """One value per record of the alarm topic; the key of each is `alert.key`."""
    return _encode(ALERT_SCHEMA, [{name: getattr(alert, name) for name in _ALERT_FIELDS} for alert in alerts])


def decode_alerts(values: Sequence[bytes]) -> list[Alert]:
    """The inverse.

    Raises:
        RecordError: a value has another schema, or is not whole.
    """
    rows = decode(ALERT_SCHEMA, values).to_pylist(maps_as_pydicts="strict")
    return [Alert(**row | {"culprits": tuple(row["culprits"])}) for row in rows]


def encode_ticks(ticks: Sequence[Tick]) -> list[bytes]:
    """One value per tick; the key of each is its time as text."""
    return _encode(TICK_SCHEMA, [_tick_row(tick) for tick in ticks])


def decode_ticks(values: Sequence[bytes], alerts: Iterable[Alert] | None = None) -> list[Tick]:
    """The inverse.

    Args:
        alerts: records of the alarm topic, in its order: all of these ticks, and any others. None: the ticks are
            returned without their alerts.
    Raises:
        RecordError: a value has another schema, or is not whole.
        StateLostError: TM-4121, a record that a tick names is not among `alerts`.
    """
    rows = decode(TICK_SCHEMA, values).to_pylist(maps_as_pydicts="strict")
    if alerts is None:
        return [_tick(row, ()) for row in rows]
    told: dict[int, list[Alert]] = {}
    for alert in alerts:
        told.setdefault(alert.time, []).append(alert)
    return [_tick(row, _alerts_of(row, told.get(row["time"], ()))) for row in rows]


def encode_story(events: Sequence[StoryEvent]) -> list[bytes]:
    """One value per step; the key of each is its version, or empty."""
    return _encode(STORY_SCHEMA, [{name: getattr(event, name) for name in _STORY_FIELDS} for event in events])


def decode_story(values: Sequence[bytes]) -> list[StoryEvent]:
    """The inverse.

    Raises:
        RecordError: a value has another schema, or is not whole.
    """
    return [StoryEvent(**row) for row in decode(STORY_SCHEMA, values).to_pylist(maps_as_pydicts="strict")]


def _tick_row(tick: Tick) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(tick, name) for name in _PLAIN_TICK_FIELDS}
    row |= {"losses": tick.losses, "quality": tick.quality, "alerts": [alert.id for alert in tick.alerts]}
    row |= {column: [getattr(shift, name) for shift in tick.shifts] for column, name in _SHIFT_COLUMNS.items()}
    rollout = tick.rollout
    return row | {
        "rollout_other": rollout.other if rollout else "",
        "rollout_stage_start": rollout.stage_start if rollout else -1,
        "rollout_examples": rollout.examples if rollout else 0,
        "rollout_mean": rollout.mean if rollout else None,
        "rollout_lower": rollout.lower if rollout else None,
        "rollout_upper": rollout.upper if rollout else None,
        "rollout_verdict": rollout.verdict if rollout else "",
    }


def _tick(row: Mapping[str, Any], alerts: tuple[Alert, ...]) -> Tick:
    shifts = zip(*(row[column] for column in _SHIFT_COLUMNS), strict=True)
    rollout = {name.removeprefix("rollout_"): value for name, value in row.items() if name.startswith("rollout_")}
    return Tick(
        **{name: row[name] for name in _PLAIN_TICK_FIELDS},
        losses=row["losses"],
        quality=row["quality"],
        shifts=tuple(Shift(*shift) for shift in shifts),
        rollout=RolloutState(**rollout) if row["rollout_verdict"] else None,
        alerts=alerts,
    )


def _alerts_of(row: Mapping[str, Any], told: Sequence[Alert]) -> tuple[Alert, ...]:
    """The monitor's records of a tick: people's acknowledgements and demands may have its time, too."""
    rest = iter([alert for alert in told if alert.event != "acknowledged"])
    found = []
    for wanted in row["alerts"]:
        alert = next((one for one in rest if one.id == wanted), None)
        if alert is None:
            raise StateLostError(
                "TM-4121",
                f"the tick that ended at {row['time']} names incident {wanted}, but the alarm topic holds no such "
                "record of that time: records were deleted; restore the topic, or see `tidemill reset`",
            )
        found.append(alert)
    return tuple(found)


def _encode(schema: str, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    if not rows:
        return []
    columns = {name: [_as_items(row[name]) for row in rows] for name in rows[0]}
    return _encoder(schema).encode(columns)


def _as_items(value: Any) -> Any:
    """A map's entries in the order of their names, so that its bytes do not depend on how it was filled."""
    if isinstance(value, Mapping):
        return [(name, float(value[name])) for name in sorted(value)]
    return value


@cache
def _encoder(schema: str) -> Encoder:
    return Encoder(schema)
