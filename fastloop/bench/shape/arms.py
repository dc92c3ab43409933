"""Ways to run the passes of one network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from fastloop.accel.decoding.captured import Captured
from fastloop.accel.decoding.model import LanguageModel
from fastloop.extras import MissingExtraError
from fastloop.policies.dlm.float8 import float8
from fastloop.policies.dlm.fused import Fused
from fastloop.policies.vla.qwen25vl import Qwen25VL

__all__ = ["ARMS", "EAGER", "EXACT", "make_arms", "widened"]

EAGER = "eager"  # as transformers has it, over a cache that grows; all others are held against it
ARMS: dict[str, Callable[[Qwen25VL], LanguageModel]] = {
    EAGER: lambda model: model,
    "graphs": lambda model: Captured(Fused(model)),
    "compiled": lambda model: Captured(Fused(model, compiled=True)),
    "float8": lambda model: Captured(float8(Fused(model, compiled=True))),
}
EXACT = ("graphs", "compiled")  # but for rounding


def make_arms(
    names: Sequence[str], model: Qwen25VL
) -> tuple[dict[str, LanguageModel], dict[str, str]]:
    """The arms that there can be here, and why there are no others.

    Raises:
        ValueError: for a name that there is not, or when the first is not ``eager``.
    """
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"unknown arm {unknown[0]!r}; have: {', '.join(ARMS)}")
    if not names or names[0] != EAGER:
        raise ValueError(f"the first arm is {EAGER}, which others are held against; got {names}")
    arms: dict[str, LanguageModel] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            arms[name] = ARMS[name](model)
        except MissingExtraError as error:
            left_out[name] = str(error)
        except ValueError as error:
            if name != "float8":
                raise
            left_out[name] = str(error)
    return arms, left_out


def widened(model: Qwen25VL) -> Qwen25VL:
    """The same weights in the next wider dtype, to see how far off rounding is."""
    half = torch.finfo(model.network.dtype).bits < 32
    wide = torch.float32 if half else torch.float64
    return Qwen25VL(copy.deepcopy(model.network).to(wide), model.spec)
