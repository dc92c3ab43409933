"""What a deployment is made of, in plain values that a configuration can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CalibrationConfig", "DeployConfig", "InputConfig", "ReplayConfig", "WatchdogConfig"]


@dataclass
class InputConfig:
    """A topic that is listened to, and what is read from it.

    Attributes:
        topic: its name.
        type: ROS 2 name of its messages.
        max_age_s: older than this it is no observation; null for what is said once and holds.
        reads: how an observation is made of it: `picture`, `ego_states`, `ego_heading`, `state`,
            `values` (a MultiArray), `number` (one, such as a command) or `route` (a Path); empty
            for what its type suggests.
        shape: of the observation, where the policy takes what it is given.
    """

    topic: str = ""
    type: str = ""
    max_age_s: float | None = 0.5
    reads: str = ""
    shape: list[int] = field(default_factory=list)


@dataclass
class WatchdogConfig:
    """The process that takes over.

    Attributes:
        enabled: whether there is one.
        silent_periods: until it takes over.
        hold_s: how long it goes on after a node that is gone.
        listen: endpoints of its own, for those who do not hear of it through the node; empty for
            any port where the node listens.
    """

    enabled: bool = True
    silent_periods: int = 3
    hold_s: float = 30.0
    listen: list[str] = field(default_factory=list)


@dataclass
class ReplayConfig:
    """A recorded drive in the place of the world.

    Attributes:
        bag: a rosbag2 folder, ``.mcap`` or ``.db3``; empty for the world.
        pace: `virtual`, as fast as it goes, or `real`.
        latency_ms: of plans in virtual time; null for what they really take.
    """

    bag: str = ""
    pace: str = "virtual"
    latency_ms: float | None = None


@dataclass
class CalibrationConfig:
    """What variants that need it are calibrated on while the node is configured.

    Attributes:
        bag: a recording with the node's topics; empty for none.
        observations: moments of it, evenly spaced.
    """

    bag: str = ""
    observations: int = 8


@dataclass
class DeployConfig:
    """A node: what it hears, what it says, and how much it trusts.

    Attributes:
        body: `vehicle`, whose policy plans waypoints, or `arm`, whose policy plans joint positions.
        node: its ROS name.
        autostart: configure and activate at once; otherwise when ``<node>/change_state`` asks.
        hz: ticks a second.
        deadline_ms, epsilon_ms, plan_every, budget_ms, hang_s: see `LoopConfig`.
        max_plan_age_s, recover_after: see `Ladder`.
        max_skew_s, future_s: see `Inputs`.
        state: odometry of a vehicle, joint states of an arm.
        inputs: observation key to the topic that fills it; one that names no topic reads `state`.
        outputs: topic to type of what is published.
        frame: of a vehicle's plans, and of the odometry and the route that they follow.
        joints: of an arm, in the policy's order.
        wheelbase_m: tells the angle of the front wheels; 0 for none.
        plan_hz, waypoints: of a vehicle's plans, where the policy does not say itself.
        limits: fields of `VehicleLimits` or `ArmLimits`.
        variants: name to what differs from the policy: `checkpoint`, `n_action_steps`, `sampler`,
            `decoding` or `accel`; the best first. None: the policy alone.
        calibration: of variants whose `accel` is calibrated and names no plan.
        chunking: `receding`, `ensemble` or `real_time` (of a policy that denoises).
        use_sim_time: live in the time that is told on ``/clock``, at any speed, without a watchdog:
            nothing that can do harm moves. A replay has its own.
        zenoh: fields of `ZenohConfig`.
        autoware: version of its trajectory.
        metrics_port: of Prometheus on this computer; 0 for none.
        recorder_s: seconds that the flight recorder keeps; 0 for none.
        spin_ms: of every wait that is spent asking for the time.
    """

    body: str = "vehicle"
    node: str = "/fastloop"
    autostart: bool = True
    hz: float = 10.0
    deadline_ms: float = 80.0
    epsilon_ms: float = 10.0
    plan_every: int = 1
    budget_ms: float = 0.0
    hang_s: float = 2.0
    max_plan_age_s: float = 1.0
    recover_after: int = 3
    max_skew_s: float = 0.2
    future_s: float = 0.05
    state: InputConfig = field(default_factory=InputConfig)
    inputs: dict[str, InputConfig] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    frame: str = "odom"
    joints: list[str] = field(default_factory=list)
    wheelbase_m: float = 0.0
    plan_hz: float = 4.0
    waypoints: int = 20
    limits: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    chunking: str = "receding"
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    use_sim_time: bool = False
    zenoh: dict[str, Any] = field(default_factory=dict)
    autoware: str = "unbounded"
    metrics_port: int = 0
    recorder_s: float = 30.0
    spin_ms: float = 0.0
