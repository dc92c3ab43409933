"""A model with prompts and an answer, to be passed through with keys kept and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel, layers_of
from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.decoder import prompt_mask

__all__ = ["TOLERANCE", "Specimen", "square"]

TOLERANCE = {
    torch.float64: 1e-5,  # stock networks normalize in float32 whatever their dtype
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


class Specimen:
    """A model, two prompts, and the tokens of an answer of two blocks and a half.

    Attributes:
        answer: (2, n) int64, one row for each prompt.
        blocks: start and end of each of its blocks.
        dtype: that the model computes in.
        tolerance: of `agree`, by dtype.
    """

    def __init__(self, model: LayeredModel, prompts: Sequence[Any] | None, seed: int) -> None:
        self.model, self.spec = model, model.spec
        self.random = torch.Generator().manual_seed(seed)
        size = min(self.spec.block_size, 8)
        if prompts is None:
            # Of whole blocks, and of some tokens more.
            whole = 2 * self.spec.block_size
            prompts = [self.tokens(whole), self.tokens(whole + size // 2 + 1)]
        self.prompts = list(prompts)
        self.blocks = [(0, size), (size, 2 * size), (2 * size, 2 * size + (size + 1) // 2)]
        self.slots = self.blocks[-1][1]
        self.device = torch.device(getattr(model, "device", "cpu"))
        self.answer = torch.stack([self.tokens(self.slots) for _ in self.prompts]).to(self.device)
        self.dtype = model.embed(self.answer[:1, :1]).dtype
        self.tolerance = TOLERANCE[self.dtype]

    def tokens(self, count: int) -> torch.Tensor:
        """Random ids (count,) without the mask id."""
        ids = torch.randint(self.spec.vocab - 1, (count,), generator=self.random)
        return ids + (ids >= self.spec.mask_id)

    def prefill(self, *rows: int) -> Context:
        """The prompts of these rows, read."""
        return self.model.prefill([self.prompts[row] for row in rows], room=2 * self.slots)

    def forward(
        self, context: Context, ids: torch.Tensor, window: torch.Tensor, start: int = 0
    ) -> torch.Tensor:
        """Logits of ids (B, Q), of which slot 0 is `start` behind the context's position.

        Of a model that keeps nothing, the prompt is read in front of them.
        """
        lead = 0 if context.prompt is None else context.prompt.shape[1]
        if context.prompt is not None:
            ids = torch.cat([context.prompt, ids], 1)
            window = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool, device=self.device)
        offsets = torch.arange(ids.shape[1], device=self.device) - lead + start
        before = context.visible[:, None].expand(-1, ids.shape[1], -1)
        mask = torch.cat([before, window.expand(len(ids), -1, -1)], -1)
        logits = self.model.forward(
            ids, positions=context.position[:, None] + offsets, mask=mask, kv=context.kv
        )
        return logits[:, lead:]

    def answered(self, context: Context, rows: Sequence[int]) -> torch.Tensor:
        """Logits (B, n, V) of an answer whose last block is being denoised, as drivers go on."""
        regime = self.spec.regime
        ids = self.answer[list(rows)]
        if regime in (Regime.FULL, Regime.PREFIX_LM):
            logits = self.forward(context, ids, square(self.slots, True, self.device))
            context.kv.crop(logits.shape[1] if context.prompt is None else context.kv.length)
            return logits
        parts = []
        causal = regime in (Regime.CAUSAL, Regime.CAUSAL_CONTEXT)
        for start, end in self.blocks:
            last = end == self.slots and regime is not Regime.CAUSAL
            window = square(end - start, last or not causal, self.device)
            parts.append(self.forward(context, ids[:, start:end], window, start))
            context.visible = torch.nn.functional.pad(context.visible, (0, end - start), value=True)
        return torch.cat(parts, 1)

    def whole(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of one row in a single pass with nothing kept; and of the prompt's last slot."""
        model, n = self.model, self.slots
        answer = model.embed(self.answer[[row]])
        if self.spec.regime is Regime.FULL:
            prompt = torch.as_tensor(self.prompts[row], device=self.device)[None]
            hidden, first = model.embed(prompt), prompt.new_tensor([prompt.shape[1]])
            positions = torch.arange(prompt.shape[1], device=self.device)[None]
        else:
            read = model.read([self.prompts[row]])
            hidden, positions, first = read.hidden, read.positions, read.position
        following = first[:, None] + torch.arange(n, device=self.device)
        following = following.expand(*positions.shape[:-1], -1)
        length = hidden.shape[1]
        mask = square(length + n, True, self.device).clone()
        mask[:, :length, :length] = prompt_mask(self.spec, length, self.device)
        mask[:, :length, length:] = self.spec.regime is Regime.FULL
        mask[:, length:, length:] = self._window()
        hidden = torch.cat([hidden, answer], 1)
        kv = KVCache(model.layers, length + n)
        hidden = layers_of(
            model, range(model.layers), hidden, torch.cat([positions, following], -1), mask, kv
        )
        return model.head(hidden[:, length:]), model.head(hidden[:, length - 1 : length])[:, 0]

    def _window(self) -> torch.Tensor:
        """(n, n) bool, what an answer sees of itself while its last block is being denoised."""
        if self.spec.regime in (Regime.FULL, Regime.PREFIX_LM):
            return square(self.slots, True, self.device)[0]
        window = square(self.slots, False, self.device)[0]
        if self.spec.regime is not Regime.CAUSAL:
            blocks = self.blocks if self.spec.regime is Regime.BLOCK_CAUSAL else self.blocks[-1:]
            for start, end in blocks:
                window[start:end, start:end] = True
        return window

    def agree(self, found: torch.Tensor, wanted: torch.Tensor) -> tuple[bool, str]:
        """Whether two tensors differ by no more than the tolerance allows."""
        if found.shape != wanted.shape:
            return False, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)}"
        share = float((found - wanted).abs().max() / wanted.abs().max())
        return share <= self.tolerance, f"{share:.1e} of the largest, at most {self.tolerance:.0e}"


def square(slots: int, whole: bool, device: torch.device | str) -> torch.Tensor:
    """Window (1, Q, Q) in which slots see each other, or themselves and those before."""
    square = torch.ones(1, slots, slots, dtype=torch.bool, device=device)
    return square if whole else square.tril()
