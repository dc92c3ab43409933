"""What a table says of a condition: densities, samples, probabilities of events, and coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastloop.accel.flow_table import fast
from fastloop.accel.flow_table.mixture import LEAST_WEIGHT, Mixture
from fastloop.accel.flow_table.table import FlowTable

__all__ = [
    "diverse_top_k",
    "draw",
    "effective_sample_size",
    "event_probability",
    "log_base",
    "log_density",
    "log_weights",
    "seeded_noise",
]


def log_base(
    table: FlowTable, mixture: Mixture, *, least_weight: float = LEAST_WEIGHT
) -> torch.Tensor:
    """log q(z_k | c) of every cached future under every agent's mixture, (A, K).

    Args:
        least_weight: lighter components are left out, see `Mixture.pruned`; 0 is exact.
    """
    matrix = (mixture.pruned(least_weight) if least_weight else mixture).matrix
    features = table.features
    if features.is_cuda and features.dtype == torch.float32:
        from fastloop.accel.flow_table import triton_kernels
        from fastloop.accel.kernels.language import tl

        if tl is not None:
            return triton_kernels.log_mixture(features, matrix)
    return fast.log_mixture(features, matrix)


def log_density(
    table: FlowTable, mixture: Mixture, *, least_weight: float = LEAST_WEIGHT
) -> torch.Tensor:
    """log p(x_k | c) of every cached future, (A, K): equation 12 of CacheFlow."""
    return log_base(table, mixture, least_weight=least_weight) - table.log_det


def log_weights(table: FlowTable, base: torch.Tensor) -> torch.Tensor:
    """How much likelier a future is now than among the cached ones, (A, K) up to a constant.

    It is log p(x_k | c) / p(x_k) = log q(z_k | c) / q(z_k): the flow's Jacobian cancels.

    Args:
        base: (A, K) of `log_base`.
    """
    return base - table.log_reference


def event_probability(weights: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
    """Probability of events by self-normalized importance sampling over the cached futures.

    Args:
        weights: (A, K) of `log_weights`.
        events: (E, K), or (A, E, K) where they depend on the agent: whether, or how much, each
            future is part of each event.

    Returns:
        (A, E).

    Raises:
        ValueError: the events are not of these futures.
    """
    if events.shape[-1] != weights.shape[-1]:
        raise ValueError(
            f"an event says of each of the {weights.shape[-1]} futures whether it happens, got "
            f"events of shape {tuple(events.shape)}"
        )
    shares = weights.softmax(-1)
    return (shares[:, None] @ events.to(shares).transpose(-1, -2))[:, 0]


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """How many of the K futures carry the weight, (A,) from 1 to K (Kish): few say that the table
    hardly covers the condition.

    Args:
        weights: (A, K) of `log_weights`.
    """
    return (2 * weights.logsumexp(-1) - (2 * weights).logsumexp(-1)).exp()


def seeded_noise(seeds: Sequence[int | tuple[int, ...]], samples: int, dim: int) -> torch.Tensor:
    """Noise (A, N, 1 + d) for `draw`, each agent's from its own seed."""
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).standard_normal(
            (samples, 1 + dim), dtype=np.float32
        )
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows))


def draw(table: FlowTable, mixture: Mixture, noise: torch.Tensor) -> torch.Tensor:
    """N feasible futures for each agent: the cached neighbors of the mixture's samples, equation 13
    of CacheFlow (where the table's metric is 1).

    Args:
        noise: (A, N, 1 + d) standard normal, of `seeded_noise` for instance.

    Returns:
        (A, N) int64 places in the table.
    """
    return table.nearest(mixture.sample(noise.to(table.z)) * table.metric)


def diverse_top_k(
    table: FlowTable, weights: torch.Tensor, count: int, *, pool: int = 256
) -> torch.Tensor:
    """Likely futures that differ: the likeliest one, then each time the farthest (over the whole
    future) from those taken, among the `pool` likeliest feasible ones.

    Args:
        weights: (A, K), what makes a future likely.
        count: of futures an agent, not more than `pool`.

    Returns:
        (A, count) int64 places in the table.

    Raises:
        ValueError: when more futures are asked for than there are.
    """
    pool = min(pool, int(table.feasible.sum()))
    if not 1 <= count <= pool:
        raise ValueError(f"there are {pool} futures to choose from, got count={count}")
    places = weights.masked_fill(~table.feasible, -torch.inf).topk(pool, -1).indices
    futures = table.futures.flatten(1)[places]  # (A, pool, T F)
    taken = torch.zeros(len(places), count, dtype=torch.int64, device=places.device)
    distances = torch.full(places.shape, torch.inf, dtype=futures.dtype, device=places.device)
    rows = torch.arange(len(places), device=places.device)
    for n in range(1, count):
        last = futures[rows, taken[:, n - 1], None]
        distances = distances.minimum((futures - last).square().sum(-1))
        taken[:, n] = distances.argmax(-1)
    return places.gather(1, taken)
