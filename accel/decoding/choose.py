"""Which token stands in a slot, given its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Choice", "Greedy", "Gumbel"]


class Choice(Protocol):
    """A function of logits and of where they speak of; no state, so that it can be repeated."""

    def __call__(
        self, logits: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Which one stands in each slot.

        Args:
            logits: (B, Q, C), -inf where a token may not stand.
            positions: (B, Q) int64.
            tokens: (B or 1, Q, C) int64, what the logits are of; None for all V in their order.

        Returns:
            (B, Q) int64, indices in C.
        """
        ...


@dataclass(frozen=True)
class Greedy:
    """The likeliest."""

    def __call__(
        self, logits: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Choice`."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Gumbel:
    """A sample of softmax(logits / temperature), by the Gumbel-max trick.

    The noise is a function of (seed of the row, position, token) and of nothing else: neither of
    the other rows, nor of the order in which slots are looked at, nor of the device. Whoever
    chooses twice for one slot from one distribution therefore chooses the same, and decoding by
    draft and verification can be compared with plain sampling token for token.

    Attributes:
        temperature: 0 for the likeliest.
        seeds: B integers, one a row.
    """

    temperature: float
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"a temperature is 0 or more, got {self.temperature}")

    def __call__(
        self, logits: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Choice`.

        Raises:
            ValueError: when there is not one seed for each row.
        """
        if len(self.seeds) != len(logits):
            raise ValueError(f"{len(logits)} rows need as many seeds, got {len(self.seeds)}")
        if self.temperature == 0:
            return logits.argmax(-1)
        # A seed is mixed on the host, in Python's integers, and travels as 63 bits.
        seeds = torch.tensor([seed % (1 << 63) for seed in self.seeds]).to(logits.device)
        where = _mixed(_mixed(seeds)[:, None] + positions)
        if tokens is None:
            tokens = torch.arange(logits.shape[-1], device=logits.device)
        bits = _mixed(where[..., None] + tokens)
        uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
        # float64: in float32 the noise has too few values near 1 and the sample is biased.
        noise = uniform.log_().neg_().log_().neg_()
        return (logits.double() / self.temperature + noise).argmax(-1)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function (Steele et al. 2014) on int64, which wraps around."""

    def shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift, int64 shifts its sign in

    x = x * -7046029254386353131  # the golden gamma, 0x9E3779B97F4A7C15
    x = (x ^ shifted(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ shifted(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ shifted(x, 31)
