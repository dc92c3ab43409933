"""The human door demonstrations of hand_dapg, tele-operated in VR (Rajeswaran et al., 2018)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import pickles
from fastloop.datasets.demonstration import Demonstration, DemonstrationError
from fastloop.datasets.errors import os_errors_are_faults
from fastloop.datasets.numpy_files import read_npz

__all__ = ["default_path", "door_positions", "read"]

# How the vector of 39 divides into what the hand feels and what it sees, as sims/adroit.py has it.
HAND = np.r_[0:27, 29:32]
DOOR = np.r_[27:29, 32:39]
HINGE, OPEN_ANGLE = 28, 1.35  # the environment's own criterion, rad
SHAPES: dict[str, tuple[int, ...]] = {
    "observations": (39,), "actions": (28,), "rewards": (), "door_body_pos": (3,),
    "episode_ends": (),
}  # fmt: skip


def default_path() -> Path:
    """Under ``FASTLOOP_REALDATA`` (or ../shared/realdata), where the recordings are kept."""
    root = Path(os.environ.get("FASTLOOP_REALDATA", "../shared/realdata"))
    return root / "adroit_door_demos" / "door-v0_demos.npz"


def read(path: str | Path | None = None) -> list[Demonstration]:
    """Read the demonstrations with the observations of the `AdroitDoor` simulator.

    All of them pass the handle and swing the door beyond 1 rad; `success` tells which reach the
    environment's 1.35 rad.

    Args:
        path: the flattened ``.npz``, or hand_dapg's own ``.pickle``, of which nothing is executed;
            by default `default_path`.

    Raises:
        DatasetError: saying what the file lacks, or what a pickle tried to import.
    """
    arrays = _load(path)
    demonstrations = []
    for episode in _episodes(arrays["episode_ends"]):
        seen = arrays["observations"][episode]
        demonstrations.append(
            Demonstration(
                observations={
                    "observation.state": seen[:, HAND].astype(np.float32),
                    "observation.environment_state": seen[:, DOOR].astype(np.float32),
                },
                # The environment clips to its bounds; so does the demonstration of what it did.
                actions=np.clip(arrays["actions"][episode], -1, 1).astype(np.float32),
                rewards=arrays["rewards"][episode].astype(np.float32),
                success=bool(seen[:, HINGE].max() >= OPEN_ANGLE),
            )
        )
    return demonstrations


def door_positions(path: str | Path | None = None) -> NDArray[np.float64]:
    """Where each demonstration's door stands: (episodes, 3), m."""
    return _load(path)["door_body_pos"]


@os_errors_are_faults()
def _load(path: str | Path | None) -> dict[str, NDArray[Any]]:
    path = default_path() if path is None else Path(path)
    if not path.exists():
        raise DemonstrationError(
            f"{path} does not exist; set FASTLOOP_REALDATA to the folder of real recordings"
        )
    arrays = _from_paths(path) if path.suffix == ".pickle" else read_npz(path, SHAPES)
    if missing := [name for name in SHAPES if name not in arrays]:
        raise DemonstrationError(f"{path} lacks {missing}; it holds {sorted(arrays)}")
    for name, width in SHAPES.items():
        array = arrays[name]
        if array.dtype.kind not in "fiu" or array.ndim < 1 or array.shape[1:] != width:
            raise DemonstrationError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected numbers of "
                f"shape {('N', *width)}"
            )
    ends = arrays["episode_ends"]
    frames = {len(arrays[name]) for name in ("observations", "actions", "rewards")}
    if frames != {*ends[-1:].tolist()} or (np.diff(ends, prepend=0) <= 0).any():
        raise DemonstrationError(
            f"{path}: episodes end at {ends[:5].tolist()}..., its arrays have {frames} frames; "
            "expected ends that rise to as many frames as there are"
        )
    if len(arrays["door_body_pos"]) != len(ends):
        raise DemonstrationError(
            f"{path}: {len(arrays['door_body_pos'])} doors for {len(ends)} episodes"
        )
    return arrays


def _from_paths(path: Path) -> dict[str, NDArray[Any]]:
    paths = pickles.load(path)
    try:
        return {
            **{
                name: np.concatenate([p[name] for p in paths])
                for name in ("observations", "actions", "rewards")
            },
            "door_body_pos": np.stack([p["init_state_dict"]["door_body_pos"] for p in paths]),
            "episode_ends": np.cumsum([len(p["actions"]) for p in paths]),
        }
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DemonstrationError(f"{path} is no pickle of hand_dapg's paths: {error}") from error


def _episodes(ends: NDArray[np.int64]) -> list[slice]:
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
