"""From a training configuration to what is trained: network, trainers, checkpoint."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.samplers import build_schedule
from fastloop.config import NetworkConfig
from fastloop.datasets.embeddings import EMBEDDING, Embeddings
from fastloop.datasets.windows import Windows
from fastloop.frozen_encoder import FrozenEncoder, embed, taken_over
from fastloop.lessons import Lessons
from fastloop.policies.checkpoints import Checkpoint, load_checkpoint, native
from fastloop.policies.checkpoints.checks import NETWORKS, check_network
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.model import ACTION, DiffusionModel, steps_between
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.regression import ChunkRegression
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder
from fastloop.policies.diffusion.state import StateConfig, StateEncoder
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.load import find_checkpoint
from fastloop.policies.training import Trainer

__all__ = ["Recipe", "told"]

LATER = ("stride", "spacing", "past_steps", "contexts")  # settings that came after saved states
PLACES = ("encoder", "embeddings")  # told by a digest, if anything


@dataclass(frozen=True)
class Recipe(Lessons):
    """Network, stages and checkpoint of a configuration; each is built when first asked for."""

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
            self.demonstrations(),
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
            windows = self.cut(embeddings.read(kept), [EMBEDDING, *kept])
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
            self.batches(config.train, windows),
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
            self.batches(config.pretrain),
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
