"""A planner whose model lives in an engine."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.report import AccelReport
from fastloop.policies.base import Budget, Plan
from fastloop.policies.driving.extrapolation import constant_velocity
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec, SpecMismatchError
from fastloop.policies.vla.answer import read_text
from fastloop.policies.vla.interpolation import interpolate
from fastloop.policies.vla.prompt import Template
from fastloop.policies.vla.schema import Schema, Waypoints
from fastloop.policies.vla.serving.chat import chat_messages
from fastloop.policies.vla.serving.client import EngineClient, EngineError, Sampling

__all__ = ["CAMERAS", "ServedPlanner"]

CAMERAS = tuple(f"observation.images.{name}" for name in ("front_left", "front", "front_right"))
STATES, INTENT = "observation.ego_states", "observation.intent"
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
        schema: what the answer should look like; one field of it is waypoints (x, y).
        cameras: observation keys of the pictures, in the order that the model knows.
        sampling: how tokens are picked. Where the temperature is positive each environment's
            request carries a seed of its own.

    Raises:
        SpecMismatchError: where `env` does not show or take that, or plans further or finer than
            the answer's waypoints reach.
        ValueError: for a schema with more or less than one field of waypoints.
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
        found = [(path, kind) for path, kind in schema.fields() if isinstance(kind, Waypoints)]
        if len(found) != 1 or found[0][1].dim != 2:
            raise ValueError(f"the schema {schema.name} needs one field of waypoints (x, y)")
        self._path, self._kind = found[0]
        reads = (STATES, INTENT, *cameras)
        if missing := [key for key in reads if key not in env.observations]:
            offered = ", ".join(env.observations) or "nothing"
            raise SpecMismatchError(
                f"a served planner reads {missing}; {env.name} offers {offered}"
            )
        if env.horizon is None or (env.action.kind, env.action.dim) != ("waypoint", 2):
            raise SpecMismatchError(
                f"a served planner plans waypoints (x, y) over a horizon; {env.name} takes "
                f"{env.action.dim} elements of kind {env.action.kind}"
            )
        self._points = round(self._kind.step_s * env.control_hz)
        fits = abs(self._points - self._kind.step_s * env.control_hz) < 1e-6 and self._points > 0
        if not fits or self._kind.count * self._points < env.horizon or self._kind.count < 2:
            raise SpecMismatchError(
                f"{schema.name} has {self._kind.count} waypoints {self._kind.step_s} s apart; "
                f"{env.name} wants {env.horizon} at {env.control_hz} Hz"
            )
        self.client = client
        self.template = template
        self.schema = schema
        self.cameras = tuple(cameras)
        self.sampling = sampling or Sampling()
        self.name = self.digest = f"served {client.model}"
        self.spec = PolicySpec(
            inputs={key: env.observations[key] for key in reads},
            action=env.action, n_obs_steps=1, horizon=env.horizon, n_action_steps=1,
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
            return self._waypoints(text), text
        except EngineError as error:
            reason = f"{error.fault}: {error}"
        except ValueError as error:
            reason = str(error)
        times = torch.arange(1, self.spec.horizon + 1).double() / self.spec.control_hz
        known = states.double().nan_to_num(0.0, 0.0, 0.0)[None]
        straight = constant_velocity(known, known.new_zeros(1), times)[0].float()
        return straight, f"{text} [constant velocity: {reason}]".strip()

    def _waypoints(self, text: str) -> torch.Tensor:
        answer = read_text(self.schema, text)
        if answer.fallback:
            raise ValueError(answer.reason)
        value: Any = answer.values
        for key in self._path.split("."):
            value = value[key]
        points = torch.tensor(value, dtype=torch.float64)
        if points.abs().max() > self._kind.limit:
            raise ValueError(f"a waypoint lies beyond {self._kind.limit} m: {value}")
        return interpolate(points, points=self._points)[: self.spec.horizon].float()
