"""What a policy has seen and what was really done, one environment at a time or as a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["EpisodeHistory", "Executed", "Frame", "History", "Underway"]

DELAYS = 10  # of an episode's last plans that are kept


@dataclass
class Frame:
    """One observation of one environment, with what was derived from it.

    Attributes:
        values: observation key to a tensor without batch axis.
        memo: things computed from this frame alone (an embedding, keys and values); they leave with
            the frame.
    """

    values: dict[str, torch.Tensor]
    memo: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Underway:
    """The plan that is being executed.

    Attributes:
        tick: of its first action.
        actions: (T, A).
        delays: ticks that had really passed when each of the episode's last plans was taken up,
            the newest last; an episode's first plan, which the world waits for, is not among them.
    """

    tick: int
    actions: torch.Tensor
    delays: tuple[int, ...] = ()


@dataclass(frozen=True)
class Executed:
    """What was really done at P moments of the past, in B environments.

    Attributes:
        actions: (B, P, A); 0 where nothing was done yet.
        known: (B, P) whether something was done.
        overridden: (B, P, A) elements that were not what the policy had planned.
    """

    actions: torch.Tensor
    known: torch.Tensor
    overridden: torch.Tensor


class EpisodeHistory:
    """The last frames and executed actions of one environment's episode.

    Args:
        length: frames and actions kept.
    """

    def __init__(self, length: int) -> None:
        self.frames: deque[Frame] = deque(maxlen=length)
        self.actions: deque[torch.Tensor] = deque(maxlen=length)
        self.overridden: deque[torch.Tensor] = deque(maxlen=length)
        self.underway: Underway | None = None
        self.tick = -1
        self.done = 0  # actions so far; ahead of `tick` where they are handed out ahead

    def observe(
        self, observation: Mapping[str, torch.Tensor | np.ndarray], *, copy: bool = True
    ) -> None:
        """Add the frame of the next tick; the first tick of an episode is 0.

        Args:
            observation: key to a value without batch axis.
            copy: False for tensors that nobody writes to any more.
        """
        values = {key: _owned(value, copy) for key, value in observation.items()}
        self.frames.append(Frame(values))
        self.tick += 1

    def planned(self, actions: torch.Tensor, *, late: int = 0) -> None:
        """Record the plan (T, A) that is executed from now on; it was made `late` ticks ago."""
        before = self.underway
        delays = () if before is None else (*before.delays, late)[-DELAYS:]
        self.underway = Underway(self.done - late, actions, delays)

    def acted(self, action: torch.Tensor, *, overridden: torch.Tensor | None = None) -> None:
        """Record the action (A,) that was really executed at the current tick.

        Args:
            action: as executed.
            overridden: (A,) bool: the elements that somebody else decided, a safety layer for
                instance; by default none.
        """
        self.done += 1
        self.actions.append(action)
        if overridden is None:
            overridden = torch.zeros(action.shape, dtype=torch.bool, device=action.device)
        self.overridden.append(overridden)


def _owned(value: torch.Tensor | np.ndarray, copy: bool) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.clone() if copy else value
    return torch.tensor(value)


@dataclass(frozen=True)
class History:
    """The window of B environments that a policy plans from.

    Attributes:
        frames: B rows of O frames each, oldest first; before O ticks have passed the first frame
            is repeated.
        actions: B rows of the actions executed so far, oldest first, at most as many as kept.
        ticks: (B,) int64 tick of the newest frame.
        overridden: beside `actions`, (A,) bool each: the elements that somebody else decided.
        underway: B plans in execution; None before an episode's first.
    """

    frames: tuple[tuple[Frame, ...], ...]
    actions: tuple[tuple[torch.Tensor, ...], ...]
    ticks: torch.Tensor
    overridden: tuple[tuple[torch.Tensor, ...], ...] = ()
    underway: tuple[Underway | None, ...] = ()

    @classmethod
    def stack(cls, episodes: Sequence[EpisodeHistory], lags: Sequence[int]) -> History:
        """Batch the frames that lie `lags` ticks back in each episode.

        Raises:
            ValueError: when an episode has seen no observation yet, or forgets too soon.
        """
        if any(not episode.frames for episode in episodes):
            raise ValueError("an episode was asked for a plan before its first observation")
        rows = []
        for episode in episodes:
            kept = episode.frames.maxlen or 0
            if kept <= max(lags):
                raise ValueError(
                    f"a frame {max(lags)} ticks back was asked for; the history keeps {kept} frames"
                )
            newest = len(episode.frames) - 1
            rows.append(tuple(episode.frames[max(newest - lag, 0)] for lag in lags))
        return cls(
            frames=tuple(rows),
            actions=tuple(tuple(episode.actions) for episode in episodes),
            ticks=torch.tensor([episode.tick for episode in episodes]),
            overridden=tuple(tuple(episode.overridden) for episode in episodes),
            underway=tuple(episode.underway for episode in episodes),
        )

    def executed(self, lags: Sequence[int], dim: int) -> Executed:
        """What was really done `lags` ticks (each at least 1) ago.

        Args:
            lags: P of them.
            dim: A.
        """
        shape = (len(self), len(lags), dim)
        actions, overridden = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        known = torch.zeros(shape[:2], dtype=torch.bool)
        for row, done in enumerate(self.actions):
            for place, lag in enumerate(lags):
                if lag <= len(done):
                    known[row, place] = True
                    actions[row, place] = done[-lag]
                    overridden[row, place] = self.overridden[row][-lag]
        return Executed(actions, known, overridden)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: str) -> torch.Tensor:
        """The observation `key` as (B, O, ...) in its own dtype.

        Raises:
            KeyError: listing what the frames hold.
        """
        if key not in self.frames[0][0].values:
            held = ", ".join(self.frames[0][0].values)
            raise KeyError(f"no observation {key!r} in the history; it holds {held}")
        return torch.stack(
            [torch.stack([frame.values[key] for frame in row]) for row in self.frames]
        )
