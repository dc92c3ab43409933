"""A planner whose model lives in an engine."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from fastloop.accel.report import AccelReport
from fastloop.policies.base import Budget, Plan
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec, SpecMismatchError
from fastloop.policies.vla.answer import read_text
from fastloop.policies.vla.prompt import Template
from fastloop.policies.vla.schema import Schema
from fastloop.policies.vla.serving.chat import chat_messages
from fastloop.policies.vla.serving.client import EngineClient, EngineError, Sampling
from fastloop.policies.vla.waypoints import WaypointPlan

__all__ = ["CAMERAS", "ServedPlanner"]

CAMERAS = ("front_left", "front", "front_right")
STATES, INTENT, IMAGES = "observation.ego_states", "observation.intent", "observation.images."
TOGETHER = 16  # questions that are asked at once


class ServedPlanner:
    """Asks an engine for waypoints, and goes on at constant velocity where it gets none.

    Nothing that an engine does raises here or takes longer than the budget: a plan's text then
    ends in the reason, in brackets. It reads ``observation.ego_states`` (P, 6),
    ``observation.intent`` and one picture a camera.

    Args:
        client: of the engine.
        env: what it plans for; its action must be a waypoint (x, y) and its horizon known.
        template: words of the question.
        schema: of the answer.
        cameras: in the order that the model knows, without ``observation.images.``.
        sampling: how tokens are picked. Where the temperature is positive each environment's
            request carries a seed of its own.

    Raises:
        SpecMismatchError: where `env` does not show or take that, or plans further or finer than
            the answer's waypoints reach.
        ValueError: for a schema with more or less than one field of waypoints (x, y).
    """

    def __init__(
        self,
        client: EngineClient,
        env: EnvSpec,
        *,
        template: Template,
        schema: Schema,
        cameras: Sequence[str] = CAMERAS,
        sampling: Sampling | None = None,
    ) -> None:
        self.waypoints = WaypointPlan(schema, env)
        self.cameras = tuple(IMAGES + camera for camera in cameras)
        reads = (STATES, INTENT, *self.cameras)
        if missing := [key for key in reads if key not in env.observations]:
            offered = ", ".join(env.observations) or "nothing"
            raise SpecMismatchError(
                f"a served planner reads {missing}; {env.name} offers {offered}"
            )
        self.client = client
        self.template = template
        self.schema = schema
        self.sampling = sampling or Sampling()
        self.name = self.digest = f"served {client.model}"
        self.spec = PolicySpec(
            inputs={key: env.observations[key] for key in reads},
            action=env.action, n_obs_steps=1, horizon=self.waypoints.horizon, n_action_steps=1,
            control_hz=env.control_hz,
        )  # fmt: skip

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Waypoint k (from 0) is for ``(k + 1) / control_hz`` seconds from now.

        ``report.stage_ms["engine"]`` is how long the slowest answer took.
        """
        begin = time.monotonic()
        until = begin + (self.client.timeout_s if budget is None else budget.deadline_s)
        states, intents = (history[key][:, -1].cpu() for key in (STATES, INTENT))
        pictures = [history[camera][:, -1].cpu() for camera in self.cameras]

        def row(b: int) -> tuple[torch.Tensor, str]:
            frames = [picture[b] for picture in pictures]
            return self._row(states[b], int(intents[b]), frames, rng.keys[b], until)

        with ThreadPoolExecutor(min(len(history), TOGETHER)) as pool:
            rows = list(pool.map(row, range(len(history))))
        return Plan(
            actions=torch.stack([waypoints for waypoints, _ in rows]),
            dt=1 / self.spec.control_hz,
            t0=history.ticks,
            text=tuple(text for _, text in rows),
            report=AccelReport(stage_ms={"engine": (time.monotonic() - begin) * 1e3}),
        )

    def _row(
        self,
        states: torch.Tensor,
        intent: int,
        frames: Sequence[torch.Tensor],
        key: tuple[int, int, int],
        until: float,
    ) -> tuple[torch.Tensor, str]:
        """Waypoints (T, 2) and text of one environment."""
        sampling = self.sampling
        if sampling.temperature > 0:
            sampling = replace(sampling, seed=zlib.crc32(repr(key).encode()) >> 1)
        text = ""
        try:
            question = self.template.write(states, intent, len(frames))
            messages = chat_messages(question, frames)
            left_s = until - time.monotonic()
            text = self.client.complete(messages, sampling=sampling, deadline_s=left_s).text
            return self._read(text), text
        except EngineError as error:
            reason = f"{error.fault}: {error}"
        except ValueError as error:
            reason = str(error)
        straight = self.waypoints.straight_on(states.nan_to_num(0.0, 0.0, 0.0))
        return straight, f"{text} [constant velocity: {reason}]".strip()

    def _read(self, text: str) -> torch.Tensor:
        """Waypoints (T, 2) of an answer."""
        answer = read_text(self.schema, text)
        if answer.fallback:
            raise ValueError(answer.reason)
        points = self.waypoints(answer.values)
        if not (points.abs() <= self.waypoints.kind.limit).all():
            raise ValueError(f"a waypoint lies beyond {self.waypoints.kind.limit} m")
        return points
