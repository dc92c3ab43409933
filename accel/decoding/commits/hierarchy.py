"""One of each gap, so that what is written at once lies apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence, leading

__all__ = ["Hierarchy"]


@dataclass(frozen=True)
class Hierarchy(Commit):
    """The most confident slot of each run of open ones, and all that are very sure.

    Hierarchical decoding of dInfer (Ma et al. 2025): slots far from each other depend on each other
    less, so the best of a run need only reach the lower threshold.

    Attributes:
        threshold: for any slot; the most confident of all is written whatever it reaches.
        low_threshold: for the most confident of a run; above 1 this is `Confidence`.
    """

    threshold: float = 0.9
    low_threshold: float = 0.4

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        sure = confidence(logits, tokens, unwritten)
        slots = torch.arange(sure.shape[1], device=sure.device).expand_as(sure)
        begins = unwritten & ~torch.nn.functional.pad(unwritten, (1, 0))[:, :-1]
        run = begins.cumsum(1)  # 0 ... Q; written slots count with the run before them
        none = sure.new_full((len(sure), sure.shape[1] + 1), -1.0)
        best = none.scatter_reduce(1, run, sure, "amax").gather(1, run)
        place = slots.where(sure == best, len(slots[0]))
        far = torch.full_like(none, len(slots[0]), dtype=slots.dtype)
        leads = slots == far.scatter_reduce(1, run, place, "amin").gather(1, run)
        write = (leads & (sure >= self.low_threshold)) | (sure >= self.threshold)
        return (write | leading(sure, 1)) & unwritten

    def passes(self, values: int) -> int | None:
        """It depends."""
        return None
