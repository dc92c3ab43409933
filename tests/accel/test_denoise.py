import pytest
import torch

from fastloop.accel.denoise import PlainLoop


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver", "flow"])
def test_plain_loop_is_the_chain_step_by_step(kind, toy_stack, ddpm, chunk):
    sampler = ddpm(steps=6, kind=kind)
    noise, cond = chunk(sampler)
    seen = []

    def network(x, timestep, cond):
        seen.append(float(timestep))
        return 0.1 * x + cond.mean()

    sample, report = PlainLoop(network, sampler)(noise, cond)

    expected, memory = noise[0], None
    for k in range(6):
        fresh = noise[k + 1] if k + 1 < len(noise) else None
        expected, memory = sampler.step(k, expected, 0.1 * expected + cond.mean(), fresh, memory)
    assert torch.equal(sample, expected)
    assert seen == sampler.timesteps.tolist()
    assert (report.name, report.exact, report.network_evaluations) == ("none", True, 6)
    assert report.computed == report.reused == 0
    report.check_engaged()


def test_plain_loop_keeps_nothing_between_calls(toy_stack, ddpm, chunk):
    sampler = ddpm(kind="dpm_solver")
    loop = PlainLoop(toy_stack().network(sampler), sampler)
    first, _ = loop(*chunk(sampler, batch=2))
    loop(*chunk(sampler, batch=5, seed=1))
    again, _ = loop(*chunk(sampler, batch=2))
    assert torch.equal(first, again)


def test_plain_loop_refuses_too_little_noise(toy_stack, ddpm, chunk):
    sampler = ddpm()
    noise, cond = chunk(sampler)
    with pytest.raises(ValueError, match="needs 12 noise tensors, got 1"):
        PlainLoop(toy_stack().network(sampler), sampler)(noise[:1], cond)
