"""How much to decide: the best variant of a policy that its budget allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Anytime"]


@dataclass
class Anytime:
    """Chooses among variants by the latency that each is known to need.

    It steps down at once, and up again only after `patience` choices in a row for which the better
    variant would have fitted with room to spare. What a variant needs is a quantile of its last
    latencies; of one that has not run lately, what it needed when it was calibrated, times what
    the one that runs has become slower since.

    Attributes:
        calibrated: variant, the best first, to the latency (s) that it needed at warm-up.
        quantile: of the latencies that must fit.
        room: share of the budget that a better variant may fill before it is chosen again.
        patience: choices.
        window: latencies remembered of each variant.
    """

    calibrated: Mapping[str, float]
    quantile: float = 0.95
    room: float = 0.8
    patience: int = 20
    window: int = 64
    current: str = ""
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    _fitted: int = 0

    def __post_init__(self) -> None:
        bad = {k: v for k, v in self.calibrated.items() if not (math.isfinite(v) and v > 0)}
        if not self.calibrated or bad:
            given = bad or dict(self.calibrated)
            raise ValueError(f"variants need latencies, positive seconds each; got {given}")
        self.current = self.current or next(iter(self.calibrated))
        self._recent = {name: deque(maxlen=self.window) for name in self.calibrated}

    def learn(self, variant: str, latency_s: float) -> None:
        """A plan of `variant` took that long."""
        self._recent[variant].append(latency_s)

    def failed(self) -> None:
        """The current variant could not plan at all (out of memory): try less for a while."""
        names = list(self.calibrated)
        self.current = names[min(names.index(self.current) + 1, len(names) - 1)]
        self._fitted = 0

    def expected(self, variant: str) -> float:
        """Seconds that a plan of `variant` needs, at the quantile."""
        if variant != self.current or not self._recent[variant]:
            slower = self._quantile(self.current) / self.calibrated[self.current]
            return self.calibrated[variant] * max(1.0, slower)
        return self._quantile(variant)

    def choose(self, budget_s: float) -> str:
        """The variant for a plan that may take `budget_s`; where none fits, the quickest."""
        names = list(self.calibrated)
        place = names.index(self.current)
        fits = next((n for n, v in enumerate(names) if self.expected(v) <= budget_s), None)
        if fits is None:
            fits = min(range(len(names)), key=lambda n: self.expected(names[n]))
        if fits >= place:
            self._fitted, place = 0, fits
        else:
            with_room = self.expected(names[fits]) <= self.room * budget_s
            self._fitted = self._fitted + 1 if with_room else 0
            if self._fitted >= self.patience:
                self._fitted, place = 0, fits
        if names[place] != self.current:
            self.current = names[place]
            self._recent[self.current].clear()
        return self.current

    def _quantile(self, variant: str) -> float:
        recent = sorted(self._recent[variant])
        if not recent:
            return self.calibrated[variant]
        return recent[min(len(recent) - 1, math.ceil(self.quantile * len(recent)) - 1)]
