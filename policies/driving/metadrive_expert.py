"""MetaDrive's own expert: a network trained by PPO, which steers by what MetaDrive shows it."""

from __future__ import annotations

import importlib.util
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastloop.extras import MissingExtraError
from fastloop.policies.base import Budget, Plan
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, PolicySpec, SpecMismatchError, TensorSpec

__all__ = ["VIEW", "VIEW_SPEC", "MetaDriveExpert"]

VIEW, VIEW_SPEC = "observation.metadrive", TensorSpec((275,), low=0.0, high=1.0)
MIRRORED = (10, 15)  # which way the next two lanes turn: MetaDrive's axes changed since training
LARGEST = 16 << 20  # bytes, unpacked; the published ones are 0.5 MB

SPEC = PolicySpec(
    inputs={VIEW: VIEW_SPEC},
    action=ActionSpec(2, "steer_throttle", (-1.0, -1.0), (1.0, 1.0), ("steer", "throttle")),
    n_obs_steps=1, horizon=1, n_action_steps=1, control_hz=10.0,
)  # fmt: skip


class MetaDriveExpert(nn.Module):
    """Three layers from MetaDrive's observation to steering and throttle, the mean of what it would
    draw; with the weights that MetaDrive brings (``examples/ppo_expert``, Apache-2.0).

    Li et al., MetaDrive, TPAMI 2022. It computes in float64, so that a row does not depend on how
    many others are beside it. The deviations, which its file has too, are left unused.

    Our `MetaDriveMap` has another vehicle than it was trained with (engine and brakes there are
    drawn by lot); that makes no difference that 30 roads could show: of these (4 blocks, seeds 0 to
    29) it came to the end of 17 with our vehicle and of 16 with MetaDrive's, and hit somebody at
    fault on 7 and 6. What matters is that speeds are divided by 80 km/h, as they were in its
    training: divided by our vehicle's 200 km/h, it drove 20 m/s and arrived once.
    """

    name = "metadrive_expert"

    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.digest = ""
        self.fc_1, self.fc_2, self.fc_out = (
            nn.Linear(*sizes, dtype=torch.float64) for sizes in ((275, 256), (256, 256), (256, 4))
        )

    @classmethod
    def load(cls, path: str | Path | None = None, *, env: EnvSpec | None = None) -> MetaDriveExpert:
        """The expert, its weights read without running anything from the file.

        Args:
            path: of ``expert_weights.npz``; None takes that of the installed MetaDrive.
            env: what it will drive.

        Raises:
            CheckpointError: when the file is missing, damaged or holds anything but the expert.
            MissingExtraError: without MetaDrive, where no path is given.
            SpecMismatchError: when `env` does not show or take what the expert reads and does.
        """
        if env is not None and (
            VIEW not in env.observations or env.action.kind != SPEC.action.kind
        ):
            raise SpecMismatchError(
                f"MetaDrive's expert reads {VIEW} and steers: it drives sim=metadrive_map with "
                "sim.control=steer_throttle and sim.own_observation=true. "
                f"{env.name} takes actions of kind {env.action.kind} and offers "
                f"{', '.join(env.observations) or 'nothing'}"
            )
        path = _installed() if path is None else Path(path)
        expert = cls()
        expert.load_state_dict(_read(path, expert.state_dict()))
        expert.digest = file_digest(path)
        return expert.requires_grad_(False).eval()

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        """Views (B, 275) to the mean (B, 2) of steering and throttle, without bounds, float64."""
        view = view.double()
        mirrored = view.clone()
        mirrored[:, MIRRORED] = 1 - view[:, MIRRORED]
        hidden = torch.tanh(self.fc_2(torch.tanh(self.fc_1(mirrored))))
        means: torch.Tensor = self.fc_out(hidden)[:, :2]
        return means

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """One action, of this tick."""
        means = self(history[VIEW][:, -1].cpu())
        actions = means.clamp(-1, 1).float()[:, None]
        return Plan(actions=actions, dt=1 / SPEC.control_hz, t0=history.ticks)


def _installed() -> Path:
    """The weights in MetaDrive's folder; MetaDrive itself is not imported, which takes seconds."""
    found = importlib.util.find_spec("metadrive")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, "examples", "ppo_expert", "expert_weights.npz")
        if path.is_file():
            return path
    raise MissingExtraError(
        "MetaDrive's expert comes with MetaDrive, which is not installed. Install it with:\n"
        '    pip install -c constraints.txt -e ".[driving]"\n'
        "or give the path of its expert_weights.npz"
    )


def _read(path: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the weights in a file; kernels there are (inputs, outputs)."""
    expected = {_name(key): tuple(value.t().shape) for key, value in like.items()}
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; expected MetaDrive's expert_weights.npz")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST:
            raise ValueError(f"it unpacks to {size} bytes, and {LARGEST} are plenty")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        found = {key: array.shape for key, array in arrays.items()}
        if found != expected:
            raise ValueError(f"it holds {found!s:.300}; expected {expected}")
        weights = {key: torch.tensor(arrays[_name(key)].T.astype(np.float64)) for key in like}
    except (
        EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError, SyntaxError,
        TypeError, ValueError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path} is not MetaDrive's expert_weights.npz: {error}") from error
    if not all(value.isfinite().all() for value in weights.values()):
        raise CheckpointError(f"{path} holds weights that are not finite")
    return weights


def _name(key: str) -> str:
    """``fc_1.weight`` as the file has it."""
    layer, kind = key.split(".")
    return f"default_policy/{layer}/{'kernel' if kind == 'weight' else kind}"
