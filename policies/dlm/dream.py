"""Dream (arXiv 2508.15487): everything sees everything, a logit speaks of the next slot.

Its network is a Qwen2, under the same names. DiffuCoder and Dream-Coder are published so, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.adapter import TextAdapter

__all__ = ["ADAPTER", "qwen2_config"]


def qwen2_config(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields of ``Qwen2Config``, which are Dream's own.

    Raises:
        ValueError: for rotary embedding of several axes, and for another model of this type, which
            goes block by block.
    """
    if described.get("use_mrope"):
        raise ValueError("use_mrope is true; expected positions of text, of one axis")
    classes = described.get("architectures") or ["DreamModel"]
    if "DreamModel" not in classes or described.get("block_size") is not None:
        raise ValueError(
            f"architectures are {classes} with a block_size of {described.get('block_size')}; "
            "expected DreamModel, which goes without blocks"
        )
    return described


ADAPTER = TextAdapter(
    "Dream", ("Dream",), "Qwen2", Regime.FULL, logit_shift=1, mask_id=151666, config=qwen2_config
)
