"""The partition that a key belongs to, as Kafka's own clients choose it.

In: keys. Out: partition numbers. Invariant: equal to the murmur2 partitioner of Java's producer and to librdkafka's
`murmur2`, so that a file read without Kafka meets the same partitions as one that was published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SEED = 0x9747B28C
_M = np.uint32(0x5BD1E995)


def partitions_of(keys: Sequence[bytes], partition_count: int) -> npt.NDArray[np.int64]:
    """The partition of each key, in [0, partition_count)."""
    hashes = np.empty(len(keys), dtype=np.uint32)
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        hashes[places] = _murmur2([keys[place] for place in places.tolist()], length)
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % partition_count


def _murmur2(keys: Sequence[bytes], length: int) -> npt.NDArray[np.uint32]:
    """The hashes of keys of one length; arithmetic wraps at 32 bits."""
    data = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), length)
    found = np.full(len(keys), _SEED ^ length, dtype=np.uint32)
    whole = length // 4
    words = np.ascontiguousarray(data[:, : whole * 4]).view("<u4")
    for column in range(whole):
        word = words[:, column].astype(np.uint32) * _M
        word ^= word >> np.uint32(24)
        found = found * _M ^ word * _M
    rest = data[:, whole * 4 :].astype(np.uint32)
    if rest.shape[1]:
        for column in range(rest.shape[1]):
            found ^= rest[:, column] << np.uint32(8 * column)
        found *= _M
    found ^= found >> np.uint32(13)
    found *= _M
    found ^= found >> np.uint32(15)
    return found
