"""The more at once, the surer each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence

__all__ = ["Factor"]


@dataclass(frozen=True)
class Factor(Commit):
    """The n most confident slots, as long as the least of them reaches 1 - factor / (n + 1).

    Fast-dLLM (Wu et al. 2025), whose code also writes the last open slot when all others pass,
    however unsure it is; here it has to pass too. At least one is written, all at an infinite
    factor.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise ValueError(f"a factor is 0 or more, got {self.factor}")

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        sure = confidence(logits, tokens, unwritten)
        falling, order = sure.sort(dim=1, descending=True, stable=True)
        count = torch.arange(1, falling.shape[1] + 1, device=falling.device)
        # What falls meets what rises once, so these are the first n.
        enough = falling >= 1 - self.factor / (count + 1)
        enough[:, :1] = True
        return torch.zeros_like(unwritten).scatter(1, order, enough) & unwritten

    def passes(self, values: int) -> int | None:
        """It depends."""
        return None
