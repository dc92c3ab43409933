"""A small trained CacheFlow of walkers who go straight, turn left or turn right."""

import pytest
import torch

from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.cacheflow.training import build_trainer
from fastloop.policies.training import TrainConfig

SIZES = {
    "dims": 4, "components": 6, "width": 16, "flow_layers": 2, "flow_width": 16, "budget": 128,
}  # fmt: skip


def walkers(count, seed=0):
    """Pasts (n, 4, 2) with their speed, and futures (n, 6, 2) that turn by -1, 0 or 1."""
    random = torch.Generator().manual_seed(seed)
    speed = 0.5 + torch.rand(count, 1, generator=random)
    past, ahead = torch.arange(-3, 1) * 0.4, torch.arange(1, 7) * 0.4
    angle = 0.3 * torch.randint(-1, 2, (count, 1), generator=random) * ahead
    angle += 0.02 * torch.randn(count, 1, generator=random)
    history = torch.stack([speed * past, 0 * speed * past], -1)
    future = torch.stack([speed * ahead * angle.cos(), speed * ahead * angle.sin()], -1)
    history += 0.01 * torch.randn(history.shape, generator=random)
    return Samples(history, future + 0.01 * torch.randn(future.shape, generator=random))


@pytest.fixture(scope="session")
def samples():
    """The function (count, seed) -> `Samples`."""
    return walkers


@pytest.fixture(scope="session")
def small():
    """A function that makes an untrained model of samples, with sizes that can be changed."""

    def make(samples, **changes):
        torch.manual_seed(0)
        return CacheFlowModel.new(CacheFlowConfig(**{**SIZES, **changes}), samples)

    return make


@pytest.fixture(scope="session")
def trained(small):
    """A `CacheFlow` after 150 steps."""
    learned = walkers(400)
    config = TrainConfig(steps=150, batch_size=64, lr=5e-3, warmup_steps=10, autocast=True)
    trainer = build_trainer(small(learned), learned, config)
    for _ in range(config.steps):
        trainer.advance()
    return CacheFlow.build(trainer.ema.averaged, learned)
