"""`fastloop train`: demonstrations in, a policy folder out; a killed run goes on where it was."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

from fastloop.accel.samplers import build_schedule
from fastloop.config import TrainVerbConfig
from fastloop.datasets.windows import Windows
from fastloop.policies.checkpoints import Checkpoint, native
from fastloop.policies.checkpoints.checks import NETWORKS, check_network
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.state import ChunkRegression, StateConfig, StateEncoder
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.load import make_policy
from fastloop.policies.spec import EnvSpec, TensorSpec
from fastloop.policies.training import Trainer
from fastloop.progress import bar
from fastloop.run_folder import make_run_dir, write_result
from fastloop.sims.config import SimConfig
from fastloop.sims.interrupts import Interrupts, catch_interrupts
from fastloop.sims.runner import RunConfig
from fastloop.sims.runner import run as run_closed_loop
from fastloop.sims.stats import wilson
from fastloop.sims.targets import build
from fastloop.sims.worklist import WorkItem

__all__ = ["run"]

CHECK_SEED = 500_000  # closed-loop checks never touch the seeds that evaluations use


def run(config: TrainVerbConfig) -> int:
    """Train, check in closed loop now and then, and write the policy folder.

    Returns:
        0, or 130 after Ctrl-C; the same command with this run folder then goes on.
    """
    console = Console()
    if config.save_every < 1 or config.train.batch_size < 1:
        raise ValueError(
            "save_every and train.batch_size must be at least 1, got "
            f"{config.save_every} and {config.train.batch_size}"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    sim_config = SimConfig.from_config(config.sim)
    sim = sim_config.build()
    env = sim.env_spec
    sim.close()
    windows = _windows(config, env)
    model = _model(config, env, windows)
    try:
        model.to(config.device)
    except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
        raise ValueError(f"cannot train on device {config.device!r}: {error}") from error
    folder = make_run_dir("train", config.run_dir)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log, catch_interrupts() as stop:
        stage = _Stage(config, folder, console, log, stop)
        if config.pretrain.steps:
            first = encoder_trainer(config, model, windows)
            if not stage.run("encoder", first):
                return stage.stopped()
            model.obs_encoder.load_state_dict(first.ema.averaged.encoder.state_dict())
            model.obs_encoder.requires_grad_(False)
        trainer = denoiser_trainer(config, model, windows)
        _check_loadable(_checkpoint(config, env, trainer))  # before long training

        def check() -> dict[str, float] | None:
            return _check(config, sim_config, _checkpoint(config, env, trainer), folder)

        if not stage.run("trainer", trainer, check):
            return stage.stopped()
    out = Path(config.out) if config.out else folder / "policy"
    native.save(out, _checkpoint(config, env, trainer), half=True)
    metrics = {"loss": {"value": stage.loss, "unit": "1", "n": trainer.step}}
    write_result(folder, "train", config, metrics, samples=len(windows))
    console.print(
        f"policy: {out}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return 0


@dataclass
class _Stage:
    """Runs trainers, each with its saved state, log lines and progress bar."""

    config: TrainVerbConfig
    folder: Path
    console: Console
    log: TextIO
    stop: Interrupts
    loss: float | None = None

    def run(
        self,
        name: str,
        trainer: Trainer,
        check: Callable[[], dict[str, float] | None] = lambda: None,
    ) -> bool:
        """Train to the end, or until somebody asks to stop; whether it came to the end."""
        state, total = self.folder / f"{name}.pt", trainer.config.steps
        if state.exists():
            trainer.resume(state)
            self.console.print(f"{name} resumed at step {trainer.step}", markup=False)
        losses: list[float] = []
        with bar(f"training {name}", total, self.console) as advance:
            while trainer.step < total and not self.stop.requested:
                losses.append(trainer.advance())
                if trainer.step % 100 == 0 or trainer.step == total:
                    self.loss = sum(losses) / len(losses)
                    losses = []
                    self._write(stage=name, step=trainer.step, loss=self.loss)
                    advance(trainer.step, f"loss {self.loss:.4f}")
                if trainer.step % self.config.save_every == 0:
                    trainer.save(state)
                every = self.config.check_every
                if name == "trainer" and every and trainer.step % every == 0:
                    success = check()
                    if success is None:  # its Ctrl-C is ours
                        break
                    self._write(step=trainer.step, **success)
                    self.console.print(f"step {trainer.step}: {success}", markup=False)
        trainer.save(state)
        return trainer.step >= total

    def stopped(self) -> int:
        """Say how to go on; the exit code."""
        told = f"stopped; add run_dir={self.folder} to go on"
        self.console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130

    def _write(self, **line: Any) -> None:
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()


def denoiser_trainer(config: TrainVerbConfig, model: DiffusionModel, windows: Windows) -> Trainer:
    """Trains the denoiser, and the observation encoder where it is not frozen."""
    schedule = build_schedule(config.sampler)
    return Trainer(
        model,
        lambda batch, generator: model.loss(
            batch, schedule, config.sampler.prediction_type, generator=generator
        ),
        lambda step: windows.batch(step, config.train.batch_size, config.train.seed),
        config.train,
        facts=_facts(config, model),
    )


def encoder_trainer(config: TrainVerbConfig, model: DiffusionModel, windows: Windows) -> Trainer:
    """Trains the state encoder by itself, to say the chunk.

    Raises:
        ValueError: when the policy has no state encoder.
    """
    if not isinstance(model.obs_encoder, StateEncoder):
        raise ValueError(
            "pretrain.steps trains a state encoder, and this policy has none: give its size with "
            "network.state.depth=4, or set pretrain.steps=0"
        )
    torch.manual_seed(config.pretrain.seed)
    regression = ChunkRegression(
        model.obs_encoder, config.network.horizon, windows.actions.shape[1]
    ).to(config.device)

    def loss(batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        actions = model.normalize_actions(batch[ACTION], batch)
        return regression.loss(batch, actions, model.normalizer)

    return Trainer(
        regression,
        loss,
        lambda step: windows.batch(step, config.pretrain.batch_size, config.pretrain.seed),
        config.pretrain,
        facts=_facts(config, model),
    )


def _facts(config: TrainVerbConfig, model: DiffusionModel) -> dict[str, Any]:
    """What decides the weights beside `config.train`."""
    names = ("sim", "dataset", "network", "sampler", "pretrain")
    facts = {name: value for name, value in asdict(config).items() if name in names}
    sees = isinstance(model.obs_encoder, ObservationEncoder)
    return facts | {"vision": asdict(config.vision) if sees else None}


def _windows(config: TrainVerbConfig, env: EnvSpec) -> Windows:
    """The training samples, checked against what the policy will see and do.

    Raises:
        ValueError: naming what differs.
    """
    inputs = config.network.inputs
    if unknown := [key for key in inputs if key not in env.observations]:
        raise ValueError(
            f"{env.name} shows no {', '.join(unknown)}; network.inputs can be "
            f"{', '.join(env.observations)}"
        )
    anchor = config.network.relative_to
    if anchor and (anchor not in inputs or env.observations[anchor].shape != (env.action.dim,)):
        fitting = [key for key in inputs if env.observations[key].shape == (env.action.dim,)]
        raise ValueError(
            f"actions of {env.action.dim} elements cannot be relative to {anchor}; "
            f"network.relative_to can be null{''.join(', ' + key for key in fitting)}"
        )
    windows = Windows.of(
        build(config.dataset, "dataset"),
        inputs,
        n_obs_steps=config.network.n_obs_steps,
        horizon=config.network.horizon,
    )
    shapes = {key: (windows.observations[key], env.observations[key].shape) for key in inputs}
    shapes[ACTION] = windows.actions, (env.action.dim,)
    for key, (frames, expected) in shapes.items():
        if frames.shape[1:] != expected:
            raise ValueError(
                f"{key} has shape {tuple(frames.shape[1:])} in the demonstrations, {expected} in "
                f"{env.name}"
            )
    return windows


def _model(config: TrainVerbConfig, env: EnvSpec, windows: Windows) -> DiffusionModel:
    """A freshly initialised network of the configured size, its normalizer fitted to the data."""
    network = config.network
    if network.kind not in NETWORKS:
        raise ValueError(f"unknown network {network.kind!r}; have: {', '.join(NETWORKS)}")
    inputs = {key: env.observations[key] for key in network.inputs}
    images = [key for key, spec in inputs.items() if spec.dtype == "uint8"]
    normalizer = LinearNormalizer()
    for key in images:
        normalizer.set_image(key)
    low = {key: windows.observations[key] for key in network.inputs if key not in images}
    normalizer.fit(low | {ACTION: windows.chunks(network.relative_to)})
    torch.manual_seed(config.train.seed)
    try:
        vision, state = _encoders(config, images)
        encoder = build_encoder(inputs, network.n_obs_steps, vision=vision, state=state)
        denoiser = NETWORKS[network.kind](**_arch(config, env, _width(encoder, inputs)))
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"no {network.kind} can be built from network.arch={network.arch} and "
            f"vision={config.vision}: {error}"
        ) from error
    return DiffusionModel(
        denoiser, normalizer, network.inputs, encoder, relative_to=network.relative_to
    )


def _encoders(
    config: TrainVerbConfig, images: Collection[str]
) -> tuple[VisionConfig | None, StateConfig | None]:
    """The configured observation encoder; cameras need one."""
    vision = config.vision if images else None
    state = config.network.state if config.network.state.depth else None
    return vision, state


def _width(
    encoder: ObservationEncoder | StateEncoder | None, inputs: Mapping[str, TensorSpec]
) -> int:
    """Width of an observation token."""
    return encoder.width if encoder else sum(math.prod(spec.shape) for spec in inputs.values())


def _arch(config: TrainVerbConfig, env: EnvSpec, width: int) -> dict[str, Any]:
    """All of the constructor's arguments: its defaults, the widths that follow from the data, and
    what is configured."""
    network, dim = config.network, env.action.dim
    parameters = inspect.signature(NETWORKS[network.kind]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if network.kind == "transformer":
        follows = {
            "input_dim": dim,
            "output_dim": dim,
            "horizon": network.horizon,
            "n_obs_steps": network.n_obs_steps,
            "cond_dim": width,
        }
    else:
        follows = {"input_dim": dim, "global_cond_dim": width * network.n_obs_steps}
    return defaults | follows | network.arch


def _checkpoint(config: TrainVerbConfig, env: EnvSpec, trainer: Trainer) -> Checkpoint:
    """The averaged weights as they are now."""
    averaged, network = trainer.ema.averaged, config.network
    encoder = averaged.obs_encoder
    inputs = {key: env.observations[key] for key in network.inputs}
    images = [key for key, spec in inputs.items() if spec.dtype == "uint8"]
    vision, state = _encoders(config, images)
    return Checkpoint(
        kind="fastloop",
        network=network.kind,
        arch=_arch(config, env, _width(encoder, inputs)),
        sampler=config.sampler,
        state_dict={key: value.cpu() for key, value in averaged.state_dict().items()},
        inputs=inputs,
        action_dim=env.action.dim,
        n_obs_steps=network.n_obs_steps,
        horizon=network.horizon,
        n_action_steps=network.n_action_steps,
        vision=vision,
        state=state,
        relative_to=network.relative_to,
        action=env.action,
        control_hz=env.control_hz,
        ema=True,
        training={
            "steps": trainer.step,
            "batch_size": config.train.batch_size,
            "seed": config.train.seed,
            "environment": env.name,
        },
    )


def _check_loadable(checkpoint: Checkpoint) -> None:
    """Refuse a policy that could not be read again."""
    arch = json.loads(json.dumps(checkpoint.arch))
    check_network(checkpoint.network, arch, checkpoint.state_dict, "network.arch")


def _check(
    config: TrainVerbConfig, sim: SimConfig, checkpoint: Checkpoint, folder: Path
) -> dict[str, float] | None:
    """Success of the averaged weights with its Wilson interval; None when interrupted."""
    policy = make_policy(checkpoint, device=config.device)
    name = checkpoint.training["environment"]
    items = [WorkItem(name, CHECK_SEED + i) for i in range(config.check_episodes)]
    step = checkpoint.training["steps"]
    result = run_closed_loop(
        policy, {name: sim}, items, run_dir=folder / "checks" / str(step), digest=str(step),
        config=RunConfig(num_envs=8, plan_batch=8),
    )  # fmt: skip
    if result.interrupted:
        return None
    successes = sum(episode.outcome == "success" for episode in result.episodes)
    interval = wilson(successes, len(result.episodes))
    return {"success": interval.value, "low": interval.low, "high": interval.high}
