"""Drafted and verified in one and the same pass: the same tokens, sooner still."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.cycle import Cycle
from fastloop.accel.decoding.driver import Unconditional
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["TiDAR"]


@dataclass(frozen=True)
class TiDAR(Unconditional):
    """Draft in diffusion, verify autoregressively, in a single forward (TiDAR, Liu et al. 2025).

    A pass is over the window of drafts, causally, and over one group of `size` slots for each
    place at which the next window may begin: everywhere in this one where a draft may turn out
    wrong, and behind it. A group sees what would have been accepted then, and itself in both
    directions; so when the window has told how much of it was right, the drafts that follow are
    there already. Only the window's accepted slots are kept, and they were read causally.

    What is given is accepted without comparison. Where it follows a window it belongs to it, so a
    window always begins at a slot that is to be filled; a group that would have nothing to draft
    is left out. Without a scaffold a pass is over `size` (`size` + 1) slots.

    `ModelSpec.logit_shift` says of which slot a mask speaks; a token that stands always speaks of
    the next.

    Attributes:
        choice: which token stands in a slot, as told by the causal part.
        draft: which token is proposed; None for `choice`. The answer does not depend on it.
        size: of a window and of a group, as the checkpoint was trained.
    """

    choice: Choice = field(default_factory=Greedy)
    draft: Choice | None = None
    size: int = 8

    exactness: ClassVar[Exactness] = Exactness.LOSSLESS
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.CAUSAL_CONTEXT})
    shifts: ClassVar[frozenset[int]] = frozenset({0, 1})
    refusal: ClassVar[str] = (
        "one pass has to draft a block that sees itself and to verify another causally"
    )

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a window has at least one slot, got {self.size}")

    @property
    def name(self) -> str:
        """The same for every size."""
        return "tidar"

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
        groups = Groups.of(answer.values, self.size)
        fused = Fused(answer, passes, self.choice, groups)
        drafted = accepted = 0
        cycles: Counter[int] = Counter()

        at, phase = [0] * rows, "draft"
        while now := [c for c in at if c < n]:
            fused.tell()
            if not continued and all(groups.values(c + 1, n) == 0 for c in now):
                break  # every token stands
            # Nothing is drafted yet when the first pass is made: it reads what stands.
            stops = groups.stop if phase == "verify" else groups.begun
            told = fused.step(phase, at, stops, self.draft or self.choice)
            for c, (count, _) in zip(at, told, strict=True):
                if c < n:
                    drafted += groups.values(c + 1, stops[c])
                    accepted += groups.values(c + 1, c + count)
                    cycles[count] += 1
            at, phase = [c for _, c in told], "verify"
        return Decoded.of(
            self.name, self.exactness, answer, passes,
            drafted=drafted, accepted=accepted, cycles=cycles,
        )  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """Which slots a pass is over when the first slot not yet read is c; lists over c = 0 ... n.

    Attributes:
        size: of a group.
        stop: end of the window that begins at c.
        begun: the next slot after c that is to be filled, n where none is: as far as is known
            before anything is drafted.
        before: values before slot c; n + 1 numbers.
    """

    size: int
    stop: list[int]
    begun: list[int]
    before: list[int]

    @classmethod
    def of(cls, values: list[bool], size: int) -> Groups:
        """For slots of which `values` says whether they are to be filled."""
        n = len(values)
        following = [n] * (n + 1)  # the first slot from c on that is to be filled
        for c in range(n - 1, -1, -1):
            following[c] = c if values[c] else following[c + 1]
        stop = [following[min(c + size, n)] for c in range(n + 1)]
        begun = [following[min(c + 1, n)] for c in range(n + 1)]
        return cls(size, stop, begun, [0, *accumulate(map(int, values))])

    def values(self, start: int, stop: int) -> int:
        """Slots to be filled from `start` up to `stop`."""
        return self.before[stop] - self.before[start]

    def laid_out(self, c: int, stop: int) -> tuple[list[int], list[int]]:
        """Of each slot of a pass how far it is behind c, and how far its group begins behind c.

        The window up to `stop` comes first; its group is 0.
        """
        offsets, group = list(range(stop - c)), [0] * (stop - c)
        for start in range(c + 1, min(stop + 1, len(self.before) - 1)):
            end = min(start + self.size, len(self.before) - 1)
            if self.values(start, start + 1) and self.values(start + 1, end):
                offsets += range(start - c, end - c)
                group += [start - c] * (end - start)
        return offsets, group


class Fused(Cycle):
    """B rows of an answer, each with drafts that it has not verified yet."""

    def __init__(self, answer: Answer, passes: Passes, choice: Choice, groups: Groups) -> None:
        super().__init__(answer, passes, choice)
        self.groups, self.guess = groups, answer.tokens

    def step(self, phase: str, at: list[int], stops: list[int], draft: Choice) -> list[list[int]]:
        """One pass: the drafts of each row's window are verified, and those of its next one made.

        Args:
            phase: of `passes.PHASES`.
            at: as the attribute, on the host.
            stops: where the window ends that begins at each slot.
            draft: which token is proposed.

        Returns:
            for each row, on the host: the slots it accepted, and `at`.
        """
        answer, passes, device = self.answer, self.passes, self.at.device
        laid_out = [self.groups.laid_out(c, stops[c]) for c in at]
        read = max(len(offsets) for offsets, _ in laid_out)
        width = max(stops[c] - c for c in at)
        offsets, group = (
            torch.tensor([row + [fill] * (read - len(row)) for row in rows], device=device)
            for rows, fill in zip(zip(*laid_out, strict=True), (0, -1), strict=True)
        )
        slots = (self.at[:, None] + offsets).clamp(max=len(answer) - 1)
        told = torch.where(answer.tokens == answer.spec.mask_id, self.guess, answer.tokens)
        in_window = group == 0
        ids = torch.where(in_window, told.gather(1, slots), answer.tokens.gather(1, slots))
        # The window is causal. A group sees what is before it in the window, and all of itself;
        # what fills up a row is a group too, which nobody else sees.
        own, first = group[:, :, None], torch.where(in_window, offsets + 1, group)[:, :, None]
        before = in_window[:, None] & (offsets[:, None] < first)
        among = (own == group[:, None]) & (own != 0)
        logits = passes.run(phase, ids, before | among, offsets=offsets)

        ids, slots, inside = ids[:, :width], slots[:, :width], in_window[:, :width]
        positions = passes.context.position[:, None] + offsets[:, 1:width]
        said = answer.choose(self.choice, logits[:, : width - 1], slots[:, 1:], positions)
        right = inside[:, 1:] & (answer.given[slots[:, 1:]] | (said == ids[:, 1:]))
        accepted = inside[:, 0] * (1 + right.long().cumprod(1).sum(1))
        self._write(ids, slots, inside & (offsets[:, :width] < accepted[:, None]))
        begin = (group == accepted[:, None]).long().argmax(1)
        accepted = self._settle(logits, ids, slots, accepted)
        result = passes.host(torch.stack([accepted, self.at], 1))
        passes.keep(read, max(count for count, _ in result), accepted)
        self._draft(draft, logits, begin, [c for _, c in result])
        return result

    def _draft(
        self, choice: Choice, logits: torch.Tensor, begin: torch.Tensor, at: list[int]
    ) -> None:
        """Take the drafts of the next windows from the groups whose first row is (B,) `begin`."""
        answer, shift = self.answer, self.answer.spec.logit_shift
        behind = max(min(self.groups.size, len(answer) - c) for c in at) - 1
        if behind < 1:
            return
        offsets = 1 + torch.arange(behind, device=begin.device)
        rows = (begin[:, None] + offsets - shift).clamp(max=logits.shape[1] - 1)
        here = logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[-1]))
        slots = (self.at[:, None] + offsets).clamp(max=len(answer) - 1)
        positions = self.passes.context.position[:, None] + offsets
        proposed = answer.choose(choice, here, slots, positions)
        inside = self.at[:, None] + offsets < len(answer)
        told = answer.tokens
        self._write(proposed, slots, inside & (told.gather(1, slots) == answer.spec.mask_id))
        self.guess, answer.tokens = answer.tokens, told
