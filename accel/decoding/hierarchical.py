"""Within a block, part by part, over keys of the other parts that are not made anew each time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes
from fastloop.accel.decoding.result import Exactness
from fastloop.accel.decoding.slots import SlotStore, check_slots
from fastloop.accel.decoding.truncation import Truncation
from fastloop.accel.decoding.windows import blocks
from fastloop.accel.decoding.writing import Writing

__all__ = ["HierarchicalDiffusion"]


@dataclass(frozen=True)
class HierarchicalDiffusion(SectionDiffusion):
    """Section diffusion with a cache of two levels (Fast-dLLM v2, Wu et al. 2025).

    Finished blocks are kept as `SectionDiffusion` keeps them, exactly. A block is written in
    parts of `part` slots, from left to right. The first pass over a part is over the whole block,
    and so are all others of a row until the part's first slot is written where that is told by
    the slot before. The passes that follow are over the part alone, and see keys of the rest of
    the block as they were at the last pass over all of it.

    Rows go on in lock step: while one needs a pass over the whole block, another takes no more of
    it than the part that it asked for.

    Attributes:
        choice, commit, truncate: as of `SectionDiffusion`.
        seed: as of `SectionDiffusion`; the published checkpoints do so.
        part: slots of a part; at least those of a block leaves nothing that is approximate.
    """

    seed: bool = True
    part: int = 8

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT})
    refusal: ClassVar[str] = "nothing before the block stays right while it is written"

    def __post_init__(self) -> None:
        if self.part < 1:
            raise ValueError(f"a part of a block has at least one slot, got {self.part}")

    @property
    def name(self) -> str:
        """The same for every size."""
        return "hierarchical_diffusion"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: the commit policy sees parts of blocks, and keys lie in the same slots."""
        check_slots(self.name, model.spec)
        super().check(model, None if canvas is None else self._cut(canvas))

    def _cut(self, canvas: Canvas) -> Canvas:
        """The canvas with parts for blocks."""
        spans = [
            min(first + self.part, end) - first
            for start, end in blocks(canvas)
            for first in range(start, end, self.part)
        ]
        parts = torch.arange(len(spans)).repeat_interleave(torch.tensor(spans, dtype=torch.int64))
        return replace(canvas, block=parts)

    def _fill(
        self,
        writing: Writing,
        passes: Passes,
        start: int,
        end: int,
        *,
        whole: bool,
        truncation: Truncation | None,
    ) -> None:
        answer, context = writing.answer, passes.context
        store = SlotStore(context.kv, end - start)
        open_ = answer.values[start:end]
        if self.seed and open_[0]:
            slot = torch.full((1, 1), start, device=answer.tokens.device)
            token = answer.choose(
                self.choice, context.logits[:, None], slot, context.position[:, None]
            )
            answer.tokens[:, start] = token[:, 0]
            open_[0] = False
        for first in range(start, end, self.part):
            last = min(first + self.part, end)
            values = sum(open_[first - start : last - start])
            if values:
                writing.begin(first, last, values)
                self._write(writing, passes, store, (start, end), (first, last), values)

    def _write(
        self,
        writing: Writing,
        passes: Passes,
        store: SlotStore,
        block: tuple[int, int],
        part: tuple[int, int],
        values: int,
    ) -> None:
        """Write the open slots, so many, of a part (start, end) of a block (start, end)."""
        answer, context, (first, last) = writing.answer, passes.context, part
        shift, device, length = answer.spec.logit_shift, answer.tokens.device, block[1] - block[0]
        on = torch.ones(len(answer.tokens), dtype=torch.bool, device=device)
        anew, span = on, block  # rows that read the whole block, and what the pass is over
        for _ in range(values + self.commit.edits):
            slots = torch.arange(*span, device=device)
            inside = (slots >= first) & (slots < last)
            kept = on[:, None] & (anew[:, None] | inside)
            store.expect(torch.where(kept, slots - block[0], length), length)
            positions = context.position[:, None] + slots - block[0]
            mask = torch.nn.functional.pad(context.visible, (0, length), value=True)
            logits = passes.forward(
                "denoise", answer.tokens[:, span[0] : span[1]], positions,
                mask[:, None].expand(-1, len(slots), -1), store,
            )  # fmt: skip
            # The pass before speaks of the block's first slot. A part that is read alone is told
            # the same of its own, which stands.
            row = first - span[0] - shift
            if row < 0:
                logits, row = torch.cat([context.logits[:, None], logits], 1), 0
            here = positions[:, first - span[0] : last - span[0]]
            on = writing.take(logits[:, row : row + last - first], here)
            anew = (answer.tokens[:, first] == answer.spec.mask_id) & bool(shift)
            more, again = passes.host(torch.stack([on.any(), anew.any()]))
            if not more:
                return
            span = block if again else part
        raise RuntimeError(
            f"{self.commit} left slots {first} to {last} open after {values + self.commit.edits} "
            "passes: each has to write at least one slot of a row"
        )
