"""What of a training sample is learned, and how much of its past the policy sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """Past-token prediction (Torne et al. 2025), and training on several lengths of context.

    A sample has O frames and T actions; the first O - 1 actions are of the past, one beside every
    frame but the newest. A policy of a long context is taught by them to look back.

    Attributes:
        n_obs_steps: O.
        past_steps: newest past actions that are learned, 0 to O - 1; None for all.
        contexts: numbers of frames, 1 to O, one of which is drawn for each batch: its older frames
            become copies of the oldest one that stays, as at an episode's beginning, and past
            actions older than that one are not learned. Empty for always O.

    Raises:
        ValueError: for numbers outside of these ranges.
    """

    n_obs_steps: int
    past_steps: int | None = None
    contexts: Sequence[int] = ()

    def __post_init__(self) -> None:
        past, frames = self.past_steps, self.n_obs_steps
        if past is not None and not 0 <= past < frames:
            raise ValueError(
                f"past_steps={past} of {frames} observation steps cannot be learned; choose 0 to "
                f"{frames - 1}, or null for all"
            )
        if outside := [n for n in self.contexts if not 1 <= n <= frames]:
            raise ValueError(
                f"contexts of {outside} frames cannot be cut from {frames} observation steps; "
                f"choose from 1 to {frames}"
            )

    def draw(self, generator: torch.Generator | None = None) -> int:
        """The number of frames that one batch sees."""
        if not self.contexts:
            return self.n_obs_steps
        return self.contexts[int(torch.randint(len(self.contexts), (), generator=generator))]

    def seen(self, frames: int) -> torch.Tensor:
        """(O,) int64: which frame stands at each place when only the newest `frames` are seen."""
        return torch.arange(self.n_obs_steps).clamp(min=self.n_obs_steps - frames)

    def first(self, frames: int) -> int:
        """The first action that is learned when only the newest `frames` are seen; so are all after
        it, the present and the future."""
        past = self.n_obs_steps - 1 if self.past_steps is None else self.past_steps
        return self.n_obs_steps - 1 - min(past, frames - 1)
