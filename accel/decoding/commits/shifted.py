"""So many a pass, most of them early or late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence, leading

__all__ = ["Shifted", "shifted_counts"]


@dataclass(frozen=True)
class Shifted(Commit):
    """The most confident slots, as many in each pass as a timestep-shift schedule says.

    LaViDa (Li et al. 2025). How much is written by time t is t * shift / (1 + (shift - 1) * t),
    read backwards: a shift below 1 writes more in early passes, which its authors recommend, one
    of 1 as many in each, and one above 1 (their code's default, and worse) more in late ones.

    Attributes:
        shift: of the schedule.
        share: passes over a block for each of its open slots, at most 1.

    Raises:
        ValueError: for a shift that is not positive, or a share beyond 0 to 1.
    """

    shift: float = 1 / 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf") or not 0 < self.share <= 1:
            raise ValueError(
                "a shift is above 0 and a share of passes above 0 and at most 1, got "
                f"{self.shift} and {self.share}"
            )

    def passes(self, values: int) -> int | None:
        """The share, rounded down, but at least one."""
        return max(min(values, 1), int(values * self.share))

    def begin(self, values: int) -> Commit:
        """The counts of one block."""
        return _Counted(shifted_counts(values, self.passes(values) or 0, self.shift))

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """Not to be asked: counts are of a block, see `begin`."""
        raise RuntimeError("a schedule is of one block: ask what begin(values) gives")


class _Counted(Commit):
    """The most confident slots, the next of some counts of them; one where counts have run out."""

    def __init__(self, counts: list[int]) -> None:
        self._planned = len(counts)
        self._counts: Iterator[int] = iter(counts)

    def passes(self, values: int) -> int | None:
        """All that were planned."""
        return self._planned

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        count = next(self._counts, 1)
        return leading(confidence(logits, tokens, unwritten), count) & unwritten


def shifted_counts(values: int, passes: int, shift: float) -> list[int]:
    """How many of `values` slots each of `passes` passes writes, at least one each.

    At most one pass a slot is made. In float32, as LaViDa computes it: in other precisions some
    counts move to the pass beside.
    """
    passes = min(passes, values)
    if not passes:
        return []
    time = torch.linspace(0, 1, passes + 1, dtype=torch.float32, device="cpu")
    written = (shift * time / (1 + (shift - 1) * time) * values).long().tolist()
    written[-1] = values
    counts = [max(1, after - before) for before, after in pairwise(written)]
    over, turn = sum(counts) - values, 0
    while over > 0:
        if counts[turn % passes] > 1:
            counts[turn % passes] -= 1
            over -= 1
        turn += 1
    return counts[::-1]
