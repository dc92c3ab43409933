"""The fewest bytes that a pass reads: weights, and keys and values."""

from __future__ import annotations

from fastloop.accel.decoding.kv import KVCache
from fastloop.policies.vla.qwen25vl import Qwen25VL

__all__ = ["pass_bytes"]


def pass_bytes(arm: str, model: Qwen25VL, kv: KVCache) -> int:
    """What has to come from memory once for a pass over what `kv` holds; activations, which stay in
    caches, are left out.

    Args:
        arm: its name; the layers of ``float8`` take a byte a weight.
        model: as it was loaded.
        kv: what was kept; a shared prefix is read once.
    """
    head = model.network.lm_head.weight
    layers = sum(weight.numel() for weight in model.text.layers.parameters())
    width = 1 if arm == "float8" else head.element_size()
    return layers * width + head.numel() * head.element_size() + kv.bytes
