"""Published names of image-encoder weights, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import torch

from fastloop.policies.diffusion.resnet import ResNet18
from fastloop.policies.diffusion.vision import module_name

__all__ = ["from_lerobot", "from_robomimic"]


@cache
def _layers() -> list[str]:
    """Both projects cut torchvision's ResNet into a sequence, so its layers are numbered."""
    with torch.device("meta"):
        return [name for name, _ in ResNet18().named_children()]


def from_robomimic(key: str) -> str | None:
    """The name here of a ``obs_encoder.obs_nets.<camera>.*`` key, None for copies and constants.

    robomimic's VisualCore holds the backbone, pool and linear layer twice: by name and in ``nets``.
    """
    found = re.fullmatch(r"obs_encoder\.obs_nets\.(.+?)\.(backbone|pool|nets)\.(.+)", key)
    if not found:
        return key
    camera, part, rest = found.groups()
    start = f"obs_encoder.obs_nets.{module_name(camera)}"
    if part == "backbone":
        return f"{start}.backbone.{_named(rest.removeprefix('nets.'))}"
    if part == "pool":
        return None if rest in ("pos_x", "pos_y") else f"{start}.pool.{rest}"
    return f"{start}.linear.{rest.removeprefix('3.')}" if rest.startswith("3.") else None


def from_lerobot(key: str, cameras: Iterable[str]) -> list[str]:
    """The names here of a ``diffusion.rgb_encoder.*`` key: one a camera when they share weights."""
    rest = key.removeprefix("diffusion.rgb_encoder.")
    cameras = list(cameras)
    if own := re.match(r"(\d+)\.", rest):
        rest = rest[own.end() :]
        cameras = cameras[int(own.group(1)) :][:1]
    if rest == "pool.pos_grid":
        return []
    if rest.startswith("backbone."):
        rest = "backbone." + _named(rest.removeprefix("backbone."))
    rest = re.sub(r"^out\.", "linear.", rest)
    return [f"obs_encoder.obs_nets.{module_name(camera)}.{rest}" for camera in cameras]


def _named(numbered: str) -> str:
    """``4.0.conv1.weight`` to ``layer1.0.conv1.weight``; anything else as it is."""
    number, dot, rest = numbered.partition(".")
    known = number.isdigit() and int(number) < len(_layers())
    return f"{_layers()[int(number)]}.{rest}" if dot and known else numbered
