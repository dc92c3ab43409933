"""Block by block: the slots of a block are written in a few passes over it, the surest first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.commits import Commit, Confidence
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes, bidirectional, causal
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.windows import blocks

__all__ = ["SectionDiffusion"]


@dataclass(frozen=True)
class SectionDiffusion:
    """Masked diffusion, one block after the other (Fast-dDrive's section diffusion, Fast-dLLM).

    Passes over a block that has open slots are bidirectional and not kept. When it is full:

    - ``causal_context``: one causal pass is kept;
    - ``block_causal``: one bidirectional pass is kept;
    - ``prefix_lm``: nothing of an answer is kept, every pass is over all of it;
    - ``full``: nothing is kept at all, every pass is over the prompt too.

    Attributes:
        choice: which token stands in a slot.
        commit: which slots are written after a pass.
        seed: write the first slot of a block from the pass before the block, before any over it
            (Fast-dVLM, Fast-dLLM v2); without it that slot has to be as sure as all others
            (Fast-dDrive). For models that say the next token.
    """

    choice: Choice = field(default_factory=Greedy)
    commit: Commit = field(default_factory=Confidence)
    seed: bool = False

    exactness: ClassVar[Exactness] = Exactness.EXACT_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset(Regime) - {Regime.CAUSAL}

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "section_diffusion"

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`; in regimes that keep nothing of it, the context stays as it was."""
        regime = model.spec.regime
        kept = regime in (Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL)
        keeping = causal if regime is Regime.CAUSAL_CONTEXT else bidirectional
        rows, device = len(context.logits), context.logits.device
        answer = Answer(model.spec, canvas, rows, device)
        passes = Passes(model, context, debug=debug)
        on = torch.ones(rows, dtype=torch.bool, device=device)  # rows that have not stopped
        for start, end in blocks(answer.canvas):
            self._fill(answer, passes, start, end, whole=not kept)
            ids, slots = answer.tokens[:, start:end], torch.arange(start, end, device=device)[None]
            ends = answer.stops(ids, slots)
            if kept and (end < len(answer) or continued):
                logits = passes.run("keep", ids, keeping(end - start, device))
                length = torch.where(ends.any(1), ends.long().argmax(1) + 1, end - start)
                passes.keep(end - start, end - start, on * length)
                last = logits[torch.arange(rows, device=device), length - 1]
                context.logits = torch.where(on[:, None], last, context.logits)
            on = on & ~ends.any(1)
            if answer.stoppable and end < len(answer) and not any(passes.host(on)):
                break
        values = sum(answer.values)
        saved = rows * values - rows * passes.forwards["denoise"]
        return Decoded.of(
            self.name, self.exactness, answer, passes,
            drafted=rows * values, accepted=max(0, saved),
        )  # fmt: skip

    def _fill(self, answer: Answer, passes: Passes, start: int, end: int, *, whole: bool) -> None:
        """Write every slot of a block, in passes over it or over the `whole` answer."""
        spec, context, device = answer.spec, passes.context, answer.tokens.device
        slots = torch.arange(start, end, device=device)[None]
        origin = 0 if whole else start
        prompt = context.prompt if spec.regime is Regime.FULL else None
        back = 0 if prompt is None else prompt.shape[1]
        positions = context.position[:, None] + slots - origin
        values = sum(answer.values[start:end])
        if self.seed and answer.values[start]:
            token = answer.choose(
                self.choice, context.logits[:, None], slots[:, :1], positions[:, :1]
            )
            answer.tokens[:, start] = token[:, 0]
            values -= 1
        planned, done = self.commit.passes(values), 0
        while done < values if planned is None else done < planned:
            ids = answer.tokens if whole else answer.tokens[:, start:end]
            if prompt is not None:
                ids = torch.cat([prompt, ids], 1)
            new = ids.shape[1]
            logits = passes.run("denoise", ids, bidirectional(new, device), back=back)
            passes.drop(new)
            # Row i speaks of slot i, or of slot i + 1; then the pass before speaks of slot 0.
            first = back + start - origin - spec.logit_shift
            if first < 0:
                logits, first = torch.cat([context.logits[:, None], logits], 1), 0
            here = answer.within(logits[:, first : first + end - start], slots)
            tokens = self.choice(here, positions)
            block = answer.tokens[:, start:end]
            unwritten = block == spec.mask_id
            write = self.commit(here, tokens, unwritten)
            answer.tokens[:, start:end] = torch.where(write, tokens, block)
            done += 1
            if planned is None and not any(passes.host((unwritten & ~write).any(1))):
                break
