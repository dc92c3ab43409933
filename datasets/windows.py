"""Training windows cut from demonstrations: a few frames of the past, a chunk of what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Demonstration", "Windows"]


class Demonstration(Protocol):
    """What windows are cut from: frames (N, ...) by key and actions (N, A) of one episode."""

    @property
    def observations(self) -> Mapping[str, NDArray]: ...

    @property
    def actions(self) -> NDArray: ...


class Windows:
    """Every tick of every demonstration as a training sample.

    The sample of tick t holds the observations of ticks t-O+1 .. t and the actions of ticks
    t-O+1 .. t-O+T, as Diffusion Policy (Chi et al. 2023) cuts them; before an episode's first tick
    the first frame is repeated, after its last tick the last action.

    Args:
        observations: key to (N, ...) frames of all demonstrations, one after the other.
        actions: (N, A).
        episode_ends: (E,) exclusive cumulative ends.
        n_obs_steps, horizon: O and T.
    """

    def __init__(
        self,
        observations: Mapping[str, NDArray],
        actions: NDArray,
        episode_ends: Sequence[int] | NDArray[np.int64],
        *,
        n_obs_steps: int,
        horizon: int,
    ) -> None:
        ends = torch.as_tensor(np.asarray(episode_ends, dtype=np.int64))
        if len(ends) == 0 or int(ends[-1]) != len(actions) or (ends.diff() <= 0).any():
            raise ValueError(
                f"episode ends must rise to the number of actions {len(actions)}, got {ends[-3:]}"
            )
        for key, frames in observations.items():
            if len(frames) != len(actions):
                raise ValueError(f"{key} has {len(frames)} frames for {len(actions)} actions")
        self.observations = {key: torch.from_numpy(frames) for key, frames in observations.items()}
        self.actions = torch.from_numpy(np.ascontiguousarray(actions, dtype=np.float32))
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        lengths = ends - starts
        self.first = starts.repeat_interleave(lengths)
        self.last = (ends - 1).repeat_interleave(lengths)
        self.past = torch.arange(n_obs_steps) - (n_obs_steps - 1)
        self.chunk = torch.arange(horizon) - (n_obs_steps - 1)

    @classmethod
    def of(
        cls,
        demonstrations: Iterable[Demonstration],
        keys: Sequence[str],
        *,
        n_obs_steps: int,
        horizon: int,
    ) -> Windows:
        """The windows of some demonstrations, with the observations `keys`.

        Raises:
            ValueError: when there is no demonstration, or one lacks an observation.
        """
        demonstrations = list(demonstrations)
        if not demonstrations:
            raise ValueError("there is no demonstration to train on")
        for demonstration in demonstrations:
            missing = set(keys) - set(demonstration.observations)
            if missing:
                raise ValueError(
                    f"a demonstration lacks the observations {sorted(missing)}; it has "
                    f"{sorted(demonstration.observations)}"
                )
        return cls(
            {k: np.concatenate([d.observations[k] for d in demonstrations]) for k in keys},
            np.concatenate([d.actions for d in demonstrations]),
            np.cumsum([len(d.actions) for d in demonstrations]),
            n_obs_steps=n_obs_steps,
            horizon=horizon,
        )

    def __len__(self) -> int:
        return len(self.actions)

    def gather(self, ticks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples of `ticks` (B,): observations (B, O, ...) and ``action`` (B, T, A)."""
        first, last = self.first[ticks, None], self.last[ticks, None]
        seen = (ticks[:, None] + self.past).maximum(first)
        done = (ticks[:, None] + self.chunk).maximum(first).minimum(last)
        batch = {key: frames[seen] for key, frames in self.observations.items()}
        return batch | {"action": self.actions[done]}

    def batch(self, step: int, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
        """The batch of a training step, the same whenever it is asked for: resuming needs no state.

        Each epoch visits every tick once, in an order drawn from (seed, epoch).
        """
        per_epoch = max(len(self) // batch_size, 1)
        epoch, slot = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self), generator=generator)
        return self.gather(order[slot * batch_size : (slot + 1) * batch_size])
