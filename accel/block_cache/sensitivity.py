"""What a stale branch value does to the action: one backward pass through whole chains.

Around the chain that reuses nothing, the last sample is a linear function of every branch value.
Its gradient weighs the differences between the values that a branch has at two steps, so that a
distance between activations becomes a distance between actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.samplers.base import Sampler

__all__ = ["action_distances"]

ROWS = 4  # chains at once: all values of all their branches are in memory
Distances = npt.NDArray[np.float64]


def action_distances(
    stack: ResidualStack,
    sampler: Sampler,
    noises: torch.Tensor,
    conds: torch.Tensor | None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Distances, Distances]:
    """How far the last sample moves, to first order, when a step uses an earlier step's values.

    Every chain is differentiated in one random direction, so the means over chains are unbiased.

    Args:
        stack, sampler: of the policy; torch must be able to differentiate them.
        noises: (num_noises, M, T, A) standard normal.
        conds: (M, O, D) observation tokens, None for an unconditional network.
        seed: of the directions.
        progress: called with (done, M).

    Returns:
        Mean squared differences, float64: (N, K, K), where [n, a, t] is for branch n using step
        a's value at step t, and (K, K) for all branches doing so.
    """
    # What was made in inference mode cannot be differentiated.
    noises, conds = noises.clone(), None if conds is None else conds.clone()
    total, steps = noises.shape[1], len(sampler.timesteps)
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(noises.shape[1:], generator=random).to(noises)
    directions /= directions[0].numel() ** 0.5
    each, whole = np.zeros((len(stack.branches), steps, steps)), np.zeros((steps, steps))
    for first in range(0, total, ROWS):
        rows = slice(first, first + ROWS)
        cond = None if conds is None else conds[rows]
        errors = _errors(stack, sampler, noises[:, rows], cond, directions[rows])
        each += errors.square().sum(0).cpu().numpy()
        whole += errors.sum(1).square().sum(0).cpu().numpy()
        if progress is not None:
            progress(min(first + ROWS, total), total)
    return each / total, whole / total


def _errors(
    stack: ResidualStack,
    sampler: Sampler,
    noise: torch.Tensor,
    cond: torch.Tensor | None,
    direction: torch.Tensor,
) -> torch.Tensor:
    """(B, N, K, K) float64: how far each replacement moves the last sample along `direction`."""
    steps = len(sampler.timesteps)
    state: list[Any] = [noise[0], None]  # sample, and the sampler's memory
    with torch.no_grad():
        ctx = stack.context(cond)
        states, values = [], []
        for k in range(steps):
            states.append(state)
            state, of_step = _step(stack, sampler, ctx, noise, k, state)
            values.append(of_step)
    slopes: list[Any] = [None] * steps
    into: list[Any] = [direction, None]  # gradients with respect to `state`
    for k in reversed(range(steps)):
        with torch.enable_grad():
            state = [None if part is None else part.detach().requires_grad_() for part in states[k]]
            after, of_step = _step(stack, sampler, ctx, noise, k, state)
        pairs = [(a, g) for a, g in zip(after, into, strict=True) if g is not None]
        inputs = [part for part in state if part is not None]
        found = torch.autograd.grad(
            [a for a, _ in pairs],
            [*inputs, *of_step],
            [g for _, g in pairs],
            materialize_grads=True,
        )
        into, slopes[k] = [*found[: len(inputs)], None][:2], found[len(inputs) :]
    products = []  # (B, K, K) of each branch: the value of step a, weighed as that of step t is
    for value, slope in zip(zip(*values, strict=True), zip(*slopes, strict=True), strict=True):
        at_a, at_t = (torch.stack(parts, dim=1).flatten(2) for parts in (value, slope))
        products.append((at_a @ at_t.mT).double())
    product = torch.stack(products, dim=1)
    return product - product.diagonal(dim1=2, dim2=3)[:, :, None]


def _step(
    stack: ResidualStack,
    sampler: Sampler,
    ctx: Any,
    noise: torch.Tensor,
    k: int,
    state: list[Any],
) -> tuple[list[Any], list[torch.Tensor]]:
    """Sample and memory after step k, and the values of its branches."""
    sample, memory = state
    h, values = stack.begin(sample, k, ctx), []
    for i in range(len(stack.branches)):
        values.append(stack.branch(i, h, k, ctx))
        h = stack.add(i, h, values[-1], k, ctx)
    fresh = noise[k + 1] if k + 1 < sampler.num_noises else None
    return list(sampler.step(k, sample, stack.finish(h, k, ctx), fresh, memory)), values
