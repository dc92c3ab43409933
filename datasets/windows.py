"""Training windows cut from demonstrations: a few frames of the past, a chunk of what was done."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fastloop.datasets.demonstration import Demonstration, Frames, LazyFrames

__all__ = ["Batches", "Windows"]


class Windows:
    """Every tick of every demonstration as a training sample.

    The sample of tick t holds the observations of ticks t-O+1 .. t and the actions of ticks
    t-O+1 .. t-O+T, as Diffusion Policy (Chi et al. 2023) cuts them; with `lags`, the observations
    and past actions that lie as many ticks back, and the others from t on, tick by tick, as PTP
    (Torne et al. 2025) does; before an episode's first tick
    the first frame is repeated, after its last tick the last action. Images that are
    `LazyFrames` are read for each sample, everything else is held in memory; what is given in half
    precision is held so, too.

    Args:
        observations: key to (N, ...) frames of all demonstrations, one after the other.
        actions: (N, A).
        episode_ends: (E,) exclusive cumulative ends.
        n_obs_steps, horizon: O and T.
        stride: ticks between the frames of a sample, and between its actions; above 1 for a policy
            that is slower than the recording.
        lags: ticks (times `stride`) back of the O frames, oldest first; by default O-1 .. 0.
    """

    def __init__(
        self,
        observations: Mapping[str, Frames],
        actions: NDArray[Any],
        episode_ends: Sequence[int] | NDArray[np.int64],
        *,
        n_obs_steps: int,
        horizon: int,
        stride: int = 1,
        lags: Sequence[int] | None = None,
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
        self.observations = {
            key: frames if _stays(frames) else _tensor(np.asarray(frames))
            for key, frames in observations.items()
        }
        self.actions = _tensor(np.asarray(actions, dtype=np.float32))
        self.first = starts.repeat_interleave(lengths)
        self.last = (ends - 1).repeat_interleave(lengths)
        back = lags or range(n_obs_steps - 1, -1, -1)
        self.past = -stride * torch.tensor(back)
        self.chunk = torch.cat([self.past[:-1], stride * torch.arange(horizon)])[:horizon]

    @classmethod
    def of(
        cls,
        demonstrations: Iterable[Demonstration],
        keys: Sequence[str],
        *,
        n_obs_steps: int,
        horizon: int,
        stride: int = 1,
        lags: Sequence[int] | None = None,
    ) -> Self:
        """The windows of some demonstrations, with the observations `keys`.

        Raises:
            ValueError: when there is no demonstration, one lacks an observation or actions, or they
                differ in shape.
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
        actions = np.asarray(_joined("action", [d.actions for d in demonstrations]))
        if not actions.shape[1]:
            raise ValueError(
                "the demonstrations hold no actions, so there is nothing to imitate in them"
            )
        return cls(
            {key: _joined(key, [d.observations[key] for d in demonstrations]) for key in keys},
            actions,
            np.cumsum([len(d.actions) for d in demonstrations]),
            n_obs_steps=n_obs_steps,
            horizon=horizon,
            stride=stride,
            lags=lags,
        )

    def __len__(self) -> int:
        return len(self.actions)

    def gather(self, ticks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples of `ticks` (B,): observations (B, O, ...) and ``action`` (B, T, A)."""
        first, last = self.first[ticks, None], self.last[ticks, None]
        seen = (ticks[:, None] + self.past).maximum(first)
        done = (ticks[:, None] + self.chunk).maximum(first).minimum(last)
        batch = {
            key: _tensor(frames[seen.numpy()]) if isinstance(frames, LazyFrames) else frames[seen]
            for key, frames in self.observations.items()
        }
        batch = {k: v.float() if v.dtype == torch.float16 else v for k, v in batch.items()}
        return batch | {"action": self.actions[done]}

    @property
    def lazy(self) -> bool:
        """Whether some observations are read from their files for each sample."""
        return any(isinstance(frames, LazyFrames) for frames in self.observations.values())

    def chunks(self, relative_to: str | None = None) -> torch.Tensor:
        """The actions of all samples (N, T, A), as they are or relative to an observation's newest
        value, to fit a normalizer to."""
        ticks = torch.arange(len(self.actions))
        times = (ticks[:, None] + self.chunk).maximum(self.first[:, None])
        actions = self.actions[times.minimum(self.last[:, None])]
        if relative_to is not None:
            anchor = self.observations[relative_to]
            assert isinstance(anchor, torch.Tensor)
            actions = actions - anchor[:, None]
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


class Batches(Dataset[dict[str, torch.Tensor]]):
    """`Windows.batch` of the steps that are asked for, made ahead by other processes.

    A batch is the same for any number of them. Steps are expected to be asked for in order; another
    one is a new start.

    Args:
        windows: what is cut.
        batch_size, seed: of `Windows.batch`.
        num_workers: processes; 0 makes each batch when it is asked for.
    """

    def __init__(
        self, windows: Windows, batch_size: int, seed: int, *, num_workers: int = 0
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.ahead: Iterator[dict[str, torch.Tensor]] = iter(())
        self.next_step = -1

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step.

        Raises:
            DatasetError: a frame cannot be read.
        """
        if not self.num_workers:
            return self[step]
        if step != self.next_step:
            loader: DataLoader[Any] = DataLoader(
                self,
                batch_size=None,
                sampler=range(step, sys.maxsize),
                num_workers=self.num_workers,
                worker_init_fn=_ignore_interrupts,
                # The threads of a video decoder do not survive a fork, and waiting for them hangs.
                multiprocessing_context="spawn",
                generator=torch.Generator(),  # leaves alone the one that dropout draws from
            )
            self.ahead = iter(loader)
        self.next_step = step + 1
        return next(self.ahead)

    def stop(self) -> None:
        """End the processes; they start again when a batch is asked for."""
        self.ahead, self.next_step = iter(()), -1

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return self.windows.batch(step, self.batch_size, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"ahead": iter(())}


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is for the process that trains, which then lets its workers go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Joined(LazyFrames):
    """Frames of several episodes, one after the other, each still in its file."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        super().__init__((int(self.ends[-1]), *parts[0].shape[1:]), parts[0].dtype)

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        of = np.searchsorted(self.ends, places, side="right")
        starts = self.ends - [len(part) for part in self.parts]
        return np.concatenate(
            [self.parts[part][places[of == part] - starts[part]] for part in np.unique(of)]
        )


def _joined(key: str, parts: Sequence[Frames]) -> Frames:
    """Frames of all episodes, in memory where they are."""
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"{key} differs in shape between demonstrations: {sorted(shapes)}")
    if any(_stays(part) for part in parts):
        return _Joined(parts)
    together: NDArray[Any] = np.concatenate([np.asarray(part) for part in parts])
    return together


def _stays(frames: Frames) -> TypeGuard[LazyFrames]:
    """Whether frames are read for each sample: bytes, what images are of."""
    return isinstance(frames, LazyFrames) and frames.dtype == np.uint8


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Numbers with a fraction as float32, what networks compute in, or in half precision if they
    are; images stay bytes."""
    fractional = np.issubdtype(values.dtype, np.floating) and values.dtype != np.float16
    return torch.from_numpy(np.require(values, np.float32 if fractional else None, ["C", "W"]))
