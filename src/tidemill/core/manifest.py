"""What is known of one booster: everything that is needed to check, load and explain it, beside its bytes.

In: what training found. Out: canonical JSON and back, and the version's name. Invariant: the name is a digest of all
the rest, the model's own digest among it, so that a version never changes its meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from tidemill.core.drift.reference import Reference
from tidemill.errors import ModelRefusedError

FORMAT = "tidemill.booster.v1"
VERSION_BYTES = 6  # 12 hex digits: unique among millions of versions of one app, and short enough to read out


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One model version.

    vocabularies: for each category column its known values, in the order of their codes; others are missing.
    features: the columns that the booster reads, numeric before categories, a subset of the app's.
    offset_start, offset_next: the examples [start, next) that it learned from, of those `examples` that teach;
    time_first, time_last: of their labels, ms. examples_digest: BLAKE2b-128 of what it was trained on.
    leaf_trees: how many first trees name their leaves. metrics: n, log_loss, auc, base_rate on the newest examples, by
    trees that did not see them, and what a constant would have lost there; their number of trees was chosen there too.
    created: event time or wall clock, ms, as the trainer was told. model_digest: BLAKE2b-256 of the model's bytes.
    reference: what the examples looked like (core/drift/reference.py), as JSON; None = an older one, that has none.
    """

    app: str
    parent: str
    feature_digest: str
    features: tuple[str, ...]
    category_features: tuple[str, ...]
    vocabularies: tuple[tuple[str, ...], ...]
    leaf_trees: int
    trees: int
    parameters: Mapping[str, float | int | str]
    engine: str
    platform: str
    code_version: str
    offset_start: int
    offset_next: int
    examples: int
    examples_digest: str
    time_first: int
    time_last: int
    metrics: Mapping[str, float]
    cause: str
    created: int
    model_digest: str
    reference: Mapping[str, Any] | None = None

    @property
    def version(self) -> str:
        """The name of the model version."""
        return "m" + blake2b(self.to_bytes(), digest_size=VERSION_BYTES).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed.

        Raises:
            ValueError: a number is not finite.
        """
        content = {"format": FORMAT, **asdict(self)}
        if self.reference is None:
            del content["reference"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """The inverse; `name` is for messages. Check the signature before.

        Raises:
            ModelRefusedError: TM-5010, not JSON, of another format, with other fields or another form than `to_bytes`.
        """
        try:
            found = json.loads(data)
            if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            odd = sorted((found.keys() ^ _FIELDS.keys()) - {"reference"})
            if odd:
                raise ValueError(f"these fields are missing, or should be: {', '.join(odd)}")
            manifest = cls(**{field: _FIELDS[field](field, value) for field, value in found.items()})
            _check_columns(manifest)
            if manifest.to_bytes() != data:
                raise ValueError("it is not in canonical form")
        except (ValueError, RecursionError) as error:
            raise ModelRefusedError(
                "TM-5010", f"manifest of {name} cannot be read: {error}; train the model again"
            ) from error
        return manifest


def model_digest(model: bytes) -> str:
    """BLAKE2b-256 in hex."""
    return blake2b(model, digest_size=32).hexdigest()


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field} is not a text")
    return value


def _integer(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{field} is not an integer")
    return value


def _items(field: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{field} is not a list")
    return value


def _texts(field: str, value: object) -> tuple[str, ...]:
    return tuple(_text(field, item) for item in _items(field, value))


def _vocabularies(field: str, value: object) -> tuple[tuple[str, ...], ...]:
    return tuple(_texts(field, item) for item in _items(field, value))


def _facts(field: str, value: object) -> Mapping[str, float | int | str]:
    if not isinstance(value, dict) or not all(type(fact) in (float, int, str) for fact in value.values()):
        raise ValueError(f"{field} does not map names to numbers and texts")
    return value


def _numbers(field: str, value: object) -> Mapping[str, float]:
    if not isinstance(value, dict) or not all(type(number) is float for number in value.values()):
        raise ValueError(f"{field} does not map names to numbers")
    return value


def _reference(field: str, value: object) -> Mapping[str, Any]:
    return Reference.from_json(value).to_json()


_READERS: dict[str, Callable[[str, object], Any]] = {
    "str": _text,
    "int": _integer,
    "tuple[str, ...]": _texts,
    "tuple[tuple[str, ...], ...]": _vocabularies,
    "Mapping[str, float | int | str]": _facts,
    "Mapping[str, float]": _numbers,
    "Mapping[str, Any] | None": _reference,
}
_FIELDS = {field.name: _READERS[str(field.type)] for field in fields(Manifest)}  # annotations are texts here


def _check_columns(manifest: Manifest) -> None:
    numeric = len(manifest.features) - len(manifest.category_features)
    if numeric < 0 or manifest.features[numeric:] != manifest.category_features:
        raise ValueError("features do not end with category_features")
    if len(set(manifest.features)) != len(manifest.features):
        raise ValueError("features holds a column twice")
    if len(manifest.vocabularies) != len(manifest.category_features):
        raise ValueError("there is not one vocabulary for each of category_features")
    if manifest.trees < 1 or not 0 <= manifest.leaf_trees <= manifest.trees:
        raise ValueError("trees is below 1, or leaf_trees is not within 0 and trees")
