"""From a configuration to policies of random weights, the parity gate, and timed ticks."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from fastloop.accel.apply import accelerate
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers import build_sampler
from fastloop.bench.window.config import WindowBenchConfig
from fastloop.config.ranges import at_least
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.vision import ObservationEncoder
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec
from fastloop.progress import bar
from fastloop.run_folder import make_run_dir, write_result
from fastloop.sims.report.console import text_table
from fastloop.sims.report.text import milliseconds, times
from fastloop.sims.stats import ratio_of_medians

__all__ = ["TOLERANCE", "build_policy", "run"]

TOLERANCE = 1e-12  # of the condition, in double precision
ACTIONS = 10


def run(config: WindowBenchConfig) -> int:
    """Measure, write the run folder and print the table.

    Returns:
        0, or 1 where remembered frames give another condition; then no times are taken.
    """
    at_least(config, 1, "cameras", "future", "repeats")
    if not config.frames or min(config.frames) < 1 or len({*config.frames}) < len(config.frames):
        raise ValueError(f"frames must be numbers from 1 on, each once; got {config.frames}")
    console = Console()
    if config.threads:
        torch.set_num_threads(config.threads)
    policies = {count: build_policy(config, count) for count in config.frames}
    folder = make_run_dir("bench", config.run_dir)
    with console.status("comparing conditions in float64"):
        apart = {count: _difference(policy) for count, policy in policies.items()}
    metrics: dict[str, dict[str, Any]] = {
        f"parity_{count}": {"value": value, "unit": "normalized"} for count, value in apart.items()
    }
    if red := [count for count, value in apart.items() if not value <= TOLERANCE]:
        write_result(folder, "bench", config, metrics)
        told = f"remembered frames change the condition of {red} frames: no times are taken"
        console.print(told, style="bold red", markup=False)
        return 1
    timed = _time(policies, config, console)
    first, rows = config.frames[0], []
    for count in config.frames:
        once, again = timed[count, "once"], timed[count, "again"]
        cost = ratio_of_medians(once, timed[first, "once"], paired=True)
        gain = ratio_of_medians(again, once, paired=True)
        metrics |= {
            f"tick_ms_{count}": {"value": median(once), "unit": "ms", "n": len(once)},
            f"again_ms_{count}": {"value": median(again), "unit": "ms", "n": len(again)},
            f"cost_{count}": asdict(cost),
            f"speedup_{count}": asdict(gain),
        }
        ms = (milliseconds(median(taken)) for taken in (once, again))
        rows.append([str(count), *ms, times(gain.value), times(cost.value)])
    write_result(folder, "bench", config, metrics, threads=torch.get_num_threads())
    head = ("frames", "encoded once", "encoded again", "speed-up", f"cost beside {first}")
    console.print(text_table("A tick, by the frames that a policy sees", head, rows))
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return 0


def build_policy(config: WindowBenchConfig, frames: int) -> DiffusionPolicy:
    """A policy of random weights that sees so many frames."""
    torch.manual_seed(0)
    shape = (3, config.image_size, config.image_size)
    inputs = {
        f"observation.images.camera{index}": TensorSpec(shape, "uint8", 0, 255)
        for index in range(config.cameras)
    }
    horizon = frames - 1 + config.future
    bounds = (1.0,) * ACTIONS
    action = ActionSpec(ACTIONS, "random", tuple(-bound for bound in bounds), bounds)
    spec = PolicySpec(inputs, action, frames, horizon, 1, control_hz=10.0)
    normalizer = LinearNormalizer({ACTION: ACTIONS})
    for key in inputs:
        normalizer.set_image(key)
    encoder = ObservationEncoder(inputs, config.vision)
    network = TransformerForDiffusion(
        ACTIONS, ACTIONS, horizon, frames, encoder.width, **{"causal_attn": True, **config.arch}
    )
    model = DiffusionModel(network, normalizer, tuple(inputs), encoder)
    policy = DiffusionPolicy(spec, model, build_sampler(config.sampler)).to(config.device)
    return accelerate(policy, AccelConfig("exact"))


def _observation(policy: DiffusionPolicy, tick: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(tick)
    return {
        key: torch.randint(256, spec.shape, generator=source, dtype=torch.uint8)
        for key, spec in policy.spec.inputs.items()
    }


def _difference(policy: DiffusionPolicy) -> float:
    """Of the condition of frames that came one by one from that of all frames together."""
    policy = policy.to(torch.float64)
    episode = EpisodeHistory(policy.spec.n_obs_steps)
    for tick in range(policy.spec.n_obs_steps + 1):
        episode.observe(_observation(policy, tick))
        history = History.stack([episode], policy.spec.lags)
        cond = policy.condition(history)
    with torch.inference_mode():
        expected = policy.model.condition(policy.observations(history))
    return float((cond - expected).abs().max())


def _time(
    policies: dict[int, DiffusionPolicy], config: WindowBenchConfig, console: Console
) -> dict[tuple[int, str], list[float]]:
    """Milliseconds of ticks in the middle of an episode: observing, stacking, planning."""
    arms = [(count, way) for count in policies for way in ("once", "again")]
    timed: dict[tuple[int, str], list[float]] = {arm: [] for arm in arms}
    episodes = {arm: EpisodeHistory(arm[0]) for arm in arms}
    longest = max(policies)
    for tick in range(longest):
        for (count, _), episode in episodes.items():
            episode.observe(_observation(policies[count], tick))
    with bar("timing ticks in turns", config.repeats, console) as advance:
        for turn in range(config.repeats + 1):  # the first one is cold, and fills the memos
            for arm in arms:
                policy, episode = policies[arm[0]], episodes[arm]
                seen = _observation(policy, longest + turn)
                if arm[1] == "again":
                    for frame in episode.frames:
                        frame.memo.clear()
                rng = Rng.for_envs(0, [0], [turn])
                started = perf_counter()
                episode.observe(seen)
                policy.plan(History.stack([episode], policy.spec.lags), rng=rng)
                timed[arm].append(1e3 * (perf_counter() - started))
            advance(turn, "")
    return {arm: taken[1:] for arm, taken in timed.items()}
