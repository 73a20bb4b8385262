"""Records of our own topics: dead letters, examples and commands, and slices that give their outputs back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import lawful, texts

from tidemill.core.records import DeadLetter, Output, Partition
from tidemill.errors import InvariantError, RecordError, StateLostError
from tidemill.io import dead_letters
from tidemill.io.slices import pack_slice, unpack_slice
from tidemill.io.wire import Command, Encoder, dead_letter_output, decode, decode_examples, decode_rows


def a_letter(value: bytes | None, **changes: Any) -> DeadLetter:
    letter = DeadLetter(
        Partition("events", 3), 918, b"k", value, (("h", None),), 77, "TM-2007", "events[3]@918: é", "decode"
    )
    return letter._replace(**changes)


def test_a_dead_letter_keeps_its_original_and_says_why():
    output = dead_letter_output(a_letter(b"\x00\xff"), "shop")

    assert (output.topic, output.key, output.value, output.timestamp) == ("events.dlq", b"k", b"\x00\xff", 77)
    assert output.headers[0] == ("h", None)
    assert dict(output.headers[1:]) == {
        "__streams.errors.exception": b"tidemill.errors.RecordError",
        "__streams.errors.message": "events[3]@918: é".encode(),
        "__streams.errors.stacktrace": "tidemill.errors.RecordError: TM-2007 events[3]@918: é".encode(),
        "__streams.errors.topic": b"events",
        "__streams.errors.partition": b"3",
        "__streams.errors.offset": b"918",
        "tidemill.dlq.app": b"shop",
        "tidemill.dlq.code": b"TM-2007",
        "tidemill.dlq.stage": b"decode",
    }


def test_a_dead_letter_of_five_megabytes_is_whole_and_one_beyond_the_limit_is_cut():
    whole, cut = (dead_letter_output(a_letter(bytes(size)), "shop") for size in (5_000_000, 17_000_000))

    assert whole.value == bytes(5_000_000) and "tidemill.dlq.truncated" not in dict(whole.headers)
    assert cut.value is not None and len(cut.value) < dead_letters.OUTPUT_BYTES_MAX
    assert dict(cut.headers)["tidemill.dlq.truncated"] == f"{len(cut.value)} of 17000000 bytes".encode()


def examples(count: int, **changes: Any) -> dict[str, Any]:
    columns = {
        "kind": ["example"] * count,
        "id": [f"e{at}" for at in range(count)],
        "label": [at % 2 for at in range(count)],
        "event_time": range(count),
        "label_time": range(count),
        "is_learned": [True] * count,
        "blend": [0.5] * count,
        "learner": [None] * count,
        "booster": [None] * count,
        "base_rate": [0.5] * count,
        "n": [0] * count,
        "model_version": ["m"] * count,
        "other": [0.5] * count,
        "other_version": ["m2"] * count,
        "feature_digest": ["d"] * count,
        "numeric": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        "categories": [("a", f"b{at}") for at in range(count)],
        "flags": [()] * count,
    }
    return columns | changes


def test_the_fold_gets_examples_amendments_and_commands_with_their_offsets():
    learned = Encoder("example.v1").encode(examples(3))
    amended = Encoder("example.v1").encode(examples(1, is_learned=[False], numeric=[[]], categories=[[]]))
    command = {"id": "c", "kind": "promote", "expects": "m", "model_version": "m2", "cause": "x", "time": 5}
    commands = Encoder("command.v1").encode({name: [value] for name, value in command.items()})
    found, orders = decode_examples([learned[0], *commands, learned[1], *amended, learned[2]], [4, 6, 7, 8, 10])

    assert orders == [Command(6, **command)]
    assert found.offset.tolist() == [4, 7, 8, 10]
    np.testing.assert_array_equal(found.features.numeric, np.float32([[0, 1], [2, 3], [np.nan, np.nan], [4, 5]]))
    assert found.features.categories == (("a", "a", "", "a"), ("b0", "b1", "", "b2"))
    assert found.label.tolist() == [0, 1, 0, 0] and found.is_learned.tolist() == [True, True, False, True]
    assert found.features.numeric.dtype == np.float32 and found.label.dtype == np.float32


def test_no_examples_are_an_empty_fold():
    found, orders = decode_examples([], [])

    assert len(found) == 0 and len(found.features) == 0 and orders == []


def test_examples_without_categories_have_no_category_columns():
    found, _ = decode_examples(Encoder("example.v1").encode(examples(2, categories=[[], []])), [0, 1])

    assert found.features.categories == () and found.features.numeric.shape == (2, 2)


def test_examples_with_other_features_stop_the_fold():
    values = Encoder("example.v1").encode(examples(2, numeric=[[1.0], [1.0, 2.0]]))
    with pytest.raises(StateLostError, match="TM-4110"):
        decode_examples(values, [0, 1])


def test_foreign_bytes_in_our_own_topics_are_refused():
    value = Encoder("example.v1").encode(examples(1))[0]
    not_text = value.replace(b"\x04e0", b"\x04\xff\xfe")
    for foreign in (b"hello", b"\xc3\x01" + bytes(8), value[:-1], not_text):
        with pytest.raises(RecordError):
            decode("example.v1", [value, foreign])


def test_a_null_where_the_schema_has_none_is_our_bug():
    with pytest.raises(InvariantError, match=r"TM-9011 example\.v1\.id"):
        Encoder("example.v1").encode(examples(1, id=[None]))
    with pytest.raises(InvariantError, match="TM-9010"):
        Encoder("example.v1").encode({"id": ["a"]})


def test_nothing_encodes_to_nothing():
    assert Encoder("row.v1").encode(decode_rows([])) == [] and decode_rows([]).num_rows == 0


headers = st.lists(st.tuples(texts, st.none() | st.binary(max_size=5)), max_size=3).map(tuple)
outputs = st.builds(
    Output,
    st.sampled_from(["app.predictions.v1", "é"]),
    st.none() | st.binary(max_size=5),
    st.none() | st.binary(max_size=300),
    headers,
    st.none() | st.integers(0, 2**53),
)


@lawful
@given(st.lists(outputs, max_size=6))
def test_a_slice_gives_its_outputs_back(written):
    assert unpack_slice(pack_slice(written)) == tuple(written)


@lawful
@given(st.lists(outputs, min_size=1, max_size=4), st.data())
def test_a_cut_or_lengthened_slice_is_refused(written, data):
    packed = pack_slice(written)
    for broken in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"\0", b"\x02" + packed[1:]):
        with pytest.raises(InvariantError):
            unpack_slice(broken)
