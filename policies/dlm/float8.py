"""Weights of a language tower in eight bits: half the bytes of a pass, and not the same answers."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from fastloop.extras import require
from fastloop.policies.dlm.fused import Fused, product

__all__ = ["float8"]

CAPABILITY = (8, 9)  # the first GPUs with products of float8 (Ada, Hopper)


def float8(model: Fused) -> Fused:
    """A model whose layers multiply in float8 (e4m3), weights and what meets them, by torchao.

    A scale for each row of a weight, fixed, and for each token, taken as it comes (W8A8). Prompts
    are read by the network as it was; embeddings, norms, attention and the head stay as they are.
    Approximate: how far its logits are off is to be measured wherever it is used.

    Args:
        model: in bfloat16, on a GPU; stays as it is.

    Raises:
        ValueError: for another dtype, or a device that does not multiply so.
        MissingExtraError: without torchao.
    """
    weight = next(model.products.parameters())
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"float8 replaces bfloat16, the network is of {weight.dtype}")
    if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < CAPABILITY:
        raise ValueError(
            "products of float8 need a GPU of compute capability 8.9 or later, the network is on "
            f"{weight.device}"
        )
    torchao = require("torchao.quantization", extra="float8")
    other = copy.copy(model)
    other.spec = replace(model.spec, digest=f"{model.spec.digest}, float8")
    other.products = nn.ModuleList(
        nn.ModuleDict({name: product(one.weight, one.bias) for name, one in layer.items()})
        for layer in model.products
    )
    # Tuning that torchao turns on for the whole process would take longer than what it saves.
    torchao.quantize_(
        other.products,
        torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(), set_inductor_config=False
        ),
    )
    return other
