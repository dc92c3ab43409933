"""A network of a given size with random weights, and prompts of a given length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.extras import require
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL

__all__ = ["random_model", "random_prompt"]


def random_model(arch: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Qwen25VL:
    """A Qwen2.5-VL of these sizes, made where it is to compute, with torch's own seed.

    Raises:
        ValueError: when they describe no network.
        MissingExtraError: without transformers.
    """
    transformers = require("transformers", extra="vla")
    sizes = {name: value for name, value in arch.items() if name not in ("text", "vision")}
    before = torch.get_default_dtype()
    try:
        config = transformers.Qwen2_5_VLConfig(
            text_config=dict(arch["text"]), vision_config=dict(arch["vision"]), **sizes
        )
        config._attn_implementation = "sdpa"
        torch.set_default_dtype(dtype)
        with device:
            network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    except Exception as error:  # sizes check themselves, with exceptions of several kinds
        raise ValueError(
            f"no Qwen2.5-VL can be built from arch={dict(arch)} "
            f"({type(error).__name__}: {error}); it has text and vision, each with sizes such as "
            "hidden_size"
        ) from error
    finally:
        torch.set_default_dtype(before)
    vocab = network.config.text_config.vocab_size
    spec = ModelSpec(Regime.CAUSAL_CONTEXT, vocab, mask_id=vocab - 1)
    return Qwen25VL(network.requires_grad_(False), spec)


def random_prompt(
    model: Qwen25VL, tokens: int, pictures: Sequence[Sequence[int]], seed: int
) -> Prompt:
    """So many tokens: each picture after a word, then the other words.

    Args:
        model: that reads it.
        tokens: in all.
        pictures: patches (rows, columns) of each.
        seed: of words and pixels.

    Raises:
        ValueError: when the pictures take up more.
    """
    vision, source = model.network.config.vision_config, torch.Generator().manual_seed(seed)
    grid = torch.tensor([[1, *size] for size in pictures], dtype=torch.int64).reshape(-1, 3)
    taken = (grid.prod(1) // vision.spatial_merge_size**2).tolist()
    if tokens <= (least := sum(taken) + len(taken)):
        raise ValueError(
            f"a context of {tokens} tokens does not hold pictures of {least}: say pictures=[] or a "
            "longer one in contexts"
        )
    words = torch.randint(model.spec.vocab, (tokens - sum(taken),), generator=source)
    known = model.network.config
    special = torch.tensor([known.image_token_id, known.video_token_id])
    words[torch.isin(words, special)] = 0
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    shown = [part for word, count in zip(words, taken, strict=False)
             for part in (word[None], torch.full((count,), model.place))]  # fmt: skip
    pixels = torch.randn(int(grid.prod(1).sum()), width, generator=source)
    return Prompt(torch.cat([*shown, words[len(taken) :]]), pixels, grid)
