"""The U-Net against a by-hand forward over its state dict, and its published keys."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fastloop.policies.diffusion.unet import ConditionalUnet1D

CONFIGS = [
    {"down_dims": (16, 32, 64), "global_cond_dim": 7},
    {"down_dims": (16, 32, 64), "global_cond_dim": 7, "cond_predict_scale": True, "kernel_size": 5},
    {"down_dims": (8, 24), "local_cond_dim": 5, "n_groups": 4},
    {"down_dims": (16, 32), "local_cond_dim": 5, "global_cond_dim": 3, "cond_predict_scale": True},
    {"down_dims": (8, 16, 24, 32)},
]


def build(config, input_dim=3):
    torch.manual_seed(0)
    net = ConditionalUnet1D(input_dim, diffusion_step_embed_dim=12, **config).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def by_hand(weights, x, t, local_cond, global_cond, levels, groups, scaled):
    """The published forward pass, spelled out with functions on named tensors."""

    def conv_block(x, key, groups):
        weight = weights[f"{key}.block.0.weight"]
        x = F.conv1d(x, weight, weights[f"{key}.block.0.bias"], padding=weight.shape[2] // 2)
        b, c, n = x.shape
        grouped = x.reshape(b, groups, c // groups * n)
        mean = grouped.mean(2, keepdim=True)
        variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
        x = ((grouped - mean) / torch.sqrt(variance + 1e-5)).reshape(b, c, n)
        x = x * weights[f"{key}.block.1.weight"][:, None] + weights[f"{key}.block.1.bias"][:, None]
        return mish(x)

    def mish(x):
        return x * torch.tanh(torch.log1p(torch.exp(x)))

    def linear(x, key):
        return x @ weights[f"{key}.weight"].T + weights[f"{key}.bias"]

    def residual(x, cond, key):
        out = conv_block(x, f"{key}.blocks.0", groups)
        film = linear(mish(cond), f"{key}.cond_encoder.1")
        if scaled:
            film = film.reshape(len(film), 2, -1, 1)
            out = film[:, 0] * out + film[:, 1]
        else:
            out = out + film[:, :, None]
        out = conv_block(out, f"{key}.blocks.1", groups)
        name = f"{key}.residual_conv"
        if f"{name}.weight" in weights:
            x = F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        return out + x

    half = 6
    angles = t[:, None] * torch.tensor(
        [math.exp(-math.log(10000) * i / (half - 1)) for i in range(half)]
    )
    cond = torch.cat([torch.sin(angles), torch.cos(angles)], 1).double()
    cond = linear(mish(linear(cond, "diffusion_step_encoder.1")), "diffusion_step_encoder.3")
    if global_cond is not None:
        cond = torch.cat([cond, global_cond], 1)
    x = x.permute(0, 2, 1)
    skips = []
    for i in range(levels):
        x = residual(x, cond, f"down_modules.{i}.0")
        if i == 0 and local_cond is not None:
            x = x + residual(local_cond.permute(0, 2, 1), cond, "local_cond_encoder.0")
        x = residual(x, cond, f"down_modules.{i}.1")
        skips.append(x)
        if i < levels - 1:
            key = f"down_modules.{i}.2.conv"
            x = F.conv1d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride=2, padding=1)
    for i in range(2):
        x = residual(x, cond, f"mid_modules.{i}")
    for i in range(levels - 1):
        x = torch.cat([x, skips[levels - 1 - i]], 1)
        x = residual(x, cond, f"up_modules.{i}.0")
        x = residual(x, cond, f"up_modules.{i}.1")
        key = f"up_modules.{i}.2.conv"
        x = F.conv_transpose1d(
            x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride=2, padding=1
        )
    x = conv_block(x, "final_conv.0", 8)
    x = F.conv1d(x, weights["final_conv.1.weight"], weights["final_conv.1.bias"])
    return x.permute(0, 2, 1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_equals_the_forward_pass_by_hand(config, batch):
    net = build(config)
    x = torch.randn(batch, 16, 3).double()
    t = torch.randint(100, (batch,)).float()
    local = torch.randn(batch, 16, 5).double() if "local_cond_dim" in config else None
    wide = config.get("global_cond_dim")
    conditioned = torch.randn(batch, wide).double() if wide else None
    expected = by_hand(
        net.state_dict(),
        x,
        t,
        local,
        conditioned,
        len(config["down_dims"]),
        config.get("n_groups", 8),
        config.get("cond_predict_scale", False),
    )
    with torch.no_grad():
        result = net(x, t, local_cond=local, global_cond=conditioned)
    assert result.shape == x.shape
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_one_timestep_for_all_equals_one_each():
    net = build(CONFIGS[0])
    x, cond = torch.randn(3, 8, 3).double(), torch.randn(3, 7).double()
    with torch.no_grad():
        each = net(x, torch.full((3,), 42), global_cond=cond)
        assert torch.equal(net(x, torch.tensor(42), global_cond=cond), each)
        assert torch.equal(net(x, 42, global_cond=cond), each)


def test_published_keys():
    with torch.device("meta"):
        net = ConditionalUnet1D(2, 5, 20, 256, (256, 512, 1024), 5, 8, True)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["diffusion_step_encoder.1.weight"] == (1024, 256)
    assert shapes["diffusion_step_encoder.3.weight"] == (256, 1024)
    assert shapes["local_cond_encoder.1.blocks.0.block.0.weight"] == (256, 5, 5)
    assert shapes["down_modules.0.0.blocks.0.block.0.weight"] == (256, 2, 5)
    assert shapes["down_modules.0.0.cond_encoder.1.weight"] == (512, 276)
    assert shapes["down_modules.0.0.residual_conv.weight"] == (256, 2, 1)
    assert shapes["down_modules.1.2.conv.weight"] == (512, 512, 3)
    assert "down_modules.2.2.conv.weight" not in shapes
    assert "down_modules.0.1.residual_conv.weight" not in shapes
    assert shapes["mid_modules.1.blocks.1.block.1.weight"] == (1024,)
    assert shapes["up_modules.0.0.blocks.0.block.0.weight"] == (512, 2048, 5)
    assert shapes["up_modules.1.2.conv.weight"] == (256, 256, 4)
    assert shapes["final_conv.0.block.1.bias"] == (256,)
    assert shapes["final_conv.1.weight"] == (2, 256, 1)
    assert not [key for key in shapes if key.startswith("up_modules.2")]


def test_the_second_local_condition_block_is_stored_and_never_heard():
    net = build(CONFIGS[2])
    x, local = torch.randn(2, 8, 3).double(), torch.randn(2, 8, 5).double()
    with torch.no_grad():
        before = net(x, 3, local_cond=local)
        for parameter in net.local_cond_encoder[1].parameters():
            parameter.normal_()
        assert torch.equal(net(x, 3, local_cond=local), before)
        for parameter in net.local_cond_encoder[0].parameters():
            parameter.normal_()
        assert not torch.equal(net(x, 3, local_cond=local), before)


def test_a_horizon_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        build(CONFIGS[0])(torch.randn(1, 10, 3).double(), 1, global_cond=torch.randn(1, 7).double())
