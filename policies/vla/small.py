"""Qwen2.5-VL of any size, from nothing: a network of our own, and the tokenizer for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastloop.extras import require
from fastloop.policies.vla.annotation import explanations
from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.prompt import NUMBERS, STEP_S, Template
from fastloop.policies.vla.schema import Choice, Schema
from fastloop.policies.vla.tokenizer import Tokenizer, build_tokenizer, token_id

__all__ = ["new_network", "new_tokenizer"]

# Tokens that the network itself has to know.
KNOWN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
ROPE_THETA = 10_000.0


def new_tokenizer(schema: Schema, template: Template) -> str:
    """JSON of a tokenizer to which every piece of these questions and answers is one token, and
    every phrase that may be chosen."""
    rows = 1 + (template.states - 1) * round(template.state_s / STEP_S)
    asked = [
        template.write(torch.full((rows, len(NUMBERS)), number), intent, 1)
        for number in (1.0, -1.0)
        for intent in range(len(template.commands))
    ]
    phrases = [
        word for _, field in schema.fields() if isinstance(field, Choice) for word in field.words
    ]
    return build_tokenizer([*vocabulary(schema), *explanations(), *asked], phrases=phrases)


def new_network(arch: Mapping[str, Any], tokenizer: Tokenizer) -> Any:
    """``transformers.Qwen2_5_VLForConditionalGeneration`` with random weights (torch's own seed).

    Args:
        arch: ``text`` and ``vision``, fields of transformers' configurations. What follows from
            these and the tokenizer is filled in: ids, the vision tower's output, rotary sections.
        tokenizer: with the special tokens of Qwen2.5-VL.

    Raises:
        ValueError: when these describe no network.
        MissingExtraError: without transformers.
    """
    transformers = require("transformers", extra="vla")
    try:
        text, vision = dict(arch["text"]), dict(arch["vision"])
        half = text["hidden_size"] // text["num_attention_heads"] // 2
        across = 3 * half // 8  # as Qwen2.5-VL shares the dimensions out: time, rows, columns
        rope = {
            "rope_type": "default", "rope_theta": ROPE_THETA,
            "mrope_section": [half - 2 * across, across, across],
        }  # fmt: skip
        text = {"rope_parameters": rope, "vocab_size": len(tokenizer), **text}
        text |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        vision = {"out_hidden_size": text["hidden_size"], **vision}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True,
            **{name: token_id(tokenizer, token) for name, token in KNOWN.items()},
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    except Exception as error:  # sizes check themselves, with exceptions of several kinds
        raise ValueError(
            f"no Qwen2.5-VL can be built from network.arch={dict(arch)} "
            f"({type(error).__name__}: {error}); it has text and vision, each with sizes such as "
            "hidden_size"
        ) from error
    network.model.visual.patch_embed.proj.__class__ = _PatchProjection
    return network


class _PatchProjection(nn.Conv3d):
    """A convolution whose kernel is as large as what it sees is a product; that is quicker."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C, T, P, P) to (N, D)."""
        return nn.functional.linear(pixels.flatten(1), self.weight.flatten(1), self.bias)
