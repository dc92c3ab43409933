"""How a vision-language policy writes its answer, as configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

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
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.commits import (
    Commit,
    Confidence,
    Credit,
    EntropyBound,
    Factor,
    FixedCount,
    Hierarchy,
    JointThreshold,
    Sequential,
    Shifted,
)
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.hierarchical import HierarchicalDiffusion
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.scheduling import BlockWindow, SlidingWindow, Window
from fastloop.accel.decoding.speculative import Speculative
from fastloop.accel.decoding.streaming import Streaming
from fastloop.accel.decoding.tidar import TiDAR
from fastloop.policies.vla.selectors import SELECTORS

__all__ = ["COMMITS", "DRIVERS", "DecodingConfig", "build_driver"]

Make = Callable[[Choice, "DecodingConfig", ModelSpec], Driver]

COMMITS: dict[str, Callable[[float], Commit]] = {
    "confidence": lambda threshold: Confidence(threshold),
    "credit": lambda threshold: Credit(Confidence(threshold)),
    "entropy_bound": lambda _: EntropyBound(),
    "factor": lambda _: Factor(),
    "hierarchy": lambda threshold: Hierarchy(threshold),
    "joint_threshold": lambda threshold: JointThreshold(threshold),
    "one_by_one": lambda _: FixedCount(1),
    "sequential": lambda _: Sequential(),
    "shifted": lambda _: Shifted(),
}
CACHES: tuple[Callable[[], Cache], ...] = (
    NoCache, PrefixCache, DualCache, DKVDecode, DKVGreedy, WindowDiffusion, VicinityCache
)  # fmt: skip


def _cached(cache: Callable[[], Cache], window: Callable[[], Window] = BlockWindow) -> Make:
    return lambda choice, config, _: CachedDiffusion(choice, _commit(config), cache(), window())


def _commit(config: DecodingConfig) -> Commit:
    return COMMITS[config.commit](config.threshold)


DRIVERS: dict[str, Make] = {
    "ar": lambda choice, *_: Autoregressive(choice),
    "jump_forward": lambda choice, *_: Autoregressive(choice, jump_forward=True),
    "denoise": lambda choice, config, _: SectionDiffusion(choice, _commit(config)),
    "hierarchical": lambda choice, config, _: HierarchicalDiffusion(choice, _commit(config)),
    **{cache().name: _cached(cache) for cache in CACHES},
    "sliding": _cached(DualCache, SlidingWindow),
    "streaming": lambda choice, *_: Streaming(choice),
    "tidar": lambda choice, *_: TiDAR(choice),
    "self_speculative": lambda choice, _, spec: Speculative(choice, window=spec.block_size),
    "scaffold_speculative": lambda choice, *_: Speculative(choice),
}
# What is asked for where nothing is: the fastest that is right on models of a regime.
FASTEST = {Regime.CAUSAL: "jump_forward", Regime.CAUSAL_CONTEXT: "scaffold_speculative"}


@dataclass(frozen=True)
class DecodingConfig:
    """How tokens are decided.

    Attributes:
        driver: one of `DRIVERS`; "" for the fastest that writes what the model says token by token:
            ``scaffold_speculative``, or ``jump_forward`` for a model that was not taught to draft;
            ``denoise`` for one that does not write token by token.
        commit: of drivers that denoise, which slots are written after a pass: one of `COMMITS`.
        threshold: of those of them that have one: the confidence from which on a token stands.
        temperature: 0 for the likeliest token. With several rollouts it is that of their last
            section, and the ones before are the likeliest.
        rollouts: N answers that share all but their last section.
        selector: how they become one plan, one of `SELECTORS`.
    """

    driver: str = ""
    commit: str = "confidence"
    threshold: float = 0.9
    temperature: float = 0.0
    rollouts: int = 1
    selector: str = "mean"

    def __post_init__(self) -> None:
        choices = {"driver": ["", *DRIVERS], "commit": [*COMMITS], "selector": [*SELECTORS]}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                have = ", ".join(filter(None, known))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; have: {have}")
        if self.rollouts < 1 or not self.temperature >= 0:
            raise ValueError(
                "rollouts must be at least 1 and the temperature at least 0, got "
                f"{self.rollouts} and {self.temperature}"
            )
        if self.rollouts > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.rollouts} rollouts at temperature 0 are all the same: give a temperature"
            )


def build_driver(config: DecodingConfig, spec: ModelSpec, choice: Choice) -> Driver:
    """The way of decoding that is asked for.

    The environment variable ``FASTLOOP_ACCEL=off`` makes it token by token: from left to right, or
    the surest first where a model does not write from left to right.

    Args:
        config: which.
        spec: of the model.
        choice: which token stands in a slot.

    Raises:
        ValueError: when it cannot be right on this model, with the reason.
    """
    name = config.driver or FASTEST.get(spec.regime, "denoise")
    if os.environ.get("FASTLOOP_ACCEL") == "off":
        name = "ar" if spec.regime in FASTEST else "denoise"
        config = replace(config, commit="one_by_one")
    driver = DRIVERS[name](choice, config, spec)
    compose(spec, driver, continued=config.rollouts > 1)
    return driver
