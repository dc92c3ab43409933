"""Which of a kernel's two forms runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

__all__ = ["form_of"]


def form_of(kernel: str, weight: torch.Tensor) -> Any:
    """The module whose functions compute `kernel` for weights like this one.

    That is Triton's on a CUDA device in float32 or bfloat16, and the reference elsewhere.
    """
    compiled = weight.is_cuda and weight.dtype in (torch.float32, torch.bfloat16)
    form = "triton_kernels" if compiled else "reference"
    return import_module(f"fastloop.accel.kernels.{kernel}.{form}")
