"""Interpret the pickle of a checkpoint without executing anything from it.

A pickle is a program for a small stack machine. Python's own machine can be steered to import and
call anything, so this module has a machine of its own that knows data only: it holds no importer,
and what it can build is the table `BUILDERS` and the configuration classes of omegaconf, which
become inert `Stub`s. Tensors stay on disk until they are asked for.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError

__all__ = ["Storage", "StoredTensor", "Stub", "Symbol", "interpret", "small_int"]

MAX_PICKLE_BYTES = 64 << 20  # a full training state of published policies needs about 1 MB

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "posix": "os", "nt": "os"}
TYPE_NAMES = {"dict", "list", "tuple", "set", "frozenset", "str", "int", "float", "bool", "bytes"}
TYPE_NAMES |= {"complex", "object", "type", "NoneType"}
STUBS = {
    *(f"omegaconf.{place}" for place in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")
    ),
}
CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "SHORT_BINSTRING", "BINSTRING",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
NAMES_ONLY = {
    *(f"builtins.{name}" for name in TYPE_NAMES),
    *(f"typing.{name}" for name in ("Any", "Union", "Optional", "Dict", "List", "Tuple")),
    *(f"torch.{name}" for name in DTYPES),
}


@dataclass(frozen=True)
class Symbol:
    """The name of a global. It is a word here, never the thing."""

    name: str


@dataclass(eq=False)
class Stub:
    """An instance of an allowed class, as its pickled state; it has no behavior."""

    symbol: Symbol
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """A storage named by the pickle: dtype, record in the archive, declared elements."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor described by the pickle, its numbers still in the file.

    Attributes:
        storage: where the numbers are.
        offset: first element, in elements.
        shape, stride: as in torch, in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.storage.dtype


def small_int(data: Any) -> int | None:
    """The integer that a tiny pickle holds, None when it holds anything else; never unpickled."""
    if not isinstance(data, bytes) or len(data) > 64:
        return None
    try:
        value = interpret(data, lambda _: None)
    except CheckpointError:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def interpret(data: bytes, storage: Callable[[Any], Any]) -> Any:
    """Run a pickle on a machine that knows plain data only.

    Args:
        data: the pickle.
        storage: what a persistent id stands for.

    Returns:
        plain containers and numbers, `StoredTensor`s and `Stub`s.

    Raises:
        RefusedError: naming the global that the pickle tries to import or the call it tries.
        CheckpointError: when the pickle is malformed.
    """
    try:
        return _run(data, storage)
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the pickle is malformed ({error})") from error


def _run(data: bytes, storage: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    copied = 0

    def until_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, marks.pop()
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(io.BytesIO(data)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                until_mark()
            case "DUP":
                stack.append(stack[-1])
            case name if name in CONSTANTS:
                stack.append(arg)
            case name if name in EMPTY:
                stack.append(EMPTY[name]())
            case "TUPLE":
                items = until_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "LIST":
                items = until_mark()
                stack.append(items)
            case "DICT":
                items = until_mark()
                stack.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))
            case "FROZENSET":
                items = until_mark()
                stack.append(frozenset(_keys(items)))
            case "APPEND":
                item = stack.pop()
                _as(list, stack[-1]).append(item)
            case "APPENDS":
                items = until_mark()
                _as(list, stack[-1]).extend(items)
            case "ADDITEMS":
                items = until_mark()
                _as(set, stack[-1]).update(_keys(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _as(dict, stack[-1]).update(zip(_keys([key]), [value], strict=True))
            case "SETITEMS":
                items = until_mark()
                _as(dict, stack[-1]).update(zip(_keys(items[::2]), items[1::2], strict=True))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_allowed(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(_as(str, module), _as(str, name)))
            case "REDUCE" | "NEWOBJ":
                args, maker = stack.pop(), stack.pop()
                # A few bytes can ask for one more copy of something long, again and again.
                copied += sum(len(a) for a in _as(tuple, args) if hasattr(a, "__len__"))
                if copied > MAX_PICKLE_BYTES:
                    raise CheckpointError("the pickle expands without bound")
                stack.append(_build(maker, args))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "INST":
                raise RefusedError(f"import {_full_name(*arg.split(' ', 1))}")
            case name:
                raise RefusedError(f"use the pickle operation {name}")
    raise ValueError("it does not end")


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, found {type(value).__name__}")
    return value


def _keys(values: Any) -> list[Any]:
    """Keys and members of sets: scalars, since hashing nested tuples can take for ever."""
    for value in values:
        if value is not None and not isinstance(value, str | bytes | int | float):
            raise TypeError(f"a {type(value).__name__} as a key")
    return list(values)


def _full_name(module: str, name: str) -> str:
    return f"{RENAMED.get(module, module)}.{name}"


def _allowed(module: str, name: str) -> Symbol:
    full = _full_name(module, name)
    if full in BUILDERS or full in STUBS or full in NAMES_ONLY:
        return Symbol(full)
    raise RefusedError(f"import {full}")


def _build(maker: Any, args: tuple[Any, ...]) -> Any:
    name = _as(Symbol, maker).name
    if name in STUBS and not args:
        return Stub(maker)
    if name not in BUILDERS:
        raise RefusedError(f"call {name}")
    return BUILDERS[name](*args)


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Stub):
        target.state.update(_as(dict, state))
    elif not isinstance(target, OrderedDict):  # a module's state dict carries version metadata
        raise RefusedError(f"set the state of a {type(target).__name__}")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2, with its extent checked against the storage."""
    _as(Storage, storage)
    numbers = (offset, *_as(tuple, shape), *_as(tuple, stride))
    if len(shape) != len(stride) or len(shape) > 16:
        raise ValueError("a tensor's shape and stride differ in length")
    if any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"impossible tensor of shape {shape} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise CheckpointError(
            f"a tensor of shape {shape} does not fit its storage of {storage.numel} elements"
        )
    return StoredTensor(storage, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    stored: StoredTensor = _as(StoredTensor, data)
    return stored


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 spells bytes."""
    if encoding != "latin1":
        raise RefusedError(f"encode text as {encoding}")
    return str(_as(str, text)).encode("latin1")


def _type_name(name: Any) -> Symbol:
    """How dill spells a builtin type."""
    if name not in TYPE_NAMES:
        raise RefusedError(f"load the type {name}")
    return Symbol(f"builtins.{name}")


def _instance(cls: Any, *_: Any) -> Any:
    return _build(cls, ())


BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda factory=None: {},
    "builtins.set": lambda items=(): set(_keys(items)),
    "builtins.frozenset": lambda items=(): frozenset(_keys(items)),
    "builtins.bytes": lambda: b"",
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "_codecs.encode": _latin1,
    "dill._dill._load_type": _type_name,
    "dill.dill._load_type": _type_name,
    "copyreg._reconstructor": _instance,
}
