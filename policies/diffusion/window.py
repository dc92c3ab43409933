"""A policy's window as the denoiser's condition, each frame encoded once in its life."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.policies.diffusion.clip import TOKENS, ClipEncoder
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.vision import ObservationEncoder
from fastloop.policies.history import Frame, History

__all__ = ["Encoded", "Window"]

# Encoders that treat frames one by one, with the inputs that they take of the newest frame for all.
FRAMEWISE: Mapping[type, tuple[str, ...]] = {ObservationEncoder: (), ClipEncoder: (TOKENS,)}


@dataclass(frozen=True)
class Encoded:
    """A condition and what it took.

    Attributes:
        cond: (B, O, D) observation tokens.
        frames: B numbers of frames that were encoded for it, the others being remembered; None
            where the encoder reads whole windows, or there is none.
    """

    cond: torch.Tensor
    frames: tuple[int, ...] | None


class Window:
    """Reads histories for one model.

    What an encoder makes of a frame stays in `Frame.memo`, on the weights' device and in their
    dtype, under a key of this object's own: it belongs to the weights that the model has now. Make
    another one when they change.

    Args:
        model: what conditions.
        keys: observations that it reads.
    """

    def __init__(self, model: DiffusionModel, keys: Sequence[str]) -> None:
        self.model = model
        self.keys = tuple(keys)
        self._weights = object()

    def read(self, history: History, keys: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Observations (B, O, ...) of a history, all by default, where and as the weights are."""
        weight = next(self.model.model.parameters())
        observations = {}
        for key in self.keys if keys is None else keys:
            value = history[key].to(weight.device)
            observations[key] = value.to(weight.dtype) if value.is_floating_point() else value
        return observations

    def encode(self, history: History) -> Encoded:
        """The condition of B environments: all their new frames go through the encoder together."""
        if type(self.model.obs_encoder) not in FRAMEWISE:
            return Encoded(self.model.condition(self.read(history)), None)
        keys = [self._key(row[-1]) for row in history.frames]
        windows = list(zip(history.frames, keys, strict=True))
        missing = [
            {id(frame): frame for frame in row if key not in frame.memo} for row, key in windows
        ]
        # Products round differently for different row counts. So that an environment does not see
        # how many new frames the others have, those with as many are encoded together, in as many
        # rows as if all B had that many.
        groups: dict[int, list[tuple[Frame, Frame]]] = defaultdict(list)
        for row, frames in zip(history.frames, missing, strict=True):
            groups[len(frames)] += [(frame, row[-1]) for frame in frames.values()]
        for count, frames in groups.items():
            if count:
                self._encode(frames, rows=count * len(history))
        tokens = torch.stack([frame.memo[key] for row, key in windows for frame in row])
        return Encoded(tokens.unflatten(0, (len(history), -1)), tuple(map(len, missing)))

    @torch.no_grad()
    def _encode(self, frames: Sequence[tuple[Frame, Frame]], rows: int) -> None:
        """Fill the memos of `frames`, each given with the newest one of its window."""
        shared = FRAMEWISE[type(self.model.obs_encoder)]
        singles = [
            (Frame(frame.values | {key: newest.values[key] for key in shared}),)
            for frame, newest in frames
        ]
        singles += singles[:1] * (rows - len(singles))
        batch = History(tuple(singles), ((),) * rows, torch.zeros(rows, dtype=torch.int64))
        tokens = self.model.condition(self.read(batch))[:, 0]
        for (frame, newest), token in zip(frames, tokens, strict=False):
            frame.memo[self._key(newest)] = token

    def _key(self, newest: Frame) -> Any:
        """Under what the frames of a window are remembered."""
        shared = FRAMEWISE[type(self.model.obs_encoder)]
        told = (newest.values[name].cpu().numpy().tobytes() for name in shared)
        return (self._weights, *told)
