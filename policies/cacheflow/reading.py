"""From observations as environments show them to what CacheFlow is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import one_hot, pad

from fastloop.policies.cacheflow.frame import AlongRoute, turned
from fastloop.policies.diffusion.scene import EGO, MAP, NEIGHBORS, ROUTE, SceneConfig
from fastloop.policies.spec import TensorSpec

__all__ = ["NEAREST", "check_inputs", "read"]

NEAREST = SceneConfig().rows
"""Observations that are sets, nearest first, and how many of each are read."""
EVERY = 6  # of the points of a polyline, which is read
VECTORS = {NEIGHBORS: 2, MAP: 1}  # directions and velocities, which follow a place


def check_inputs(inputs: Mapping[str, TensorSpec]) -> None:
    """Refuse observations that cannot be read.

    Raises:
        ValueError: for images, for whole numbers of unknown range, and where there is no history.
    """
    if pictures := [key for key, spec in inputs.items() if spec.dtype == "uint8"]:
        raise ValueError(f"cacheflow reads vectors, no images: leave out {', '.join(pictures)}")
    for key, spec in inputs.items():
        if _is_command(spec) and not (spec.shape == () and 0 <= spec.low <= spec.high < 1000):
            raise ValueError(
                f"{key} must be one whole number from 0 to some highest to be a command, it is "
                f"{spec}"
            )
    if not any(key not in NEAREST and not _is_command(spec) for key, spec in inputs.items()):
        raise ValueError(f"cacheflow needs a history beside {', '.join(inputs) or 'nothing'}")


def read(
    observations: Mapping[str, torch.Tensor],
    inputs: Mapping[str, TensorSpec],
    *,
    relative_to: str | None = None,
) -> dict[str, torch.Tensor]:
    """The condition of observations (B, O, ...) by key, float32.

    Whole numbers become the command (the newest, one-hot), the sets of `NEAREST` the neighbors (the
    newest; rows of zeros are nobody; of two sets, each row says of which it is), and all else,
    flat, the history. Of a vehicle's own past its present motion is read: who sees how he drove
    goes on so.

    Args:
        observations: what was seen.
        inputs: the keys that are read, and what they are.
        relative_to: what futures are relative to. Where it is the route, places, directions and
            velocities of neighbors are so, too, and the route is its first point and its steps.

    Raises:
        ValueError: a command that there is not, or a set whose numbers are not finite.
    """
    way = None
    if relative_to == ROUTE:
        way = AlongRoute(observations[ROUTE][:, -1].float())
    history, command, sets = [], [], []
    for key, spec in inputs.items():
        value = observations[key]
        if key in NEAREST:
            rows = value[:, -1, : NEAREST[key]].float()
            if not rows.isfinite().all():  # the model would take it for nobody
                raise ValueError(f"{key} must hold finite numbers only")
            rows = rows[..., ::EVERY, :] if rows.ndim == 4 else rows
            rows = rows if way is None else _along(rows, way, VECTORS[key])
            sets.append(rows.flatten(2))
        elif _is_command(spec):
            newest = value[:, -1].long()
            if not ((newest >= 0) & (newest <= int(spec.high))).all():
                raise ValueError(
                    f"{key} must lie in 0 to {int(spec.high)}, got {newest.unique().tolist()}"
                )
            command.append(one_hot(newest, 1 + int(spec.high)).float())
        elif key == EGO:
            history.append(value[:, :, -1].float())
        elif key == ROUTE and way is not None:
            steps = value.float().diff(dim=2)
            history.append(torch.cat([value[:, :, :1].float(), steps], 2).flatten(2))
        else:
            history.append(value.float().flatten(2))
    read = {"history": torch.cat(history, -1)}
    if command:
        read["command"] = torch.cat(command, -1)
    if sets:
        read["neighbors"] = _joined(sets)
    return read


def _along(rows: torch.Tensor, way: AlongRoute, vectors: int) -> torch.Tensor:
    """Rows (B, P, ..., W), each a place, so many vectors, and more, as seen along the route."""
    places, directions = way.locate(rows[..., :2])
    given = rows[..., 2 : 2 + 2 * vectors].unflatten(-1, (vectors, 2))
    seen = turned(given, directions[..., None, :]).flatten(-2)
    moved = torch.cat([places, seen, rows[..., 2 + 2 * vectors :]], -1)
    return moved.where((rows != 0).any(-1, keepdim=True), 0.0)


def _joined(sets: list[torch.Tensor]) -> torch.Tensor:
    """Sets (B, P, W) of any P and W as one, NaN for rows of zeros."""
    widest, found = max(rows.shape[-1] for rows in sets), []
    for k, rows in enumerate(sets):
        nobody = (rows == 0).all(-1, keepdim=True)
        rows = pad(rows, (0, widest - rows.shape[-1]))
        if len(sets) > 1:
            kind = one_hot(torch.tensor(k), len(sets)).to(rows)
            rows = torch.cat([rows, kind.expand(*rows.shape[:2], -1)], -1)
        found.append(rows.masked_fill(nobody, torch.nan))
    return torch.cat(found, 1)


def _is_command(spec: TensorSpec) -> bool:
    return spec.dtype.startswith("int")
