"""Tokens decided sooner: block denoising, speculation over a scaffold, and forked prefixes."""

from fastloop.accel.decoding.autoregressive import Autoregressive
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy, Gumbel
from fastloop.accel.decoding.commits import (
    Commit,
    Confidence,
    EntropyBound,
    FixedCount,
    Sequential,
)
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.rollouts import decode, rollouts
from fastloop.accel.decoding.speculative import Speculative

__all__ = [
    "Autoregressive",
    "Canvas",
    "Choice",
    "Commit",
    "Confidence",
    "Context",
    "Decoded",
    "Driver",
    "EntropyBound",
    "Exactness",
    "FixedCount",
    "Greedy",
    "Gumbel",
    "KVCache",
    "LanguageModel",
    "ModelSpec",
    "Regime",
    "SectionDiffusion",
    "Sequential",
    "Speculative",
    "compose",
    "decode",
    "rollouts",
]
