"""Tokens decided sooner: block denoising, speculation over a scaffold, and forked prefixes."""

from fastloop.accel.decoding.autoregressive import Autoregressive
from fastloop.accel.decoding.cached import CachedDiffusion
from fastloop.accel.decoding.caches import (
    Cache,
    DKVDecode,
    DKVGreedy,
    DualCache,
    NoCache,
    PrefixCache,
    VicinityCache,
    WindowDiffusion,
)
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.captured import Captured
from fastloop.accel.decoding.choose import Choice, Greedy, Gumbel
from fastloop.accel.decoding.commits import (
    Commit,
    Confidence,
    Credit,
    EntropyBound,
    Factor,
    FixedCount,
    Hierarchy,
    JointThreshold,
    Learned,
    Sequential,
    Shifted,
)
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.elastic import Elastic
from fastloop.accel.decoding.flash_block import FlashBlock
from fastloop.accel.decoding.guidance import Guided
from fastloop.accel.decoding.hierarchical import HierarchicalDiffusion
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.pruning import Pruned
from fastloop.accel.decoding.replay import replay
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.rollouts import decode, rollouts
from fastloop.accel.decoding.scheduling import BlockWindow, SlidingWindow
from fastloop.accel.decoding.self_speculative import SelfSpeculative
from fastloop.accel.decoding.skipping import Skipping
from fastloop.accel.decoding.speculative import Speculative
from fastloop.accel.decoding.streaming import Streaming
from fastloop.accel.decoding.tidar import TiDAR

__all__ = [
    "Autoregressive",
    "BlockWindow",
    "Cache",
    "CachedDiffusion",
    "Canvas",
    "Captured",
    "Choice",
    "Commit",
    "Confidence",
    "Context",
    "Credit",
    "DKVDecode",
    "DKVGreedy",
    "Decoded",
    "Driver",
    "DualCache",
    "Elastic",
    "EntropyBound",
    "Exactness",
    "Factor",
    "FixedCount",
    "FlashBlock",
    "Greedy",
    "Guided",
    "Gumbel",
    "HierarchicalDiffusion",
    "Hierarchy",
    "JointThreshold",
    "KVCache",
    "LanguageModel",
    "LayeredModel",
    "Learned",
    "ModelSpec",
    "NoCache",
    "PrefixCache",
    "Pruned",
    "Regime",
    "SectionDiffusion",
    "SelfSpeculative",
    "Sequential",
    "Shifted",
    "Skipping",
    "SlidingWindow",
    "Speculative",
    "Streaming",
    "TiDAR",
    "VicinityCache",
    "WindowDiffusion",
    "compose",
    "decode",
    "replay",
    "rollouts",
]
