"""Triton's language where Triton is installed; without it kernels import and refuse to launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from fastloop.extras import MissingExtraError, require

__all__ = [
    "Block",
    "Count",
    "Pointer",
    "Scalar",
    "check_dtypes",
    "constexpr",
    "jit",
    "padded",
    "pieces",
    "tl",
]

# What a kernel's parameter is: the address of a tensor, a number (a `Count` changes from call to
# call), a block of values, or a number that is compiled in. Triton knows the last by its name.
if TYPE_CHECKING:
    Pointer = Any
    Scalar = Any
    Count = Any
    Block = Any
    constexpr = Any
else:
    # Triton looks the names of annotations up, and takes only what is marked as its own.
    class _Parameter:
        __triton_builtin__ = True

    Pointer = Scalar = Count = Block = constexpr = _Parameter


class _NotInstalled:
    """Stands for a kernel where Triton is missing."""

    def __getitem__(self, grid: tuple[int, ...]) -> NoReturn:
        require("triton", extra="gpu")
        raise RuntimeError("Triton was installed after this process had started; start it again")


tl: Any = None
_triton: Any = None
try:
    tl = require("triton.language", extra="gpu")
    _triton = require("triton", extra="gpu")
except MissingExtraError:
    pass  # said again, with the install line, by the first launch


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, where a `Count` of 1 or a multiple of 16 is no reason to compile again."""
    if _triton is None:
        return _NotInstalled()
    counts = [name for name, kind in kernel.__annotations__.items() if kind == "Count"]
    return _triton.jit(kernel, do_not_specialize=counts)


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`; a matrix product wants at least 16 a side."""
    return max(least, 1 << (size - 1).bit_length())


def pieces(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def check_dtypes(stream: torch.Tensor, *others: torch.Tensor) -> None:
    """Refuse what no kernel computes.

    Raises:
        ValueError: `stream` is neither float32 nor bfloat16, or another tensor differs from it.
    """
    if stream.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the kernels compute in float32 or bfloat16, got {stream.dtype}")
    for other in others:
        if (other.dtype, other.device) != (stream.dtype, stream.device):
            raise ValueError(
                f"the stream is {stream.dtype} on {stream.device}, a parameter {other.dtype} on "
                f"{other.device}; move the network with .to(device, dtype)"
            )
