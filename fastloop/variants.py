"""Variants of a policy, among which the on-vehicle loop chooses by the time that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastloop.accel.apply import accelerate
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.config import AccelConfig
from fastloop.config import DecodingOverrides, PolicyConfig, RunVerbConfig, SamplerOverrides
from fastloop.deploy.assembly import env_of
from fastloop.deploy.messages import Messages
from fastloop.deploy.recorded import recorded_history
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.driving.whole_plans import WholePlans, planner_of
from fastloop.policies.prepare import arriving, example_history, prepare
from fastloop.policies.real_time import real_time
from fastloop.policies.rng import Rng
from fastloop.policies.vla.decoding import DecodingConfig
from fastloop.policies.vla.policy import VisionLanguagePlanner
from fastloop.setup import denoiser_of, load

__all__ = ["VariantConfig", "load_variants", "read_variants"]

WARM_PLANS = 5
CALIBRATED = ("unified", "bac")
T = TypeVar("T", SamplerOverrides, DecodingOverrides)


@dataclass
class VariantConfig:
    """What differs from the policy; null for what does not.

    Attributes:
        checkpoint: another policy's, one with an instant plan for instance; what is said of the
            first one's sampler, decoding and samples does not hold for it.
        n_action_steps, sampler, decoding: as of `PolicyConfig`.
        accel: a cache of a policy that denoises. A kind that is calibrated needs the path of a
            saved plan (a path alone will do), or a recording as ``deploy.calibration.bag``.
    """

    checkpoint: str | None = None
    n_action_steps: int | None = None
    sampler: SamplerOverrides = field(default_factory=SamplerOverrides)
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)
    accel: AccelConfig | None = None


def read_variants(
    given: Mapping[str, Mapping[str, Any]], bag: str = ""
) -> dict[str, VariantConfig]:
    """What a configuration says of variants, the best first; the policy alone where it says none.

    Args:
        given: name to what differs.
        bag: a recording to calibrate on.

    Raises:
        ValueError: a variant says what variants do not say, or is calibrated and has neither a plan
            nor a recording.
        OSError: a plan cannot be read.
    """
    found = {}
    for name, changes in (given or {"full": {}}).items():
        try:
            merged = OmegaConf.merge(OmegaConf.structured(VariantConfig), dict(changes))
            variant = OmegaConf.to_object(merged)
            assert isinstance(variant, VariantConfig)
            found[name] = dataclasses.replace(variant, accel=_settled(variant.accel, bag))
        except OmegaConfBaseException as error:
            says = ", ".join(one.name for one in dataclasses.fields(VariantConfig))
            told = str(error).splitlines()[0]
            raise ValueError(f"variant {name!r}: {told}; variants say {says}") from None
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
    return found


def _settled(accel: AccelConfig | None, bag: str) -> AccelConfig | None:
    if accel is None:
        return None
    if accel.plan is not None and accel.kind == "none":
        kind = CachePlan.load(accel.plan).provenance.algorithm
        return dataclasses.replace(accel, kind=kind)
    if _calibrated(accel) and not bag:
        raise ValueError(
            f"accel {accel.kind} is calibrated on observations: `fastloop calibrate` saves a plan, "
            "whose path accel.plan takes; or give a recording of the node's topics as "
            "deploy.calibration.bag"
        )
    return accel


def _calibrated(accel: AccelConfig) -> bool:
    return accel.plan is None and accel.kind in CALIBRATED


def load_variants(
    config: RunVerbConfig, tell: Callable[[str], None] = lambda doing: None
) -> tuple[dict[str, Policy], dict[str, float]]:
    """Every variant of the policy, warm, and the seconds that its plan takes here.

    Variants of one checkpoint share its weights. Torch's threads are those that are fastest for the
    first one, which is the best.

    Args:
        config: of the node.
        tell: is told what takes long, while it does.

    Raises:
        ValueError: from `read_variants`; a variant does not go with its policy, or the recording
            has too little to calibrate on; and as `load`.
        OSError: a plan or the recording cannot be read.
    """
    env = env_of(config.deploy)
    loaded: dict[str, Policy] = {}
    variants, latencies = {}, {}
    threads = config.policy.threads
    bag = config.deploy.calibration.bag
    for name, variant in read_variants(config.deploy.variants, bag).items():
        said = _configured(config.policy, variant)
        weights = dataclasses.replace(said, decoding=DecodingOverrides())
        if repr(weights) not in loaded:
            loaded[repr(weights)] = load(weights, env, weights.sampler)
        try:
            policy = _written(loaded[repr(weights)], said.decoding)
            if variant.accel is not None:
                if _calibrated(variant.accel):
                    tell(f"calibrating {name}")
                policy = _accelerated(policy, variant.accel, config)
                tell("")
            policy = real_time(policy) if config.deploy.chunking == "real_time" else policy
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
        threads = prepare(policy, threads=threads).threads
        variants[name] = policy
        latencies[name] = _latency(policy, config.seed)
    return variants, latencies


def _configured(policy: PolicyConfig, variant: VariantConfig) -> PolicyConfig:
    if variant.checkpoint not in (None, policy.checkpoint):
        policy = PolicyConfig(
            variant.checkpoint,
            n_action_steps=policy.n_action_steps,
            device=policy.device,
            dtype=policy.dtype,
        )
    steps = variant.n_action_steps
    return dataclasses.replace(
        policy,
        n_action_steps=policy.n_action_steps if steps is None else steps,
        sampler=_over(policy.sampler, variant.sampler),
        decoding=_over(policy.decoding, variant.decoding),
    )


def _said(settings: SamplerOverrides | DecodingOverrides) -> dict[str, Any]:
    named = dataclasses.asdict(settings)
    return {name: value for name, value in named.items() if value is not None}


def _over(settings: T, changes: T) -> T:
    return dataclasses.replace(settings, **_said(changes))


def _written(policy: Policy, decoding: DecodingOverrides) -> Policy:
    """A vision-language model that writes so."""
    said = _said(decoding)
    if not said:
        return policy
    planner = planner_of(policy)
    if not isinstance(planner, VisionLanguagePlanner):
        name = getattr(planner, "name", type(planner).__name__)
        raise ValueError(f"{name} writes nothing: drop decoding {said}")
    return _driving(policy, planner.with_decoding(DecodingConfig(**said)))


def _accelerated(policy: Policy, accel: AccelConfig, config: RunVerbConfig) -> Policy:
    planner, denoiser = planner_of(policy), denoiser_of(policy)
    seen = _observations(policy, denoiser, config) if _calibrated(accel) else None
    chosen = planner if isinstance(planner, BestOf) else denoiser
    fast = accelerate(chosen, accel, observations=seen)
    return _driving(policy, fast)


def _observations(
    policy: Policy, denoiser: DiffusionPolicy, config: RunVerbConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noises (num_noises, M, T, A) and conditions (M, O, D) of M moments of the recording."""
    wanted = config.deploy.calibration
    history = recorded_history(
        config.deploy, policy, Messages(config.deploy.autoware), wanted.bag, wanted.observations
    )
    count = wanted.observations
    noises = denoiser.noise(Rng.for_envs(config.seed, list(range(count)), [0] * count))
    cond = denoiser.condition(history)
    return noises.to(cond), cond


def _driving(policy: Policy, planner: Policy) -> Policy:
    """`planner` in the form in which `policy` drives."""
    return policy.with_policy(planner) if isinstance(policy, WholePlans) else planner


def _latency(policy: Policy, seed: int) -> float:
    history = arriving(example_history(policy.spec), policy.spec)
    seconds = []
    for _ in range(WARM_PLANS):
        began = perf_counter()
        policy.plan(history, rng=Rng.for_envs(seed, [0], [0]))
        seconds.append(perf_counter() - began)
    return median(seconds)
