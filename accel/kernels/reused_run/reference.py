"""The run step by step, as a block cache makes it when nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import layer_norm, linear

from fastloop.accel.kernels.reused_run.ends import Ends
from fastloop.accel.kernels.reused_run.solver import Solver

__all__ = ["reused_run"]


def reused_run(
    sample: torch.Tensor,
    memory: torch.Tensor | None,
    noises: torch.Tensor,
    residuals: Sequence[torch.Tensor],
    tau: torch.Tensor | None,
    ends: Ends,
    solver: Solver,
    first: int,
    last: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the steps `first` to `last - 1` with every branch reused.

    The branches add residuals[0] + tau[k] residuals[1] + tau[k]^2 residuals[2] at step k. The
    state between steps is at least float32.

    Args:
        sample: (B, T, A) of step `first`.
        memory: (B, T, A) of the solver, None before the first step.
        noises: (N, B, T, A) of the whole chain; step k takes noises[k + 1] where there is one.
        residuals: one to three tensors (B, T, E).
        tau: (K,) float32, the predictor's variable; None with one residual.
        ends: what stands before and after the branches.
        solver: the update.
        first, last: bounds of the run.

    Returns:
        (B, T, A) the sample of step `last` and the solver's memory, in the sample's dtype.

    Raises:
        ValueError: no step.
    """
    if first >= last:
        raise ValueError(f"a run has at least one step, got {first} to {last}")
    dtype = torch.promote_types(sample.dtype, torch.float32)
    embedding, position, norm, head = ends.embedding, ends.position, ends.norm, ends.head
    x = sample.to(dtype)
    carried = None if memory is None else memory.to(dtype)
    for k in range(first, last):
        h = linear(x, embedding.weight.to(dtype), embedding.bias.to(dtype)) + position.to(dtype)
        for power, residual in enumerate(residuals):
            weight = 1.0 if tau is None else tau[k].to(dtype) ** power
            h = h + weight * residual.to(dtype)
        h = layer_norm(h, h.shape[-1:], norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
        output = linear(h, head.weight.to(dtype), head.bias.to(dtype))
        noise = noises[k + 1].to(dtype) if k + 1 < len(noises) else None
        x, carried = solver.step(k, x, output, noise, carried)
    assert carried is not None
    return x.to(sample.dtype), carried.to(sample.dtype)
