"""What a table and an encoder say of one agent, in numpy: of a hundred operations on a few numbers
each, torch spends most of the time beginning them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.table import FlowTable
from fastloop.policies.cacheflow.mixture import FARTHEST, LEAST_DEVIATION, MixtureEncoder

__all__ = ["SingleAgent"]

Array = NDArray[np.floating[Any]]


class SingleAgent:
    """The same numbers as of `MixtureEncoder` and `Mixture`, to rounding, on a CPU and without
    gradients.

    Products are einsum's, whose sums run on the thread that asks: numpy's others may wake all cores
    for one row.

    Args:
        encoder, table: their numbers are looked at where they are, and not copied.
    """

    def __init__(self, encoder: MixtureEncoder, table: FlowTable) -> None:
        self.encoder, self.table = encoder, table
        self.mean, self.scale = _array(encoder.mean), _array(encoder.scale)
        self.gru = [_array(part) for part in encoder.recurrent.all_weights[0]]
        self.newest = _parts(encoder.newest)
        self.command = encoder.command and _parts(encoder.command)
        first, last = (layer for layer in encoder.head if isinstance(layer, nn.Linear))
        self.head = _parts(first), _parts(last)
        self.z, self.metric = _array(table.z), _array(table.metric)

    def condition(
        self,
        history: torch.Tensor,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Mixture:
        """`MixtureEncoder.forward` of (1, O, H), (1, C) and (1, P, ...)."""
        seen = (history[0].numpy() - self.mean) / self.scale
        seen = np.minimum(np.maximum(seen, -FARTHEST), FARTHEST)
        hidden = self._last_state(seen) + _linear(seen[-1], *self.newest)
        if self.command is not None:
            assert command is not None
            hidden += _linear(command[0].numpy(), *self.command)
        if neighbors is not None:
            hidden += self.encoder.around(neighbors)[0].numpy()
        first, last = self.head
        rows = _linear(_silu(_linear(_silu(hidden), *first)), *last)
        rows, d = rows.reshape(self.encoder.components, -1), self.encoder.dims
        weights, means = rows[:, 0], rows[:, 1 : 1 + d]
        deviations = LEAST_DEVIATION + np.logaddexp(rows[:, 1 + d :], 0)
        parts = weights - np.logaddexp.reduce(weights), means, deviations * deviations
        return Mixture(*(torch.from_numpy(part[None]) for part in parts))

    def draw(self, mixture: Mixture, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`queries.draw` of noise (1, N, 1 + d), and the log-densities in the base space: both
        (1, N)."""
        logs, means, variances = (part[0].numpy() for part in vars(mixture).values())
        shares = np.exp(logs).cumsum()
        level = torch.special.ndtr(noise[0, :, 0]).numpy() * shares[-1]
        chosen = shares.searchsorted(level)
        points = means[chosen] + np.sqrt(variances[chosen]) * noise[0, :, 1:].numpy()
        places = self.table.nearest(torch.from_numpy(points * self.metric)[None])
        apart = self.z[places[0].numpy(), None] - means
        apart *= apart
        width = means.shape[1] * math.log(2 * math.pi)
        heights = logs - 0.5 * (np.log(variances).sum(1) + width)
        each = heights - 0.5 * np.einsum("nmd,md->nm", apart, 1 / variances)
        highest = each.max(1)
        log_prob = np.log(np.exp(each - highest[:, None]).sum(1)) + highest
        return places, torch.from_numpy(log_prob[None])

    def _last_state(self, seen: Array) -> Array:
        """Of a past (O, H)."""
        inward, across, bias, recurrent_bias = self.gru
        given = np.einsum("oi,gi->og", seen, inward) + bias
        width = across.shape[1]
        state: Array = np.zeros(width, given.dtype)
        for now in given:
            of = _linear(state, across, recurrent_bias)
            gates = np.tanh(0.5 * (now[: 2 * width] + of[: 2 * width]))
            gates += 1
            gates *= 0.5
            new = np.tanh(now[2 * width :] + gates[:width] * of[2 * width :])
            state = new + gates[width:] * (state - new)
        return state


def _linear(values: Array, weight: Array, bias: Array) -> Array:
    product: Array = np.einsum("gi,i->g", weight, values)
    product += bias
    return product


def _silu(values: Array) -> Array:
    """By the tangent, which does not overflow."""
    half = 0.5 * values
    return half + half * np.tanh(half)


def _parts(layer: nn.Linear) -> tuple[Array, Array]:
    return _array(layer.weight), _array(layer.bias)


def _array(part: torch.Tensor) -> Array:
    return part.detach().numpy()
