"""A trained policy's observation encoder, taken as it is into another policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.config import TrainVerbConfig
from fastloop.datasets.demonstration import Frames
from fastloop.policies.checkpoints import Checkpoint, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.load import find_checkpoint
from fastloop.policies.spec import TensorSpec

__all__ = ["FrozenEncoder", "embed", "taken_over"]

FRAMES = 64  # encoded at a time


@dataclass(frozen=True)
class FrozenEncoder:
    """The encoder of images of a policy, with the normalizer of what it reads.

    A head that is trained on a frozen encoder needs its features alone, and these need be computed
    only once (PTP, Torne et al. 2025).

    Attributes:
        checkpoint: of the policy.
        inputs: what the new policy reads.

    Raises:
        CheckpointError: the policy cannot be read.
        ValueError: it has no encoder that treats frames one by one, or reads something else.
    """

    checkpoint: Checkpoint
    inputs: Mapping[str, TensorSpec]

    def __post_init__(self) -> None:
        given, wanted = self.checkpoint.inputs, self.inputs
        if not self.checkpoint.vision:
            raise ValueError(f"network.encoder={self.checkpoint.source}: {self._lacks()}")
        shapes = [[(key, spec.shape) for key, spec in specs.items()] for specs in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the encoder of {self.checkpoint.source} reads {_listed(given)}; the new policy "
                f"is to read {_listed(wanted)}: set network.inputs=[{','.join(given)}]"
            )

    @property
    def vision(self) -> VisionConfig:
        """Its configuration."""
        assert self.checkpoint.vision
        return self.checkpoint.vision

    @cached_property
    def parts(self) -> tuple[ObservationEncoder, LinearNormalizer]:
        """The encoder, which cannot be trained, and the normalizer.

        The weights are rounded to half precision, in which the new policy will be stored: what it
        sees when it drives is what its head was trained on.
        """
        model = build_model(self.checkpoint)
        encoder: Any = model.obs_encoder
        weights = {
            name: value.half().to(value.dtype) if value.is_floating_point() else value
            for name, value in encoder.state_dict().items()
        }
        if large := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise ValueError(
                f"{large[0]} of the encoder of {self.checkpoint.source} does not fit half "
                "precision, in which policies are stored"
            )
        encoder.load_state_dict(weights)
        return encoder.requires_grad_(False), model.normalizer

    @property
    def digest(self) -> str:
        """sha256 of all that decides an embedding beside the frame: names, shapes and bytes of the
        weights, the configuration, what is read and how it is normalized."""
        encoder, normalizer = self.parts
        shapes = {key: spec.shape for key, spec in self.inputs.items()}
        told = json.dumps([shapes, asdict(self.vision)])
        digest = hashlib.sha256(told.encode())
        numbers = normalizer.state_dict()
        numbers = {
            name: numbers[name]
            for key in self.inputs
            for name in (f"params_dict.{key}.scale", f"params_dict.{key}.offset")
        }
        for name, value in (encoder.state_dict() | numbers).items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _lacks(self) -> str:
        if self.checkpoint.state:
            return (
                "it encodes the frames of its window together, so that no frame has an embedding "
                "of its own; take a policy that looks at images"
            )
        if self.checkpoint.scene:
            return "an encoder of scenes cannot be taken over; take a policy that looks at images"
        if self.checkpoint.clip:
            return (
                "CLIP cannot be taken over; take a policy whose images go through a ResNet (vision)"
            )
        return (
            "it has no encoder, its observations are only normalized, which costs nothing: leave "
            "network.encoder out, or take a policy that looks at images"
        )


def taken_over(
    config: TrainVerbConfig, inputs: Mapping[str, TensorSpec], *, plans: bool
) -> FrozenEncoder | None:
    """The encoder that a training takes over, if any.

    Args:
        config: of the training.
        inputs: what its policy reads.
        plans: whether the policy makes whole plans.

    Raises:
        CheckpointError, ValueError: as `FrozenEncoder`, or it cannot be in this policy.
    """
    network = config.network
    if not network.encoder:
        if network.embeddings:
            raise ValueError(
                "network.embeddings is where those of a frozen encoder are kept: say whose with "
                "network.encoder, or leave it out"
            )
        return None
    others = {
        "init": config.init,
        "network.state": network.state.depth,
        "network.scene": network.scene.layers,
        "pretrain.steps": config.pretrain.steps,
    }
    if asked := [name for name, value in others.items() if value]:
        raise ValueError(f"network.encoder and {asked[0]} each decide the encoder: leave one out")
    if plans:
        raise ValueError(
            "network.encoder is for policies that act tick by tick; here an action is a whole plan"
        )
    return FrozenEncoder(load_checkpoint(find_checkpoint(network.encoder)), inputs)


def embed(model: DiffusionModel, frames: Mapping[str, Frames]) -> NDArray[Any]:
    """What the encoder of a policy makes of every frame by itself, as when it drives.

    Args:
        model: in any mode; crops are central.
        frames: by input key, (N, ...).

    Returns:
        (N, F) in the precision of the weights.
    """
    weight = next(model.model.parameters())
    count = min(len(values) for values in frames.values())
    before = model.training
    made = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, count, FRAMES):
            batch = {}
            for key, values in frames.items():
                value = torch.from_numpy(np.array(values[start : start + FRAMES])).to(weight.device)
                value = value.to(weight.dtype) if value.is_floating_point() else value
                batch[key] = value[:, None]
            made.append(model.condition(batch)[:, 0].cpu().numpy())
    model.train(before)
    return np.concatenate(made)


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{key} {list(spec.shape)}" for key, spec in specs.items())
