"""Which actions are learned, and which frames are seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastloop.accel.samplers import SamplerConfig, build_schedule
from fastloop.policies.diffusion.cross_unet import CrossUnet1D
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.objective import Objective
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D

OBS, HORIZON, WIDTH = 5, 12, 3
KINDS = [
    *(("ddpm", prediction) for prediction in ("epsilon", "sample", "v_prediction")),
    ("flow", "epsilon"),
]


def network(name):
    torch.manual_seed(0)
    if name == "transformer":
        net = TransformerForDiffusion(
            2, 2, HORIZON, OBS, WIDTH, 2, 2, 16, 0.0, 0.0, causal_attn=True
        )
    elif name == "unet":
        net = ConditionalUnet1D(
            2, global_cond_dim=OBS * WIDTH, down_dims=(8, 16), n_groups=4,
            diffusion_step_embed_dim=8,
        )  # fmt: skip
    else:
        net = CrossUnet1D(
            2, WIDTH, OBS, 8, 2, down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8
        )
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def build(net):
    normalizer = LinearNormalizer()
    normalizer.set_identity("action", 2)
    normalizer.set_identity("state", WIDTH)
    return DiffusionModel(net, normalizer, ["state"])


def batch_of(size=4, seed=1):
    random = torch.Generator().manual_seed(seed)
    state = torch.randn(size, OBS, WIDTH, generator=random)
    return {"state": state, "action": torch.randn(size, HORIZON, 2, generator=random)}


def loss_of(model, objective, kind="ddpm", prediction="epsilon", batch=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    schedule = build_schedule(SamplerConfig(kind, 10, 5))
    return model.loss(
        batch or batch_of(), schedule, prediction, generator=generator, objective=objective
    )


class Echo(nn.Module):
    """Answers 0, so that the loss is the mean square of the targets; says what it was shown."""

    def forward(self, sample, timestep, cond):
        self.cond = cond
        return torch.zeros_like(sample, requires_grad=True)


@pytest.mark.parametrize("name", ["transformer", "unet", "unet_cross"])
@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_all_of_the_past_is_what_there_was_before(name, kind, prediction):
    model = build(network(name))
    before = loss_of(model, None, kind, prediction)
    for objective in (
        Objective(OBS),
        Objective(OBS, OBS - 1),
        Objective(OBS, None, [OBS]),
        Objective(OBS, OBS - 1, [OBS, OBS]),
    ):
        assert torch.equal(loss_of(model, objective, kind, prediction), before)


@pytest.mark.parametrize(("kind", "prediction"), KINDS)
@pytest.mark.parametrize("past", range(OBS))
@pytest.mark.parametrize("frames", [1, 3, OBS])
def test_the_mean_is_over_the_learned_actions(kind, prediction, past, frames):
    model = build(Echo())
    batch = batch_of()
    generator = torch.Generator().manual_seed(0)
    schedule = build_schedule(SamplerConfig(kind, 10, 5))
    noise = torch.randn(batch["action"].shape, generator=generator)
    steps = schedule.draw(4, generator)
    target = schedule.target(batch["action"], noise, steps, prediction)
    learned = HORIZON - (OBS - 1) + min(past, frames - 1)
    found = loss_of(model, Objective(OBS, past, [frames]), kind, prediction)
    torch.testing.assert_close(found, target[:, -learned:].square().mean())
    shown = batch["state"][:, -frames:]
    expected = torch.cat([shown[:, :1].expand(-1, OBS - frames, -1), shown], dim=1)
    assert torch.equal(model.model.cond, expected)


def test_a_step_draws_its_context_by_itself():
    """The same seed gives the same length; every length of the list comes up."""
    model = build(Echo())
    objective = Objective(OBS, None, [1, 3, 5])
    seen = set()
    for seed in range(30):
        drawn = []
        for _ in range(2):
            torch.rand(3)  # the global generator has no say
            loss_of(model, objective, seed=seed)
            changed = (model.model.cond != batch_of()["state"]).any(-1).all(0)
            drawn.append(OBS - int(changed.sum()))
        assert drawn[0] == drawn[1]
        seen.add(drawn[0])
    assert seen == {1, 3, 5}


def test_hidden_frames_and_actions_get_no_gradient():
    model = build(network("transformer"))
    batch = batch_of()
    batch["state"].requires_grad_(True)
    loss_of(model, Objective(OBS, None, [2]), batch=batch).backward()
    gradient = batch["state"].grad.abs().amax((0, 2))
    assert not gradient[: OBS - 2].any()
    assert gradient[OBS - 2 :].all()


@given(obs=st.integers(1, 40), data=st.data())
def test_indices(obs, data):
    past = data.draw(st.none() | st.integers(0, obs - 1))
    frames = data.draw(st.integers(1, obs))
    objective = Objective(obs, past, [frames])
    assert objective.draw(torch.Generator()) == frames
    first, seen = objective.first(frames), objective.seen(frames).tolist()
    assert 0 <= first <= obs - 1, "now is always learned"
    assert first >= seen[0], "no action is learned that is older than what is seen"
    assert obs - 1 - first == min(obs - 1 if past is None else past, frames - 1)
    assert len(seen) == obs
    assert seen[-frames:] == list(range(obs - frames, obs))
    assert set(seen[:-frames]) <= {obs - frames}


@pytest.mark.parametrize("past", [-1, 5, 9])
def test_a_past_that_a_sample_does_not_have_is_refused(past):
    with pytest.raises(ValueError, match=rf"past_steps={past} .* choose 0 to 4, or null"):
        Objective(OBS, past)


@pytest.mark.parametrize("contexts", [[0], [2, 6], [-1, 5]])
def test_contexts_that_a_sample_does_not_have_are_refused(contexts):
    with pytest.raises(ValueError, match=r"cannot be cut from 5 observation steps; .* 1 to 5"):
        Objective(OBS, None, contexts)


@pytest.mark.parametrize("frame", range(OBS))
@torch.inference_mode()
def test_an_action_of_the_past_knows_no_newer_frame(frame):
    """Whatever lies between the frames: action i of a causal transformer sees frames up to i."""
    model = build(network("transformer").eval())
    batch = batch_of()
    sample = torch.randn(4, HORIZON, 2)
    before = model.denoise(sample, torch.tensor(3), model.condition(batch))
    batch["state"][:, frame] += 1
    after = model.denoise(sample, torch.tensor(3), model.condition(batch))
    assert torch.equal(after[:, :frame], before[:, :frame])
    assert (after != before).any(-1)[:, frame:].all()
