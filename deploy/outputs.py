"""What the node and its watchdog publish: the plan in the types that are asked, and diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastloop.deploy.conversions.diagnostics import Level, Status, diagnostics
from fastloop.deploy.conversions.lifecycle import transition_event
from fastloop.deploy.conversions.trajectory import autoware_trajectory, joint_trajectory, path
from fastloop.deploy.health.status import ERROR, Health
from fastloop.deploy.messages import Messages
from fastloop.deploy.motion import Motion
from fastloop.deploy.transport.base import Publisher, QoS, Sample, Transport, plan_qos
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

__all__ = ["PLAN_TYPES", "PlanSender", "WireSender"]

PLAN_TYPES = (
    "autoware_planning_msgs/msg/Trajectory", "nav_msgs/msg/Path",
    "trajectory_msgs/msg/JointTrajectory",
)  # fmt: skip
DIAGNOSTICS = QoS(reliable=True, depth=10)  # and transitions


class PlanSender:
    """Publishes motions and health.

    Args:
        messages: the types.
        transport: to publish on.
        name: of the node, in diagnostics.
        outputs: topic to type, one of `PLAN_TYPES`.
        frame: of a vehicle's motions.
        joints: names of an arm's.
        wheelbase_m: tells the angle of the front wheels; 0 for none.
        period_s, horizon_s: of plans.
        tap: is given a copy of everything that is sent.

    Raises:
        ValueError: for another type.
    """

    def __init__(
        self,
        messages: Messages,
        transport: Transport,
        *,
        name: str,
        outputs: Mapping[str, str],
        frame: str = "odom",
        joints: Sequence[str] = (),
        wheelbase_m: float = 0.0,
        period_s: float = 0.1,
        horizon_s: float = 5.0,
        tap: Callable[[Sample], None] | None = None,
    ) -> None:
        for topic, kind in outputs.items():
            if kind not in PLAN_TYPES:
                raise ValueError(f"{topic} cannot be a {kind}; choose from {', '.join(PLAN_TYPES)}")
        self.messages = messages
        self.name = name
        self.frame = frame
        self.joints = tuple(joints)
        self.wheelbase_m = wheelbase_m
        qos = plan_qos(period_s, horizon_s)
        self._plans = [
            (topic, kind, transport.publisher(topic, kind, qos)) for topic, kind in outputs.items()
        ]
        kind = "diagnostic_msgs/msg/DiagnosticArray"
        self._health = (
            "/diagnostics",
            kind,
            transport.publisher("/diagnostics", kind, DIAGNOSTICS),
        )
        self._tap = tap
        self._transport = transport
        self._transitions: Publisher | None = None  # of a node; its watchdog has none

    def send(self, motion: Motion, stamp_ns: int) -> None:
        """The plan on every topic: `motion`, whose first moment is `stamp_ns`.

        Raises:
            OSError: when it cannot be sent now.
        """
        for topic, kind, publisher in self._plans:
            message = self._message(kind, motion, stamp_ns)
            self._send(topic, kind, publisher, message, stamp_ns)

    def _send(
        self, topic: str, kind: str, publisher: Publisher, message: Any, stamp_ns: int
    ) -> None:
        data = self.messages.encode(message)
        try:
            publisher.send(data, stamp_ns)
        finally:  # who listens in must not keep it from going out
            if self._tap is not None:
                self._tap(Sample(topic, kind, data, stamp_ns, stamp_ns))

    def _message(self, kind: str, motion: Motion, stamp_ns: int) -> Any:
        times, points = motion.times - motion.times[0], motion.points
        if kind == PLAN_TYPES[0]:
            return autoware_trajectory(
                self.messages, times, points, stamp_ns,
                frame=self.frame, wheelbase_m=self.wheelbase_m,
            )  # fmt: skip
        if kind == PLAN_TYPES[1]:
            return path(self.messages, times, points, stamp_ns, frame=self.frame)
        return joint_trajectory(self.messages, times, points, stamp_ns, self.joints)

    def report(self, health: Health, stamp_ns: int) -> None:
        """On ``/diagnostics``.

        Raises:
            OSError: when it cannot be sent now.
        """
        status = Status(health.name, Level(health.level), health.message, health.values)
        self._send(*self._health, diagnostics(self.messages, stamp_ns, [status]), stamp_ns)

    def transition(self, transition: str, before: str, after: str, stamp_ns: int) -> None:
        """On ``/<node>/transition_event``.

        Raises:
            OSError: when it cannot be sent now.
        """
        topic, kind = f"/{self.name}/transition_event", "lifecycle_msgs/msg/TransitionEvent"
        if self._transitions is None:
            self._transitions = self._transport.publisher(topic, kind, DIAGNOSTICS)
        message = transition_event(self.messages, transition, before, after, stamp_ns)
        self._send(topic, kind, self._transitions, message, stamp_ns)

    def alarm(self, words: str, stamp_ns: int) -> None:
        """An ERROR of the watchdog's."""
        self.report(Health(ERROR, f"{self.name}: watchdog", words, {}, ()), stamp_ns)


class WireSender(PlanSender):
    """A `PlanSender` with a zenoh session of its own, made of plain values.

    Args:
        zenoh: fields of `ZenohConfig`.
        autoware: version of its trajectory, as of `Messages`.
        settings: of `PlanSender`.
    """

    def __init__(self, *, zenoh: Mapping[str, Any], autoware: str, **settings: Any) -> None:
        messages = Messages(autoware)
        lists = {key: tuple(zenoh[key]) for key in ("listen", "connect") if key in zenoh}
        self.transport = ZenohTransport(messages, ZenohConfig(**{**zenoh, **lists}))
        super().__init__(messages, self.transport, **settings)

    def close(self) -> None:
        """Leave."""
        self.transport.close()
