"""From a training configuration to what is trained: samples, networks, trainers, checkpoint."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.samplers import build_schedule
from fastloop.config import NetworkConfig, TrainVerbConfig
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.embeddings import EMBEDDING, Embeddings
from fastloop.datasets.plans import Plans
from fastloop.datasets.windows import Batches, Windows
from fastloop.frozen_encoder import FrozenEncoder, embed, taken_over
from fastloop.policies.checkpoints import Checkpoint, load_checkpoint, native
from fastloop.policies.checkpoints.checks import NETWORKS, check_network
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.model import ACTION, DiffusionModel, steps_between
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.objective import Objective
from fastloop.policies.diffusion.regression import ChunkRegression
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder
from fastloop.policies.diffusion.state import StateConfig, StateEncoder
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.driving.whole_plans import waypoint_env
from fastloop.policies.lags import lags
from fastloop.policies.load import find_checkpoint
from fastloop.policies.spec import EnvSpec, TensorSpec
from fastloop.policies.training import TrainConfig, Trainer
from fastloop.sims.targets import build

__all__ = ["Recipe", "told"]

MOST_WORKERS = 8
LATER = ("stride", "spacing", "past_steps", "contexts")  # settings that came after saved states
PLACES = ("encoder", "embeddings")  # told by a digest, if anything


@dataclass(frozen=True)
class Recipe:
    """What a configuration trains for an environment; each part is built when first asked for.

    Attributes:
        config: of `fastloop train`.
        env: where the policy will act.
    """

    config: TrainVerbConfig
    env: EnvSpec

    def __post_init__(self) -> None:
        _ = self.objective, self.lags  # refused before data are read

    @cached_property
    def objective(self) -> Objective:
        """What of a sample is learned.

        Raises:
            ValueError: more of the past is asked for than a sample has.
        """
        network = self.config.network
        return Objective(network.n_obs_steps, network.past_steps, network.contexts)

    @cached_property
    def lags(self) -> tuple[int, ...]:
        """Where the frames of a sample lie; raises as `lags`."""
        network = self.config.network
        spacing: Any = network.spacing
        return lags(network.n_obs_steps, network.stride, spacing)

    @cached_property
    def world(self) -> EnvSpec:
        """`env` as the policy sees it: single waypoints where it takes whole plans."""
        return waypoint_env(self.env) if self.plans else self.env

    @property
    def plans(self) -> bool:
        """Whether a sample is one frame and the whole plan that was made at it."""
        return self.env.action.kind == "plan"

    @cached_property
    def inputs(self) -> dict[str, TensorSpec]:
        """The observations that the policy reads.

        Raises:
            ValueError: the environment shows no such observation; the choices are listed.
        """
        names = self.config.network.inputs
        if unknown := [key for key in names if key not in self.env.observations]:
            raise ValueError(
                f"{self.env.name} shows no {', '.join(unknown)}; network.inputs can be "
                f"{', '.join(self.env.observations)}"
            )
        return {key: self.env.observations[key] for key in names}

    @property
    def images(self) -> list[str]:
        """The inputs that are camera images."""
        return [key for key, spec in self.inputs.items() if spec.dtype == "uint8"]

    @property
    def vision(self) -> VisionConfig | None:
        """The image encoder's configuration; cameras need one."""
        if self.frozen:
            return self.frozen.vision
        return self.config.vision if self.images else None

    @property
    def state(self) -> StateConfig | None:
        """The state encoder's configuration, where one is asked for."""
        return self.config.network.state if self.config.network.state.depth else None

    @property
    def scene(self) -> SceneConfig | None:
        """The scene encoder's configuration, where one is asked for."""
        return self.config.network.scene if self.config.network.scene.layers else None

    @cached_property
    def windows(self) -> Windows:
        """The training samples, checked against what the policy will see and do.

        Raises:
            ValueError: naming what differs.
        """
        network, dim = self.config.network, self.world.action.dim
        anchor = network.relative_to
        fitting = [key for key, spec in self.inputs.items() if spec.shape == (dim,)]
        if anchor and anchor not in fitting:
            raise ValueError(
                f"actions of {dim} elements cannot be relative to {anchor}; network.relative_to "
                f"can be null{''.join(', ' + key for key in fitting)}"
            )
        window = (network.n_obs_steps, network.horizon)
        if self.plans and window != (1, self.world.horizon):
            raise ValueError(
                f"{self.env.name} takes plans of {self.world.horizon} waypoints, made of one "
                f"observation: use network.horizon={self.world.horizon} network.n_obs_steps=1 "
                f"instead of {network.horizon} and {network.n_obs_steps}"
            )
        if self.config.mirror and not self.plans:
            raise ValueError(f"mirror=true is for plans of a drive; {self.env.name} takes none")
        made = self._demonstrations()
        if self.plans:
            windows: Windows = Plans.cut(made, network.inputs, mirror=self.config.mirror)
        else:
            windows = self._cut(made, network.inputs)
        shapes = {key: (windows.observations[key], spec.shape) for key, spec in self.inputs.items()}
        shapes[ACTION] = windows.actions, (self.env.action.dim,)
        by_row = self.scene or network.kind == "cacheflow"
        read = network.scene.rows if by_row else {}
        for key, (frames, expected) in shapes.items():
            given, rows = tuple(frames.shape[1:]), read.get(key)
            enough = rows is not None and given == (min(rows, expected[0]), *expected[1:])
            if given != expected and not enough:
                raise ValueError(
                    f"{key} has shape {given} in the demonstrations, {expected} in {self.env.name}"
                )
        return windows

    @property
    def samples(self) -> Windows:
        """To learn from."""
        return self.windows

    @cached_property
    def model(self) -> DiffusionModel:
        """On the configured device: a fresh network with its normalizer fitted to the data, or
        what `init` holds.

        Raises:
            ValueError: no such network, device, or network of this size; `init` holds another.
        """
        network, vision = self.config.network, self.vision
        if network.kind not in NETWORKS:
            raise ValueError(f"unknown network {network.kind!r}; have: {', '.join(NETWORKS)}")
        normalizer = self._normalizer()
        torch.manual_seed(self.config.train.seed)
        try:
            encoder = (
                self.frozen.parts[0]
                if self.frozen
                else build_encoder(
                    self.inputs,
                    network.n_obs_steps,
                    vision=vision,
                    state=self.state,
                    scene=self.scene,
                )
            )
            denoiser = NETWORKS[network.kind](**self._arch(encoder))
        except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"no {network.kind} can be built from network.arch={network.arch} and "
                f"vision={self.config.vision}: {error}"
            ) from error
        model = DiffusionModel(
            denoiser,
            normalizer,
            network.inputs,
            encoder,
            relative_to=network.relative_to,
            cumulative=network.cumulative,
        )
        if self.origin:
            _start_from(self.origin, model)
        try:
            return model.to(self.config.device)
        except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
            raise ValueError(f"cannot train on device {self.config.device!r}: {error}") from error

    @cached_property
    def origin(self) -> Checkpoint | None:
        """The policy to start from.

        Raises:
            CheckpointError: when it cannot be read.
        """
        return load_checkpoint(find_checkpoint(self.config.init)) if self.config.init else None

    @cached_property
    def frozen(self) -> FrozenEncoder | None:
        """The observation encoder that is taken over; raises as `taken_over`."""
        return taken_over(self.config, self.inputs, plans=self.plans)

    def embeddings(self, folder: Path) -> Embeddings:
        """What the frozen encoder makes of the demonstrations, in `folder` if nowhere else.

        Raises:
            DemonstrationError: there is something else.
        """
        assert self.frozen
        model, place = self.model, self.config.network.embeddings
        return Embeddings(
            Path(place) if place else folder / "embeddings.hdf5",
            self._demonstrations(),
            tuple(self.inputs),
            partial(embed, model),
            encoder=self.frozen.digest,
        )

    def stages(self, folder: Path) -> Iterator[tuple[str, Trainer | Embeddings]]:
        """What each stage is: a trainer, or embeddings to be written. The one before has come to
        its end when the next is asked for.

        Args:
            folder: of the run.
        """
        if self.frozen:
            embeddings = self.embeddings(folder)
            yield "embeddings", embeddings
            anchor = self.config.network.relative_to
            kept = [anchor] if anchor else []
            windows = self._cut(embeddings.read(kept), [EMBEDDING, *kept])
            yield "trainer", self.denoiser_trainer(windows)
            return
        if self.config.pretrain.steps:
            first = self.encoder_trainer()
            yield "encoder", first
            encoder: Any = self.model.obs_encoder
            averaged: Any = first.ema.averaged
            encoder.load_state_dict(averaged.encoder.state_dict())
            encoder.requires_grad_(False)
        yield "trainer", self.denoiser_trainer()

    def save(self, folder: Path, trainer: Trainer) -> None:
        """Write the averaged weights in half precision."""
        native.save(folder, self.checkpoint(trainer), half=True)

    def denoiser_trainer(self, windows: Windows | None = None) -> Trainer:
        """Trains the denoiser, and the observation encoder where it is not frozen.

        Args:
            windows: samples with embeddings in place of observations; `windows` by default.

        Raises:
            ValueError: the policy could not be read again once it is written.
        """
        config, model = self.config, self.model
        schedule = build_schedule(config.sampler)
        trainer = Trainer(
            model,
            lambda batch, generator: model.loss(
                batch,
                schedule,
                config.sampler.prediction_type,
                generator=generator,
                objective=self.objective,
            ),
            self._batches(config.train, windows),
            config.train,
            facts=self._facts(),
        )
        made = self.checkpoint(trainer)
        arch = json.loads(json.dumps(made.arch))
        check_network(made.network, arch, made.state_dict, "network.arch")
        return trainer

    def encoder_trainer(self) -> Trainer:
        """Trains the encoder of a state or a scene by itself, to say the chunk.

        Raises:
            ValueError: when the policy has neither.
        """
        config, model = self.config, self.model
        if not isinstance(model.obs_encoder, StateEncoder | SceneEncoder):
            raise ValueError(
                "pretrain.steps trains the encoder of a state or a scene, and this policy has "
                "none: give its size with network.state.depth=4 or network.scene.layers=3, or set "
                "pretrain.steps=0"
            )
        torch.manual_seed(config.pretrain.seed)
        regression = ChunkRegression(
            model.obs_encoder, config.network.horizon, self.world.action.dim
        ).to(config.device)

        def loss(batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
            actions = model.normalize_actions(batch[ACTION], batch)
            first = self.objective.first(config.network.n_obs_steps)
            return regression.loss(batch, actions, model.normalizer, first=first)

        return Trainer(
            regression,
            loss,
            self._batches(config.pretrain),
            config.pretrain,
            facts=self._facts(),
        )

    def checkpoint(self, trainer: Trainer) -> Checkpoint:
        """The averaged weights of the denoiser's trainer as they are now."""
        averaged, network = trainer.ema.averaged, self.config.network
        return Checkpoint(
            kind="fastloop",
            network=network.kind,
            arch=self._arch(averaged.obs_encoder),
            sampler=self.config.sampler,
            state_dict={key: value.cpu() for key, value in averaged.state_dict().items()},
            inputs=self.inputs,
            action_dim=self.world.action.dim,
            n_obs_steps=network.n_obs_steps,
            horizon=network.horizon,
            n_action_steps=network.n_action_steps,
            lags=self.lags,
            vision=self.vision,
            state=self.state,
            scene=self.scene,
            relative_to=network.relative_to,
            cumulative=network.cumulative,
            action=self.world.action,
            control_hz=self.world.control_hz,
            ema=True,
            training={
                "steps": trainer.step,
                "batch_size": self.config.train.batch_size,
                "seed": self.config.train.seed,
                "environment": self.env.name,
                **({"encoder": self.frozen.checkpoint.digest} if self.frozen else {}),
            },
        )

    def _normalizer(self) -> LinearNormalizer:
        """Fitted to what the network sees of all samples; images and scenes have fixed scales."""
        network = self.config.network
        normalizer = self.frozen.parts[1] if self.frozen else LinearNormalizer()
        for key in () if self.frozen else self.images:
            normalizer.set_image(key)
        for key in self.inputs if self.scene else ():
            normalizer.set_identity(key)
        fitted = [key for key in self.inputs if key not in normalizer.fields]
        chunks = self.windows.chunks(network.relative_to)
        chunks = steps_between(chunks) if network.cumulative else chunks
        normalizer.fit({key: self.windows.observations[key] for key in fitted} | {ACTION: chunks})
        return normalizer

    def _demonstrations(self) -> list[Demonstration]:
        made = build(self.config.dataset, "dataset")
        if not isinstance(made, Iterable):
            raise ValueError(
                f"dataset: {self.config.dataset['_target_']} holds no demonstrations to train on; "
                "have: adroit_door, lerobot, replay_buffer, robomimic"
            )
        return list(made)

    def _cut(self, demonstrations: Iterable[Demonstration], keys: Sequence[str]) -> Windows:
        network = self.config.network
        return Windows.of(
            demonstrations,
            keys,
            n_obs_steps=network.n_obs_steps,
            horizon=network.horizon,
            lags=self.lags,
        )

    def _batches(self, config: TrainConfig, windows: Windows | None = None) -> Batches:
        """The batch of each step; images are decoded for it by other processes."""
        windows = windows or self.windows
        workers = min(MOST_WORKERS, max((os.cpu_count() or 1) - 1, 1))
        return Batches(
            windows,
            config.batch_size,
            config.seed,
            num_workers=workers if windows.lazy else 0,
        )

    def _facts(self) -> dict[str, Any]:
        """What decides the weights beside `config.train`."""
        names = ("sim", "dataset", "network", "sampler", "pretrain", "mirror")
        facts = {name: value for name, value in asdict(self.config).items() if name in names}
        facts["network"] = told(self.config.network)
        if self.origin:
            facts["init"] = self.origin.digest
        if self.frozen:
            facts["encoder"] = self.frozen.digest
        return facts | {"vision": asdict(self.vision) if self.vision else None}

    def _arch(
        self, encoder: ObservationEncoder | StateEncoder | SceneEncoder | None
    ) -> dict[str, Any]:
        """All of the constructor's arguments: its defaults, the widths that follow from the data,
        and what is configured."""
        network, dim = self.config.network, self.world.action.dim
        tokens = self.scene.tokens if self.scene else network.n_obs_steps
        width = encoder.width if encoder else sum(math.prod(s.shape) for s in self.inputs.values())
        parameters = inspect.signature(NETWORKS[network.kind]).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if network.kind == "transformer":
            follows = {
                "input_dim": dim,
                "output_dim": dim,
                "horizon": network.horizon,
                "n_obs_steps": tokens,
                "cond_dim": width,
            }
        elif network.kind == "unet_cross":
            follows = {"input_dim": dim, "n_obs_steps": tokens, "cond_dim": width}
        else:
            follows = {"input_dim": dim, "global_cond_dim": width * tokens}
        return defaults | follows | network.arch


def told(network: NetworkConfig) -> dict[str, Any]:
    """The configuration without later settings that change nothing: older runs go on, too."""
    plain = asdict(NetworkConfig())
    return {
        name: value
        for name, value in asdict(network).items()
        if name not in PLACES and (name not in LATER or value != plain[name])
    }


def _start_from(origin: Checkpoint, model: DiffusionModel) -> None:
    """Give a model the weights of a checkpoint."""
    try:
        model.load_state_dict(origin.state_dict)
    except (RuntimeError, ValueError) as error:  # names what differs
        raise ValueError(
            f"init={origin.source} holds another network than the one configured: {error}"
        ) from error
