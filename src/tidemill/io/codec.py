"""The core's `Codec` on Tidemill's wire formats.

In: columns. Out: framed Avro, dead letters, packed slices, and back. Invariant: pure; one instance per thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tidemill.core.records import DeadLetter, Output
from tidemill.core.spec import AppSpec
from tidemill.core.tables import SERVED
from tidemill.io.slices import pack_slice
from tidemill.io.wire import Encoder, InputDecoder, dead_letter_output, decode_rows


class WireCodec:
    """Implements `core.ports.Codec`."""

    def __init__(self, spec: AppSpec, decoder: InputDecoder) -> None:
        self._app = spec.name
        self._encoders = {name: Encoder(name) for name in ("prediction.v1", "example.v1", "commit.v1")}
        self._row_encoder = Encoder("row.v1")
        self._schemas = {topic.name: decoder.input_schema(topic.name) for topic in spec.topics}

    def encode(self, schema_name: str, columns: pa.RecordBatch) -> list[bytes]:
        return self._encoders[schema_name].encode(columns)

    def encode_rows(self, served: pa.RecordBatch) -> list[bytes]:
        return self._row_encoder.encode(served) if served.num_rows else []

    def decode_rows(self, tails: Sequence[bytes]) -> pa.RecordBatch:
        if not tails:
            return pa.RecordBatch.from_pylist([], schema=SERVED)
        return decode_rows(tails).select(SERVED.names).cast(SERVED)

    def input_schema(self, topic: str) -> pa.Schema:
        return self._schemas[topic]

    def dead_letter(self, letter: DeadLetter) -> Output:
        return dead_letter_output(letter, self._app)

    def pack_slice(self, outputs: Sequence[Output]) -> bytes:
        return pack_slice(outputs)
