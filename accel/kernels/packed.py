"""Products with weights that stay, by whichever of torch's libraries is the fastest on this CPU.

torch multiplies float32 by MKL, which does not use AVX-512 on processors that are not Intel's.
oneDNN, which torch brings along for bfloat16, does on all, and reads weights that were laid out for
it. It also adds up a row in the same order however many rows there are, which MKL does not.
``torch.backends.mkldnn.enabled = False`` leaves all to MKL.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Packed", "PackedLinear", "linear", "pack"]

ROWS = 64  # that weights are laid out for; they serve any number
LARGEST = 1 << 25  # bytes of weights that may lie in memory twice

_LAID = WeakTensorKeyDictionary()  # of parameters: their state, and their copy


class Packed:
    """y = weight x + bias, with a copy of the weights in the order in which a product reads them.

    Args:
        weight: (N, M), of any floating dtype, on any device.
        bias: (N,).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()
        self.one_dnn = _one_dnn_wins(weight)
        # For MKL and few rows (M, N) is a quarter faster than (N, M).
        self._laid = _laid_out(self.weight) if self.one_dnn else self.weight.t().contiguous()

    @classmethod
    def of(cls, layer: nn.Linear) -> Packed:
        """The weights that a layer has now."""
        return cls(layer.weight, layer.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., N) of (..., M)."""
        if not self.one_dnn:
            flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self._laid)
            return flat.view(*x.shape[:-1], len(self.bias))
        if (torch.is_grad_enabled() and x.requires_grad) or not torch.backends.mkldnn.enabled:
            return functional.linear(x, self.weight, self.bias)
        return _product(x, self._laid, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` that multiplies several rows by oneDNN where that is faster.

    The order of additions is all that differs. One row, other dtypes and devices, whatever is to be
    differentiated or compiled, and weights that are not parameters, are left to torch. Parameters
    are laid out when they are first used, and again when they have changed.
    """
    several = x.dtype == weight.dtype and x.numel() > x.shape[-1]
    left = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if not several or left or type(weight) is not nn.Parameter or not _one_dnn_wins(weight):
        return functional.linear(x, weight, bias)
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
    if weight not in _LAID or _LAID[weight][0] != state:
        _LAID[weight] = state, _laid_out(weight.detach())
    return _product(x, _LAID[weight][1], bias)


class PackedLinear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See ``nn.Linear``."""
        return linear(x, self.weight, self.bias)


def pack(network: nn.Module) -> None:
    """Let every ``nn.Linear`` of a network be a `PackedLinear`; its weights stay what they are."""
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = PackedLinear


def _one_dnn_wins(weight: torch.Tensor) -> bool:
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype == torch.float32
    on_cpu = weight.device.type == "cpu" and bool(torch.backends.mkldnn.enabled)
    return plain and on_cpu and _mkl_is_slow()


@cache
def _mkl_is_slow() -> bool:
    """Whether there is AVX-512 that MKL does not use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    described = Path("/proc/cpuinfo")
    words = described.read_text() if described.exists() else platform.processor()
    return "AuthenticAMD" in words and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _laid_out(weight: torch.Tensor) -> torch.Tensor:
    if weight.nbytes > LARGEST:
        return weight
    laid: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return laid


def _product(x: torch.Tensor, laid: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")
    return product
