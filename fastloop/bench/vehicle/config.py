"""The configuration of the vehicle bench; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["VehicleBenchConfig", "VehicleBounds"]


@dataclass
class VehicleBounds:
    """What is aimed for, on two cores.

    Attributes:
        framework_p50_ms, framework_p99_ms: a tick without the policy, one 1 MB image in.
        lateness_p99_ms: of a tick after its slot.
        takeover_periods: from the kill to the watchdog's message.
        memory_growth: as a share, of a node that is given faults.
    """

    framework_p50_ms: float = 1.5
    framework_p99_ms: float = 4.0
    lateness_p99_ms: float = 2.0
    takeover_periods: float = 3.0
    memory_growth: float = 0.02


@dataclass
class VehicleBenchConfig:
    """What the on-vehicle loop costs without the policy, how late its ticks are, how soon the
    watchdog takes over when the node is killed, and what faults do to it.

    Another process sends an image and odometry over TCP at the loop's rate; the policy reads both
    and goes on at constant velocity.

    Attributes:
        hz: ticks a second.
        seconds: of ticking.
        image_size: width and height of the RGB image; 640 x 546 is 1 MB.
        spin_ms: of every wait that is spent asking for the time.
        kills: nodes that are killed; 0 for none.
        kill_hz: ticks a second of these.
        fault_seconds: of a node in this process that is given one fault after the other, a second
            and a half each, with as much between; 0 for none.
        fault_hz: ticks a second of it.
    """

    hz: float = 50.0
    seconds: float = 20.0
    image_size: list[int] = field(default_factory=lambda: [640, 546])
    spin_ms: float = 0.0
    kills: int = 5
    kill_hz: float = 10.0
    fault_seconds: float = 60.0
    fault_hz: float = 10.0
    bounds: VehicleBounds = field(default_factory=VehicleBounds)
    run_dir: str | None = None
