"""What was decoded, and what it took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.passes import Passes
from fastloop.accel.report import AccelReport

__all__ = ["Decoded", "Exactness"]


class Exactness(StrEnum):
    """What an answer equals.

    - ``lossless``: what the model says token by token, under the same canvas and choice;
    - ``exact_kv``: the same way of decoding with nothing kept;
    - ``approximate_kv``: neither, keys and values are kept that would have changed;
    - ``lossy``: neither, part of the model was left out.
    """

    LOSSLESS = "lossless"
    EXACT_KV = "exact_kv"
    APPROXIMATE_KV = "approximate_kv"
    LOSSY = "lossy"


@dataclass(frozen=True)
class Decoded:
    """An answer of B rows.

    Attributes:
        name: how it was decoded.
        exactness: what it equals.
        tokens: (B, n) int64; where a row chose a stop id, everything after it is the first of them.
        values: how many slots of a row were to be filled.
        forwards: passes of all rows in lock step, by phase (`passes.PHASES`).
        drafted, accepted: tokens proposed and taken without a pass of their own, of all rows.
        accepted_a_cycle: how many cycles of a row accepted so many slots, given ones included.
        tokens_fed: slots of a row that went through the model after the prompt was read, over all
            passes; of a model that reads the prompt again, its slots too.
        forked: branches of a shared prefix.
        host_syncs: times that the host waited for the device.
        kv_bytes: keys and values that were held in the end.
        stage_ms: time in passes of each phase, milliseconds.
        step_map: (B, n) int32, after which pass over its block a slot was written, counted from 0;
            -1 where none wrote it: it was given, told by the pass before the block, or behind the
            end. None where passes do not write blocks, or write over what stands.
        written: (B, n) int64, with `step_map`: the tokens as they were written, those behind a
            stop id included, so that what the passes saw can be made again (`replay`).
    """

    name: str
    exactness: Exactness
    tokens: torch.Tensor
    values: int
    forwards: dict[str, int]
    drafted: int = 0
    accepted: int = 0
    accepted_a_cycle: Counter[int] = field(default_factory=Counter)
    tokens_fed: int = 0
    forked: int = 0
    host_syncs: int = 0
    kv_bytes: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    step_map: torch.Tensor | None = None
    written: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        name: str,
        exactness: Exactness,
        answer: Answer,
        passes: Passes,
        *,
        drafted: int = 0,
        accepted: int = 0,
        cycles: Counter[int] | None = None,
        step_map: torch.Tensor | None = None,
    ) -> Decoded:
        """What a driver hands back."""
        tokens = answer.finished()
        passes.check(tokens)
        return cls(
            name, exactness, tokens, sum(answer.values), dict(passes.forwards), drafted, accepted,
            cycles or Counter(), passes.tokens_fed, host_syncs=passes.host_syncs,
            kv_bytes=passes.context.kv.bytes, stage_ms=passes.stage_ms(), step_map=step_map,
            written=None if step_map is None else answer.tokens,
        )  # fmt: skip

    @property
    def network_evaluations(self) -> int:
        """Passes of any phase."""
        return sum(self.forwards.values())

    @property
    def tokens_per_forward(self) -> float:
        """Slots of one row a pass, that over the prompt not counted."""
        return self.tokens.shape[1] / max(1, self.network_evaluations - self.forwards["prefill"])

    @property
    def values_per_forward(self) -> float:
        """The same of the slots that were not given: what to compare methods by."""
        return self.values / max(1, self.network_evaluations - self.forwards["prefill"])

    def after(self, first: Decoded) -> Decoded:
        """This answer behind another that it goes on from; one row of which may have branched.

        It has a step map if both have; a block that was cut where this one begins counts as two.
        """
        rows = len(self.tokens)
        return replace(
            self,
            tokens=torch.cat([first.tokens.expand(rows, -1), self.tokens], 1),
            values=first.values + self.values,
            forwards={key: first.forwards[key] + count for key, count in self.forwards.items()},
            drafted=first.drafted + self.drafted,
            accepted=first.accepted + self.accepted,
            accepted_a_cycle=first.accepted_a_cycle + self.accepted_a_cycle,
            tokens_fed=first.tokens_fed + self.tokens_fed,
            forked=first.forked + self.forked,
            host_syncs=first.host_syncs + self.host_syncs,
            stage_ms=dict(Counter(first.stage_ms) + Counter(self.stage_ms)),
            step_map=_behind(first.step_map, self.step_map),
            written=_behind(first.written, self.written),
        )

    def report(self) -> AccelReport:
        """The proof that goes with a plan."""
        return AccelReport(
            name=self.name,
            exact=self.exactness is Exactness.LOSSLESS,
            network_evaluations=self.network_evaluations,
            drafted=self.drafted,
            accepted=self.accepted,
            forked=self.forked,
            host_syncs=self.host_syncs,
            stage_ms=dict(self.stage_ms),
        )


def _behind(first: torch.Tensor | None, then: torch.Tensor | None) -> torch.Tensor | None:
    """(B, n + m) of (1 or B, n) and (B, m), None where one of them is."""
    if first is None or then is None:
        return None
    return torch.cat([first.expand(len(then), -1), then], 1)
