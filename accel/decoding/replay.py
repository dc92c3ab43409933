"""What a model said in each pass over each block, made again in as many passes as one block took.

For training on what was decoded (TraceRL, Wang et al. 2025), and to check a driver: keys, masks,
positions and what was written when all have to be right for the logits to come out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.windows import blocks

__all__ = ["replay"]


def replay(
    model: LanguageModel, prompts: Sequence[Any], canvas: Canvas, decoded: Decoded
) -> torch.Tensor:
    """Logits of each slot in the pass after which it was written.

    Round s reads the answer twice, one behind the other: as it was in the end, and with masks
    where slots were open before pass s over their block. A block of the second sees itself and
    the finished blocks before it in the first, so all blocks are read at once.

    Args:
        model: that decoded.
        prompts: B, as for `decode`.
        canvas: the same.
        decoded: with a step map.

    Returns:
        (B, n, V) before tokens that may not stand are taken out; 0 where `Decoded.step_map` is -1.

    Raises:
        ValueError: when there is no step map, keys and values were not exact, or the model keeps
            nothing of an answer: then each pass saw all of it, and no two can be made in one.
    """
    if decoded.step_map is None or decoded.written is None:
        raise ValueError(f"{decoded.name} has left no step map, so its passes cannot be made again")
    if decoded.exactness is not Exactness.EXACT_KV:
        raise ValueError(
            f"{decoded.name} kept keys and values that were not exact ({decoded.exactness.value}): "
            "what its passes said cannot be said again"
        )
    if model.spec.regime not in (Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT):
        raise ValueError(
            f"every pass of a {model.spec.regime.value} model sees the whole answer, so passes "
            "over different blocks cannot be made at once"
        )
    steps, written = decoded.step_map, decoded.written
    device, n = written.device, written.shape[1]
    context = model.prefill(prompts, room=2 * n)
    offsets = torch.arange(n, device=device).repeat(2)
    positions = context.position[:, None] + offsets
    window = _doubled(canvas, model.spec.regime).to(device)
    before = context.visible[:, None].expand(-1, 2 * n, -1)
    mask = torch.cat([before, window.expand(len(written), -1, -1)], -1)
    told = torch.zeros(*written.shape, model.spec.vocab, dtype=context.logits.dtype, device=device)
    for step in range(int(steps.max()) + 1):
        open_then = written.masked_fill(steps >= step, model.spec.mask_id)
        ids = torch.cat([written, open_then], 1)
        logits = model.forward(ids, positions=positions, mask=mask, kv=context.kv)
        context.kv.crop(2 * n)
        said = _of_slots(logits, context.logits, canvas, model.spec.logit_shift)
        told = torch.where((steps == step)[..., None], said, told)
    return told


def _doubled(canvas: Canvas, regime: Regime) -> torch.Tensor:
    """(2n, 2n) bool: what the finished answer sees of itself, and the open one of both."""
    block = canvas.block
    before, inside = block[:, None] > block, block[:, None] == block
    own = inside.tril() if regime is Regime.CAUSAL_CONTEXT else inside
    finished = torch.cat([before | own, torch.zeros_like(own)], 1)
    return torch.cat([finished, torch.cat([before, inside], 1)])


def _of_slots(
    logits: torch.Tensor, prompt: torch.Tensor, canvas: Canvas, shift: int
) -> torch.Tensor:
    """Logits (B, n, V) that speak of each slot; the first of a block was told by the pass before.

    That is by the finished slot before it, or by the prompt's last token, (B, V).
    """
    finished, open_then = logits.chunk(2, dim=1)
    if not shift:
        return open_then
    earlier = torch.cat([prompt[:, None], finished[:, :-1]], 1)
    within = torch.cat([prompt[:, None], open_then[:, :-1]], 1)
    first = torch.zeros(len(canvas), 1, dtype=torch.bool)
    first[[start for start, _ in blocks(canvas)]] = True
    return torch.where(first.to(logits.device), earlier, within)
