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
from fastloop.accel.decoding.truncation import Truncation
from fastloop.accel.decoding.windows import blocks
from fastloop.accel.decoding.writing import Writing

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
            (Fast-dDrive). For models that say the next token and keep what they have written.
        truncate: cut the answer where an end is written or predicted (`Truncation`). For models
            that read all of an answer in each pass.
    """

    choice: Choice = field(default_factory=Greedy)
    commit: Commit = field(default_factory=Confidence)
    seed: bool = False
    truncate: bool = False

    exactness: ClassVar[Exactness] = Exactness.EXACT_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset(Regime) - {Regime.CAUSAL}
    refusal: ClassVar[str] = ""

    @property
    def shifts(self) -> frozenset[int]:
        """A seed is what the pass before says of the next token."""
        return frozenset({1}) if self.seed else frozenset({0, 1})

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "section_diffusion"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: the commit policy may refuse the canvas, and not every answer is cut."""
        regime = model.spec.regime
        kept = regime in (Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL)
        if self.seed and not kept:
            raise ValueError(
                f"a {regime.value} model keeps nothing of an answer, so no pass before a block "
                "says its first token; decode without seed"
            )
        if self.truncate and kept:
            raise ValueError(
                f"a {regime.value} model never reads behind the block with the end, so there is "
                "nothing to cut; decode without truncation"
            )
        if self.truncate and self.commit.edits:
            raise ValueError(
                "an end that was written may be written over by this commit policy, but what was "
                "behind it would be gone; decode without truncation"
            )
        if canvas is not None:
            self.commit.check(model.spec, canvas)
            if self.truncate:
                Truncation(Answer(model.spec, canvas, 1, "cpu"))

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
        self.check(model, canvas)
        regime = model.spec.regime
        kept = regime in (Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL)
        keeping = causal if regime is Regime.CAUSAL_CONTEXT else bidirectional
        rows, device = len(context.logits), context.logits.device
        answer = Answer(model.spec, canvas, rows, device)
        writing = Writing(answer, self.choice, self.commit)
        truncation = Truncation(answer) if self.truncate else None
        passes = Passes(model, context, debug=debug)
        on = torch.ones(rows, dtype=torch.bool, device=device)  # rows that have not stopped
        for start, end in blocks(answer.canvas):
            self._fill(writing, passes, start, end, whole=not kept, truncation=truncation)
            ids, slots = answer.tokens[:, start:end], torch.arange(start, end, device=device)[None]
            writing.step_map[:, start:end].masked_fill_(~on[:, None], -1)
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
            step_map=None if self.commit.edits else writing.step_map,
        )  # fmt: skip

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
        """Write every slot of a block, in passes over it or over the `whole` answer."""
        answer = writing.answer
        spec, context, device = answer.spec, passes.context, answer.tokens.device
        origin = 0 if whole else start
        prompt = context.prompt if spec.regime is Regime.FULL else None
        back = 0 if prompt is None else prompt.shape[1]
        values = sum(answer.values[start:end])
        if self.seed and answer.values[start]:
            slot = torch.full((1, 1), start, device=device)
            position = context.position[:, None] + start - origin
            token = answer.choose(self.choice, context.logits[:, None], slot, position)
            answer.tokens[:, start] = token[:, 0]
            values -= 1
        planned, done = writing.begin(start, end, values), 0
        if not values or (truncation is not None and truncation.width <= start):
            return
        while True:
            stop = len(answer) if whole else end
            if truncation is not None:
                stop = max(end, truncation.width)
            ids, window = answer.tokens[:, origin:stop], bidirectional(back + stop - origin, device)
            if prompt is not None:
                ids = torch.cat([prompt, ids], 1)
            if truncation is not None:
                left = torch.nn.functional.pad(truncation.left(stop), (back, 0), value=True)
                window = window & left[:, None]
            logits = passes.run("denoise", ids, window, back=back)
            passes.drop(ids.shape[1])
            # Row i speaks of slot i, or of slot i + 1; then the pass before speaks of slot 0.
            if back < spec.logit_shift:
                logits = torch.cat([context.logits[:, None], logits], 1)
            else:
                logits = logits[:, back - spec.logit_shift :]
            logits = logits[:, : stop - origin]
            positions = context.position[:, None] + torch.arange(stop - origin, device=device)
            block = slice(start - origin, end - origin)
            waiting = (answer.tokens[:, start:end] != spec.mask_id).all(1)
            more = writing.take(logits[:, block], positions[:, block])
            done += 1
            if truncation is not None:
                truncation.cut(self.choice, logits, positions, ~waiting)
                more = more & (answer.tokens[:, start:end] == spec.mask_id).any(1)
                wanted, lengths = passes.host(torch.stack([more.long(), truncation.length]))
                truncation.width = max(lengths)
                if not any(wanted):
                    break
            elif done == planned or (planned is None and not any(passes.host(more))):
                break
            if done >= values + self.commit.edits:
                raise RuntimeError(
                    f"{self.commit} left slots {start} to {end} open after {done} passes: each has "
                    "to write at least one slot of a row"
                )
