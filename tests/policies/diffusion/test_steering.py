"""Chains that are drawn towards what is known, beside references in float64."""

import math

import pytest
import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import FlowEuler, SamplerConfig, build_sampler, denoise
from fastloop.policies.diffusion.steering import (
    GuidedLoop,
    Known,
    Replaced,
    check_steerable,
    guidable,
    replaced_loop,
    times,
)

KINDS = ["ddpm", "ddim", "dpm_solver", "flow"]
B, T, A = 3, 6, 2


def sampler(kind, steps=5, prediction="epsilon", clip=True):
    config = SamplerConfig(kind, 20, steps, prediction_type=prediction, clip_sample=clip)
    return build_sampler(config)


def draws(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MIX = 0.3 * draws(9, T, T) / math.sqrt(T)


def estimate(x, s):
    """A clean estimate for the sample on the straight path; every tick depends on all others."""
    return torch.tanh((1 - s) * x + torch.einsum("ut,bta->bua", MIX, x))


def velocity(x, t, cond):
    """`estimate` as a flow network says it."""
    return (x - estimate(x, t.double())) / t.double()


def known(weights=None):
    actions = 0.8 * torch.tanh(draws(1, B, T, A))
    if weights is None:
        weights = torch.tensor([1.0, 1, 0.6, 0.2, 0, 0]).double()
    return Known(actions, weights.expand(B, T)[..., None].clone())


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_for_sure_is_where_the_chain_ends(kind, prediction):
    plain = sampler(kind, prediction=prediction)
    told = known()
    noises = draws(0, plain.num_noises, B, T, A)
    network = lambda k, x: torch.sin(3 * x + k)  # noqa: E731
    free = denoise(plain, network, noises)
    ends = denoise(Replaced(plain, told), network, noises)
    torch.testing.assert_close(ends[:, :2], told.actions[:, :2])
    torch.testing.assert_close(ends[:, 4:], free[:, 4:], rtol=0, atol=0)
    near, far = ((x - told.actions)[:, 2].abs().mean() for x in (ends, free))
    assert near < far


def test_with_flow_the_known_ticks_go_straight_from_their_noise():
    """The prefix form is inpainting: at time s they are (1 - s) actions + s noise."""
    plain, told, noise = sampler("flow"), known(), draws(0, 1, B, T, A)
    seen = []

    def network(k, x):
        seen.append(x)
        return torch.sin(3 * x)

    denoise(Replaced(plain, told), network, noise)
    for s, x in zip(times(plain), seen, strict=True):
        expected = (1 - s) * told.actions + s * noise[0]
        torch.testing.assert_close(x[:, :2], expected[:, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_known_changes_nothing_to_the_bit(kind):
    plain, told = sampler(kind), known(torch.zeros(T).double())
    told.actions[:] = 1e30
    noises = draws(0, plain.num_noises, B, T, A)
    network = lambda x, t, cond: torch.sin(3 * x + t.double())  # noqa: E731
    free, _ = PlainLoop(network, plain)(noises, None)
    for loop in (
        PlainLoop(network, Replaced(plain, told)),
        GuidedLoop(PlainLoop(network, plain), known(torch.zeros(T).double())),
    ):
        assert torch.equal(loop(noises, None)[0], free)


def published(x, y, weights, steps, limit):
    """`realtime_action` of the authors' code, line by line: time runs from noise at 0 to 1."""
    time, dt = 0.0, 1 / steps
    for _ in range(steps):

        def denoiser(x, time=time):
            v = -velocity(x, torch.tensor(1 - time), None)
            return x + v * (1 - time), v

        x_1, vjp, v = torch.func.vjp(denoiser, x, has_aux=True)
        (correction,) = vjp((y - x_1) * weights)
        inv_r2 = (time**2 + (1 - time) ** 2) / (1 - time) ** 2
        c = (1 - time) / time if time else math.inf
        x = x + dt * (v + min(c * inv_r2, limit) * correction)
        time += dt
    return x


@pytest.mark.parametrize("limit", [0.5, 5.0, 30.0])
@pytest.mark.parametrize("steps", [5, 8])
def test_guidance_is_the_published_one(steps, limit):
    told, noise = known(), draws(0, 1, B, T, A)
    loop = PlainLoop(velocity, FlowEuler.build(steps))
    found, report = GuidedLoop(loop, told, limit)(noise, None)
    expected = published(noise[0], told.actions, told.weights, steps, limit)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # timesteps are float32
    assert report.network_evaluations == steps


def test_with_five_equal_steps_the_limit_is_the_published_five():
    told, noise = known(), draws(0, 1, B, T, A)
    loop = PlainLoop(velocity, FlowEuler.build(5))
    own, given = (GuidedLoop(loop, told, limit)(noise, None)[0] for limit in (None, 5.0))
    torch.testing.assert_close(own, given)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_guidance_is_the_same_on_every_path(prediction):
    """DDIM takes the steps of flow matching at the same times, scaled; so does its guidance."""
    ddim = sampler("ddim", 6, prediction, clip=False)
    s = times(ddim)
    alpha, sigma = (torch.sigmoid(sign * 2 * ddim.log_snr).sqrt() for sign in (1, -1))

    def network(x, t, cond):
        k = int((ddim.timesteps == t).nonzero())
        x0 = estimate(x / (alpha[k] + sigma[k]), s[k])
        return (x0 - ddim.x0_sample[k] * x) / ddim.x0_output[k]

    told, noise = known(), draws(0, 1, B, T, A)
    found, _ = GuidedLoop(PlainLoop(network, ddim), told)(noise * (alpha[0] + sigma[0]), None)
    flow = FlowEuler(s.float(), ddim.log_snr, of_output=torch.cat([s[1:], s.new_zeros(1)]) - s)
    expected, _ = GuidedLoop(PlainLoop(velocity, flow), told)(noise, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_guidance_runs_in_inference_mode_and_leaves_no_graph(diffusion_policy, kind):
    policy = diffusion_policy(kind=kind)
    with torch.inference_mode():
        noise, cond = torch.randn(1, 2, 8, 2), torch.randn(2, 2, 7)
        told = Known(torch.zeros(2, 8, 2), torch.ones(2, 8, 1))
        sample, _ = GuidedLoop(guidable(policy.loop), told)(noise, cond)
    assert not sample.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in policy.model.parameters())


def test_a_cached_loop_takes_a_prefix_and_is_itself_unchanged(diffusion_policy):
    policy = accelerate(diffusion_policy(kind="ddim"), AccelConfig("uniform", budget=3))
    noise, cond = torch.randn(1, 2, 8, 2), torch.randn(2, 2, 7)
    weights = torch.zeros(2, 8, 1)
    weights[:, :3] = 1
    told = Known(torch.full((2, 8, 2), 0.5), weights)
    before, _ = policy.loop(noise, cond)
    sample, report = replaced_loop(policy.loop, told)(noise, cond)
    assert report.name == "uniform"
    assert report.reused > 0
    torch.testing.assert_close(sample[:, :3], told.actions[:, :3])
    assert torch.equal(policy.loop(noise, cond)[0], before)


def test_guidance_refuses_what_has_no_derivative(diffusion_policy):
    policy = diffusion_policy(kind="ddim")
    cached = accelerate(policy, AccelConfig("uniform", budget=3))
    with pytest.raises(ValueError, match=r"accel=uniform reuses .* accel=none"):
        guidable(cached.loop)
    exact = accelerate(policy, AccelConfig("exact"))
    assert isinstance(exact.loop, AcceleratedLoop)
    assert guidable(exact.loop) is policy.loop
    for function in (guidable, lambda loop: replaced_loop(loop, known())):
        with pytest.raises(ValueError, match="say accel=none"):
            function(lambda noise, cond: None)


def test_a_solver_that_ends_without_noise_is_refused():
    with pytest.raises(ValueError, match=r"policy\.sampler\.kind=flow"):
        check_steerable(sampler("flow_rk4"))


def test_a_replaced_sampler_can_be_moved():
    moved = Replaced(sampler("ddim"), known()).to("cpu", torch.float32)
    assert moved.known.actions.dtype == moved.known.weights.dtype == torch.float32
    assert moved.sampler.x0_sample.dtype == torch.float32
