"""What is compared: every way in which one model may write its answers."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastloop.accel.decoding.autoregressive import Autoregressive
from fastloop.accel.decoding.choose import Choice, Greedy, Gumbel
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.rollouts import decode, rollouts
from fastloop.bench.config import DecodeBenchConfig
from fastloop.bench.decode.subject import Subject
from fastloop.policies.vla.decoding import (
    COMMITS,
    DRIVERS,
    FASTEST,
    PRUNINGS,
    DecodingConfig,
    build_model,
    plain_decoding,
)
from fastloop.policies.vla.policy import VisionLanguagePlanner
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL

__all__ = ["BASELINES", "JUMP_FORWARD", "DecodeArm", "make_arms", "widened"]

# The first arm of a model, which all others are held against: token by token, or where a model does
# not write from left to right the surest token of each pass, with nothing approximate kept.
AR, JUMP_FORWARD, PLAIN = BASELINES = ("ar", "jump_forward", "plain")


@dataclass(frozen=True)
class DecodeArm:
    """One side of the comparison.

    Attributes:
        name: in tables and metrics.
        planner: that writes so.
    """

    name: str
    planner: VisionLanguagePlanner

    @property
    def config(self) -> DecodingConfig:
        """How it writes."""
        return self.planner.decoding

    @property
    def exactness(self) -> Exactness:
        """What its answers equal."""
        return compose(self.planner.writer, self.planner.driver)

    @property
    def exact(self) -> bool:
        """Whether it must write what the model says token by token."""
        return self.exactness is Exactness.LOSSLESS

    @property
    def forks(self) -> bool:
        """Whether it writes several answers."""
        return self.config.rollouts > 1

    def write(
        self,
        prompt: Prompt,
        model: LanguageModel,
        *,
        driver: Driver | None = None,
        config: DecodingConfig | None = None,
    ) -> Decoded:
        """The answers to one prompt; noise is the same whatever the prompt, the model, the driver.

        Args:
            prompt: one.
            model: that answers.
            driver: instead of its own.
            config: number of rollouts and temperature, instead of its own.
        """
        config = config or self.config
        model = build_model(config, model)
        writer: Any = driver or self.planner.driver
        canvas, seeds = self.planner.layout.canvas, tuple(range(config.rollouts))
        if self.forks:
            return rollouts(
                model, prompt, canvas, writer, seeds=seeds, temperature=config.temperature
            )
        choice: Choice = Gumbel(config.temperature, seeds) if config.temperature else Greedy()
        return decode(model, [prompt], canvas, replace(writer, choice=choice))

    def write_token_by_token(self, prompt: Prompt, model: LanguageModel) -> Decoded:
        """The same answers the plain way, under the same noise."""
        return self.write(prompt, model, driver=Autoregressive())

    def write_one_surely(self, prompt: Prompt, model: LanguageModel) -> Decoded:
        """A single rollout at temperature 0."""
        surely = replace(self.config, rollouts=1, temperature=0.0)
        return self.write(prompt, model, config=surely)

    def single(self, arms: Sequence[DecodeArm]) -> DecodeArm | None:
        """The arm among `arms` that writes one answer, the likeliest, in the same way."""
        alike = replace(self.config, rollouts=1, temperature=0.0, selector="mean")
        return next((arm for arm in arms if replace(arm.config, selector="mean") == alike), None)


def make_arms(
    config: DecodeBenchConfig, subject: Subject
) -> tuple[list[DecodeArm], dict[str, str]]:
    """The baselines and the arms of a configuration, and which are left out because they cannot be
    right on this model, with the reason.

    Raises:
        ValueError: for a way of writing that there is not; when the baselines cannot be right, or
            acceleration is turned off.
    """
    if os.environ.get("FASTLOOP_ACCEL") == "off":
        raise ValueError("FASTLOOP_ACCEL=off turns off what is to be measured; unset it")
    plain = _baselines(subject.planner.model.spec.regime)
    wanted = plain | (_every() if config.every else {})
    for name, arm in config.arms.items():
        try:
            wanted[name] = DecodingConfig(**asdict(arm))
        except ValueError as error:
            raise ValueError(
                f"arm {name!r}: {error}; change it, or leave it out with '~arms.{name}'"
            ) from error
    arms: list[DecodeArm] = []
    left_out: dict[str, str] = {}
    for name, decoding in wanted.items():
        if name != decoding.driver and decoding.driver in left_out:
            continue  # with no commit policy can it be right
        try:
            arms.append(DecodeArm(name, subject.planner.with_decoding(decoding)))
        except ValueError as error:
            if name in plain:
                raise ValueError(f"there is nothing to compare with: {error}") from error
            left_out[name] = str(error)
    return arms, left_out


def _baselines(regime: Regime) -> dict[str, DecodingConfig]:
    if regime in FASTEST:
        return {name: DecodingConfig(driver=name) for name in (AR, JUMP_FORWARD)}
    return {PLAIN: plain_decoding(regime)}


def _every() -> dict[str, DecodingConfig]:
    """All ways that need no more than a name: drivers, the plainest that denoises with each commit
    policy, and what is left out of the model, or added to it."""
    ways = {name: DecodingConfig(driver=name) for name in DRIVERS if name not in BASELINES}
    commits = [name for name in COMMITS if name not in ("confidence", "learned")]
    ways |= {f"denoise_{name}": DecodingConfig("denoise", name) for name in commits}
    ways |= {f"prune_{name}": DecodingConfig(prune=name) for name in PRUNINGS}
    return ways | {"skip": DecodingConfig(skip=(1,)), "guided": DecodingConfig(guidance=1.0)}


def widened(model: LanguageModel) -> LanguageModel:
    """The model in float32 where it computes in half precision, else itself.

    In half precision, passes of different widths round so differently that they tell the model's
    likeliest tokens apart where two are nearly as likely, and equality says nothing. Where no
    answers have to be equal the model stays as it is.
    """
    if not isinstance(model, Qwen25VL) or torch.finfo(model.network.dtype).bits >= 32:
        return model
    return Qwen25VL(copy.deepcopy(model.network).float(), model.spec)
