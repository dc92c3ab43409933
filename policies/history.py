"""What a policy has seen and what was really done, one environment at a time or as a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["EpisodeHistory", "Frame", "History"]


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


class EpisodeHistory:
    """The last frames and executed actions of one environment's episode.

    Args:
        length: frames and actions kept.
    """

    def __init__(self, length: int) -> None:
        self.frames: deque[Frame] = deque(maxlen=length)
        self.actions: deque[torch.Tensor] = deque(maxlen=length)
        self.tick = -1

    def observe(self, observation: Mapping[str, torch.Tensor | np.ndarray]) -> None:
        """Add the frame of the next tick, copied; the first tick of an episode is 0."""
        values = {
            key: value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
            for key, value in observation.items()
        }
        self.frames.append(Frame(values))
        self.tick += 1

    def acted(self, action: torch.Tensor) -> None:
        """Record the action (A,) that was really executed at the current tick."""
        self.actions.append(action)


@dataclass(frozen=True)
class History:
    """The window of B environments that a policy plans from.

    Attributes:
        frames: B rows of O frames each, oldest first; before O ticks have passed the first frame
            is repeated.
        actions: B rows of the actions executed so far, oldest first, at most as many as kept.
        ticks: (B,) int64 tick of the newest frame.
    """

    frames: tuple[tuple[Frame, ...], ...]
    actions: tuple[tuple[torch.Tensor, ...], ...]
    ticks: torch.Tensor

    @classmethod
    def stack(cls, episodes: Sequence[EpisodeHistory], n_obs_steps: int) -> History:
        """Batch the newest `n_obs_steps` frames of each episode.

        Raises:
            ValueError: when an episode has seen no observation yet.
        """
        if any(not episode.frames for episode in episodes):
            raise ValueError("an episode was asked for a plan before its first observation")
        rows = []
        for episode in episodes:
            recent = list(episode.frames)[-n_obs_steps:]
            rows.append(tuple([recent[0]] * (n_obs_steps - len(recent)) + recent))
        return cls(
            frames=tuple(rows),
            actions=tuple(tuple(episode.actions) for episode in episodes),
            ticks=torch.tensor([episode.tick for episode in episodes]),
        )

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
