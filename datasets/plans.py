"""Training samples of planners: what a vehicle saw, and the whole plan that was made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.windows import Windows

__all__ = ["Plans", "mirrored"]

# Columns whose sign turns when left and right change places.
ACROSS = {
    "observation.ego_states": [1, 3, 5],
    "observation.neighbors": [1, 3, 5],
    "observation.map": [1, 3],
    "observation.route": [1],
    "action": [1],
}
INTENT = "observation.intent"
OTHER_INTENT = torch.tensor([0, 1, 3, 2])  # unknown, straight, left, right


class Plans(Windows):
    """Every frame of every demonstration as a training sample, whose action is the frame's plan.

    Actions are whole plans ``[age, x1, y1, ..., xT, yT]`` of age 0, each made of the observations
    of its own frame; so frames can be any time apart.

    Attributes:
        mirror: every frame is there a second time with left and right changed.
    """

    mirror = False

    @classmethod
    def cut(
        cls, demonstrations: Iterable[Demonstration], keys: Sequence[str], *, mirror: bool = False
    ) -> Plans:
        """The samples of some demonstrations, with the observations `keys`.

        Raises:
            ValueError: as `Windows.of`; for actions that are no fresh plans; for observations that
                cannot be mirrored.
        """
        plans = cls.of(demonstrations, keys, n_obs_steps=1, horizon=1)
        width = plans.actions.shape[1]
        if width < 3 or width % 2 == 0 or plans.actions[:, 0].any():
            raise ValueError(
                f"the demonstrations' actions of {width} elements are no plans that were made at "
                "their frames: expected [age, x1, y1, ...] with an age of 0"
            )
        if mirror and (strange := [key for key in keys if key not in (*ACROSS, INTENT)]):
            raise ValueError(
                f"mirror=true knows the driving vocabulary's vectors, and not {strange}; use "
                "mirror=false"
            )
        plans.mirror = mirror
        return plans

    def __len__(self) -> int:
        return len(self.actions) * (2 if self.mirror else 1)

    def gather(self, ticks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples of `ticks` (B,): observations (B, 1, ...) and ``action`` (B, T, 2)."""
        frames = len(self.actions)
        batch = super().gather(ticks % frames)
        batch["action"] = _waypoints(batch["action"])
        if not self.mirror:
            return batch
        turned, other = ticks >= frames, mirrored(batch)
        return {
            key: torch.where(turned.view(-1, *[1] * (value.ndim - 1)), other[key], value)
            for key, value in batch.items()
        }

    def chunks(self, relative_to: str | None = None) -> torch.Tensor:
        """The waypoints of all samples (N, T, 2), to fit a normalizer to."""
        plans = _waypoints(super().chunks(relative_to))
        return torch.cat([plans, mirrored({"action": plans})["action"]]) if self.mirror else plans


def mirrored(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Samples of the driving vocabulary with left and right changed.

    Traffic then keeps to the other side of the road, which the directions of the lanes show.
    """
    turned = {}
    for key, value in batch.items():
        if key == INTENT:
            turned[key] = OTHER_INTENT[value]
            continue
        sign = value.new_ones(value.shape[-1])
        sign[ACROSS[key]] = -1
        turned[key] = value * sign
    return turned


def _waypoints(plans: torch.Tensor) -> torch.Tensor:
    """Plans (B, 1, 1 + 2 T) without their age, (B, T, 2)."""
    return plans[:, 0, 1:].unflatten(-1, (-1, 2))
