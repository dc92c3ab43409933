"""Products in float32 on a CPU, by whichever of torch's libraries is the faster one there.

torch multiplies float32 by MKL, which does not use AVX-512 on processors that are not Intel's.
oneDNN, which torch brings along for bfloat16, does on all. It also adds up each of several rows in
the same order however many they are. ``torch.backends.mkldnn.enabled = False`` leaves all to MKL.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["OneDnnLinear", "Packed", "linear", "multiply_by_one_dnn"]

ROWS = 64  # that weights are laid out for; they serve any number


class Packed:
    """y = weight x + bias, with a copy of the weights in the order in which a product reads them.

    The copy belongs to the weights as they are at construction.

    Args:
        weight: (N, M), of any floating dtype, on any device.
        bias: (N,).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()
        self.one_dnn = _one_dnn_wins(weight)
        if self.one_dnn:
            self._laid = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS)
        else:  # for MKL and few rows (M, N) is a quarter faster than (N, M)
            self._laid = self.weight.t().contiguous()

    @classmethod
    def of(cls, layer: nn.Linear) -> Packed:
        """The weights that a layer has now."""
        return cls(layer.weight, layer.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies lay their weights out anew: oneDNN's order has no storage that can be copied."""
        return Packed, (self.weight, self.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., N) of (..., M)."""
        if not self.one_dnn:
            flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self._laid)
            return flat.view(*x.shape[:-1], len(self.bias))
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated or not _fits(x, self.weight):
            return functional.linear(x, self.weight, self.bias)
        return _product(x, self._laid, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` that multiplies several rows by oneDNN where that is faster.

    The order of additions is all that differs. One row, other dtypes and devices, and whatever may
    be differentiated or is compiled, are left to torch.
    """
    several = x.numel() > x.shape[-1]
    if torch.is_grad_enabled() or not several or not _fits(x, weight):
        return functional.linear(x, weight, bias)
    return _product(x, weight, bias)


class OneDnnLinear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See ``nn.Linear``."""
        return linear(x, self.weight, self.bias)


def multiply_by_one_dnn(network: nn.Module) -> None:
    """Let every ``nn.Linear`` of a network be a `OneDnnLinear`; weights and names stay."""
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    compiled = torch.compiler.is_compiling()
    return not compiled and x.dtype == weight.dtype and _one_dnn_wins(weight)


def _one_dnn_wins(weight: torch.Tensor) -> bool:
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    quantized = type(weight) not in (torch.Tensor, nn.Parameter)
    return not quantized and bool(torch.backends.mkldnn.enabled) and _mkl_is_slow()


@cache
def _mkl_is_slow() -> bool:
    """Whether there is AVX-512 that MKL does not use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    described = Path("/proc/cpuinfo")
    words = described.read_text() if described.exists() else platform.processor()
    return "AuthenticAMD" in words and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    bias = None if bias is None else bias.contiguous()  # else read as if it were
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
