"""The wire format, byte for byte, and what is done with bytes that are not of it."""

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastloop.deploy.server.codec import DTYPES, CodecError, pack, unpack

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)


def encoded(**changes):
    """An array of two float32 as openpi writes it, with `changes` to its map."""
    value = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({key.encode(): item for key, item in value.items()})


def test_bytes_are_those_of_openpi_client():
    # msgpack_numpy.packb({"x": np.float32([1, 2]), "n": np.int64(3)}) of openpi-client 0.1.2
    expected = bytes.fromhex(
        "82a17884c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f00000040c4056474797065"
        "a33c6634c4057368617065"
        "9102a16e83c40d5f5f6e7067656e657269635f5fc3c4046461746103c4056474797065a33c6938"
    )
    assert pack({"x": np.float32([1, 2]), "n": np.int64(3)}) == expected
    read = unpack(expected)
    np.testing.assert_array_equal(read["x"], np.float32([1, 2]))
    assert type(read["n"]) is np.int64


@given(ARRAYS)
def test_an_array_comes_back_bit_for_bit(array):
    read = unpack(pack({"nested": [array]}))["nested"][0]
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_view_that_is_not_contiguous_is_sent_as_what_it_shows():
    array = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(unpack(pack(array)), array)


def test_what_arrived_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        unpack(pack(np.zeros(3)))[0] = 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x91" * 2000, "no msgpack"),
        (pack({"a": 1})[:-1], "no msgpack"),
        (pack({"a": 1}) + b"\0", "no msgpack"),
        (b"\x81\x90\x01", "no msgpack"),
        (msgpack.packb(list(range(5000))), "no msgpack"),
        (msgpack.packb({str(n): n for n in range(5000)}), "no msgpack"),
        (msgpack.packb([[0] * 4000] * 20), "65536 entries"),
        (msgpack.packb([[{"a": 0}] * 4000] * 20), "65536 entries"),
        (msgpack.packb(msgpack.ExtType(4, b"abc")), "no msgpack"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),
        (encoded(dtype="|O"), "dtype '|O' is not one of"),
        (encoded(dtype="<c8"), "dtype"),
        (encoded(dtype=">f4"), "dtype"),
        (encoded(dtype=["<f4"]), "dtype"),
        (encoded(shape=[3]), "has 12 bytes, and 8 came"),
        (encoded(shape=[1]), "has 4 bytes, and 8 came"),
        (encoded(shape=[-2, -1]), "from 0"),
        (encoded(shape=[True, 2]), "from 0"),
        (encoded(shape=2), "list of at most"),
        (encoded(shape=[1] * 9 + [2]), "list of at most"),
        (encoded(shape=[0, 2**62, 2**62], data=b""), "cannot have shape"),
        (encoded(data="text"), "data are bytes"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), "is a number"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "is no uint8"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 0.5, b"dtype": "<i4"}), "is no int32"),
        (msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4"}), "is a number"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_the_reason(data, reason):
    with pytest.raises(CodecError, match=reason.replace("|", r"\|")):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(CodecError):
        unpack(data)


@pytest.mark.parametrize(
    "value", [object(), np.array([None]), np.array(["text"]), np.complex64(1), 2**70, {1, 2}]
)
def test_what_the_format_has_no_word_for_is_not_sent(value):
    with pytest.raises(CodecError):
        pack({"value": value})
