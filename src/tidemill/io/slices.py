"""A slice of the outbox: the outputs that one input partition caused, as bytes for the store.

In: outputs. Out: bytes, and back. Invariant: `unpack_slice(pack_slice(outputs)) == tuple(outputs)`; a cut or foreign
slice is refused, never read in part.

Layout, little-endian: version (1 byte), topic count and topics, output count and outputs. An output is its topic's
index with flags in the high bits, the lengths of key and value (-1 = null), both of them, and, when flagged, timestamp
and headers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from tidemill.core.records import Output
from tidemill.errors import InvariantError

_VERSION = 1
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<i")
_OUTPUT = struct.Struct("<Hii")
_TIMESTAMP = struct.Struct("<q")
_HAS_EXTRAS = 0x8000
_TOPICS_MAX = _HAS_EXTRAS  # index and flag share 16 bits


def mark_of(packed: bytes) -> str:
    """Names a slice by its content, in hex; `commit.lua` makes the same."""
    return hashlib.sha1(packed, usedforsecurity=False).hexdigest()[:16]


def pack_slice(outputs: Sequence[Output]) -> bytes:
    topics: dict[str, int] = {}
    parts: list[bytes] = []
    add = parts.append
    pack = _OUTPUT.pack
    for topic, key, value, headers, timestamp in outputs:
        index = topics.setdefault(topic, len(topics))
        has_extras = bool(headers) or timestamp is not None
        if has_extras:
            index |= _HAS_EXTRAS
        add(pack(index, -1 if key is None else len(key), -1 if value is None else len(value)))
        if key:
            add(key)
        if value:
            add(value)
        if has_extras:
            add(_pack_extras(headers, timestamp))
    if len(topics) > _TOPICS_MAX:
        raise InvariantError("TM-9021", f"slice with outputs for {len(topics)} topics; at most {_TOPICS_MAX} fit")
    head = [bytes([_VERSION]), _COUNT.pack(len(topics)), *map(_pack_bytes, map(str.encode, topics))]
    return b"".join([*head, _COUNT.pack(len(outputs)), *parts])


def unpack_slice(packed: bytes) -> tuple[Output, ...]:
    """The outputs of a slice.

    Raises:
        InvariantError: the bytes are not a whole slice of this version.
    """
    try:
        outputs, end = _unpack(packed)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise InvariantError("TM-9020", f"slice of {len(packed)} bytes is not whole: {error}") from error
    if end != len(packed):
        raise InvariantError("TM-9020", f"slice of {len(packed)} bytes is not whole: its outputs end at {end}")
    return outputs


def _unpack(packed: bytes) -> tuple[tuple[Output, ...], int]:
    if not packed or packed[0] != _VERSION:
        raise InvariantError("TM-9022", f"slice begins with {packed[:1].hex() or 'nothing'}, not version {_VERSION}")
    (topic_count,) = _COUNT.unpack_from(packed, 1)
    at = 1 + _COUNT.size
    topics: list[str] = []
    for _ in range(topic_count):
        topic, at = _unpack_bytes(packed, at)
        topics.append((topic or b"").decode())
    (output_count,) = _COUNT.unpack_from(packed, at)
    at += _COUNT.size
    outputs: list[Output] = []
    for _ in range(output_count):
        index, key_length, value_length = _OUTPUT.unpack_from(packed, at)
        at += _OUTPUT.size
        key, at = _take(packed, at, key_length)
        value, at = _take(packed, at, value_length)
        headers: tuple[tuple[str, bytes | None], ...] = ()
        timestamp: int | None = None
        if index & _HAS_EXTRAS:
            headers, timestamp, at = _unpack_extras(packed, at)
        outputs.append(Output(topics[index & ~_HAS_EXTRAS], key, value, headers, timestamp))
    return tuple(outputs), at


def _pack_extras(headers: Sequence[tuple[str, bytes | None]], timestamp: int | None) -> bytes:
    parts = [b"\0" if timestamp is None else b"\1" + _TIMESTAMP.pack(timestamp), _COUNT.pack(len(headers))]
    for name, content in headers:
        parts += (_pack_bytes(name.encode()), _pack_bytes(content))
    return b"".join(parts)


def _unpack_extras(packed: bytes, at: int) -> tuple[tuple[tuple[str, bytes | None], ...], int | None, int]:
    timestamp: int | None = None
    has_timestamp, at = packed[at], at + 1
    if has_timestamp:
        (timestamp,) = _TIMESTAMP.unpack_from(packed, at)
        at += _TIMESTAMP.size
    (count,) = _COUNT.unpack_from(packed, at)
    at += _COUNT.size
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _unpack_bytes(packed, at)
        content, at = _unpack_bytes(packed, at)
        headers.append(((name or b"").decode(), content))
    return tuple(headers), timestamp, at


def _pack_bytes(content: bytes | None) -> bytes:
    return _LENGTH.pack(-1) if content is None else _LENGTH.pack(len(content)) + content


def _unpack_bytes(packed: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = _LENGTH.unpack_from(packed, at)
    return _take(packed, at + _LENGTH.size, length)


def _take(packed: bytes, at: int, length: int) -> tuple[bytes | None, int]:
    if length < 0:
        return None, at
    # A slice cut here is shorter than the place it leads to, which `unpack_slice` sees at the end.
    return packed[at : at + length], at + length
