"""The answer that is to be written: which tokens stand already, and what may stand elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

__all__ = ["Canvas"]


@dataclass(frozen=True)
class Canvas:
    """n slots of an answer, in their order; the engine fills those that are not given.

    Attributes:
        tokens: (n,) int64; where `given` is False they say nothing.
        given: (n,) bool, the scaffold: never drafted, never verified, never altered.
        block: (n,) int64, which block a slot belongs to; never falls.
        section: (n,) int64, index in `sections`; never falls.
        kind: (n,) int64, row of `allowed` for each slot.
        allowed: (kinds, V) bool, the tokens that a slot of that kind may take.
        sections: names.
    """

    tokens: torch.Tensor
    given: torch.Tensor
    block: torch.Tensor
    section: torch.Tensor
    kind: torch.Tensor
    allowed: torch.Tensor
    sections: tuple[str, ...] = ("answer",)

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        parts = (self.given, self.block, self.section, self.kind)
        if len(shape) != 1 or any(part.shape != shape for part in parts):
            raise ValueError(
                f"tokens, given, block, section and kind are vectors of one length, got "
                f"{[tuple(part.shape) for part in (self.tokens, *parts)]}"
            )
        for name in ("block", "section"):
            if (getattr(self, name).diff() < 0).any():
                raise ValueError(f"{name} must never fall from one slot to the next")
        empty = ~self.allowed.any(1)
        if empty[self.kind[~self.given]].any():
            raise ValueError("a slot that is not given may take no token at all")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def values(self) -> int:
        """How many slots are to be filled."""
        return int((~self.given).sum())

    def settled(self, *, keep: Sequence[int] = ()) -> Canvas:
        """The same with slots given that may take one token only, unless it is one of `keep`."""
        token = self.allowed.int().argmax(1)
        kept = torch.isin(token, torch.tensor(keep, dtype=torch.int64, device=token.device))
        single = (self.allowed.sum(1) == 1) & ~kept
        forced = ~self.given & single[self.kind]
        tokens = torch.where(forced, token[self.kind], self.tokens)
        return replace(self, tokens=tokens, given=self.given | forced)

    def part(self, start: int, stop: int) -> Canvas:
        """The slots from `start` up to `stop`."""
        names = ("tokens", "given", "block", "section", "kind")
        return replace(self, **{name: getattr(self, name)[start:stop] for name in names})

    def to(self, device: torch.device | str) -> Canvas:
        """The same on another device."""
        names = ("tokens", "given", "block", "section", "kind", "allowed")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @classmethod
    def free(
        cls, slots: int, vocab: int, *, block_size: int, banned: tuple[int, ...] = ()
    ) -> Canvas:
        """Nothing given, blocks of one size, every token allowed but `banned` (the mask id)."""
        allowed = torch.ones(1, vocab, dtype=torch.bool)
        allowed[:, list(banned)] = False
        tokens, section, kind = torch.zeros(3, slots, dtype=torch.int64)
        return cls(
            tokens=tokens, given=torch.zeros(slots, dtype=torch.bool),
            block=torch.arange(slots) // block_size, section=section, kind=kind, allowed=allowed,
        )  # fmt: skip
