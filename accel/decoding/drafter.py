"""One row that drafts for all branches of a prefix, so that a draft costs as much as a row does."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.passes import Passes, causal

__all__ = ["Drafter"]


class Drafter:
    """Follows whichever branch is first to come to a window, and tells all of them what may stand
    there: each chooses from the same logits, with its own noise.

    What a proposal was made from decides how often it is right, and nothing else. So it does not
    matter that the other branches said something else before.

    Args:
        passes: of the branches, whose books hold the drafts, too.
        trunk: the row that they branch from; it stays as it is.

    Attributes:
        at: the first slot that has not been read for good.
    """

    def __init__(self, passes: Passes, trunk: Context) -> None:
        self.passes = passes.aside(trunk.fork(1))
        self.start = self.passes.context.position.clone()
        self.at = 0

    @classmethod
    def of(cls, passes: Passes) -> Drafter | None:
        """For several branches that, like the row that they branch from, have not read on since;
        None for others."""
        context, trunk = passes.context, passes.context.trunk
        if trunk is None or len(context.position) == 1 or trunk.kv.length != context.kv.length:
            return None
        return cls(passes, trunk)

    @property
    def bytes(self) -> int:
        """Memory of its own keys and values."""
        return self.passes.context.kv.own_bytes

    def propose(
        self,
        answer: Answer,
        said: torch.Tensor,
        choice: Choice,
        row: int,
        read: int,
        end: int,
    ) -> torch.Tensor:
        """Draft the slots behind `read` up to `end`, in one bidirectional pass.

        Args:
            answer: of the B branches.
            said: (B, n) int64, proposals so far, mask ids where there are none.
            choice: which token is proposed, of B rows.
            row: the branch that is followed, all of whose slots before `read` stand.
            read: what is before it is read as by a causal pass.
            end: of the window.

        Returns:
            `said` with proposals up to `end`, of which those of the window are new. Where one could
            not be drafted any more, because it stands in `row`, that is proposed.
        """
        mask, device = answer.spec.mask_id, said.device
        ids = answer.tokens[row, self.at : end]
        slots = torch.arange(self.at, end, device=device)[None]
        lead, width = max(read - self.at, 0), len(ids)
        window = causal(width, device) | (torch.arange(width, device=device) >= lead)[:, None]
        logits = self.passes.run("draft", ids[None], window)
        self.passes.keep(width, lead, torch.full_like(self.start, lead))
        behind = slots[:, 1:]
        proposed = answer.choose(
            choice, logits[:, :-1].expand(len(said), -1, -1), behind, self.start + behind
        )
        self.at += lead
        told, old = torch.where(ids[1:] == mask, proposed, ids[1:]), said[:, behind[0]]
        new = torch.where((ids[1:] == mask) | (old == mask), told, old)
        return said.index_copy(1, behind[0], new)
