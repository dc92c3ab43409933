"""The adaLN-Zero transformer against the published forward pass, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, silu, softmax

from fastloop.policies.diffusion.dit import DiT

T, E, L, H, TIME = 6, 16, 2, 4, 8
FORMS = {
    "rotary": {},
    "learned": {"use_rope": False, "use_positional_encoding": True},
    "both": {"use_positional_encoding": True, "rope_base": 100.0},
    "neither": {"use_rope": False},
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def build(form, dtype=torch.float64):
    """A network with weights far from their initialization, a sample and its condition."""
    torch.manual_seed(0)
    net = DiT(3, T, 10, E, L, H, timestep_embed_dim=TIME, **form).eval().to(dtype)
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return net, torch.randn(4, T, 3, dtype=dtype), torch.randn(4, 2, 5, dtype=dtype)


def by_hand(w, form, sample, timestep, cond):
    """The published network from its weights `w`, one head and one pair of numbers at a time."""

    def affine(x, name):
        return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]

    rates = [10_000 ** (-i / (TIME // 2 - 1)) for i in range(TIME // 2)]
    angles = timestep[:, None].double() * torch.tensor(rates, dtype=torch.float64)
    time = torch.cat([angles.sin(), angles.cos()], -1)
    time = gelu(affine(gelu(affine(time, "time_mlp.1")), "time_mlp.3"))
    features = silu(torch.cat([time, cond.flatten(1)], -1))
    x = affine(sample, "input_proj")
    if form.get("use_positional_encoding"):
        x = x + w["pos_embedding"]
    for layer in range(L):
        block = f"transformer_blocks.{layer}"
        parts = affine(features, f"{block}.adaLN_modulation.1")[:, None].split(E, -1)
        hidden = layer_norm(x, (E,), eps=1e-6) * (1 + parts[1]) + parts[0]
        if form.get("use_rope", True):
            q, k, v = affine(hidden, f"{block}.attn.qkv_proj").split(E, -1)
            out = f"{block}.attn.out_proj"
        else:
            held = f"{block}.multihead_attn"
            qkv = hidden @ w[f"{held}.in_proj_weight"].mT + w[f"{held}.in_proj_bias"]
            (q, k, v), out = qkv.split(E, -1), f"{held}.out_proj"
        heads = []
        for head in range(H):
            columns = slice(head * E // H, (head + 1) * E // H)
            qh, kh = q[..., columns], k[..., columns]
            if form.get("use_rope", True):
                qh, kh = (turned(each, form.get("rope_base", 10_000.0)) for each in (qh, kh))
            scores = softmax(qh @ kh.mT / math.sqrt(E // H), -1)
            heads.append(scores @ v[..., columns])
        x = x + parts[2] * affine(torch.cat(heads, -1), out)
        hidden = layer_norm(x, (E,), eps=1e-6) * (1 + parts[4]) + parts[3]
        hidden = gelu(affine(hidden, f"{block}.mlp.0"), approximate="tanh")
        x = x + parts[5] * affine(hidden, f"{block}.mlp.2")
    return affine(x, "output_proj")


def turned(x, base):
    """Rotary positions as complex numbers: element i and element i + D / 2 are one of them."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1])[:, None]
    angle = position * torch.tensor([base ** (-i / half) for i in range(half)]).double()
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def test_it_computes_what_is_published(form):
    net, sample, cond = build(form)
    timestep = torch.tensor([0, 3, 50, 99])
    output = net(sample, timestep, cond)
    expected = by_hand(net.state_dict(), form, sample, timestep, cond)
    # Frequencies and rotations are float32 in the network, as they were in training.
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert output.std() > 0.1


def test_key_names_are_published():
    def keys(**form):
        return list(DiT(3, T, 10, E, 1, H, timestep_embed_dim=TIME, **form).state_dict())

    linears = ("mlp.0", "mlp.2", "adaLN_modulation.1")
    ends = [
        f"transformer_blocks.0.{name}.{kind}" for name in linears for kind in ("weight", "bias")
    ]
    outer = [
        f"{name}.{kind}"
        for name in ("time_mlp.1", "time_mlp.3", "input_proj", "output_proj")
        for kind in ("weight", "bias")
    ]
    rotary = [
        f"transformer_blocks.0.attn.{name}_proj.{kind}"
        for name in ("qkv", "out")
        for kind in ("weight", "bias")
    ]
    packed = [
        f"transformer_blocks.0.multihead_attn.{name}"
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ]
    assert sorted(keys()) == sorted(outer + rotary + ends)
    learned = keys(use_rope=False, use_positional_encoding=True)
    assert sorted(learned) == sorted([*outer, *packed, *ends, "pos_embedding"])


def test_a_fresh_network_passes_every_block_by():
    """adaLN-Zero: the gates of an untrained network are 0."""
    torch.manual_seed(0)
    net = DiT(3, T, 10, E, L, H, timestep_embed_dim=TIME)
    sample, cond = torch.randn(2, T, 3), torch.randn(2, 2, 5)
    assert torch.equal(net(sample, 7, cond), net.output_proj(net.input_proj(sample)))


def test_a_scalar_step_is_the_step_of_every_row(form):
    net, sample, cond = build(form)
    rows = net(sample, torch.full((4,), 7), cond)
    for timestep in (7, torch.tensor(7)):
        assert torch.equal(net(sample, timestep, cond), rows)
    assert torch.equal(net(sample, 7, cond.flatten(1)), rows)


def test_a_reversed_flow_counts_time_and_velocity_the_other_way():
    net, sample, cond = build({})
    other = DiT(3, T, 10, E, L, H, timestep_embed_dim=TIME, reversed_flow=True).eval().double()
    other.load_state_dict(net.state_dict())
    ours = other(sample, torch.tensor(0.25), cond)
    torch.testing.assert_close(ours, -net(sample, torch.tensor(0.75), cond))


def test_dropout_works_in_training_only():
    net, sample, cond = build({"dropout": 0.5})
    assert torch.equal(net(sample, 3, cond), net(sample, 3, cond))
    net.train()
    assert not torch.equal(net(sample, 3, cond), net(sample, 3, cond))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "3 heads do not fit a width of 16"),
        ({"num_heads": 16}, "each head an even width"),
        ({"timestep_embed_dim": 7}, "even and at least 4, got 7"),
        ({"timestep_embed_dim": 2}, "even and at least 4, got 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiT(3, T, 10, **{"hidden_dim": E, "num_heads": H, **change})
