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
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        lengths = ends - starts
        if len(ends) == 0 or int(ends[-1]) != len(actions) or (lengths <= 0).any():
            raise ValueError(
                f"episode ends must rise from above 0 to the number of actions {len(actions)}, got "
                f"{ends.tolist()[-5:]} at the end of {len(ends)}"
            )
        for key, frames in observations.items():
            if len(frames) != len(actions):
                raise ValueError(f"{key} has {len(frames)} frames for {len(actions)} actions")
        self.observations = {key: _tensor(frames) for key, frames in observations.items()}
        self.actions = _tensor(np.asarray(actions, dtype=np.float32))
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

    def chunks(self, relative_to: str | None = None) -> torch.Tensor:
        """The actions of all samples (N, T, A), as they are or relative to an observation's newest
        value, to fit a normalizer to."""
        ticks = torch.arange(len(self))
        times = (ticks[:, None] + self.chunk).maximum(self.first[:, None])
        actions = self.actions[times.minimum(self.last[:, None])]
        if relative_to is not None:
            actions = actions - self.observations[relative_to][:, None]
        return actions

    def batch(self, step: int, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
        """The batch of a training step, the same whenever it is asked for: resuming needs no state.

        Each epoch visits every tick once, in an order drawn from (seed, epoch); batches are always
        full and run over from one epoch into the next.
        """
        places = torch.arange(step * batch_size, (step + 1) * batch_size)
        first, last = int(places[0]) // len(self), int(places[-1]) // len(self)
        orders = torch.cat([self._order(epoch, seed) for epoch in range(first, last + 1)])
        return self.gather(orders[places - first * len(self)])

    def _order(self, epoch: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self), generator=generator)


def _tensor(values: NDArray) -> torch.Tensor:
    """Numbers with a fraction as float32, what networks compute in; images stay bytes."""
    fractional = np.issubdtype(values.dtype, np.floating)
    return torch.from_numpy(np.require(values, np.float32 if fractional else None, ["C", "W"]))
