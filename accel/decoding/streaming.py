"""What stands is read before what is open, so that a causal model fills several slots a pass."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.commits import Commit
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.cycle import Cycle
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes, causal
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["PenalizedEntropy", "Streaming"]


@dataclass(frozen=True)
class PenalizedEntropy(Commit):
    """Slots of low entropy, those near the first open one before those far behind it.

    WeDLM's rule: all slots whose entropy (nats) and `penalty` for each slot of distance from the
    first open one come to less than `threshold`, else the one with the least. A threshold of 0
    writes one slot a pass; with a large penalty as well, they come from left to right.
    """

    threshold: float = 0.4
    penalty: float = 0.02

    def __post_init__(self) -> None:
        if not (self.penalty >= 0 and math.isfinite(self.penalty)):
            raise ValueError(f"a penalty is a finite number, 0 or more, got {self.penalty}")

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)
        slots = torch.arange(unwritten.shape[1], device=unwritten.device)
        distance = slots - unwritten.long().argmax(1, keepdim=True)
        score = (entropy + self.penalty * distance).masked_fill(~unwritten, float("inf"))
        least = slots == score.argmin(1, keepdim=True)
        return unwritten & (least | (score < self.threshold))

    def passes(self, values: int) -> int | None:
        """One a slot where nothing is below the threshold."""
        return values if self.threshold <= 0 else None


@dataclass(frozen=True)
class Streaming:
    """Topological reordering and streaming commits (WeDLM, Liu et al. 2025), for causal models.

    A pass reads what stands and was not kept yet, and the next `window` slots from the first open
    one on. Every token keeps its position, but in the sequence all that stand come before all
    that are open: an open slot sees every token that is known, and attention stays causal. The run
    of tokens that stand from the left has seen nothing but what is before it in the answer; its
    keys and values are kept, those of all others are forgotten and made anew by the next pass.

    Slots that are written from left to right (`commits.Sequential`) do not depend on the window:
    where logits speak of the next slot they say what plain decoding says, whatever is given; where
    a mask speaks of its own slot (the published checkpoints) only if nothing is given, because it
    sees what is given in the window and not what is given behind it.

    Attributes:
        choice: which token stands in a slot.
        commit: which slots are written after a pass.
        window: W, slots from the first open one on; a pass also reads what stands before it.
    """

    choice: Choice = field(default_factory=Greedy)
    commit: Commit = field(default_factory=PenalizedEntropy)
    window: int = 16

    exactness: ClassVar[Exactness] = Exactness.EXACT_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.CAUSAL})
    shifts: ClassVar[frozenset[int]] = frozenset({0, 1})
    refusal: ClassVar[str] = (
        "masks are read behind all that stands, which only a causal model sees as in training"
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window has at least one slot, got {self.window}")
        if self.commit.edits or self.commit.begin(1) is not self.commit:
            raise ValueError(
                f"{self.name} and {type(self.commit).__name__}: a policy that remembers or alters "
                "what it said of a slot needs a block that stays where it is, and this window "
                "moves; use SectionDiffusion"
            )

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "streaming"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`."""
        if canvas is not None:
            # The window goes on whatever the blocks are.
            whole = replace(canvas, block=torch.zeros_like(canvas.block))
            self.commit.check(model.spec, whole)

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
        self.check(model, canvas)
        rows, n = len(context.logits), len(canvas)
        answer = Answer(model.spec, canvas, rows, context.logits.device)
        passes = Passes(model, context, debug=debug)
        stream = Stream(answer, passes, self.choice)
        lead = [*answer.values, True].index(True)
        told = [(lead, min(lead + self.window, n))] * rows
        kept: Counter[int] = Counter()
        while any(span > (0 if continued else lead) for lead, span in told):
            kept.update(lead for lead, span in told if span)
            stream.step(self.commit, told)
            told = stream.ahead(self.window)
            done = passes.forwards["denoise"]
            if done >= sum(answer.values) and any(lead < span for lead, span in told):
                raise RuntimeError(
                    f"{self.commit} left slots open after {done} passes: each has to write at "
                    "least one slot of a row"
                )
        values = rows * sum(answer.values)
        return Decoded.of(
            self.name, self.exactness, answer, passes,
            drafted=values, accepted=values - rows * passes.forwards["denoise"], cycles=kept,
        )  # fmt: skip


class Stream(Cycle):
    """B rows of an answer, each with a window of its own."""

    def step(self, commit: Commit, told: list[tuple[int, int]]) -> None:
        """One pass, which keeps the tokens that lead and writes some of those that are open.

        Args:
            commit: which slots are written.
            told: for each row, the slots from `at` on that stand (its lead), and with the window
                behind them.
        """
        answer, passes, context = self.answer, self.passes, self.passes.context
        shift, device = answer.spec.logit_shift, self.at.device
        lead, span = torch.tensor(told, device=device).T
        width, reach = max(span for _, span in told), max(span - lead for lead, span in told)
        slots, inside = self._slots(self.at + span, width)
        ids = answer.tokens.gather(1, slots)
        open_ = inside & (ids == answer.spec.mask_id)
        order = (open_ + 2 * ~inside).argsort(dim=1, stable=True)  # what pads a row comes last
        ids, ordered = ids.gather(1, order), slots.gather(1, order)
        logits = passes.run(
            "denoise" if reach else "keep", ids, causal(width, device), offsets=order
        )
        if reach:
            window = lead[:, None] + torch.arange(reach, device=device)
            spoken = order.argsort(1).gather(1, (window - shift).clamp(0, width - 1))
            here = logits.gather(1, spoken[..., None].expand(-1, -1, logits.shape[-1]))
            if shift:  # a row that reads nothing for good is told its first slot by the last pass
                before = (lead == 0)[:, None]
                here[:, 0] = torch.where(before, context.logits, here[:, 0])
            positions = context.position[:, None] + window
            window = window.clamp(max=width - 1)
            slots, open_ = slots.gather(1, window), open_.gather(1, window)
            open_ = open_ & (torch.arange(reach, device=device) < (span - lead)[:, None])
            here = commit.heard(answer.within(here, slots), open_)
            tokens = self.choice(here, positions)
            self._write(tokens, slots, commit(here, tokens, open_))
        count = self._settle(logits, ids, ordered, lead)
        passes.keep(width, max(lead for lead, _ in told), count)

    def ahead(self, window: int) -> list[tuple[int, int]]:
        """What `step` asks for, on the host; nothing for a row that has read all of its answer.

        Nothing is looked at behind a token that ends the answer, even if slots before it are open.
        """
        answer, n = self.answer, len(self.answer)
        slots = torch.arange(n, device=self.at.device)[None]
        ends = answer.stops(answer.tokens, slots)
        end = torch.where(ends.any(1), ends.long().argmax(1) + 1, n)
        open_ = (answer.tokens == answer.spec.mask_id) & (slots < end[:, None])
        first = torch.where(open_.any(1), open_.long().argmax(1), end)
        stop = torch.minimum(first + window, end)
        ahead = torch.stack([first, stop], 1) - self.at[:, None]
        return [(lead, span) for lead, span in self.passes.host(ahead.clamp(min=0))]
