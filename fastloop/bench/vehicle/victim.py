"""A process that beats until it is killed: ``python -m fastloop.bench.vehicle.victim``."""

from __future__ import annotations

import sys
import time

import numpy as np

from fastloop.deploy.motion import Motion
from fastloop.deploy.watchdog import Watchdog

PLAN = "/plan"


def main(endpoint: str, hz: float) -> None:
    """Beat, and print a line for each beat.

    Args:
        endpoint: where the watchdog's messages go.
        hz: beats a second.
    """
    settings = {
        "zenoh": {"node": "/watchdog", "listen": [], "connect": [endpoint]},
        "autoware": "unbounded",
        "name": "victim",
        "outputs": {PLAN: "nav_msgs/msg/Path"},
    }
    watchdog = Watchdog(1 / hz, settings, hold_s=1.0)
    watchdog.start()
    tick = 0
    while True:
        times = time.monotonic() + 0.5 * np.arange(5)
        watchdog.beat(tick, Motion(times, np.zeros((5, 5))))
        print(f"{time.monotonic():.6f}", flush=True)
        time.sleep(1 / hz)
        tick += 1


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
