"""Pickles that may hold numbers and containers, and run nothing."""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, os_errors_are_faults

__all__ = ["load", "loads"]

# Left out: persistent ids, the extension registry, objects by INST, OBJ and NEWOBJ, buffers from
# outside, and integers of more than 255 bytes.
OPCODES = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2
    LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS GET
    BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD""".split()  # noqa: SIM905
)
CODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
NUMBERS = re.compile(r"[<>=|]?([biufc]\d{1,2}|[SU]\d{1,9}|\?)")
LEAVES = frozenset({str, bytes, bytearray, int, float, bool, type(None), np.ndarray})
CONTAINERS = frozenset({list, tuple, set, dict, collections.OrderedDict, collections.defaultdict})
DEEPEST = 64  # levels of containers in containers
SHARING = 16  # times the file's bytes: the values of what it holds, counted wherever they appear


@os_errors_are_faults()
def load(path: str | Path, *, encoding: str = "latin1") -> Any:
    """Unpickle a file of arrays of numbers and words, and plain containers, and nothing else.

    Args:
        path: the file.
        encoding: of byte strings that Python 2 wrote.

    Returns:
        Lists, tuples, sets, dicts (keys are words and integers), words, bytes, numbers, arrays and
        scalars of NumPy. No container holds itself.

    Raises:
        DatasetError: it does not exist, is damaged, or asks for anything else, which is named;
            nothing of it was run, and it took memory in proportion to its size.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path} is no file" if path.exists() else f"{path} does not exist")
    try:
        return loads(path.read_bytes(), encoding=encoding)
    except (DatasetError, OSError) as error:
        raise DatasetError(f"{path} cannot be unpickled: {error}") from error


def loads(data: bytes, *, encoding: str = "latin1", boxed: bool = False) -> Any:
    """Unpickle `data` as `load` does a file.

    Args:
        data: the stream.
        encoding: of byte strings that Python 2 wrote.
        boxed: also take an array of objects for what is in it, where that is one: so NumPy saves
            what is no array.
    """
    try:
        value = (_Boxed if boxed else _NumbersOnly)(data, encoding).load()
    except pickle.UnpicklingError as error:
        raise DatasetError(str(error)) from error
    except (
        struct.error, EOFError, AttributeError, LookupError, MemoryError, OverflowError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise DatasetError(f"its stream is damaged ({error!r:.200})") from error
    if _count(value, 0, {}) > SHARING * len(data):
        raise DatasetError(f"it repeats itself: {len(data)} bytes stand for far more values")
    return value


def _refused(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it asks for {what[:80]}; nothing was run")


def _short(value: Any) -> str:
    """A few words on `value`; its own may be endless, of tuples that hold another twice."""
    if type(value) in (str, bytes, int, float, bool, type(None)):
        return f"{value!r:.50}"
    return getattr(value, "__name__", f"a {type(value).__name__}")


def _refuse_opcode(name: str) -> Callable[[Any], None]:
    def refuse(self: Any) -> None:
        raise _refused(f"the operation {name}")

    return refuse


class _DType:
    """Stands for the dtype of an array to come; NumPy's own could be made to break its rules."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise _refused(f"an array of {_short(code)}, which are neither numbers nor words")
        self.value = np.dtype(code)


# The unpickler in C allots a memo as long as the highest index that a file names, whatever it is.
class _NumbersOnly(pickle._Unpickler):  # type: ignore[name-defined,misc]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: pickle._Unpickler.dispatch[code] if name in OPCODES else _refuse_opcode(name)
        for code, name in CODES.items()
    }

    def __init__(self, data: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._allowance = len(data)

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins").replace("numpy._core", "numpy.core")
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise _refused(f"{module}.{name}")

    def charge(self, amount: int) -> None:
        """What an honest file copies into arrays and sets, it holds only once."""
        self._allowance -= amount
        if self._allowance < 0:
            raise pickle.UnpicklingError("it makes more of its bytes than they are")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        maker = _set if self.stack[-1] is set else self.stack[-1]
        # By identity: to hash a tuple in a tuple and so on takes the stack, or all time.
        if not any(maker is it for it in MAKERS) or type(arguments) is not tuple:
            raise _refused(f"a call of {_short(maker)}")
        self.stack[-1] = maker(self, *arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is np.ndarray:
            _version, shape, dtype, fortran, raw = state
            order = "F" if fortran else "C"
            made = self.array(raw, dtype, shape, order)
            target.__setstate__((1, made.shape, made.dtype, bool(fortran), made.tobytes(order)))
        elif type(target) is _DType:
            _version, byte_order, subarray, names, fields = state[:5]
            if byte_order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None,) * 3:
                raise _refused("an array of records")
            target.value = target.value.newbyteorder(byte_order)
        else:
            raise _refused(f"a {type(target).__name__} with its inside set")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _refused(f"items in a {type(target).__name__}")
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise _refused(f"members of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_key, items))

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def array(self, raw: Any, dtype: Any, shape: Any, order: str = "C") -> NDArray[Any]:
        """An array of its bytes, where they are as many as its shape and dtype say."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if type(dtype) is not _DType or not isinstance(raw, bytes | bytearray):
            raise _refused("an array of something else than bytes")
        if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int for n in shape):
            raise _refused("an array of a shape that is not up to 32 integers")
        itemsize = dtype.value.itemsize
        if min(shape, default=0) < 0 or itemsize * math.prod(shape) != len(raw) or not itemsize:
            raise pickle.UnpicklingError(
                f"an array of shape {shape} and dtype {dtype.value} has {len(raw)} bytes"
            )
        self.charge(max(len(raw), *shape, 0))  # an array of no bytes can be long
        array = np.frombuffer(raw, dtype.value).reshape(shape, order=order).copy(order)
        if array.dtype.kind == "U" and (array.reshape(-1).view(_points(array)) > 0x10FFFF).any():
            raise pickle.UnpicklingError("it holds words of characters that do not exist")
        return array

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Objects:
    """Stands for the dtype of an array of objects."""


class _Boxed(_NumbersOnly):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_NumbersOnly.dispatch)

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if type(target) is _Objects:
            self.stack.pop()
        elif type(target) is np.ndarray and any(type(part) is _Objects for part in state):
            _version, shape, _dtype, _fortran, content = state
            if shape != () or type(content) is not list or len(content) != 1:
                raise _refused("an array of several objects")
            self.stack[-2:] = content
        else:
            super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _points(words: NDArray[np.str_]) -> np.dtype[Any]:
    return np.dtype(np.uint32).newbyteorder(words.dtype.byteorder)


def _key(key: Any) -> Any:
    """A key whose hash cannot be chosen so that all keys of a dict meet."""
    if type(key) in (str, bytes, bool, type(None)) or (type(key) is int and abs(key) < 2**60):
        return key
    raise _refused(f"a key {_short(key)}, which is neither a word nor an integer")


def _count(value: Any, depth: int, known: dict[int, int | None]) -> int:
    """How many values there are in `value`, one in two places being two."""
    kind = type(value)
    if kind in LEAVES or issubclass(kind, np.generic):
        return 1
    if kind not in CONTAINERS:
        raise DatasetError(f"it holds a {kind.__name__}, which is neither number nor container")
    if id(value) in known:
        count = known[id(value)]
        if count is None:
            raise DatasetError(f"it holds a {kind.__name__} that holds itself")
        return count
    if depth == DEEPEST:
        raise DatasetError(f"it holds containers in containers, more than {DEEPEST} deep")
    known[id(value)] = None
    parts = value.values() if isinstance(value, dict) else value
    known[id(value)] = count = 1 + sum(_count(part, depth + 1, known) for part in parts)
    return count


def _reconstruct(reader: _NumbersOnly, kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    """An empty array to be filled by the pickle, as NumPy does it, for plain arrays only."""
    if kind is not np.ndarray or shape != (0,):  # any other shape is memory for the asking
        raise _refused(f"an array of {_short(kind)} before its data, or one that is not empty then")
    return np.empty(0, np.uint8)


def _dtype(reader: _NumbersOnly, code: Any, *flags: Any) -> _DType | _Objects:
    return _Objects() if code == "O8" and isinstance(reader, _Boxed) else _DType(code)


def _scalar(reader: _NumbersOnly, dtype: Any, raw: Any) -> Any:
    return reader.array(raw, dtype, ())[()]


def _from_buffer(reader: _NumbersOnly, raw: Any, dtype: Any, shape: Any, order: str) -> Any:
    if order not in ("C", "F"):
        raise _refused(f"an array in the order {_short(order)}")
    return reader.array(raw, dtype, shape, order)


def _encode(reader: _NumbersOnly, text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _refused(f"the encoding {_short(encoding)}")
    reader.charge(len(text))
    return text.encode("latin1")


def _bytes(reader: _NumbersOnly) -> bytes:
    return b""


def _set(reader: _NumbersOnly, members: list[Any]) -> set[Any]:
    if type(members) is not list:
        raise _refused(f"a set of a {type(members).__name__}")
    reader.charge(len(members))
    return set(map(_key, members))


def _default_dict(reader: _NumbersOnly, factory: Any = None) -> dict[Any, Any]:
    if factory not in (None, int, float, list, dict, set):
        raise _refused(f"a defaultdict of {_short(factory)}")
    return collections.defaultdict(factory)


def _ordered_dict(reader: _NumbersOnly) -> dict[Any, Any]:
    return collections.OrderedDict()


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "int"): int,
    ("builtins", "long"): int,
    ("builtins", "float"): float,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
}
MAKERS = (
    _dtype, _reconstruct, _scalar, _from_buffer, _encode, _bytes, _set, _default_dict,
    _ordered_dict,
)  # fmt: skip
