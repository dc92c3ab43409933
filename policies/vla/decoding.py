"""How a vision-language policy writes its answer, as configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastloop.accel.decoding.autoregressive import Autoregressive
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.commits import Confidence
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.speculative import Speculative
from fastloop.policies.vla.selectors import SELECTORS

__all__ = ["DRIVERS", "DecodingConfig", "build_driver"]

DRIVERS: dict[str, Callable[[Choice, DecodingConfig, ModelSpec], Any]] = {
    "ar": lambda choice, *_: Autoregressive(choice),
    "jump_forward": lambda choice, *_: Autoregressive(choice, jump_forward=True),
    "denoise": lambda choice, config, _: SectionDiffusion(choice, Confidence(config.threshold)),
    "self_speculative": lambda choice, _, spec: Speculative(choice, window=spec.block_size),
    "scaffold_speculative": lambda choice, *_: Speculative(choice),
}


@dataclass(frozen=True)
class DecodingConfig:
    """How tokens are decided.

    Attributes:
        driver: one of `DRIVERS`; "" for the fastest that writes what the model says token by token:
            ``scaffold_speculative``, or ``jump_forward`` for a model that was not taught to draft.
        threshold: of ``denoise``: the confidence from which on a token stands.
        temperature: 0 for the likeliest token. With several rollouts it is that of their last
            section, and the ones before are the likeliest.
        rollouts: N answers that share all but their last section.
        selector: how they become one plan, one of `SELECTORS`.
    """

    driver: str = ""
    threshold: float = 0.9
    temperature: float = 0.0
    rollouts: int = 1
    selector: str = "mean"

    def __post_init__(self) -> None:
        for name, known in (("driver", ["", *DRIVERS]), ("selector", list(SELECTORS))):
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

    The environment variable ``FASTLOOP_ACCEL=off`` makes it token by token.

    Args:
        config: which.
        spec: of the model.
        choice: which token stands in a slot.

    Raises:
        ValueError: when it cannot be right on this model, with the reason.
    """
    name = config.driver or (
        "jump_forward" if spec.regime is Regime.CAUSAL else "scaffold_speculative"
    )
    if os.environ.get("FASTLOOP_ACCEL") == "off":
        name = "ar"
    driver: Driver = DRIVERS[name](choice, config, spec)
    compose(spec, driver, continued=config.rollouts > 1)
    return driver
