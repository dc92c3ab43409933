"""From a training configuration to the samples that are learned from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastloop.config import TrainVerbConfig
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.plans import Plans
from fastloop.datasets.windows import Batches, Windows
from fastloop.policies.diffusion.model import ACTION
from fastloop.policies.diffusion.objective import Objective
from fastloop.policies.diffusion.scene import ROUTE
from fastloop.policies.driving.whole_plans import waypoint_env
from fastloop.policies.lags import lags
from fastloop.policies.spec import EnvSpec, TensorSpec
from fastloop.policies.training import TrainConfig
from fastloop.sims.targets import build

__all__ = ["Lessons"]

MOST_WORKERS = 8


@dataclass(frozen=True)
class Lessons:
    """The samples of a configuration, as the policy will see and do them.

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

    @cached_property
    def windows(self) -> Windows:
        """The training samples, checked against what the policy will see and do.

        Raises:
            ValueError: naming what differs.
        """
        network, dim = self.config.network, self.world.action.dim
        anchor = network.relative_to
        fitting = [
            key
            for key, spec in self.inputs.items()
            if spec.shape == (dim,) or (key == ROUTE and self.plans and network.kind == "cacheflow")
        ]
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
        made = self.demonstrations()
        if self.plans:
            windows: Windows = Plans.cut(made, network.inputs, mirror=self.config.mirror)
        else:
            windows = self.cut(made, network.inputs)
        shapes = {key: (windows.observations[key], spec.shape) for key, spec in self.inputs.items()}
        shapes[ACTION] = windows.actions, (self.env.action.dim,)
        by_row = network.scene.layers or network.kind == "cacheflow"
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

    def demonstrations(self) -> list[Demonstration]:
        """All that `dataset` reads.

        Raises:
            ValueError: it reads something else.
        """
        made = build(self.config.dataset, "dataset")
        if not isinstance(made, Iterable):
            raise ValueError(
                f"dataset: {self.config.dataset['_target_']} holds no demonstrations to train on; "
                "have: adroit_door, lerobot, replay_buffer, robomimic"
            )
        return list(made)

    def cut(self, demonstrations: Iterable[Demonstration], keys: Sequence[str]) -> Windows:
        """Samples of the observations `keys`, a window and a chunk each."""
        network = self.config.network
        return Windows.of(
            demonstrations,
            keys,
            n_obs_steps=network.n_obs_steps,
            horizon=network.horizon,
            lags=self.lags,
        )

    def batches(self, config: TrainConfig, windows: Windows | None = None) -> Batches:
        """The batch of each step; images are decoded for it by other processes."""
        windows = windows or self.windows
        workers = min(MOST_WORKERS, max((os.cpu_count() or 1) - 1, 1))
        return Batches(
            windows,
            config.batch_size,
            config.seed,
            num_workers=workers if windows.lazy else 0,
        )
