"""Few waypoints to many: quintics between knots, as Fast-dDrive's evaluation draws them."""

from __future__ import annotations

import torch

__all__ = ["interpolate"]

# Columns: position, velocity and acceleration at the start, then at the end, of a piece that lasts
# 1; rows: the coefficients of u^0 .. u^5 of the quintic that has them.
QUINTIC = (
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.5, 0.0, 0.0, 0.0),
    (-10.0, -6.0, -1.5, 10.0, -4.0, 0.5),
    (15.0, 8.0, 1.5, -15.0, 7.0, -1.0),
    (-6.0, -3.0, -0.5, 6.0, -3.0, 0.5),
)


def interpolate(
    waypoints: torch.Tensor,
    *,
    points: int = 4,
    published: bool = False,
    velocity: torch.Tensor | None = None,
) -> torch.Tensor:
    """Jerk-minimal pieces through the vehicle's present place and its waypoints.

    Velocities at the knots are central differences, one-sided at the ends; accelerations are second
    differences, at the ends those of the nearest three knots. Fast-dDrive (arXiv 2605.23163) draws
    its 20 points at 4 Hz from 5 waypoints at 1 Hz so, but with the sign of the first acceleration
    turned round.

    Args:
        waypoints: (..., T, D) m, the first one step ahead of the origin; T >= 2.
        points: drawn between two waypoints, the later one included.
        published: whether to turn the sign of the first acceleration round, as in the numbers that
            were published.
        velocity: (..., D) m a step, the vehicle's at the origin, in place of the first difference.

    Returns:
        (..., T * points, D) in the dtype of `waypoints`; every `points`-th is a waypoint.

    Raises:
        ValueError: for fewer than 2 waypoints or less than 1 point.
    """
    if waypoints.ndim < 2 or waypoints.shape[-2] < 2 or points < 1:
        raise ValueError(
            f"expected (..., T, D) waypoints with T >= 2 and at least 1 point a step, got "
            f"{tuple(waypoints.shape)} and {points}"
        )
    knots = torch.cat([torch.zeros_like(waypoints[..., :1, :]), waypoints], -2)
    slope = knots.diff(dim=-2)
    first, last = slope[..., :1, :], slope[..., -1:, :]
    if velocity is not None:
        first = velocity.unsqueeze(-2)
    speed = torch.cat([first, (slope[..., 1:, :] + slope[..., :-1, :]) / 2, last], -2)
    bend = slope.diff(dim=-2)
    start = -bend[..., :1, :] if published else bend[..., :1, :]
    acceleration = torch.cat([start, bend, bend[..., -1:, :]], -2)

    ends = torch.stack([knots, speed, acceleration], -2)  # (..., T + 1, 3, D)
    pieces = torch.cat([ends[..., :-1, :, :], ends[..., 1:, :, :]], -2)  # (..., T, 6, D)
    u = torch.arange(1, points + 1, dtype=waypoints.dtype, device=waypoints.device) / points
    powers = u[:, None] ** torch.arange(6, device=u.device)
    drawn = powers @ torch.tensor(QUINTIC, dtype=u.dtype, device=u.device) @ pieces
    return drawn.flatten(-3, -2)
