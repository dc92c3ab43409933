"""From observations as environments show them to what CacheFlow is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import one_hot

from fastloop.policies.spec import TensorSpec

__all__ = ["NEIGHBORS", "check_inputs", "read"]

NEIGHBORS = "observation.neighbors"


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
    if not any(key != NEIGHBORS and not _is_command(spec) for key, spec in inputs.items()):
        raise ValueError(f"cacheflow needs a history beside {', '.join(inputs) or 'nothing'}")


def read(
    observations: Mapping[str, torch.Tensor], inputs: Mapping[str, TensorSpec]
) -> dict[str, torch.Tensor]:
    """The condition of observations (B, O, ...) by key, float32.

    Whole numbers become the command (the newest, one-hot), `NEIGHBORS` (P, ...) the neighbors (the
    newest; rows of zeros are nobody), and all else, flat, the history.
    """
    history, command, read = [], [], {}
    for key, spec in inputs.items():
        value = observations[key]
        if key == NEIGHBORS:
            rows = value[:, -1].float()
            nobody = (rows == 0).flatten(2).all(-1).view(*rows.shape[:2], *[1] * (rows.ndim - 2))
            read["neighbors"] = rows.masked_fill(nobody, torch.nan)
        elif _is_command(spec):
            newest = value[:, -1].long()
            if not ((newest >= 0) & (newest <= int(spec.high))).all():
                raise ValueError(
                    f"{key} must lie in 0 to {int(spec.high)}, got {newest.unique().tolist()}"
                )
            command.append(one_hot(newest, 1 + int(spec.high)).float())
        else:
            history.append(value.float().flatten(2))
    read["history"] = torch.cat(history, -1)
    return read | ({"command": torch.cat(command, -1)} if command else {})


def _is_command(spec: TensorSpec) -> bool:
    return spec.dtype.startswith("int")
