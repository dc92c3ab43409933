"""Which cameras a simulator shows a vision-language model, where nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.dlm.folder import is_language_model
from fastloop.policies.driving.planners import is_planner
from fastloop.policies.load import find_checkpoint
from fastloop.policies.vla.checkpoint import is_vlm
from fastloop.policies.vla.manifest import MANIFEST, Manifest

__all__ = ["cameras_of", "with_cameras"]


def cameras_of(folder: Path) -> list[str]:
    """Those that the model was shown, without ``observation.images.``; its loader checks them."""
    return list(_told(folder).get("cameras", Manifest.cameras))


def with_cameras(sim: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """A simulator's configuration; where it names no camera, with those that the model was shown.

    Args:
        sim: a group of ``configs/sim``.
        checkpoint: as of `PolicyConfig`; only vision-language models change anything.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if sim.get("cameras", True) or is_planner(checkpoint):
        return dict(sim)
    folder = find_checkpoint(checkpoint)
    if not is_vlm(folder) and not is_language_model(folder):
        return dict(sim)
    size = _told(folder).get("image_size")
    return {**sim, "cameras": cameras_of(folder), **({"image_size": size} if size else {})}


def _told(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return read_json(path) if path.exists() else {}
