"""What the folder of a diffusion language model holds, in words, and whether it keeps its word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.dlm.conformance import Check, conformance
from fastloop.policies.dlm.folder import adapters, is_language_model, load_language_model
from fastloop.policies.dlm.pictured import Pictured
from fastloop.policies.vla.prompt import Prompt

__all__ = ["describe_language_model"]


def describe_language_model(
    folder: str | Path, *, check: bool = False
) -> tuple[dict[str, Any], list[Check]]:
    """What a language model is, as plain values for printing, and the checks when asked for.

    Args:
        folder: that `load_language_model` reads.
        check: pass random prompts through it, see `conformance`.

    Raises:
        CheckpointError: for a folder of anything else (the known kinds are listed), and as
            `load_language_model`.
    """
    if not is_language_model(folder):
        raise CheckpointError(
            f"{folder} holds no diffusion language model; expected a folder with a config.json of "
            f"model_type {', '.join(sorted(adapters()))}"
        )
    model: Any = load_language_model(folder)
    spec, text = model.spec, model.network.config
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    facts = {
        "kind": "language_model",
        "digest": spec.digest,
        "network": type(model.network).__name__,
        "arch": {
            "language": f"{text.num_hidden_layers} layers of {text.hidden_size}, {heads} heads, "
            f"{groups} of keys and values",
            "vocabulary": spec.vocab,
            "window": f"{model.window} tokens",
        },
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        "regime": spec.regime.value,
        "block_size": spec.block_size,
        "logits speak of": "the next token" if spec.logit_shift else "their own",
        "ids": {"mask": spec.mask_id, "null": spec.null_id, "stop": spec.stop_ids},
    }
    prompts = _shown(model) if isinstance(model, Pictured) else None
    return facts, conformance(model, prompts) if check else []


def _shown(model: Pictured) -> list[Prompt]:
    """Two prompts of different lengths, each with a picture of noise."""
    random = torch.Generator().manual_seed(0)
    prompts = []
    for side, words in ((56, 5), (84, 9)):
        picture = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=random)
        pixels, grid = model.pictures.cut([picture])
        places = torch.full((int(model.pictures.tokens(grid).sum()),), model.place)
        text = torch.randint(model.spec.vocab, (words,), generator=random)
        text[text == model.place] = 0
        prompts.append(Prompt(torch.cat([text[:2], places, text[2:]]), pixels, grid))
    return prompts
