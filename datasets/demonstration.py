"""One demonstrated episode, whatever file it came from; its images may still be in that file."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["Demonstration", "DemonstrationError", "Frames", "LazyFrames", "is_image"]


class DemonstrationError(DatasetError):
    """A file of demonstrations is damaged, or of another layout."""


class Frames(Protocol):
    """The N frames of one observation: an array, or what reads them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def is_image(frames: Frames) -> bool:
    """Whether frames are camera images, uint8 (N, 3, H, W)."""
    return frames.dtype == np.uint8 and len(frames.shape) == 4 and frames.shape[1] == 3


class LazyFrames(abc.ABC):
    """Frames that stay in their file until they are indexed by an int, a slice or an array.

    A subclass says how to `read`. It must survive pickling, so it holds a path and no open file.

    Args:
        shape: (N, ...) of all frames.
        dtype: of every frame.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)

    @abc.abstractmethod
    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The frames (M, ...) at `places` (M,), which rise, are in range, and M > 0.

        Raises:
            DatasetError: the file is not what it was, or is damaged there.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        wanted = np.arange(len(self))[index]
        places, inverse = np.unique(wanted, return_inverse=True)
        if not places.size:
            return np.empty(wanted.shape + self.shape[1:], self.dtype)
        frames: NDArray[Any] = self.read(places)[inverse.reshape(wanted.shape)]
        return frames

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> NDArray[Any]:
        frames: NDArray[Any] = self[:]
        return frames.astype(self.dtype if dtype is None else dtype, copy=False)


@dataclass(frozen=True)
class Demonstration:
    """One episode, or a stretch of one, as it was demonstrated.

    Attributes:
        observations: key to (N, ...) frames, each seen before the action beside it; camera images
            are uint8 (N, 3, H, W). Large ones are `LazyFrames`.
        actions: (N, A) float32; A is 0 where none were recorded.
        rewards: (N,) float32, when known.
        states: (N, D) simulator states, when known.
        seed: of the simulator's reset, when known.
        success: whether it ended in success; True where the source does not say.
        task: what was to be done, in words; empty when not known.
        control_hz: frames in a second, when known.
    """

    observations: Mapping[str, Frames]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32] | None = None
    states: NDArray[np.float64] | None = None
    seed: int | None = None
    success: bool = True
    task: str = ""
    control_hz: float | None = None

    def __post_init__(self) -> None:
        if self.actions.ndim != 2:
            raise DemonstrationError(
                f"actions must be of shape (N, A), not {self.actions.shape}: one row a frame"
            )
        given: dict[str, Frames | None] = {"rewards": self.rewards, "states": self.states}
        given |= {f"observation {key!r}": frames for key, frames in self.observations.items()}
        for name, frames in given.items():
            if frames is not None and len(frames) != len(self):
                raise DemonstrationError(f"{name} has {len(frames)} frames for {len(self)} actions")

    def __len__(self) -> int:
        return len(self.actions)
