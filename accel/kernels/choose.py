"""Which form of a kernel runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

__all__ = ["form_of"]

ON_CPU = ("shared_prefix",)  # have a form for it, `fast`


def form_of(kernel: str, weight: torch.Tensor) -> Any:
    """The module whose functions compute `kernel` for weights like this one.

    That is Triton's on a CUDA device in float32 or bfloat16, `fast` on a CPU where there is such a
    form, and the reference elsewhere.
    """
    form = "fast" if weight.device.type == "cpu" and kernel in ON_CPU else "reference"
    if weight.is_cuda and weight.dtype in (torch.float32, torch.bfloat16):
        form = "triton_kernels"
    return import_module(f"fastloop.accel.kernels.{kernel}.{form}")
