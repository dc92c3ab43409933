"""One description of a trained diffusion policy, whichever project's file it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.diffusion.clip import ClipConfig
from fastloop.policies.diffusion.scene import SceneConfig
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.lags import check_lags
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

__all__ = ["Checkpoint", "file_digest"]


BUFFERS = ("mask", "memory_mask", "temperature")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a file says about a policy, in our names.

    Attributes:
        kind: the format it was read from, ``fastloop``, ``diffusion_policy`` or ``lerobot``.
        network: ``transformer`` (`TransformerForDiffusion`), ``unet`` (`ConditionalUnet1D`),
            ``unet_cross`` (`CrossUnet1D`) or ``dit`` (`DiT`).
        arch: arguments of the network's constructor.
        sampler: the chain from noise to actions.
        state_dict: of a `DiffusionModel`: ``model.*``, ``normalizer.*`` and ``obs_encoder.*``, on
            the CPU, floating point as float32.
        inputs: observation key to its spec, in the order of the condition.
        action_dim: A.
        n_obs_steps, horizon, n_action_steps, lags: as in `PolicySpec`.
        vision: how images become features, None for low-dimensional policies.
        state: how low-dimensional observations become features, None where they are only
            normalized.
        scene: how a driving scene becomes features, None without it.
        clip: how images and the instruction become features through CLIP, None without it.
        relative_to: observation whose newest value the actions are relative to inside the network.
        cumulative: whether an action is the step from the one before inside the network.
        action: what the actions mean; published files do not say.
        control_hz: actions a second; published files do not say.
        ema: whether these are averaged weights.
        training: what is known of the training run: steps, epochs, data, seed.
        source: the path that it was read from.
        digest: sha256 of what was read.
    """

    kind: str
    network: str
    arch: Mapping[str, Any]
    sampler: SamplerConfig
    state_dict: Mapping[str, torch.Tensor] = field(repr=False)
    inputs: Mapping[str, TensorSpec]
    action_dim: int
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    lags: tuple[int, ...] = ()
    vision: VisionConfig | None = None
    state: StateConfig | None = None
    scene: SceneConfig | None = None
    clip: ClipConfig | None = None
    relative_to: str | None = None
    cumulative: bool = False
    action: ActionSpec | None = None
    control_hz: float | None = None
    ema: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        steps = (self.n_obs_steps, self.horizon, self.n_action_steps)
        whole = all(isinstance(n, int) and n > 0 for n in steps)
        if not whole or self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise CheckpointError(
                f"{self.source}: n_obs_steps, horizon and n_action_steps are {steps}; expected "
                "positive numbers, n_obs_steps - 1 + n_action_steps within the horizon"
            )
        try:
            check_lags(self.lags, self.n_obs_steps)
        except ValueError as error:
            raise CheckpointError(f"{self.source}: {error}") from error
        ours = {"input_dim": self.action_dim}
        # A scene's tokens are not observations one after the other: they have no order in time.
        tokens = self.scene.tokens if self.scene else self.n_obs_steps
        if self.network in ("transformer", "unet_cross"):
            ours |= {"n_obs_steps": tokens}
        if self.network == "transformer":
            ours |= {"horizon": self.horizon}
            ours |= {"causal_attn": False} if self.scene else {}
        elif self.network == "dit":
            ours |= {"horizon": self.horizon}
        elif self.horizon % (stride := 2 ** (len(self.arch["down_dims"]) - 1)):
            raise CheckpointError(
                f"{self.source}: a horizon of {self.horizon} cannot be halved at every level of "
                f"the network; expected a multiple of {stride}"
            )
        for name, value in ours.items():
            if self.arch.get(name) != value:
                raise CheckpointError(
                    f"{self.source}: the policy's {name} is {value}, its network's "
                    f"{self.arch.get(name)}"
                )

    @property
    def parameters(self) -> int:
        """Trained numbers in the network and its observation encoder."""
        return sum(
            value.numel()
            for key, value in self.state_dict.items()
            if not key.startswith("normalizer.") and key.rpartition(".")[2] not in BUFFERS
        )

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and decides.

        Raises:
            CheckpointError: when the file does not say what its actions mean or their rate; give
                them with ``dataclasses.replace(checkpoint, action=..., control_hz=...)``.
        """
        if self.action is None or self.control_hz is None:
            raise CheckpointError(
                f"{self.source} says that the policy plans {self.action_dim} numbers and not what "
                "they mean or how often: give the action (kind, bounds) and control_hz of the task "
                "that it was trained on"
            )
        return PolicySpec(
            inputs=self.inputs,
            action=self.action,
            n_obs_steps=self.n_obs_steps,
            horizon=self.horizon,
            n_action_steps=self.n_action_steps,
            control_hz=self.control_hz,
            lags=self.lags,
        )


def file_digest(*paths: Path) -> str:
    """sha256 over the bytes of `paths`, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
