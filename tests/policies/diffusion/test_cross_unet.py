"""The U-Net that attends to the frames: against torch's own attention, and what it depends on."""

import pytest
import torch
from torch import nn

from fastloop.policies.diffusion.cross_unet import CrossAttention, CrossUnet1D

OBS, WIDTH = 5, 7
SMALL = {"n_emb": 12, "diffusion_step_embed_dim": 8, "n_groups": 4, "down_dims": (8, 16, 24)}


def build(**config):
    torch.manual_seed(0)
    net = CrossUnet1D(2, WIDTH, OBS, **SMALL | config).double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net, torch.randn(3, 8, 2).double(), torch.randn(3, OBS, WIDTH).double()


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours = CrossAttention(8, 12, 2).double()
    theirs = nn.MultiheadAttention(8, 2, kdim=12, vdim=12, batch_first=True).double()
    theirs.q_proj_weight.data = ours.query.weight.data
    theirs.k_proj_weight.data, theirs.v_proj_weight.data = ours.key_value.weight.data.chunk(2)
    theirs.in_proj_bias.data = torch.cat([ours.query.bias.data, ours.key_value.bias.data])
    theirs.out_proj = ours.out
    x, tokens = torch.randn(3, 8, 6).double(), torch.randn(3, 5, 12).double()
    expected, _ = theirs(ours.norm(x.mT), tokens, tokens)
    torch.testing.assert_close(ours(x, ours.memory(tokens)).mT, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("down_dims", [(8,), (8, 16), (8, 16, 24)])
def test_every_weight_and_every_observation_has_a_say(scaled, down_dims):
    net, sample, cond = build(down_dims=down_dims, cond_predict_scale=scaled)
    cond.requires_grad_(True)
    output = net(sample, torch.tensor([0, 3, 9]), cond)
    assert output.shape == sample.shape
    output.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (cond.grad.abs().amax(2) > 0).all()


def test_the_order_of_the_frames_matters():
    net, sample, cond = build()
    turned = net(sample, 3, cond.flip(1))
    assert not torch.allclose(turned, net(sample, 3, cond))
    net.cond_pos_emb.data.zero_()
    torch.testing.assert_close(net(sample, 3, cond.flip(1)), net(sample, 3, cond))


def test_rows_do_not_mix():
    net, sample, cond = build()
    whole = net(sample, torch.tensor([1, 5, 9]), cond)
    torch.testing.assert_close(net(sample[1:2], 5, cond[1:2]), whole[1:2])


def test_a_horizon_that_cannot_be_halved_is_refused():
    net, sample, cond = build()
    with pytest.raises(ValueError, match="3 levels needs a horizon that is a multiple of 4, got 6"):
        net(sample[:, :6], 0, cond)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 heads do not fit 8 channels; expected a divisor"):
        build(n_head=3)
