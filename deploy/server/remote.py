"""A policy that lives in a server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.report import AccelReport
from fastloop.deploy.server.client import Client, RemoteError
from fastloop.deploy.server.protocol import OURS
from fastloop.policies.base import Budget, Plan
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, PolicySpec, TensorSpec

__all__ = ["RemotePolicy"]

TOGETHER = 16  # environments that ask at once, each over a connection of its own


class RemotePolicy:
    """Any server of openpi's protocol as one of our policies.

    A server of ours says what it reads, gets the whole window and the key of the noise, and so
    plans what the policy would plan here. Of another server only the protocol is known: it gets the
    newest frame, with channels last, and how far it plans is found by asking once.

    Args:
        url: of the server, such as ``ws://127.0.0.1:8000``.
        env: what it will drive; needed where the server does not say what it reads.
        names: our observation keys to what the server calls them. Another server gets exactly
            these, where some are given.
        constants: what else goes into every request, such as ``prompt``.
        n_action_steps: actions executed before planning again, where not the server's own.
        timeout_s: for an answer, where no budget says less.
        api_key: see `Client`.

    Raises:
        RemoteError: there is no such server, or it does not say what it plans.
        ValueError: another server, and no `env`.
    """

    def __init__(
        self,
        url: str,
        *,
        env: EnvSpec | None = None,
        names: Mapping[str, str] | None = None,
        constants: Mapping[str, Any] | None = None,
        n_action_steps: int | None = None,
        timeout_s: float = 10.0,
        api_key: str = "",
    ) -> None:
        self.url = url
        self.names = dict(names or {})
        self.constants = dict(constants or {})
        self._timeout_s, self._api_key = timeout_s, api_key
        self._clients = [self._open()]
        told = self._clients[0].metadata.get(OURS)
        self.ours = isinstance(told, dict)
        self.name = self.digest = f"served at {url}"
        if isinstance(told, dict):
            self.spec = _told_spec(told, n_action_steps, url)
            called = {key: value["called"] for key, value in told["inputs"].items()}
            self.names = called | self.names
        else:
            self.spec = self._found_spec(env, n_action_steps)

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Ask for every environment; ``report.stage_ms["server"]`` is how long the last one took.

        Raises:
            RemoteError: an answer is missing, late or no plan.
        """
        begun = time.monotonic()
        until = None if budget is None else begun + budget.deadline_s
        window = {key: history[key].cpu().numpy() for key in self.spec.inputs}
        rows = range(len(history))
        while len(self._clients) < min(len(rows), TOGETHER):
            self._clients.append(self._open())

        def ask(row: int) -> torch.Tensor:
            client = self._clients[row % TOGETHER]
            message = self._message({k: v[row] for k, v in window.items()}, rng.keys[row])
            left_s = None if until is None else max(until - time.monotonic(), 1e-3)
            if self.ours and left_s is not None:
                message[OURS]["deadline_ms"] = 1e3 * left_s
            return self._actions(client.infer(message, timeout_s=left_s))

        with ThreadPoolExecutor(min(len(rows), TOGETHER)) as pool:
            actions = list(pool.map(ask, rows))
        return Plan(
            actions=torch.stack(actions),
            dt=1.0 / self.spec.control_hz,
            t0=history.ticks,
            report=AccelReport(stage_ms={"server": 1e3 * (time.monotonic() - begun)}),
        )

    def _open(self) -> Client:
        return Client(self.url, timeout_s=self._timeout_s, api_key=self._api_key)

    def close(self) -> None:
        """Give all connections up."""
        for client in self._clients:
            client.close()

    def _message(
        self, window: Mapping[str, npt.NDArray[Any]], key: tuple[int, int, int]
    ) -> dict[str, Any]:
        """The question for one environment, of its window (O, ...)."""
        if self.ours:
            named = {self.names[name]: value for name, value in window.items()}
            told: dict[str, Any] = {"window": True, "key": list(key)}
            return {**self.constants, **named, OURS: told}
        named = {self.names.get(name, name): _shown(value[-1]) for name, value in window.items()}
        return {**self.constants, **named}

    def _actions(self, found: Mapping[str, Any]) -> torch.Tensor:
        """(T, A) float32 of an answer."""
        actions = found.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2:
            raise RemoteError(f"{self.url} answered without actions (T, A): {sorted(found)}")
        expected = (self.spec.horizon - self.spec.n_obs_steps + 1, self.spec.action.dim)
        if actions.shape != expected:
            raise RemoteError(f"{self.url} planned {actions.shape}, expected {expected}")
        if not np.isfinite(actions).all():
            raise RemoteError(f"{self.url} planned what is not finite")
        return torch.tensor(actions, dtype=torch.float32)

    def _found_spec(self, env: EnvSpec | None, n_action_steps: int | None) -> PolicySpec:
        if env is None:
            raise ValueError(
                f"{self.url} does not say what it reads: say what it will drive (sim=...)"
            )
        if missing := sorted(set(self.names) - set(env.observations)):
            have = ", ".join(env.observations)
            raise ValueError(f"names: {env.name} does not show {missing}; it shows {have}")
        keys = self.names or env.observations
        inputs = {key: env.observations[key] for key in keys}
        low = {
            key: np.full((1, *one.shape), np.clip(0, one.low, one.high), one.dtype)
            for key, one in inputs.items()
        }
        self.spec = PolicySpec(inputs, env.action, 1, 1, 1, env.control_hz)
        found = self._clients[0].infer(self._message(low, (0, 0, 0))).get("actions")
        horizon = len(found) if isinstance(found, np.ndarray) and found.ndim == 2 else 0
        if not horizon:
            raise RemoteError(f"{self.url} answered without actions (T, A)")
        steps = n_action_steps or horizon
        return PolicySpec(inputs, env.action, 1, horizon, steps, env.control_hz)


def _told_spec(told: Mapping[str, Any], n_action_steps: int | None, url: str) -> PolicySpec:
    """What a server of ours says of itself."""
    try:
        inputs = {
            key: TensorSpec(
                tuple(value["shape"]), value["dtype"], value["low"], value["high"],
                tuple(value["names"]), value["unit"],
            )
            for key, value in told["inputs"].items()
        }  # fmt: skip
        action = told["action"]
        return PolicySpec(
            inputs=inputs,
            action=ActionSpec(
                action["dim"], action["kind"], tuple(action["low"]), tuple(action["high"]),
                tuple(action["names"]), action["unit"],
            ),
            n_obs_steps=told["n_obs_steps"], horizon=told["horizon"],
            n_action_steps=n_action_steps or told["n_action_steps"],
            control_hz=told["control_hz"], lags=tuple(told["lags"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise RemoteError(f"{url} describes itself in a way unknown here ({error!r})") from error


def _shown(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image with its channels last, anything else as it is."""
    return np.moveaxis(value, 0, -1) if value.ndim == 3 and value.dtype == np.uint8 else value
