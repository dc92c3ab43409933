"""Which tokens of an answer are hidden from a model that learns to draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["UNIFORM", "complementary", "masking_probability"]

UNIFORM = (1.0, 1.0)


def masking_probability(
    block: torch.Tensor,
    section: torch.Tensor,
    schedules: Sequence[tuple[float, float]],
    *,
    generator: torch.Generator,
    eps: float = 1e-3,
) -> torch.Tensor:
    """How likely each token is to be masked: one level per block, drawn from its section's Beta.

    p = (1 - eps) t + eps, t ~ Beta(a, b): sections that plan may be masked more than those that
    see (Fast-dDrive, arXiv 2605.23163). Tokens of two sections in one block draw apart.

    Args:
        block: (B, A) int64, what is at least A is padding.
        section: (B, A) int64, index in `schedules`.
        schedules: (a, b) of each section; `UNIFORM` draws t from [0, 1].
        generator: on the CPU.
        eps: the least p, in [0, 1].

    Returns:
        p (B, A) float32 in [eps, 1], where `block` lies.
    """
    shape = tuple(block.shape)
    seed = int(torch.randint(2**62, (), generator=generator))
    rng = np.random.default_rng(seed)  # torch draws no Beta from a generator
    drawn = np.stack([rng.beta(a, b, shape) for a, b in schedules])
    level = torch.from_numpy(drawn).float().to(block.device)
    row = torch.arange(shape[0], device=block.device)[:, None]
    t = level[section, row, block.clamp(max=shape[1] - 1)]
    return (1 - eps) * t + eps


def complementary(
    probability: torch.Tensor,
    *,
    free: torch.Tensor,
    always: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Two copies of an answer's mask; each free token is masked in exactly one of them.

    Args:
        probability: (B, A) of being masked in the first copy.
        free: (B, A) bool, what may be masked: neither scaffold nor padding.
        always: (B, A) bool, what is masked in both copies: the stop token, which would else tell
            where the answer ends. It counts only where `free` does.
        generator: on the CPU.

    Returns:
        (2, B, A) bool.
    """
    drawn = torch.rand(probability.shape, generator=generator).to(probability.device)
    first = drawn < probability
    return free & (torch.stack([first, ~first]) | always)
