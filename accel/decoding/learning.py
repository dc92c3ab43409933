"""Filters that are fitted to a model's own decoding (`commits.Learned`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.commits import Commit, FixedCount
from fastloop.accel.decoding.commits.commit import confidence
from fastloop.accel.decoding.commits.learned import (
    BlockFilter,
    Calibration,
    certainty,
    check_blocks,
)
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.model import LanguageModel
from fastloop.accel.decoding.result import Decoded
from fastloop.accel.decoding.rollouts import decode
from fastloop.accel.decoding.windows import blocks

__all__ = ["Examples", "collect", "fit"]


@dataclass(frozen=True)
class Examples:
    """N passes over a block of b slots.

    Attributes:
        digest: of the model.
        certain: (N, b) float32, what a filter sees.
        right: (N, b) bool, whether a slot would have been written with the right token.
        open: (N, b) bool, which slots were open.
    """

    digest: str
    certain: torch.Tensor
    right: torch.Tensor
    open: torch.Tensor


def collect(
    model: LanguageModel, prompts: Sequence[Any], canvas: Canvas, block_size: int
) -> Examples:
    """Decode prompts carefully, then again as fast as the first answer allows, and take notes.

    The careful answer is told one slot a pass. The second time every slot is written as soon as it
    agrees with that answer ("extremely greedy parallel" decoding, Learn2PD), the rest of a block
    when nothing agrees any more; so the passes are like those that a perfect filter would see.

    Args:
        model: with a digest.
        prompts: B, decoded in lock step.
        canvas: to be filled for each of them.
        block_size: b, of the largest block; in shorter ones what is missing counts as certain.

    Raises:
        ValueError: when the model has no digest, or the largest block is of another size.
    """
    if not model.spec.digest:
        raise ValueError("a model without a digest cannot be told from others; give it one")
    check_blocks(canvas, block_size)
    careful = decode(model, prompts, canvas, SectionDiffusion(commit=FixedCount(1)))
    hasty = _Hasty(careful, blocks(canvas), block_size)
    decode(model, prompts, canvas, SectionDiffusion(commit=hasty))
    certain, right, unwritten = (torch.cat(parts) for parts in zip(*hasty.notes, strict=True))
    return Examples(model.spec.digest, certain.float(), right, unwritten)


class _Hasty(Commit):
    """Writes whatever agrees with a known answer; of one call, since it counts its blocks."""

    def __init__(self, careful: Decoded, spans: list[tuple[int, int]], block_size: int) -> None:
        assert careful.written is not None
        assert careful.step_map is not None
        self._written, self._told = careful.written, careful.step_map >= 0
        self._spans, self._size = iter(spans), block_size
        self.notes: list[tuple[torch.Tensor, ...]] = []

    def begin(self, values: int) -> Commit:
        """See `Commit`."""
        start, end = next(self._spans)
        self._known = self._written[:, start:end]
        self._lives = self._told[:, start:end].any(1)  # not ended in a block before
        return self

    def passes(self, values: int) -> int | None:
        """See `Commit`."""
        return None

    def heard(self, logits: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
        """Take notes, then have nothing said but the known answer."""
        tokens = logits.argmax(-1)
        self._right = (tokens == self._known) & unwritten
        certain = certainty(confidence(logits, tokens, unwritten), self._size)
        rows, fill = unwritten.any(1) & self._lives, (0, self._size - unwritten.shape[1])
        right, still = (torch.nn.functional.pad(part, fill) for part in (self._right, unwritten))
        self.notes.append((certain[rows], right[rows], still[rows]))
        return torch.full_like(logits, -torch.inf).scatter(-1, self._known[..., None], 0.0)

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return torch.where(self._right.any(1, keepdim=True), self._right, unwritten)


def fit(
    examples: Examples,
    *,
    epochs: int = 2000,
    learning_rate: float = 3e-3,
    hidden: int | None = None,
    seed: int = 0,
) -> BlockFilter:
    """A filter that tells right slots from wrong ones, by logistic loss over open slots.

    A tenth of the examples is held out, for `Calibration.precision`. AdamW over all others at once;
    Learn2PD's authors take 40 000 epochs.

    Args:
        examples: at least ten, of one model.
        epochs: steps of AdamW.
        learning_rate: of AdamW.
        hidden: H, None for as many as slots of a block.
        seed: of the split and of the first weights.

    Raises:
        ValueError: when there are too few examples.
    """
    count, slots = examples.certain.shape
    if count < 10:
        raise ValueError(f"a filter is fitted to ten examples or more, got {count}")
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=random)
    held, used = order[: count // 10], order[count // 10 :]
    width = hidden or slots

    def layer(outputs: int, inputs: int) -> torch.Tensor:
        weights = torch.empty(outputs, inputs).uniform_(-1, 1, generator=random)
        weights /= inputs**0.5
        return weights.requires_grad_()

    parameters = [layer(width, slots), torch.zeros(width, requires_grad=True),
                  layer(slots, width), torch.zeros(slots, requires_grad=True)]  # fmt: skip
    calibration = Calibration(examples.digest, slots, len(used))
    network = BlockFilter(calibration, *parameters)
    certain, right, unwritten = (
        part.cpu() for part in (examples.certain, examples.right.float(), examples.open)
    )
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    with torch.enable_grad():
        for _ in range(epochs):
            logits = network(certain[used])[unwritten[used]]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, right[used][unwritten[used]]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        written = (network(certain[held]).sigmoid() >= 0.9) & unwritten[held]
    precision = right[held][written].mean().item()
    facts = Calibration(examples.digest, slots, len(used), precision)
    return BlockFilter(facts, *(part.detach() for part in parameters))
