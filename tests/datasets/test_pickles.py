"""Pickles: what is read, and that nothing else runs, hangs or takes memory not given to it."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import io
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastloop.datasets import pickles
from fastloop.datasets.errors import DatasetError

PLAIN = {
    "words": ["a", "\u00e9", b"\xff", "", b""],
    "numbers": (1, -2, 2**70, 0.5, float("inf"), True, None),
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "array of words": np.array(["ab", "c"]),
    "array of bytes": np.array([b"x", b"yz"]),
    "truths": np.array([True, False]),
    "complex": np.array([1j]),
    "empty": np.zeros((0, 2)),
    "no axis": np.array(3),
    "scalar": np.float32(3),
    "set": {1, 2},
    "default": collections.defaultdict(int, {"q": 1}),
    "ordered": collections.OrderedDict(a=1),
    "shared": [[1]] * 3,
}


class Oracle(pickle.Unpickler):
    """The standard library's unpickler, kept to what these tests and recordings need."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.split(".")[0] in ("numpy", "collections", "_codecs") or name in (
            "int", "long", "set", "bytes", "bytearray",
        )  # fmt: skip
        return super().find_class(module, name)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for parts in zip(one, other, strict=True):
            same(*parts)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.flags.f_contiguous == other.flags.f_contiguous
        assert one.flags.writeable
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def load(data: bytes) -> Any:
    return pickles.loads(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_words_and_containers_come_out_as_they_went_in(protocol: int) -> None:
    data = pickle.dumps(PLAIN, protocol=protocol)
    same(load(data), Oracle(io.BytesIO(data)).load())


def test_numpy_1_and_2_are_read_alike() -> None:
    data = pickle.dumps(np.arange(3), protocol=2)
    for name in (b"numpy.core.", b"numpy._core."):
        renamed = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", name)
        assert name in renamed
        np.testing.assert_array_equal(load(renamed), [0, 1, 2])


def test_python_2_words_are_decoded_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "two.pkl"
    file.write_bytes(b"\x80\x02U\x02\xc3\xa9.")
    assert pickles.load(file) == "\u00c3\u00a9"
    assert pickles.load(file, encoding="utf-8") == "\u00e9"


@pytest.mark.parametrize("folder", ["nuscenes_mini_scenarionet", "adroit_door_demos"])
def test_recordings_come_out_as_the_standard_library_reads_them(
    realdata: Path, folder: str
) -> None:
    files = sorted((realdata / folder).glob("*.p*kl*"))
    assert files
    for file in files:
        same(pickles.load(file), Oracle(io.BytesIO(file.read_bytes()), encoding="latin1").load())


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.pkl does not exist"):
        pickles.load(tmp_path / "gone.pkl")
    with pytest.raises(DatasetError, match="is no file"):
        pickles.load(tmp_path)


# The parts of hostile streams.
def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def find(module: str, name: str) -> bytes:
    return word(module) + word(name) + b"\x93"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return find(module, name) + b"(" + b"".join(arguments) + b"tR"


NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
DTYPE = "numpy", "dtype"
RECONSTRUCT = "numpy.core.multiarray", "_reconstruct"
ARRAY = find("numpy", "ndarray")
EMPTY = call(*RECONSTRUCT, ARRAY, b"K\x00\x85", b"C\x01b")
FLOATS = call(*DTYPE, word("f8"), FALSE, TRUE)


def built(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    """An array of that state."""
    return EMPTY + b"(K\x01" + shape + dtype + FALSE + raw + b"tb"


def run_once(stream: bytes) -> Any:
    return load(b"\x80\x04" + stream + b".")


CODE = {
    "function": call("os", "mkdir", word("ran")),
    "function of an old name": b"cposix\nmkdir\n" + word("ran") + b"\x85R",
    "class": b"(" + word("ran") + b"ios\nmkdir\n",
    "object": b"(" + find("os", "mkdir") + word("ran") + b"o",
    "new": find("os", "mkdir") + word("ran") + b"\x85\x81",
    "new with names": find("os", "mkdir") + word("ran") + b"\x85}\x92",
    "inside of the allowed": call("numpy", "load", word("ran")),
    "attribute of the allowed": find("collections", "namedtuple"),
    "dotted": find("numpy", "core.os.mkdir"),
    "builtin": call("builtins", "eval", word("__import__('os').mkdir('ran')")),
    "getattr": call("builtins", "getattr", find("builtins", "int"), word("mro")),
    "persistent": b"Pran\n",
    "persistent, binary": word("ran") + b"Q",
    "extension": b"\x82\xf0",
    "extension 2": b"\x83\xf0\x00",
    "extension 4": b"\x84\xf0\x00\x00\x00",
    "buffer": b"\x97",
    "read-only buffer": b"C\x01a\x98",
}


@pytest.mark.parametrize("what", CODE)
def test_nothing_runs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        with pytest.raises(DatasetError, match="nothing was run"):
            run_once(CODE[what])
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)
    assert os.listdir(tmp_path) == []


INSIDES = {
    "dict of a class": find("builtins", "int") + b"}" + word("x") + b"K\x01sb",
    "slots of a class": find("numpy", "ndarray") + b"N}" + word("x") + b"K\x01s\x86b",
    "defaults of a function": find("numpy", "dtype")
    + b"N}" + word("__defaults__") + b"K\x01\x85s\x86b",
    "dict of an ordered dict": call("collections", "OrderedDict")
    + b"}" + word("items") + b"K\x01sb",
    "state of a list": b"]" + b"K\x01b",
    "records": call(*DTYPE, word("V8"), FALSE, TRUE),
    "objects": call(*DTYPE, word("O8"), FALSE, TRUE),
    "times": call(*DTYPE, word("M8"), FALSE, TRUE),
    "many in one": call(*DTYPE, word("1000000000f8"), FALSE, TRUE),
    "fields of a dtype": FLOATS + b"(K\x03" + word("<") + b"N(" + word("a") + b"t}tb",
    "part of a dtype": FLOATS + b"(K\x03" + word("<") + FLOATS + b"NNtb",
    "byte order": FLOATS + b"(K\x03" + word("S") + b"NNNtb",
    "items of an array": built(b"K\x01\x85", FLOATS, b"C\x08aaaaaaaa") + b"K\x00K\x01s",
    "items of a class": find("builtins", "dict") + b"K\x00K\x01s",
    "members of a list": b"](K\x01\x90",
    "a class": find("builtins", "int"),
    "a dtype": FLOATS,
    "a maker": find("numpy.core.multiarray", "_reconstruct"),
    "call of a class": call("builtins", "int", word("1")),
    "call of a list": b"](tR",
    "call with a dict": find("numpy", "dtype") + b"}R",
    "array of a subclass": call(*RECONSTRUCT, find("builtins", "list"), b"K\x00\x85", b"C\x01b"),
    "array from memory": call("numpy", "ndarray", b"J\xff\xff\xff\x7f\x85"),
    "array of any shape": call(*RECONSTRUCT, ARRAY, b"J\xff\xff\xff\x7f\x85", b"C\x01b"),
    "defaultdict of code": call("collections", "defaultdict", find("numpy", "dtype")),
    "other encoding": call("_codecs", "encode", word("a"), word("idna")),
    "array in another order": call(
        "numpy.core.numeric", "_frombuffer", b"C\x08aaaaaaaa", FLOATS, b"K\x01\x85", word("K")
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", INSIDES)
def test_nothing_else_is_made_or_changed(what: str) -> None:
    with pytest.raises(DatasetError):
        run_once(INSIDES[what])
    same(load(pickle.dumps(PLAIN)), PLAIN | {"big endian": np.arange(3, dtype=np.int32)})


HUGE = struct.pack("<Q", 2**62)
LONG_SHAPE = b"\x8a\x08" + struct.pack("<q", 2**61)
ARRAYS = {
    "more bytes than there are": built(LONG_SHAPE + b"\x85", FLOATS, b"C\x08aaaaaaaa"),
    "a product beyond 64 bits": built(
        LONG_SHAPE + LONG_SHAPE + LONG_SHAPE + b"\x87", FLOATS, b"C\x00"
    ),
    "a length below 0": built(b"J\xff\xff\xff\xff\x85", FLOATS, b"C\x08aaaaaaaa"),
    "no bytes each": built(LONG_SHAPE + b"\x85", call(*DTYPE, word("S0"), FALSE, TRUE), b"C\x00"),
    "no bytes but a length": built(LONG_SHAPE + b"K\x00\x86", FLOATS, b"C\x00"),
    "a list of values": built(b"K\x01\x85", FLOATS, b"]"),
    "characters that do not exist": built(
        b"K\x01\x85", call(*DTYPE, word("U1"), FALSE, TRUE), b"C\x04\xff\xff\xff\x7f"
    ),
    "33 axes": built(b"(" + b"K\x01" * 33 + b"t", FLOATS, b"C\x08aaaaaaaa"),
    "a short state": EMPTY + b"(K\x01tb",
    "scalar": call("numpy.core.multiarray", "scalar", FLOATS, b"C\x04aaaa"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_are_what_their_bytes_say(what: str) -> None:
    with pytest.raises(DatasetError):
        run_once(ARRAYS[what])


def laughs(levels: int) -> bytes:
    """A list of ten times the same list of ten times the same list ..."""
    again = [b"q" + bytes([i]) + b"](" + (b"h" + bytes([i])) * 10 + b"e" for i in range(levels)]
    return b"]" + b"".join(again)


def copies(what: bytes, of: bytes, times: int) -> bytes:
    """A list of `what`, time and again, of `of`, which is in the memo as number 0."""
    return b"](" + of + b"q\x00" + what * times + b"e"


MEMORY = {
    "a memo as long as its index": b"K\x01r\xff\xff\xff\x7f",
    "a memo as long as its index, in words": b"K\x01p999999999999\n",
    "bytes": b"\x8e" + HUGE,
    "a word": b"\x8d" + HUGE,
    "a word of 4 GB": b"X\xff\xff\xff\xff",
    "a byte array": b"\x96" + HUGE,
    "a frame": b"\x95" + HUGE,
    "an integer": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "laughs": laughs(40),
    "copies of a list": copies(
        find("builtins", "set") + b"h\x00\x85R", b"](" + b"K\x01" * 1000 + b"e", 1000
    ),
    "copies of bytes": copies(
        EMPTY + b"(K\x01M\xe2\x04\x85" + FLOATS + FALSE + b"h\x00tb",
        b"B\x10\x27\x00\x00" + b"a" * 10000,
        200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MEMORY)
def test_memory_is_bounded_by_the_files_size(what: str) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(DatasetError):
            run_once(MEMORY[what])
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def twice_over(levels: int) -> bytes:
    """A tuple of twice the same tuple of twice the same tuple ..."""
    again = [b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels)]
    return b")" + b"".join(again)


WORDY = {
    "key": b"}" + twice_over(22) + b"K\x01s",
    "call": twice_over(22) + b")R",
    "dtype": call(*DTYPE, twice_over(22)),
    "shape": built(twice_over(22), FLOATS, b"C\x00"),
    "shape before its data": call(*RECONSTRUCT, ARRAY, twice_over(22), b"C\x01b"),
    "encoding": call("_codecs", "encode", word("a"), twice_over(22)),
    "factory": call("collections", "defaultdict", twice_over(22)),
}


@pytest.mark.parametrize("what", WORDY)
def test_what_is_refused_is_told_in_few_words(what: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError) as error:
            run_once(WORDY[what])
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 200


def test_tuples_however_deep_are_refused() -> None:
    deep = b")" + b"\x85" * 500_000
    for stream in (b"}" + deep + b"K\x01s", deep + b")R"):
        with pytest.raises(DatasetError, match="a tuple"):
            run_once(stream)


@pytest.mark.parametrize("what", ["laughs", "copies of a list", "copies of bytes"])
def test_what_stands_for_more_than_it_is_is_refused(what: str) -> None:
    with pytest.raises(DatasetError, match=r"repeats itself|makes more of its bytes"):
        run_once(MEMORY[what])


def test_containers_in_themselves_are_refused() -> None:
    itself: list[Any] = []
    itself.append({"again": itself})
    with pytest.raises(DatasetError, match="holds itself"):
        load(pickle.dumps(itself))
    with pytest.raises(DatasetError, match="deep"):
        run_once(b"]" * 100_000 + b"a" * 99_999)


def test_keys_cannot_be_made_to_collide() -> None:
    same_hash = [(2**61 - 1) * (n + 1) for n in range(3)]
    for value in (dict.fromkeys(same_hash, 0), set(same_hash), {0.5: 1}, {(1, 2): 3}):
        for protocol in (2, 4):
            with pytest.raises(DatasetError, match="key"):
                load(pickle.dumps(value, protocol=protocol))
    assert load(pickle.dumps({-5: 1, None: 2, b"a": 3})) == {-5: 1, None: 2, b"a": 3}


VALID = pickle.dumps(PLAIN, protocol=4)


@settings(max_examples=50)
@given(st.data())
def test_damaged_files_are_data_or_a_fault(data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                damaged[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not damaged:
            break
    with contextlib.suppress(DatasetError):
        load(bytes(damaged))


OPCODES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [EMPTY, FLOATS, b"(", b"t", b"R", b"b", b"]", b"}", b"s", b"a", b"K\x01", b"."]
    ),
)


@settings(max_examples=50)
@given(st.lists(OPCODES, max_size=30).map(b"".join))
@example(b"")
@example(b"\x80")
@example(b"\x80\x05\x96")
@example(b"(")
@example(b"I99999999999999999999999999999999\n.")
@example(b"I" + b"9" * 5000 + b"\n.")
@example(b"S'\\x'\n.")
@example(b"F1e\n.")
def test_arbitrary_bytes_are_data_or_a_fault(data: bytes) -> None:
    with contextlib.suppress(DatasetError):
        load(data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_numpy_boxes_is_taken_out_where_that_is_asked_for(protocol: int) -> None:
    box = np.empty((), object)
    box[()] = {"S1": {"Walking": np.arange(6.0).reshape(2, 3)}}
    data = pickle.dumps(box, protocol)
    found = pickles.loads(data, boxed=True)
    np.testing.assert_array_equal(found["S1"]["Walking"], [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(DatasetError, match="an array of 'O8'"):
        pickles.loads(data)
    for several in (np.array([1, "a"], object), np.array([], object), np.array([None], object)):
        with pytest.raises(DatasetError, match="an array of several objects"):
            pickles.loads(pickle.dumps(several, protocol), boxed=True)
    with pytest.raises(DatasetError, match="nothing was run"):
        pickles.loads(pickle.dumps(os.mkdir, protocol), boxed=True)
