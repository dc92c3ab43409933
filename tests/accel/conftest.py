"""A residual stack in four lines of mathematics, to run every loop on."""

import pytest
import torch

from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.samplers import SamplerConfig, build_sampler


class ToyStack:
    """Branches tanh(W h + b_k + c), counted, optionally failing at one of the calls."""

    def __init__(
        self, layers=2, steps=12, dtype=torch.float64, width=6, action=2, cond=3, gated=False
    ):
        self.gated, self.shared = gated, steps - 1
        random = torch.Generator().manual_seed(layers)

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        kinds = ("sa", "ca", "ffn")
        self.branches = [
            Branch(f"layers.{layer}.{kind}", layer, kind)
            for layer in range(layers)
            for kind in kinds
        ]
        n = len(self.branches)
        self.inward, self.outward = normal(action, width), 0.3 * normal(width, action)
        self.weights, self.times = 0.4 * normal(n, width, width), normal(n, steps, width)
        self.conds = normal(cond, width)
        self.calls = 0
        self.contexts = 0
        self.fail_at = None

    def context(self, cond):
        self.contexts += 1
        return cond.mean(dim=1, keepdim=True) @ self.conds

    def begin(self, x, k, ctx):
        return x @ self.inward

    def branch(self, i, h, k, ctx):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the device went away")
        return torch.tanh(h @ self.weights[i] + self.times[i, k] + ctx)

    def gate(self, i, k, ctx):
        return torch.cos(self.times[i, k] + ctx) if self.gated else 1.0

    def add(self, i, h, r, k, ctx):
        return h + self.gate(i, k, ctx) * r

    def finish(self, h, k, ctx):
        return h @ self.outward

    def network(self, sampler):
        """The whole network, as a policy would publish it."""
        index = {int(t): k for k, t in enumerate(sampler.timesteps)}

        def network(x, timestep, cond):
            k, ctx = index[int(timestep)], cond.mean(dim=1, keepdim=True) @ self.conds
            h = self.begin(x, k, ctx)
            for i in range(len(self.branches)):
                value = torch.tanh(h @ self.weights[i] + self.times[i, k] + ctx)
                h = h + self.gate(i, k, ctx) * value
            return self.finish(h, k, ctx)

        return network


@pytest.fixture(scope="session")
def toy_stack():
    """The class, to build stacks of any size and dtype."""
    return ToyStack


@pytest.fixture(scope="session")
def ddpm():
    """A function (steps, dtype) -> sampler."""

    def build(steps=12, dtype=torch.float64, kind="ddpm"):
        config = SamplerConfig(kind=kind, num_train_timesteps=2 * steps, num_inference_steps=steps)
        return build_sampler(config).to("cpu", dtype)

    return build


@pytest.fixture(scope="session")
def chunk():
    """A function (sampler, batch, dtype) -> noise (num_noises, B, 5, 2) and cond (B, 2, 3)."""

    def build(sampler, batch=2, dtype=torch.float64, seed=0):
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(sampler.num_noises, batch, 5, 2, generator=random, dtype=torch.float64)
        cond = torch.randn(batch, 2, 3, generator=random, dtype=torch.float64)
        return noise.to(dtype), cond.to(dtype)

    return build
