"""Drafted at one glance, verified token by token in one causal pass: the same tokens, sooner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.cycle import Cycle
from fastloop.accel.decoding.drafter import Drafter
from fastloop.accel.decoding.driver import Unconditional
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.windows import Windows

__all__ = ["Speculative"]


@dataclass(frozen=True)
class Speculative(Unconditional):
    """Scaffold speculation (Fast-dDrive) over the blocks of the canvas, or over sliding windows.

    A cycle fills a window in one bidirectional pass that is not kept, reads it in one causal pass,
    and accepts from the left what the causal pass would have said itself; what is given is accepted
    without comparison. Both passes choose under the tokens that the canvas allows. The causal pass
    is the one that is kept, and its last accepted logits tell the first token that was wrong. What
    it said behind that token is the next proposal for the rest of the window, which is not drafted
    again (Jacobi's iteration, Santilli et al. 2023).

    Rows go on in lock step whatever each accepts. A slot that another row accepted and this one did
    not stays in the cache, hidden from this row; a single row is cropped. Branches of one row share
    their drafts (`drafter.py`).

    No pass is made that decides nothing: a window with at most one open slot behind its first is
    not drafted but read up to that slot, and the known rest of a window is read with the draft of
    the next one, under a mask that is causal for it.

    Attributes:
        choice: which token stands in a slot, as told by the causal pass.
        draft: which token is proposed; None for `choice`, so that with `Gumbel` both share their
            noise and agree as often as can be. The answer does not depend on it.
        window: None for the blocks of the canvas, or a number of slots, which begin at the first
            that is not read yet (Fast-dVLM's linear self-speculation).
    """

    choice: Choice = field(default_factory=Greedy)
    draft: Choice | None = None
    window: int | None = None

    exactness: ClassVar[Exactness] = Exactness.LOSSLESS
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.CAUSAL, Regime.CAUSAL_CONTEXT})
    shifts: ClassVar[frozenset[int]] = frozenset({1})

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window has at least one slot, got {self.window}")

    @property
    def name(self) -> str:
        """Says what the windows are."""
        return "scaffold_speculation" if self.window is None else "linear_speculation"

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
        device, rows, n = context.logits.device, len(context.logits), len(canvas)
        answer = Answer(model.spec, canvas, rows, device)
        passes = Passes(model, context, debug=debug)
        windows = Windows.of(answer.canvas, self.window)
        lead, stop, jump = (windows.table(name, device) for name in ("lead", "stop", "jump"))
        cycle = Cycle(answer, passes, self.choice)
        drafter = Drafter.of(passes)
        drafted = accepted = 0
        cycles: Counter[int] = Counter()

        at = [0] * rows  # the host's copy of cycle.at
        proposed = [0] * rows  # the end of the window that was drafted last
        while now := [c for c in at if c < n]:
            cycle.tell()
            if not continued and all(windows.jump[c] == n for c in now):
                break  # every token stands
            if max(windows.unknown(c) for c in now) <= 1:
                cycle.read(jump[cycle.at], max(windows.jump[c] - c for c in now))
                cycles.update(windows.jump[c] - c for c in now)
                at = passes.host(cycle.at) if answer.stoppable else [windows.jump[c] for c in at]
                continue
            end = stop[cycle.at]
            begin, ends, guess = at, [windows.stop[c] for c in at], cycle.said
            ahead = [
                row for row, c in enumerate(at)
                if c < n and ends[row] > proposed[row] and windows.unknown(c)
            ]  # fmt: skip
            if ahead and drafter:
                row = max(ahead, key=ends.__getitem__)
                guess = drafter.propose(
                    answer, guess, self.draft or self.choice,
                    row, at[row] + windows.lead[at[row]], ends[row],
                )  # fmt: skip
                proposed = [ends[row]] * rows
            elif ahead:
                guess = cycle.draft(
                    self.draft or self.choice, lead[cycle.at], end,
                    width=max(windows.stop[c] - c for c in now),
                    longest=max(windows.lead[c] for c in now),
                )  # fmt: skip
                begin, proposed = [c + windows.lead[c] for c in at], ends
            told = cycle.verify(guess, end, max(e - b for b, e in zip(begin, ends, strict=True)))
            for c, start, stops, (count, _) in zip(at, begin, ends, told, strict=True):
                if count:
                    drafted += windows.values(start + 1, stops)
                    accepted += windows.values(start + 1, start + count)
                    cycles[start - c + count] += 1
            at = [c for _, c in told]
        decoded = Decoded.of(
            self.name, self.exactness, answer, passes,
            drafted=drafted, accepted=accepted, cycles=cycles,
        )  # fmt: skip
        held = drafter.bytes if drafter else 0
        return replace(decoded, kv_bytes=decoded.kv_bytes + held)
