"""The training loss, for every way of adding noise, and what conditions the network."""

import pytest
import torch
from torch import nn

from fastloop.accel.samplers import FlowPath, SamplerConfig, build_sampler, build_schedule
from fastloop.accel.samplers.base import denoise
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer

KINDS = [
    *((("ddpm"), prediction) for prediction in ("epsilon", "sample", "v_prediction")),
    ("flow", "epsilon"),
]


def batch_of(policy, size=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    batch = {
        key: torch.randint(256, (size, 2, *spec.shape), generator=random, dtype=torch.uint8)
        if spec.dtype == "uint8"
        else torch.randn(size, 2, *spec.shape, generator=random)
        for key, spec in policy.spec.inputs.items()
    }
    return batch | {"action": torch.randn(size, 8, 2, generator=random)}


def loss_of(policy, kind, prediction, seed=0):
    schedule = build_schedule(SamplerConfig(kind, 10, 5))
    generator = torch.Generator().manual_seed(seed)
    return policy.model.loss(batch_of(policy), schedule, prediction, generator=generator)


@pytest.fixture
def trained(diffusion_policy):
    """A function: a policy whose weights take gradients."""

    def build(*args, **kwargs):
        policy = diffusion_policy(*args, **kwargs)
        policy.model.requires_grad_(True)
        return policy

    return build


@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_equal_seeds_give_equal_losses(trained, kind, prediction):
    policy = trained()
    one = loss_of(policy, kind, prediction)
    torch.rand(3)  # the global generator has no say
    assert torch.equal(one, loss_of(policy, kind, prediction))
    assert not torch.equal(one, loss_of(policy, kind, prediction, seed=1))


@pytest.mark.parametrize("network", ["transformer", "unet"])
@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_the_gradient_reaches_every_weight(trained, network, kind, prediction):
    policy = trained(network)
    loss_of(policy, kind, prediction).backward()
    for name, parameter in policy.model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_gradient_reaches_the_image_encoder(trained):
    policy = trained(images=True)
    loss_of(policy, "ddpm", "epsilon").backward()
    gradients = [p.grad for p in policy.model.obs_encoder.parameters()]
    assert gradients
    assert all(gradient.abs().max() > 0 for gradient in gradients)


class Oracle(nn.Module):
    """A network that knows the clean actions, and answers what they make right."""

    def __init__(self, clean, schedule, prediction):
        super().__init__()
        self.clean, self.schedule, self.prediction = clean, schedule, prediction

    def forward(self, sample, timestep, cond):
        t = timestep.expand(len(sample))
        if isinstance(self.schedule, FlowPath):
            s = (t / self.schedule.num_train_timesteps)[:, None, None]
            return (sample - self.clean) / s
        abar = self.schedule.alphas_cumprod[t.long()][:, None, None].to(sample)
        noise = (sample - abar.sqrt() * self.clean) / (1 - abar).sqrt()
        return self.schedule.target(self.clean, noise, t.long(), self.prediction)


@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_training_and_sampling_speak_of_the_same_thing(kind, prediction):
    """A network without loss, run through the sampler, gives the actions it was trained on."""
    config = SamplerConfig(kind, 10, 10, prediction_type=prediction)
    schedule = build_schedule(config)
    clean = torch.rand(4, 8, 2, dtype=torch.float64) * 1.8 - 0.9
    normalizer = LinearNormalizer()
    normalizer.set_identity("action", 2)
    normalizer.set_identity("state", 3)
    normalizer.double()
    model = DiffusionModel(Oracle(clean, schedule, prediction), normalizer, ["state"])
    batch = {"state": torch.zeros(4, 2, 3, dtype=torch.float64), "action": clean}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        assert model.loss(batch, schedule, prediction, generator=generator) < 1e-12
    sampler = build_sampler(config).to("cpu", torch.float64)
    noises = torch.randn(sampler.num_noises, 4, 8, 2, dtype=torch.float64)
    times = sampler.timesteps
    sample = denoise(sampler, lambda k, x: model.denoise(x, times[k], None), noises)
    torch.testing.assert_close(sample, clean, rtol=1e-6, atol=1e-6)


def test_flow_draws_every_time_that_the_sampler_asks_for():
    path = build_schedule(SamplerConfig("flow", 100, 10))
    t = path.draw(10_000, torch.Generator().manual_seed(0))
    assert t.shape == (10_000,)
    assert 0 < t.min() < 0.1
    assert 99.9 < t.max() <= 100
    assert abs(t.mean() - 50) < 1.5
    asked = build_sampler(SamplerConfig("flow", 100, 10)).timesteps
    assert asked.max() == 100
    assert asked.min() == 10
    noise, clean = torch.ones(2, 8, 2), torch.zeros(2, 8, 2)
    assert torch.equal(path.add_noise(clean, noise, torch.tensor([100.0, 25.0]))[:, 0, 0],
                       torch.tensor([1.0, 0.25]))  # fmt: skip


def test_the_condition_is_the_normalized_observations_in_order(trained):
    model = trained().model
    batch = batch_of(trained())
    expected = torch.cat(
        [model.normalizer.normalize(key, batch[key]) for key in
         ("observation.state", "observation.environment_state")], dim=-1,
    )  # fmt: skip
    assert torch.equal(model.condition(batch), expected)
    assert model.condition(batch).shape == (6, 2, 7)


def test_actions_relative_to_an_observation_come_back():
    normalizer = LinearNormalizer()
    normalizer.set_field("action", torch.tensor([2.0, 4.0]), torch.tensor([0.5, 0.0]))
    model = DiffusionModel(nn.Identity(), normalizer, ["state"], relative_to="state")
    seen = {"state": torch.tensor([[[0.0, 0.0], [10.0, 20.0]]])}
    actions = torch.tensor([[[11.0, 20.0], [10.0, 21.0]]])
    inside = model.normalize_actions(actions, seen)
    assert inside.tolist() == [[[2.5, 0.0], [0.5, 4.0]]]
    torch.testing.assert_close(model.unnormalize_actions(inside, seen), actions)


def test_cumulative_actions_are_the_steps_between_them():
    normalizer = LinearNormalizer()
    normalizer.set_field("action", torch.tensor([2.0, 4.0]), torch.tensor([0.5, -1.0]))
    model = DiffusionModel(nn.Identity(), normalizer, [], cumulative=True)
    waypoints = torch.tensor([[[1.0, 0.0], [3.0, 0.5], [6.0, 0.0]]])
    steps = torch.tensor([[[1.0, 0.0], [2.0, 0.5], [3.0, -0.5]]])
    inside = model.normalize_actions(waypoints, {})
    torch.testing.assert_close(inside, steps * torch.tensor([2.0, 4.0]) + torch.tensor([0.5, -1]))
    torch.testing.assert_close(model.unnormalize_actions(inside, {}), waypoints)


@pytest.mark.parametrize("relative_to", [None, "state"])
def test_cumulative_actions_come_back_as_they_went(relative_to):
    normalizer = LinearNormalizer()
    normalizer.set_field("action", torch.tensor([0.3, 7.0]), torch.tensor([-0.2, 0.9]))
    model = DiffusionModel(
        nn.Identity(), normalizer.double(), ["state"], relative_to=relative_to, cumulative=True
    )
    actions = 50 * torch.randn(5, 20, 2, dtype=torch.float64)
    seen = {"state": torch.randn(5, 2, 2, dtype=torch.float64)}
    for there, back in (
        (model.normalize_actions, model.unnormalize_actions),
        (model.unnormalize_actions, model.normalize_actions),
    ):
        came = back(there(actions, seen), seen)
        torch.testing.assert_close(came, actions, rtol=1e-12, atol=1e-11)
    first = actions[:, 0] - (seen["state"][:, -1] if relative_to else 0)
    inside = model.normalize_actions(actions, seen)[:, 0]
    torch.testing.assert_close(inside, normalizer.normalize("action", first))
