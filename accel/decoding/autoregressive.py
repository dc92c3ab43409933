"""Token by token, the plain way; with what is given riding along with the value before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.driver import Unconditional
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes, causal
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["Autoregressive"]


@dataclass(frozen=True)
class Autoregressive(Unconditional):
    """One causal pass for every token of the canvas.

    Attributes:
        choice: which token stands in a slot.
        jump_forward: one pass for every value, which reads the given run after it too, and one
            more where the canvas begins with a given run; the same tokens.
    """

    choice: Choice = field(default_factory=Greedy)
    jump_forward: bool = False

    exactness: ClassVar[Exactness] = Exactness.LOSSLESS
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.CAUSAL, Regime.CAUSAL_CONTEXT})
    shifts: ClassVar[frozenset[int]] = frozenset({1})

    @property
    def name(self) -> str:
        """``none`` for the plain way, which accelerates nothing."""
        return "jump_forward" if self.jump_forward else "none"

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`."""
        device, rows = context.logits.device, len(context.logits)
        answer = Answer(model.spec, canvas, rows, device)
        passes = Passes(model, context, debug=debug)
        on = torch.ones(rows, dtype=torch.bool, device=device)  # rows that have not stopped
        rode = 0  # tokens that had no pass of their own
        for start, stop in self._runs(answer.values):
            slots = torch.arange(start, stop, device=device)[None]
            if answer.values[start]:
                here = slots[:, :1]
                token = answer.choose(
                    self.choice, context.logits[:, None], here, context.position[:, None]
                )
                answer.tokens[:, start] = token[:, 0]
                ended = answer.stops(token, here)[:, 0]
            else:
                ended = torch.zeros_like(on)
            if stop == len(answer) and not continued:
                break
            new = stop - start
            rode += rows * (new - 1)
            logits = passes.run("keep", answer.tokens[:, start:stop], causal(new, device))
            # A row that stops with this token has read it, and nothing of what follows it.
            passes.keep(new, new, on * torch.where(ended, 1, new))
            last = torch.where(ended[:, None], logits[:, 0], logits[:, -1])
            context.logits = torch.where(on[:, None], last, context.logits)
            on = on & ~ended
            if answer.stoppable and answer.values[start] and not any(passes.host(on)):
                break
        return Decoded.of(self.name, self.exactness, answer, passes, drafted=rode, accepted=rode)

    def _runs(self, values: list[bool]) -> list[tuple[int, int]]:
        """What one pass reads: slots from start up to stop."""
        starts = [
            slot for slot, value in enumerate(values) if value or not slot or not self.jump_forward
        ]
        return list(pairwise([*starts, len(values)]))
