"""The steps of a cycle of draft and verification, on the device, for rows that are not abreast."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.passes import Passes, causal

__all__ = ["Cycle"]


class Cycle:
    """B rows of an answer, each read up to a slot of its own.

    Attributes:
        at: (B,) int64, the first slot that a row has not read; n for one that is done.
        said: (B, n) int64, what to propose next: what the last causal pass was given, with what it
            said itself in its place.
    """

    def __init__(self, answer: Answer, passes: Passes, choice: Choice) -> None:
        self.answer, self.passes, self.choice = answer, passes, choice
        self.at = torch.zeros_like(passes.context.position)
        self.said = answer.tokens

    def tell(self) -> None:
        """Write the first unread token of each row, which the context's logits speak of."""
        answer, context = self.answer, self.passes.context
        slots, inside = self._slots(torch.full_like(self.at, len(answer)), 1)
        token = answer.choose(
            self.choice, context.logits[:, None], slots, context.position[:, None]
        )
        self._write(token, slots, inside & ~answer.given[slots])

    def draft(
        self, choice: Choice, lead: torch.Tensor, end: torch.Tensor, width: int, longest: int
    ) -> torch.Tensor:
        """What may stand up to slot (B,) `end`; reads the first (B,) `lead` slots for good.

        Args:
            choice: which token is proposed.
            lead: (B,) int64, how many slots stand and are read as by a causal pass.
            end: (B,) int64.
            width: the largest `end - at`.
            longest: the largest `lead`.

        Returns:
            (B, n) int64, proposals where no token stands yet.
        """
        answer, passes, device = self.answer, self.passes, self.at.device
        slots, inside = self._slots(end, width)
        ids = answer.tokens.gather(1, slots)
        offsets = torch.arange(width, device=device)
        # What leads sees only what is before it, all others see the whole window; a query that
        # pads a row sees itself, since attention to nothing is not a number on some devices.
        window = causal(width, device) | (offsets >= lead[:, None])[:, :, None]
        window = window & inside[:, None] | torch.eye(width, dtype=torch.bool, device=device)
        logits = passes.run("draft", ids, window, real=inside)
        positions = passes.context.position[:, None] + 1 + offsets[:-1]
        proposed = answer.choose(choice, logits[:, :-1], slots[:, 1:], positions)
        unknown = inside[:, 1:] & (ids[:, 1:] == answer.spec.mask_id)
        guess = _written(answer.tokens, proposed, slots[:, 1:], unknown)
        if longest:
            lead = self._settle(logits, ids, slots, lead)
            passes.keep(width, longest, lead)
            self.tell()
        else:
            passes.drop(width)
        return guess

    def verify(self, guess: torch.Tensor, end: torch.Tensor, width: int) -> list[list[int]]:
        """Read (B, n) `guess` up to slot (B,) `end` in one causal pass and keep what is right.

        `width` is the largest `end - at`; a token that stands is read whatever was guessed.

        Returns:
            for each row, on the host: the slots it accepted, and `at`.
        """
        answer, passes = self.answer, self.passes
        slots, inside = self._slots(end, width)
        guess = torch.where(answer.tokens == answer.spec.mask_id, guess, answer.tokens)
        ids = guess.gather(1, slots)
        offsets = torch.arange(width, device=ids.device)
        # What pads a row comes after what does not, so that a causal window hides it.
        logits = passes.run("verify", ids, causal(width, ids.device), real=inside)
        positions = passes.context.position[:, None] + 1 + offsets[:-1]
        said = answer.choose(self.choice, logits[:, :-1], slots[:, 1:], positions)
        right = inside[:, 1:] & (answer.given[slots[:, 1:]] | (said == ids[:, 1:]))
        accepted = inside[:, 0] * (1 + right.long().cumprod(1).sum(1))
        self.said = _written(guess, said, slots[:, 1:], inside[:, 1:])
        self._write(ids, slots, offsets < accepted[:, None])
        accepted = self._settle(logits, ids, slots, accepted)
        told = passes.host(torch.stack([accepted, self.at], 1))
        passes.keep(width, max(count for count, _ in told), accepted)
        return told

    def read(self, end: torch.Tensor, width: int) -> None:
        """Read and keep all up to slot (B,) `end`, where every token stands."""
        slots, inside = self._slots(end, width)
        ids = self.answer.tokens.gather(1, slots)
        logits = self.passes.run("keep", ids, causal(width, ids.device), real=inside)
        self.passes.keep(width, width, self._settle(logits, ids, slots, inside.sum(1)))

    def _slots(self, end: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots (B, width) from `at` on, and whether each is before `end` (B,)."""
        slots = self.at[:, None] + torch.arange(width, device=self.at.device)
        return slots.clamp(max=len(self.answer) - 1), slots < end[:, None]

    def _write(self, tokens: torch.Tensor, slots: torch.Tensor, where: torch.Tensor) -> None:
        self.answer.tokens = _written(self.answer.tokens, tokens, slots, where)

    def _settle(
        self, logits: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """Move each row on by (B,) `count` slots, by fewer where it ends before; gives how many."""
        answer, context = self.answer, self.passes.context
        offsets = torch.arange(ids.shape[1], device=ids.device)
        ends = answer.stops(ids, slots) & (offsets < count[:, None])
        ended = ends.any(1)
        count = torch.where(ended, ends.long().argmax(1) + 1, count)
        last = logits[torch.arange(len(ids), device=ids.device), (count - 1).clamp(min=0)]
        context.logits = torch.where(count[:, None] > 0, last, context.logits)
        self.at = torch.where(ended, len(answer), self.at + count)
        return count


def _written(
    answer: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """The answer (B, n) with tokens (B, Q) in slots (B, Q), only where (B, Q) says so."""
    spare = answer.shape[1]
    wide = torch.nn.functional.pad(answer, (0, 1))
    return wide.scatter(1, slots.where(where, spare), tokens)[:, :spare]
