"""The moving average: its schedule, what it averages, and that it resumes."""

import pytest
import torch
from torch import nn

from fastloop.policies.diffusion.ema import EMA


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def disturb(net):
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            value.add_(torch.ones_like(value))


def test_schedule():
    ema = EMA(network())
    decays = []
    for _ in range(4):
        decays.append(ema.decay())
        ema.update(network())
    assert decays == pytest.approx([0, 0, 1 - 2**-0.75, 1 - 3**-0.75])
    ema.step = 10**7
    assert ema.decay() == 0.9999


def test_update_after_step_and_inv_gamma_delay_the_schedule():
    ema = EMA(network(), update_after_step=10, inv_gamma=2.0)
    ema.step = 11
    assert ema.decay() == 0
    ema.step = 15
    assert ema.decay() == pytest.approx(1 - 3**-0.75)


def test_averages_parameters_and_copies_the_rest():
    net = network()
    net[2].requires_grad_(False)
    ema = EMA(net)
    ema.step = 100
    decay, before = ema.decay(), {k: v.clone() for k, v in ema.averaged.state_dict().items()}
    disturb(net)
    ema.update(net)
    now, after = net.state_dict(), ema.averaged.state_dict()
    for name in ("0.weight", "0.bias", "1.weight"):
        torch.testing.assert_close(
            after[name], decay * before[name] + (1 - decay) * now[name], rtol=1e-5, atol=1e-6
        )
    for name in ("1.running_mean", "1.num_batches_tracked", "2.weight"):
        assert torch.equal(after[name], now[name])


def test_the_copy_is_its_own_and_not_trained():
    net = network()
    ema = EMA(net)
    disturb(net)
    assert not torch.equal(ema.averaged[0].weight, net[0].weight)
    assert not ema.averaged.training
    assert not any(p.requires_grad for p in ema.averaged.parameters())
    assert net.training


def test_resumes_where_it_was():
    net = network()
    straight = EMA(net)
    for _ in range(3):
        disturb(net)
        straight.update(net)
    resumed = EMA(network(seed=1))
    resumed.load_state_dict(straight.state_dict())
    for ema in (straight, resumed):
        ema.update(network(seed=2))
    assert resumed.step == straight.step == 4
    for a, b in zip(resumed.averaged.parameters(), straight.averaged.parameters(), strict=True):
        assert torch.equal(a, b)
