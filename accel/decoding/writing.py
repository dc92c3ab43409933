"""Slots of an answer on their way from open to written."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.commits import Commit

__all__ = ["Writing"]


class Writing:
    """An answer that is written block by block, as a commit policy has it.

    Attributes:
        step_map: (B, n) int32, after which pass over its block a slot was last written, counted
            from 0; -1 where none did.
    """

    def __init__(self, answer: Answer, choice: Choice, commit: Commit) -> None:
        self.answer, self.choice, self.commit = answer, choice, commit
        self.step_map = torch.full_like(answer.tokens, -1, dtype=torch.int32)

    def begin(self, start: int, end: int, values: int) -> int | None:
        """Open a block with so many open slots; gives how many passes it takes, None if unknown."""
        answer = self.answer
        self._span, self._step = (start, end), 0
        self._slots = torch.arange(start, end, device=answer.tokens.device)[None]
        self._own = answer.tokens[:, start:end] == answer.spec.mask_id  # may be written (over)
        self._on = torch.ones(len(self._own), dtype=torch.bool, device=self._own.device)
        self._edited = torch.zeros_like(self._on, dtype=torch.int64)
        self._policy = self.commit.begin(values)
        return self._policy.passes(values)

    def take(self, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Write what a pass says, logits (B, Q, V) of the block's slots at positions (B, Q).

        Returns:
            (B,) bool, the rows in which another pass would write something.
        """
        answer, policy, (start, end) = self.answer, self._policy, self._span
        standing = answer.tokens[:, start:end]
        unwritten = standing == answer.spec.mask_id
        logits = policy.heard(answer.within(logits, self._slots), unwritten)
        tokens = self.choice(logits, positions)
        write = policy(logits, tokens, unwritten)
        more = (unwritten & ~write).any(1)
        if policy.edits:
            full = ~unwritten.any(1)
            edit = policy.edit(logits, tokens, standing) & self._own & ~unwritten
            edit = edit & (tokens != standing) & self._on[:, None]
            self._edited = self._edited + full
            more |= (self._edited < policy.edits) & (edit.any(1) | ~full) & self._on
            write = write | edit
        # A row that is done stays as it is, however long others take.
        self._on = more
        answer.tokens[:, start:end] = torch.where(write, tokens, standing)
        self.step_map[:, start:end].masked_fill_(write, self._step)
        self._step += 1
        return more
