"""How many ticks back the frames of a policy's window lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

__all__ = ["Spacing", "check_lags", "lags"]

Spacing = Literal["uniform", "mixed"]


def lags(n_obs_steps: int, stride: int = 1, spacing: Spacing = "uniform") -> tuple[int, ...]:
    """Ticks back of each frame, oldest first; the last is 0, the newest frame.

    A policy that sees every 20th tick remembers 20 times as long for the same number of frames, as
    PTP's long-horizon tasks need (Torne et al. 2025).

    Args:
        n_obs_steps: O, frames in the window.
        stride: ticks between two frames.
        spacing: ``uniform``, or ``mixed``: the newer half lies tick after tick, the older half
            `stride` ticks apart behind it.

    Raises:
        ValueError: for a window or stride below 1, or an unknown spacing.
    """
    if n_obs_steps < 1 or stride < 1:
        raise ValueError(
            f"a window has at least 1 frame and a stride of at least 1 tick, got {n_obs_steps} "
            f"and {stride}"
        )
    if spacing not in ("uniform", "mixed"):
        raise ValueError(f"unknown spacing {spacing!r}; choose from uniform, mixed")
    dense = n_obs_steps - n_obs_steps // 2 if spacing == "mixed" else 1
    sparse = n_obs_steps - dense
    near = range(dense)
    far = range(near[-1] + stride, near[-1] + stride * sparse + 1, stride)
    return (*reversed(far), *reversed(near))


def check_lags(given: Sequence[int], n_obs_steps: int) -> tuple[int, ...]:
    """The lags of a window, those of the last O ticks where none are given.

    Raises:
        ValueError: they do not fall to 0, or are not as many as the window has frames.
    """
    complete = tuple(given) or lags(n_obs_steps)
    falls = all(older > newer for older, newer in pairwise(complete))
    if len(complete) != n_obs_steps or complete[-1] != 0 or not falls:
        raise ValueError(
            f"the lags of {n_obs_steps} frames must fall to 0, the newest; got {complete}"
        )
    return complete
