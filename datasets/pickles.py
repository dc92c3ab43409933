"""Pickles that may hold numbers and containers, and run nothing."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["load"]

ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
}


def load(path: str | Path, *, encoding: str = "latin1") -> Any:
    """Unpickle a file whose only imports are those of arrays and plain containers.

    Args:
        path: the file.
        encoding: of byte strings that Python 2 wrote.

    Raises:
        DatasetError: it does not exist, is damaged, or asks for anything else, which is named;
            nothing of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _NumbersOnly(file, encoding=encoding).load()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    # A damaged stream makes the unpickler stumble in any of these ways.
    except (
        pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError,
        MemoryError, OverflowError, RecursionError, TypeError, ValueError, OSError,
    ) as error:  # fmt: skip
        raise DatasetError(f"{path} cannot be unpickled: {error}") from error


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.endswith("core.multiarray"):  # numpy.core, and numpy._core since NumPy 2
            if name == "_reconstruct":
                return _reconstruct
            if name == "scalar":
                return _scalar
        if (module.replace("__builtin__", "builtins"), name) in ALLOWED:
            return ALLOWED[module.replace("__builtin__", "builtins"), name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; nothing was run")


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An empty array to be filled by the pickle, as NumPy does it, for plain arrays only."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it asks for an array of type {kind}")
    if shape != (0,):  # what NumPy writes; any other shape is memory for the asking
        raise pickle.UnpicklingError(f"it asks for an array of shape {shape} before its data")
    return np.ndarray.__new__(kind, shape, dtype)


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    if dtype.hasobject:
        raise pickle.UnpicklingError("it asks for a scalar of objects")
    return np.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), dtype)[0]
