"""Where a vehicle gets to when it goes on as it does: the answers that any planner has to beat."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = [
    "Extrapolation",
    "constant_acceleration",
    "constant_turn_rate",
    "constant_velocity",
    "stand_still",
    "turn_rate",
]

Extrapolation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(states (B, P, 6), turn rates (B,) rad/s, times (T,) s from now) -> positions (B, T, 2) m, all
float64 in the vehicle's present frame: x forward, y left. A state is x, y, vx, vy, ax, ay, the
newest last."""

# Between two positions closer than this, measurement noise decides the direction of motion.
SHORTEST_STEP = 0.1  # m


def stand_still(
    states: torch.Tensor, turn_rates: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """The present position for ever."""
    return states.new_zeros(len(states), len(times), 2)


def constant_velocity(
    states: torch.Tensor, turn_rates: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Straight on with the present velocity."""
    return states[:, -1, None, 2:4] * times[:, None]


def constant_acceleration(
    states: torch.Tensor, turn_rates: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """``v t + a t^2 / 2``, until braking has used up the speed: a vehicle stops, it does not turn
    back. One that stands brakes when its acceleration points backward."""
    velocity, acceleration = states[:, -1, 2:4], states[:, -1, 4:6]
    speed = velocity.norm(dim=-1, keepdim=True)
    ahead = velocity.new_tensor([1.0, 0.0])
    direction = torch.where(speed > 0, velocity / speed.clamp(min=1e-9), ahead)
    braking = -(acceleration * direction).sum(-1, keepdim=True)
    stop = torch.where(braking > 0, speed / braking.clamp(min=1e-9), torch.inf)
    t = torch.minimum(times, stop)[..., None]
    return velocity[:, None] * t + acceleration[:, None] * t.square() / 2


def constant_turn_rate(
    states: torch.Tensor, turn_rates: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Along the circle of the present speed and turn rate (CTRV), heading ahead at first.

    A vehicle that rolls backward has a negative speed.
    """
    velocity = states[:, -1, 2:4]
    speed = velocity.norm(dim=-1).copysign(velocity[:, 0])
    half = turn_rates[:, None] * times / 2  # the chord's direction
    chord = speed[:, None] * times * torch.sinc(half / torch.pi)
    return torch.stack([chord * half.cos(), chord * half.sin()], -1)


def turn_rate(states: torch.Tensor, headings: torch.Tensor | None, dt: float) -> torch.Tensor:
    """The change of direction over the last interval, (B,) rad/s; 0 where the vehicle stands.

    Args:
        states: (B, P, 6) as for `Extrapolation`, `dt` apart.
        headings: (B, P) rad when they are known; else the direction of motion stands for them.
        dt: seconds between two states.
    """
    if headings is not None and headings.shape[1] >= 2:
        moved = states[:, -1, :2] - states[:, -2, :2]
        change = headings[:, -1] - headings[:, -2]
        change = torch.atan2(change.sin(), change.cos())
        steady = moved.norm(dim=-1) > SHORTEST_STEP
    elif states.shape[1] >= 3:
        steps = states[:, -2:, :2] - states[:, -3:-1, :2]
        (x0, y0), (x1, y1) = steps[:, 0].unbind(-1), steps[:, 1].unbind(-1)
        change = torch.atan2(x0 * y1 - y0 * x1, x0 * x1 + y0 * y1)
        steady = steps.norm(dim=-1).amin(-1) > SHORTEST_STEP
    else:
        return states.new_zeros(len(states))
    return torch.where(steady, change / dt, 0.0)
