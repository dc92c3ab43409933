"""Answers on the grid of blocks that a model was trained with, which begins with the prompt."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastloop.accel.decoding.canvas import Canvas

__all__ = ["on_grid"]


def on_grid(
    prompt: torch.Tensor, canvas: Canvas, block_size: int
) -> tuple[torch.Tensor, Canvas, int]:
    """What is read of a prompt, and a canvas that begins with the rest of it.

    A ``block_causal`` model keeps whole blocks, counted from the start of the prompt (SDAR,
    Fast-dLLM v2, DiffusionVL): where the prompt ends inside of one, that block is part of the
    canvas, with the prompt's tokens given, because they are to see the answer that shares it.

    Args:
        prompt: (P,) int64.
        canvas: whose blocks are replaced by those of the grid.
        block_size: of the model.

    Returns:
        the tokens (F,) to be read, F the most whole blocks of P, which may be none; the canvas, and
        with how many slots of the prompt it begins.
    """
    whole = len(prompt) // block_size * block_size
    rest = prompt[whole:].to(canvas.tokens.device)
    lead = rest.new_zeros(len(rest))
    block = torch.arange(len(rest) + len(canvas), device=lead.device) // block_size
    started = replace(
        canvas,
        tokens=torch.cat([rest, canvas.tokens]),
        given=torch.cat([torch.ones_like(lead, dtype=torch.bool), canvas.given]),
        block=block,
        section=torch.cat([lead, canvas.section]),
        kind=torch.cat([lead, canvas.kind]),
    )
    return prompt[:whole], started, len(rest)
