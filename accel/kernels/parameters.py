"""What kernels take for a layer: its tensors, without the module."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["LayerNorm", "Linear"]


class Linear(NamedTuple):
    """y = weight x + bias.

    Attributes:
        weight: (N, M).
        bias: (N,).
    """

    weight: torch.Tensor
    bias: torch.Tensor


class LayerNorm(NamedTuple):
    """Normalization over the last dimension.

    Attributes:
        weight, bias: (E,).
        eps: added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float = 1e-5
