"""How a vision-language policy writes its answer, as configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

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
    Learned,
    Sequential,
    Shifted,
)
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.elastic import Elastic
from fastloop.accel.decoding.flash_block import FlashBlock
from fastloop.accel.decoding.guidance import Guided
from fastloop.accel.decoding.hierarchical import HierarchicalDiffusion
from fastloop.accel.decoding.layered import LayeredModel
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.pruning import Pruned
from fastloop.accel.decoding.scheduling import BlockWindow, SlidingWindow, Window
from fastloop.accel.decoding.self_speculative import SelfSpeculative
from fastloop.accel.decoding.skipping import Skipping
from fastloop.accel.decoding.speculative import Speculative
from fastloop.accel.decoding.streaming import Streaming
from fastloop.accel.decoding.tidar import TiDAR
from fastloop.policies.dlm.filters import load_filter
from fastloop.policies.dlm.fused import Fused, joinable
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.selectors import SELECTORS

__all__ = [
    "COMMITS",
    "DENOISING",
    "DRIVERS",
    "FASTEST",
    "PRUNINGS",
    "DecodingConfig",
    "build_driver",
    "build_model",
    "plain_decoding",
]

Make = Callable[[Choice, "DecodingConfig", LanguageModel], Driver]

COMMITS: dict[str, Callable[[DecodingConfig], Commit]] = {
    "confidence": lambda config: Confidence(config.threshold),
    "credit": lambda config: Credit(Confidence(config.threshold)),
    "entropy_bound": lambda _: EntropyBound(),
    "factor": lambda _: Factor(),
    "hierarchy": lambda config: Hierarchy(config.threshold),
    "joint_threshold": lambda config: JointThreshold(config.threshold),
    "learned": lambda config: Learned(load_filter(config.filter), config.threshold),
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
    return COMMITS[config.commit](config)


def _every_second(model: LanguageModel) -> tuple[int, ...]:
    """Layers between the first and the last, no two of them neighbors."""
    return tuple(range(1, getattr(model, "layers", 0) - 1, 2))


# Drivers that ask a commit policy what to write after a pass.
DENOISING: dict[str, Make] = {
    "denoise": lambda choice, config, _: SectionDiffusion(choice, _commit(config)),
    "hierarchical": lambda choice, config, _: HierarchicalDiffusion(choice, _commit(config)),
    "flash_block": lambda choice, config, _: FlashBlock(choice, _commit(config)),
    **{cache().name: _cached(cache) for cache in CACHES},
    "sliding": _cached(DualCache, SlidingWindow),
    "elastic_cache": lambda choice, config, _: Elastic(choice, _commit(config)),
}
DRIVERS: dict[str, Make] = {
    "ar": lambda choice, *_: Autoregressive(choice),
    "jump_forward": lambda choice, *_: Autoregressive(choice, jump_forward=True),
    **DENOISING,
    "streaming": lambda choice, *_: Streaming(choice),
    "tidar": lambda choice, *_: TiDAR(choice),
    "self_speculative": lambda choice, _, model: Speculative(choice, window=model.spec.block_size),
    "scaffold_speculative": lambda choice, *_: Speculative(choice),
    "layer_skip": lambda choice, config, model: SelfSpeculative(
        config.skip or _every_second(model), choice=choice
    ),
}
# From the first layer that misses tokens of pictures on: of L layers, and the share that is kept.
PRUNINGS: dict[str, Callable[[LayeredModel, float], Pruned]] = {
    "withdrawn": lambda model, _: Pruned(model, layer=-(-model.layers // 2), keep=((0, 0.0),)),
    "early": lambda model, kept: Pruned(model, layer=min(2, model.layers), keep=((0, kept),)),
    "late": lambda model, kept: Pruned(model, keep=((8, kept),)),
    "progressive": lambda model, kept: Pruned(model, keep=((4, kept), (8, kept**2))),
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
        filter: of the commit policy ``learned``: path of what `policies.dlm.filters.save_filter`
            wrote.
        skip: layers that are left out, counted from 0: by the driver ``layer_skip`` of its drafts,
            which loses nothing (by default every second one), by others of every pass.
        prune: how tokens of pictures are left out, one of `PRUNINGS`; "" keeps all of them.
        kept: the share of them that is kept then.
        guidance: weight of classifier-free guidance away from what is said without the prompt; 0
            for none.
        captured: on a GPU, passes as CUDA graphs over joined weights; elsewhere the same passes
            without graphs. Only where all tokens of pictures stay.
        temperature: 0 for the likeliest token. With several rollouts it is that of their last
            section, and the ones before are the likeliest.
        rollouts: N answers that share all but their last section.
        selector: how they become one plan, one of `SELECTORS`.
    """

    driver: str = ""
    commit: str = "confidence"
    threshold: float = 0.9
    filter: str = ""
    skip: tuple[int, ...] = ()
    prune: str = ""
    kept: float = 0.5
    guidance: float = 0.0
    captured: bool = False
    temperature: float = 0.0
    rollouts: int = 1
    selector: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))  # a list where it comes from a file
        choices = {
            "driver": ["", *DRIVERS], "commit": [*COMMITS], "prune": ["", *PRUNINGS],
            "selector": [*SELECTORS],
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                have = ", ".join(filter(None, known))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; have: {have}")
        if bool(self.filter) != (self.commit == "learned"):
            raise ValueError(
                "commit learned needs the path of a filter, and no other takes one; got commit "
                f"{self.commit!r} and filter {self.filter!r}"
            )
        if self.captured and self.prune:
            raise ValueError(
                f"captured and prune={self.prune!r}: passes that leave out tokens of pictures are "
                "no two alike, so none is recorded; drop one of them"
            )
        if self.rollouts < 1 or not self.temperature >= 0:
            raise ValueError(
                "rollouts must be at least 1 and the temperature at least 0, got "
                f"{self.rollouts} and {self.temperature}"
            )
        if self.rollouts > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.rollouts} rollouts at temperature 0 are all the same: give a temperature"
            )


def build_model(config: DecodingConfig, model: LanguageModel) -> LanguageModel:
    """The model as it decodes: joined where it can be, without what is left out, and guided.

    The environment variable ``FASTLOOP_ACCEL=off`` joins nothing and leaves nothing out.

    Args:
        config: which.
        model: as it was loaded.

    Raises:
        ValueError: when that cannot be done to this model, with the reason.
    """
    asked = model
    if not _off():
        # The wrappers themselves look whether it is passed layer by layer.
        if config.captured or joinable(model):
            model = Fused(model)
        if config.skip and config.driver != "layer_skip":
            model = Skipping(cast(LayeredModel, model), config.skip)
        if config.captured:
            model = Captured(cast(LayeredModel, model))
        if config.prune:
            model = PRUNINGS[config.prune](cast(LayeredModel, model), config.kept)
    if config.guidance:
        model = Guided(model, config.guidance, null=lambda prompt: _unasked(prompt, asked))
    return model


def build_driver(
    config: DecodingConfig, model: LanguageModel, choice: Choice, canvas: Canvas | None = None
) -> Driver:
    """The way of decoding that is asked for.

    The environment variable ``FASTLOOP_ACCEL=off`` makes it token by token: from left to right, or
    the surest first where a model does not write from left to right.

    Args:
        config: which.
        model: that `build_model` made.
        choice: which token stands in a slot.
        canvas: that is to be filled, where it is known.

    Raises:
        ValueError: when it cannot be right on this model or canvas, with the reason.
    """
    regime = model.spec.regime
    name = config.driver or FASTEST.get(regime, "denoise")
    if _off():
        plain = plain_decoding(regime)
        name, config = plain.driver, replace(config, commit=plain.commit, filter="")
    driver = DRIVERS[name](choice, config, model)
    compose(model, driver, canvas)
    if config.rollouts > 1:
        compose(model, driver, continued=True)
    return driver


def plain_decoding(regime: Regime) -> DecodingConfig:
    """Token by token: from left to right, or the surest first where a model does not write so."""
    if regime in FASTEST:
        return DecodingConfig(driver="ar")
    return DecodingConfig(driver="denoise", commit="one_by_one")


def _off() -> bool:
    return os.environ.get("FASTLOOP_ACCEL") == "off"


def _unasked(prompt: Any, model: LanguageModel) -> Any:
    """A prompt as long as another that asks nothing and shows nothing."""
    mask_id = model.spec.mask_id
    if not isinstance(prompt, Prompt):
        return torch.full_like(torch.as_tensor(prompt), mask_id)
    if isinstance(model, Qwen25VL):  # whose pictures take up fewer positions than tokens: they stay
        ids = prompt.ids.masked_fill(prompt.ids != model.place, mask_id)
        return replace(prompt, ids=ids, pixels=torch.zeros_like(prompt.pixels))
    none = {"pixels": prompt.pixels[:0], "grid": prompt.grid[:0]}
    return replace(prompt, ids=torch.full_like(prompt.ids, mask_id), **none)
