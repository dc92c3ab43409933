"""Answers that grow shorter as soon as an end is in sight."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.choose import Choice

__all__ = ["Truncation"]


class Truncation:
    """How long B rows of an answer still are: end-of-text prediction (Learn2PD's EoTP).

    After a pass a row ends with the first stop id that was written, or else with the open slot of
    which the pass is surest that the stop id stands there. What lies behind is not read again.

    Attributes:
        length: (B,) int64.
        width: the longest, on the host; whoever reads `length` there sets it.

    Raises:
        ValueError: when the answer's length is fixed: some slots are given, or none may hold a
            stop id.
    """

    def __init__(self, answer: Answer) -> None:
        if not answer.stoppable or not all(answer.values):
            why = "some of its slots are given" if answer.stoppable else "no slot may end it"
            raise ValueError(
                f"this canvas is of fixed length ({why}), so an answer cannot be cut where an end "
                "is predicted; decode without truncation"
            )
        self.answer, self.width = answer, len(answer)
        self.length = torch.full_like(answer.tokens[:, 0], len(answer))

    def left(self, slots: int) -> torch.Tensor:
        """(B, slots) bool, which of the first ones have not been cut off."""
        return torch.arange(slots, device=self.length.device) < self.length[:, None]

    def cut(
        self, choice: Choice, logits: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """End rows after a pass.

        Args:
            choice: which token stands in a slot.
            logits: (B, Q, V), what the pass says of the first Q slots, at least up to `width`.
            positions: (B, Q) int64.
            rows: (B,) bool, which of them the pass was for: others wait, and stay as they are.
        """
        answer, new = self.answer, logits.shape[1]
        left, slots = self.left(new), torch.arange(new, device=logits.device)[None]
        logits = answer.within(logits, slots)
        said, standing = choice(logits, positions), answer.tokens[:, :new]
        ends = left & answer.stops(standing, slots)
        sighted = left & (standing == answer.spec.mask_id) & answer.stops(said, slots)
        sure = logits.softmax(-1).gather(-1, said[..., None])[..., 0].masked_fill(~sighted, -1.0)
        length = torch.where(sighted.any(1), sure.argmax(1) + 1, self.length)
        length = torch.where(ends.any(1), ends.long().argmax(1) + 1, length)
        self.length = torch.where(rows, length, self.length)
        stop_id = answer.spec.stop_ids[0]
        answer.tokens[:, :new] = torch.where(self.left(new), standing, stop_id)
