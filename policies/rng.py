"""Noise that belongs to one environment's tick, whatever runs beside it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Rng"]


@dataclass(frozen=True)
class Rng:
    """A source of noise for B environments, each keyed by (seed, episode, tick).

    Two calls with equal keys, stream and shape give equal numbers on every device and for every
    batch size, which is what makes a result independent of the environments that run beside it.

    Attributes:
        keys: B triples of non-negative integers (seed, episode, tick).
    """

    keys: tuple[tuple[int, int, int], ...]

    @classmethod
    def for_envs(cls, seed: int, episodes: Sequence[int], ticks: Sequence[int]) -> Rng:
        """Key each environment by the run's `seed`, its episode and its tick."""
        pairs = zip(episodes, ticks, strict=True)
        return cls(tuple((seed, int(episode), int(tick)) for episode, tick in pairs))

    def __len__(self) -> int:
        return len(self.keys)

    def normal(self, shape: Sequence[int], *, stream: str = "noise") -> torch.Tensor:
        """Standard normal noise.

        Args:
            shape: the shape for one environment.
            stream: name of the use, so that two uses in one tick are independent.

        Returns:
            (B, *shape) float32 on the CPU.
        """
        salt = zlib.crc32(stream.encode())
        rows = [
            np.random.Generator(
                np.random.Philox(np.random.SeedSequence((*key, salt)))
            ).standard_normal(tuple(shape), dtype=np.float32)
            for key in self.keys
        ]
        return torch.from_numpy(np.stack(rows))
