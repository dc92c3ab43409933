"""A policy that says what it saw, and a raw client."""

import threading

import pytest
import torch

from fastloop.deploy.server.server import PolicyServer, ServerConfig, running
from fastloop.policies.base import Plan
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

STATE, TOP = "observation.state", "observation.images.top"


class Echo:
    """Plans (T, 3): the newest state, the oldest one of the window, and noise."""

    def __init__(self, images=False, n_obs_steps=2, lags=(), horizon=6):
        inputs = {STATE: TensorSpec((2,))}
        if images:
            inputs[TOP] = TensorSpec((3, 4, 5), "uint8", 0, 255)
        action = ActionSpec(3, "absolute_position", (-9.0,) * 3, (9.0,) * 3, ("a", "b", "c"), "m")
        self.spec = PolicySpec(inputs, action, n_obs_steps, horizon, 3, 10.0, lags)
        self.histories, self.budgets, self.threads = [], [], set()
        self.before = lambda history: None

    def plan(self, history, *, rng, budget=None):
        self.histories.append(history)
        self.budgets.append(budget)
        self.threads.add(threading.current_thread().name)
        self.before(history)
        state, noise = history[STATE], rng.normal((4,))
        told = torch.stack([state[:, -1, 0], state[:, 0, 0], noise[:, 0]], -1)
        length = self.spec.horizon - self.spec.n_obs_steps + 1
        return Plan(told[:, None].repeat(1, length, 1), 0.1, history.ticks)


@pytest.fixture
def echo():
    """The policy's class: (images, n_obs_steps, lags, horizon)."""
    return Echo


@pytest.fixture
def serve():
    """A context manager (policy, **ServerConfig) -> (url, server)."""
    from contextlib import contextmanager

    @contextmanager
    def start(policy, *, name="echo", **config):
        server = PolicyServer(policy, ServerConfig(port=0, **config), name=name)
        with running(server) as port:
            yield f"ws://127.0.0.1:{port}", server

    return start
