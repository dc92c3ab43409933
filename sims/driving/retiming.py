"""Recordings whose stamps are not when things were seen, told by how their own vehicle moves.

ScenarioNet writes nuScenes at an even 0.1 s, but what it takes for neighbors is now and then 0.12
or 0.2 s apart: the vehicle seems to leap by a fifth of its speed, or to double it, for one step.
At the end it goes back in time by a few steps, and its last velocity is written as 0. No bound on
accelerations survives that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import median_filter

from fastloop.datasets.driving_log import DrivingLog

__all__ = ["retimed"]

WINDOW = 9  # steps, of which most are right
SLOW = 1.0  # m/s: below it, noise of position is more than that of time
LEAP = 0.05  # of the speed
CHANGE = 0.5  # m/s from one step to the next, a harsh 5 m/s^2: less may be motion


def retimed(log: DrivingLog, *, step_s: float = 0.1) -> DrivingLog:
    """The same drive at even stamps that fit how its vehicle moves.

    A step in which the vehicle came further, or less far, than at the median speed of the steps
    about it is taken to have lasted as much longer or shorter, and a drive ends before the first
    that goes back. Braking lasts longer than a step or two: it is no leap, and stays. All
    tracks are interpolated at even stamps; the vehicle's velocity is that of its positions.

    Args:
        log: a drive with an ego that is seen throughout.
        step_s: between the new stamps.

    Returns:
        a log from the same first stamp.
    """
    assert log.ego is not None
    ego = log.tracks[log.ego]
    if len(log) < WINDOW:
        return log
    durations = np.diff(log.stamps) * 1e-9
    along = np.stack([np.cos(ego.heading), np.sin(ego.heading)], axis=1)[:-1]
    moved = (np.diff(ego.position[:, :2], axis=0) * along).sum(1)
    speed = moved / durations
    usual = median_filter(speed, WINDOW, mode="nearest")
    leap = np.abs(speed - usual) > np.maximum(LEAP * np.abs(usual), CHANGE)
    leap &= np.abs(usual) > SLOW
    durations = np.where(leap, moved / np.where(leap, usual, 1.0), durations)
    back = np.flatnonzero(durations <= 0)
    end = int(back[0]) if len(back) else len(durations)
    seen = np.concatenate([[0.0], np.cumsum(durations[:end])])
    times = step_s * np.arange(int(seen[-1] / step_s + 1e-6) + 1)
    there = np.round(np.interp(times, seen, (log.stamps[: end + 1] - log.stamps[0]).astype(float)))
    stamps = log.stamps[0] + np.round(times * 1e9).astype(np.int64)
    even = replace(log.at(log.stamps[0] + there.astype(np.int64)), stamps=stamps)
    ego = even.tracks[log.ego]
    velocity = np.gradient(ego.position[:, :2], step_s, axis=0)
    return replace(even, tracks={**even.tracks, log.ego: replace(ego, velocity=velocity)})
