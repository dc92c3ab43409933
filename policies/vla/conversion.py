"""From an autoregressive vision-language model to one that fills masks: the losses of its stages.

A batch, of right-padded rows [prompt | answer], is what `fastloop.policies.vla.samples` makes:

- ``ids`` (B, S) int64: prompt with its picture slots, answer as it should be;
- ``positions`` (B, S) or (B, 3, S) int64: of the rotary embedding;
- ``block`` (B, S) int64: of each token, `PROMPT` or `PADDING`;
- ``answer`` (B, A) int64: where in its row each slot of the answer lies, -1 for padding;
- ``section`` (B, A) int64, ``given`` (B, A) bool: of each slot, as in a `Canvas`;
- where there are pictures, ``pixel_values`` and ``image_grid_thw`` of all rows, in their order.

The model is a causal language model of transformers with attention that reads boolean masks
(``attn_implementation="sdpa"``), with pictures or without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.accel.decoding.model import ModelSpec
from fastloop.policies.vla.attention import trains_fast
from fastloop.policies.vla.losses import chunked_cross_entropy
from fastloop.policies.vla.masks import (
    EVERYTHING,
    PADDING,
    PROMPT,
    Parts,
    causal,
    doubled,
    doubled_parts,
    prefixed,
)
from fastloop.policies.vla.noise import UNIFORM, complementary, masking_probability

__all__ = [
    "Objective",
    "annealed_block_size",
    "autoregressive_loss",
    "block_diffusion_loss",
    "doubled_pass",
    "prefix_lm_loss",
    "prefixed_pass",
]

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """What counts how much in `block_diffusion_loss` and `prefix_lm_loss`.

    Attributes:
        noise: (a, b) of each section's Beta, see `masking_probability`; of the former.
        weights: of each section's drafted tokens.
        draft_weight, causal_weight: of the two halves of the former.
        eps: the least probability of being masked.
    """

    noise: tuple[tuple[float, float], ...] = (UNIFORM,)
    weights: tuple[float, ...] = (1.0,)
    draft_weight: float = 0.5
    causal_weight: float = 0.5
    eps: float = 1e-3


def annealed_block_size(progress: float, largest: int) -> int:
    """Blocks that grow while a model is converted: 2, 4, ... `largest`, each for an equal time.

    Fast-dVLM, arXiv 2604.06832: S[min(floor(u |S|), |S| - 1)].

    Args:
        progress: u, part of the training that is done, in [0, 1].
        largest: a power of two, at least 2.

    Raises:
        ValueError: for any other `largest`.
    """
    if largest < 2 or largest & (largest - 1):
        raise ValueError(f"blocks grow by doubling, to a power of two from 2 on; got {largest}")
    sizes = largest.bit_length() - 1
    return int(2 ** (1 + min(int(progress * sizes), sizes - 1)))


def autoregressive_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the answer's tokens, each foretold from all before it; a mean over them."""
    ids = batch["ids"]
    real, at = _slots(batch)
    mask = causal(ids.shape[1], ids.device).expand(len(ids), -1, -1)
    hidden = _decode(model, _embed(model, batch), mask, batch["positions"])
    return _causal_sum(model, hidden, ids.gather(1, at), real, at) / real.sum()


def block_diffusion_loss(
    model: Any,
    batch: Batch,
    spec: ModelSpec,
    objective: Objective,
    *,
    generator: torch.Generator,
) -> torch.Tensor:
    """What a model learns drafting from, and keeps its causal reading by: two halves in one pass.

    Two copies of the answer, masked to complement each other, are drafted in blocks, while the
    clean row is read causally (see `doubled`). Pictures are encoded once, for the clean part; the
    prompt is in that part alone. With logits that speak of the next token the first one of a block
    has no row in its block that could draft it: the decoder takes it from the causal pass, and so
    does this loss.

    Args:
        model: see the module.
        batch: see the module.
        spec: mask and stop token, and which row speaks of a slot.
        objective: what counts how much.
        generator: of the noise, on the CPU.

    Returns:
        scalar: both sums over the number of the answer's tokens.
    """
    real, at = _slots(batch)
    tokens = batch["ids"].gather(1, at)
    block = torch.where(real, batch["block"].gather(1, at), PADDING)
    section = batch["section"]
    probability = masking_probability(
        block, section, objective.noise, generator=generator, eps=objective.eps
    )
    stop = torch.isin(tokens, torch.tensor(spec.stop_ids, dtype=torch.int64, device=tokens.device))
    masked = complementary(
        probability, free=real & ~batch["given"], always=stop, generator=generator
    )
    drafted, read = doubled_pass(model, batch, masked, spec.mask_id)
    shift = spec.logit_shift
    speaks = slice(None, block.shape[1] - shift)
    wanted = masked[..., shift:] & (block[:, shift:] == block[:, speaks])
    weights = torch.tensor(objective.weights, device=block.device)[section]
    draft_sum = chunked_cross_entropy(
        drafted[:, :, speaks][wanted],
        model.get_output_embeddings(),
        tokens[:, shift:].expand_as(wanted)[wanted],
        weights[:, shift:].expand_as(wanted)[wanted],
    )
    causal_sum = _causal_sum(model, read, tokens, real, at)
    total = objective.draft_weight * draft_sum + objective.causal_weight * causal_sum
    return total / real.sum()


def doubled_pass(
    model: Any, batch: Batch, masked: torch.Tensor, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over [noisy | ... | noisy | clean] rows.

    Args:
        model: see the module.
        batch: see the module.
        masked: (C, B, A) bool, of each of C noisy copies of the answer.
        mask_id: what stands there.

    Returns:
        drafted: (C, B, A, D) last hidden states of the copies.
        read: (B, S, D) the same of the clean rows.
    """
    real, at = _slots(batch)
    block = torch.where(real, batch["block"].gather(1, at), PADDING)
    mask = doubled(block, batch["block"], copies=len(masked))
    return _noisy_pass(model, batch, masked, mask_id, mask)


def prefix_lm_loss(
    model: Any,
    batch: Batch,
    spec: ModelSpec,
    objective: Objective,
    *,
    generator: torch.Generator,
) -> torch.Tensor:
    """What a model learns filling any masks of an answer by, all of which it sees (LaViDa).

    Two copies of the answer, masked to complement each other, behind one prompt. How much of an
    answer is masked is drawn once for all of it, uniformly (LLaDA), because a decoder that fills
    one block after the other begins with everything masked. Each token being masked in one of the
    copies, no weight has to make up for how likely that was.

    Args:
        model: see the module.
        batch: see the module, without stop tokens: a decoder shows the slots of its canvas only.
        spec: mask token, and which row speaks of a slot.
        objective: what counts how much.
        generator: of the noise, on the CPU.

    Returns:
        scalar: the sum over the number of the answer's tokens.
    """
    real, at = _slots(batch)
    tokens = batch["ids"].gather(1, at)
    whole = torch.zeros_like(at)
    probability = masking_probability(
        whole, whole, (UNIFORM,), generator=generator, eps=objective.eps
    )
    free = real & ~batch["given"]
    masked = complementary(
        probability, free=free, always=torch.zeros_like(free), generator=generator
    )
    drafted, read = prefixed_pass(model, batch, masked, spec.mask_id)
    if spec.logit_shift:
        row = torch.arange(len(at), device=at.device)
        last = read[row, at[:, 0] - 1].expand(len(masked), -1, -1)
        drafted = torch.cat([last[:, :, None], drafted[:, :, :-1]], 2)
    weights = torch.tensor(objective.weights, device=at.device)[batch["section"]]
    total = chunked_cross_entropy(
        drafted[masked],
        model.get_output_embeddings(),
        tokens.expand_as(masked)[masked],
        weights.expand_as(masked)[masked],
    )
    return total / real.sum()


def prefixed_pass(
    model: Any, batch: Batch, masked: torch.Tensor, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over [noisy | ... | noisy | prompt] rows; see `doubled_pass`.

    Returns:
        drafted: (C, B, A, D) last hidden states of the copies.
        read: (B, P, D) the same of the prompts, filled up to the longest.
    """
    real, at = _slots(batch)
    prompt = batch["block"][:, : int(at.amax(0)[0])] == PROMPT
    return _noisy_pass(model, batch, masked, mask_id, prefixed(real, prompt, copies=len(masked)))


def _noisy_pass(
    model: Any, batch: Batch, masked: torch.Tensor, mask_id: int, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the answer, and as much of the clean rows as there is in a mask (B, Q, Q)."""
    _, at = _slots(batch)
    copies, _, slots = masked.shape
    clean = mask.shape[1] - copies * slots
    noisy = torch.where(masked, mask_id, batch["ids"].gather(1, at))
    positions = batch["positions"]
    here = at if positions.ndim == 2 else at[:, None].expand(-1, positions.shape[1], -1)
    read = _embed(model, {**batch, "ids": batch["ids"][:, :clean]})
    hidden = _decode(
        model,
        torch.cat([*model.get_input_embeddings()(noisy), read], 1),
        mask,
        torch.cat([positions.gather(-1, here)] * copies + [positions[..., :clean]], -1),
        doubled_parts(slots, copies),
    )
    drafted = hidden[:, : copies * slots].unflatten(1, (copies, slots)).transpose(0, 1)
    return drafted, hidden[:, copies * slots :]


def _slots(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the answer's slots (B, A) are real, and where in its row each one lies."""
    answer = batch["answer"]
    return answer >= 0, answer.clamp(min=1)  # a slot has a token before it


def _embed(model: Any, batch: Batch) -> torch.Tensor:
    """Embeddings (B, S, D) of clean rows, their pictures in place."""
    ids = batch["ids"]
    embeds: torch.Tensor = model.get_input_embeddings()(ids)
    if "pixel_values" not in batch:
        return embeds
    seen = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
    slots = (ids == model.config.image_token_id)[..., None].expand_as(embeds)
    return embeds.masked_scatter(slots, torch.cat(tuple(seen)).to(embeds.dtype))


def _decode(
    model: Any,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    parts: Parts = EVERYTHING,
) -> torch.Tensor:
    """Last hidden states (B, Q, D) under a mask (B, Q, Q)."""
    decoder = model.get_decoder()
    with trains_fast(decoder, mask, parts) as attention_mask:
        hidden: torch.Tensor = decoder(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=positions if positions.ndim == 2 else positions.transpose(0, 1),
            use_cache=False,
        ).last_hidden_state
    return hidden


def _causal_sum(
    model: Any, hidden: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the real tokens (B, A) at `at`, from the clean hidden states before them."""
    row = torch.arange(len(hidden), device=hidden.device)[:, None]
    before = hidden[row, at - 1]
    return chunked_cross_entropy(before[real], model.get_output_embeddings(), tokens[real])
