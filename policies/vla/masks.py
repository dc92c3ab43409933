"""What attends to what while a model is trained."""

from __future__ import annotations

import torch

__all__ = [
    "EVERYTHING",
    "PADDING",
    "PROMPT",
    "Parts",
    "causal",
    "doubled",
    "doubled_parts",
    "prefixed",
]

# Queries one after the other, and the keys that they may see at all.
Parts = tuple[tuple[slice, tuple[slice, ...]], ...]
EVERYTHING: Parts = ((slice(None), (slice(None),)),)

PROMPT = -1
PADDING = 2**30  # after every block, so that nothing but padding sees padding


def causal(length: int, device: torch.device | str | None = None) -> torch.Tensor:
    """(length, length) bool: each token sees itself and all before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def doubled(noisy: torch.Tensor, clean: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
    """Rows [noisy | ... | noisy | clean] in which every block is drafted at once: what a draft pass
    and a causal pass of the decoder see, in one pass of training.

    A noisy token sees its own block of its own copy, and all blocks before it in the clean part;
    the clean part is causal. That is the causal context of Fast-dVLM (arXiv 2604.06832) and
    Fast-dDrive (arXiv 2605.23163). There the clean part is repeated for the second noisy copy;
    as it sees neither of them, here one does for both. Any tokens may be left out of the noisy
    part (there: pictures; the whole prompt may be, since no block looks at a noisy prompt), and
    must be left out of its positions too.

    Args:
        noisy: (B, A) int64, the block of each token of one noisy copy; `PADDING` for none.
        clean: (B, S) int64, the same of the clean part; `PROMPT` for the prompt.
        copies: of the noisy part, one after the other.

    Returns:
        (B, copies * A + S, copies * A + S) bool, True where a query (row) may look (column). Every
        row, padding's too, sees at least itself.
    """
    noisy = noisy.repeat(1, copies)
    copy = torch.arange(copies, device=noisy.device).repeat_interleave(noisy.shape[1] // copies)
    same = (noisy[:, :, None] == noisy[:, None, :]) & (copy[:, None] == copy)
    earlier = noisy[:, :, None] > clean[:, None, :]
    rows = len(noisy)
    causal_part = causal(clean.shape[1], clean.device).expand(rows, -1, -1)
    nothing = torch.zeros_like(earlier).transpose(1, 2)
    return torch.cat([torch.cat([same, earlier], 2), torch.cat([nothing, causal_part], 2)], 1)


def prefixed(answer: torch.Tensor, prompt: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
    """Rows [noisy | ... | noisy | prompt] in which prompts see themselves, and copies of an answer
    its prompt and all of themselves (LaViDa, arXiv 2505.16839).

    Args:
        answer: (B, A) bool, which tokens of a noisy copy are real.
        prompt: (B, P) bool, the same of the prompt.
        copies: of the answer, one after the other.

    Returns:
        (B, copies * A + P, copies * A + P) bool, True where a query (row) may look (column). Every
        row, padding's too, sees at least itself.
    """
    real = torch.cat([answer.repeat(1, copies), prompt], 1)
    slots = torch.arange(real.shape[1], device=real.device)
    part = (slots // max(answer.shape[1], 1)).clamp(max=copies)
    near = (part[:, None] == part) | (part == copies)
    return (near & real[:, None]) | torch.eye(len(slots), dtype=torch.bool, device=real.device)


def doubled_parts(slots: int, copies: int) -> Parts:
    """Where `doubled` and `prefixed` show something: to a copy of A = `slots` its own and the
    clean part, which sees itself."""
    clean = slice(copies * slots, None)
    noisy = [slice(copy * slots, (copy + 1) * slots) for copy in range(copies)]
    return (*((own, (own, clean)) for own in noisy), (clean, (clean,)))
