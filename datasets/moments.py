"""Moments of recorded drives, one by one: what a vehicle saw, and the plan that was made of it."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.plans import Plans, mirrored

__all__ = ["Moments", "swapped"]

PICTURE = "observation.images."
OTHER_SIDE = {"left": "right", "right": "left"}
SIDE = re.compile(r"(?<![a-z])(?:left|right)(?![a-z])")

Moment = tuple[Mapping[str, NDArray[Any]], NDArray[np.float32]]


class Moments(Sequence[Moment]):
    """Every frame of every demonstration: its observations and its plan (T, 2), m.

    Pictures that are in their file stay there until their moment is asked for.

    Args:
        demonstrations: with whole plans of age 0 for actions, see `Plans`.
        keys: observations to show.
        mirror: every frame is there a second time with left and right changed, pictures too: those
            of a camera on the left then are those of the camera on the right, turned round.

    Raises:
        ValueError: as `Plans.cut`; for pictures without those of the other side.
    """

    def __init__(
        self, demonstrations: Iterable[Demonstration], keys: Sequence[str], *, mirror: bool = False
    ) -> None:
        self.keys = tuple(keys)
        self.mirror = mirror
        vectors = [key for key in keys if not key.startswith(PICTURE)]
        pictures = [key for key in keys if key.startswith(PICTURE)]
        if mirror and (lonely := [key for key in pictures if swapped(key) not in pictures]):
            raise ValueError(
                f"mirror=true takes {lonely[0]} for {swapped(lonely[0])}, which is not among "
                f"{', '.join(pictures)}: add it, or say mirror=false"
            )
        demonstrations = list(demonstrations)
        if mirror:
            Plans.cut(demonstrations[:1], vectors, mirror=True)  # refuses what it cannot turn
        self.plans = Plans.cut(demonstrations, keys)

    def __len__(self) -> int:
        return len(self.plans) * (1 + self.mirror)

    def __getitem__(self, index: Any) -> Any:
        """The moment of a place: observations by key, and the plan."""
        place = range(len(self))[operator.index(index)]  # raises IndexError
        turned, frame = divmod(place, len(self.plans))
        sample = self.plans.gather(torch.tensor([frame]))
        seen = {key: sample[key][0, 0] for key in self.keys}
        plan = {"action": sample["action"][0]}
        if turned:
            pictures = {key: seen.pop(key) for key in self.keys if key.startswith(PICTURE)}
            seen = mirrored(seen) | {swapped(k): p.flip(-1) for k, p in pictures.items()}
            plan = mirrored(plan)
        return {key: value.numpy() for key, value in seen.items()}, plan["action"].numpy()


def swapped(key: str) -> str:
    """The camera that looks to the other side; itself where it looks to neither."""
    return SIDE.sub(lambda found: OTHER_SIDE[found.group()], key)
