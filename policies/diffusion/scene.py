"""A driving scene, vector by vector, as the few tokens that condition a denoiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, one_hot, relu

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.spec import TensorSpec

__all__ = ["SceneConfig", "SceneEncoder"]

EGO, INTENT = "observation.ego_states", "observation.intent"
NEIGHBORS, MAP, ROUTE = "observation.neighbors", "observation.map", "observation.route"
# What each one's shape is; None is any number.
SHAPES: dict[str, tuple[int | None, ...]] = {
    EGO: (None, 6), INTENT: (), NEIGHBORS: (None, 10), MAP: (None, None, 6), ROUTE: (None, 2),
}  # fmt: skip
INTENTS, KINDS = 4, 4

FAR, NEAR = 50.0, 5.0  # m
SPEED, ACCELERATION = 10.0, 4.0  # m/s, m/s^2
LENGTH, WIDTH = 5.0, 2.0  # m


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class SceneConfig:
    """Size of a `SceneEncoder`.

    Attributes:
        width: of the residual stream, and F.
        layers: of self-attention between the things in the scene.
        heads: of each attention.
        tokens: M, condition tokens.
        history: newest rows of the vehicle's own past that are read; 1 is its present motion.
        neighbors, polylines: rows that are read, the nearest.
    """

    width: int = 128
    layers: int = 3
    heads: int = 4
    tokens: int = 16
    history: int = 16
    neighbors: int = 16
    polylines: int = 24

    @property
    def rows(self) -> dict[str, int]:
        """Observation to how many of its first rows are read, where not all are."""
        return {NEIGHBORS: self.neighbors, MAP: self.polylines}


class SceneEncoder(nn.Module):
    """A transformer over everything in a scene, read out by a fixed number of learned queries.

    A token each are the vehicle's own past with its intent, the route, every neighbor, and every
    piece of the map (its points through a PointNet, Qi et al. 2017, as in VectorNet, Gao et al.
    2020). What is not there is masked, and the order of neighbors and pieces has no meaning. Scales
    are fixed physical ones, so the normalizer is not used; places are given at two, to tell finely
    what is near.

    Args:
        inputs: `PolicySpec.inputs`: the driving vocabulary's vectors, `observation.ego_states` and
            any of the others.
        n_obs_steps: 1.
        config: how large.

    Attributes:
        tokens, width: M and F.

    Raises:
        ValueError: for other inputs, or several observations.
    """

    def __init__(
        self, inputs: Mapping[str, TensorSpec], n_obs_steps: int, config: SceneConfig
    ) -> None:
        super().__init__()
        _check(inputs, n_obs_steps, config)
        E = config.width
        self.keys = tuple(inputs)
        self.tokens, self.width = config.tokens, E
        self.rows = config.rows
        self.history = min(config.history, inputs[EGO].shape[0])
        self.ego = _Embedding(8 * self.history, E)
        self.intent = nn.Embedding(INTENTS, E) if INTENT in inputs else None
        self.neighbor = _Embedding(10 + KINDS, E) if NEIGHBORS in inputs else None
        self.point = _Embedding(8, E // 2, bias=False) if MAP in inputs else None
        self.piece = nn.Linear(E // 2, E) if MAP in inputs else None
        self.route = _Embedding(4 * inputs[ROUTE].shape[0], E) if ROUTE in inputs else None
        self.layers = nn.ModuleList(_Layer(E, config.heads) for _ in range(config.layers))
        self.queries = nn.Parameter(0.02 * torch.randn(config.tokens, E))
        self.memory_norm = nn.LayerNorm(E)
        self.read = _Layer(E, config.heads)
        self.norm = nn.LayerNorm(E)

    def forward(
        self, observations: Mapping[str, torch.Tensor], normalizer: LinearNormalizer
    ) -> torch.Tensor:
        """Raw observations (B, 1, ...) by key to tokens (B, M, F)."""
        stream, there = self._embed({key: observations[key][:, -1] for key in self.keys})
        mask = torch.zeros_like(there, dtype=stream.dtype).masked_fill(~there, -math.inf)
        for layer in self.layers:
            stream = layer(stream, mask=mask)
        queries = self.queries.expand(len(stream), -1, -1)
        return self.norm(self.read(queries, self.memory_norm(stream), mask=mask))

    def _embed(self, seen: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A token (B, S, E) for everything in the scene, and whether it is there (B, S)."""
        past = seen[EGO][:, -self.history :]
        place, velocity, acceleration = past[..., :2], past[..., 2:4], past[..., 4:]
        motion = [*_places(place), velocity / SPEED, acceleration / ACCELERATION]
        ego = self.ego(torch.cat(motion, -1).flatten(1))
        if self.intent is not None:
            ego = ego + self.intent(seen[INTENT])
        tokens = [ego[:, None]]
        if self.route is not None:
            tokens.append(self.route(torch.cat(_places(seen[ROUTE]), -1).flatten(1))[:, None])
        there = [past.new_ones((len(ego), len(tokens)), dtype=torch.bool)]
        if self.neighbor is not None:
            rows = seen[NEIGHBORS][:, : self.rows[NEIGHBORS]]
            tokens.append(self.neighbor(_neighbor_features(rows)))
            there.append(rows[..., 9] > 0)
        if self.point is not None and self.piece is not None:
            points = seen[MAP][:, : self.rows[MAP]]
            features = torch.cat([*_places(points[..., :2]), points[..., 2:]], -1)
            # The gradient of amax, which looks for ties, takes twice the time.
            tokens.append(self.piece(relu(self.point(features).max(2).values)))
            there.append(points[..., 0, 5] > 0)
        return torch.cat(tokens, 1), torch.cat(there, 1)


class _Embedding(nn.Sequential):
    def __init__(self, seen: int, width: int, *, bias: bool = True) -> None:
        super().__init__(
            nn.Linear(seen, width, bias=bias), nn.ReLU(), nn.Linear(width, width, bias=bias)
        )


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward: of a stream to itself, or to a memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # The gradient of a bias is a sum over all rows, which on a CPU costs as much as a product.
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 2 * width, bias=False)
        self.narrow = nn.Linear(2 * width, width, bias=False)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, *, mask: torch.Tensor
    ) -> torch.Tensor:
        """(B, S, E) with a memory (B, R, E), or itself, of which `mask` (B, R), 0 or -inf, tells
        what is there."""
        h = self.norm1(x)
        q = self.query(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        packed = self.key_value(h if memory is None else memory)
        k, v = packed.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # By hand: torch's ways through a mask and half precision take twice the time on a CPU.
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask[:, None, None].to(q)
        heads = scores.softmax(-1) @ v
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.wide(self.norm2(x))))


def _places(xy: torch.Tensor) -> list[torch.Tensor]:
    """Places (..., 2) in m at two scales: what is far stays apart, what is near is told finely."""
    return [xy / FAR, (xy / NEAR).tanh()]


def _neighbor_features(rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, N, 10) of the driving vocabulary as features (B, N, 14)."""
    place, heading, velocity, size, kind = rows[..., :9].split([2, 2, 2, 2, 1], -1)
    size = size / size.new_tensor([LENGTH, WIDTH])
    kinds = one_hot(kind[..., 0].long().clamp(0, KINDS - 1), KINDS).to(rows.dtype)
    return torch.cat([*_places(place), heading, velocity / SPEED, size, kinds], -1)


def _check(inputs: Mapping[str, TensorSpec], n_obs_steps: int, config: SceneConfig) -> None:
    if n_obs_steps != 1:
        raise ValueError(f"a scene encoder reads 1 observation, not {n_obs_steps}")
    if EGO not in inputs or not set(inputs) <= set(SHAPES):
        others = ", ".join(key for key in SHAPES if key != EGO)
        raise ValueError(
            f"a scene encoder reads {EGO} and any of {others}; not {', '.join(inputs) or 'nothing'}"
        )
    for key, spec in inputs.items():
        shape = SHAPES[key]
        same = len(spec.shape) == len(shape) and all(
            given > 0 and wanted in (None, given)
            for wanted, given in zip(shape, spec.shape, strict=True)
        )
        if not same:
            raise ValueError(f"{key} has shape {spec.shape}; a scene encoder reads {shape}")
    if min(dataclasses.astuple(config)) < 1 or config.width % (2 * config.heads):
        raise ValueError(
            f"{config}: all must be 1 or more, and the width a multiple of twice the heads"
        )
